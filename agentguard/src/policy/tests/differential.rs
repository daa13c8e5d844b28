//! The fast answer against the plain one: every policy of the bundle, the lowered shorthand too, in Cedar's own evaluator
//! with everything that a bundle and a request hold.

use std::collections::HashSet;

use cedar_policy::{Authorizer, Decision as Answer, Entities, Entity, PolicySet};
use proptest::prelude::*;

use super::*;
use crate::policy::evaluate::{Asked as Reading, NO_FIELDS};
use crate::policy::glob::PathPattern;
use crate::policy::host::{HostMap, HostPattern};

static NO_LIMITS: BTreeSet<String> = BTreeSet::new();

/// The bundle as a plain Cedar evaluator sees it.
struct Reference {
    set: PolicySet,
    patterns: HashSet<HostPattern>,
    routes: Vec<PathPattern>,
    facts: Vec<(HostPattern, entity::HostFacts)>,
    agents: Vec<Agent>,
    reach: Vec<(String, HostPattern, TlsMode)>,
}

impl Reference {
    fn new(sources: &Sources) -> Self {
        let mut report = bundle::report(sources);
        let bundle = bundle::read(&mut report, sources);
        let mut made = Self {
            set: PolicySet::new(),
            patterns: HashSet::new(),
            routes: Vec::new(),
            facts: Vec::new(),
            agents: Vec::new(),
            reach: Vec::new(),
        };
        for file in &bundle.agents {
            made.agents.push(file.agent.clone());
            for reach in &file.reach {
                made.patterns.insert(reach.host.clone());
                made.reach
                    .push((file.agent.name.clone(), reach.host.clone(), reach.tls));
                for allow in &reach.allow {
                    let id = lower::id(&report, &file.agent.name, allow);
                    let text = lower::policy(&id, file, reach, allow);
                    let policy = cedar_policy::Policy::parse(None, &text)
                        .unwrap_or_else(|why| panic!("{text}: {why}"));
                    assert_eq!(policy.annotation("id"), Some(id.as_str()));
                    made.set
                        .add(policy.new_id(cedar_policy::PolicyId::new(id)))
                        .unwrap();
                    if let parse::Method::Any(pattern) | parse::Method::One(_, pattern) =
                        &allow.method
                    {
                        made.routes.push(pattern.clone());
                    }
                }
            }
        }
        for rule in bundle.rules {
            made.patterns
                .extend(rule.literals.hosts.into_iter().map(|(_, host)| host));
            made.routes.extend(rule.routes.into_values());
            made.set.add(rule.policy).unwrap();
        }
        for file in bundle.hosts {
            made.patterns.insert(file.host.clone());
            let facts = entity::HostFacts {
                risk: file.risk,
                data: file.data,
                requests: Default::default(),
            };
            made.facts.push((file.host, facts));
        }
        made
    }

    /// The most specific reach entry, by trying all: the longest name that covers the host, itself before a wildcard.
    fn reach(&self, agent: &str, host: &HostPattern) -> Option<TlsMode> {
        let covering = self
            .reach
            .iter()
            .filter(|(name, pattern, _)| name == agent && pattern.covers(host));
        covering
            .max_by_key(|(_, pattern, _)| (!pattern.below, pattern.name.as_str().len()))
            .map(|(_, _, tls)| *tls)
    }

    fn entities(&self, host: &HostPattern, asked: &Asked) -> Entities {
        let mut facts = HostMap::default();
        for (pattern, known) in &self.facts {
            facts.insert(pattern, known.clone());
        }
        let above = |host: &HostPattern| -> Vec<_> {
            let covering = self
                .patterns
                .iter()
                .filter(|pattern| *pattern != host && pattern.covers(host));
            covering
                .map(|pattern| entity::host_uid(&pattern.id()))
                .collect()
        };
        let hosts: HashSet<_> = self.patterns.iter().chain([host]).collect();
        let query = asked.query.as_deref().unwrap_or_default();
        let query = query.split('&').filter_map(|pair| pair.split_once('='));
        let query = query
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let headers = asked
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
        let all: Vec<Entity> = self
            .agents
            .iter()
            .map(entity::agent)
            .chain(
                hosts
                    .into_iter()
                    .map(|host| entity::host(host, &facts, &above(host))),
            )
            .chain(entity::actions())
            .chain([
                entity::tags(entity::query_uid(), &query),
                entity::tags(entity::headers_uid(), &headers.collect()),
            ])
            .collect();
        Entities::from_entities(all, None).unwrap()
    }

    /// The deciding policies, as [`answer`] gives them.
    fn answer(
        &self,
        policy: &Policy,
        agent: AgentId,
        input: &Input<'_>,
        asked: &Asked,
    ) -> Result<Vec<String>, Vec<String>> {
        let compiled = &policy.agents[&agent];
        let host = HostPattern {
            name: asked.host.clone(),
            below: false,
            port: asked.port,
        };
        let readings: Vec<Reading<'_>> =
            match (self.reach(&compiled.agent.name, &host), &input.action) {
                (
                    Some(TlsMode::Terminate),
                    Action::Request {
                        method,
                        scheme,
                        path,
                        ..
                    },
                ) if schema::method(method).is_some() => {
                    let reading = |path| Reading {
                        action: method,
                        scheme,
                        path: Some(path),
                        body: &NO_FIELDS,
                        lookup: &NO_FIELDS,
                        scope: [schema::scope_of(method)].into(),
                        approvals: &input.gathered.approvals,
                        limits: &NO_LIMITS,
                    };
                    path.readings().map(reading).collect()
                }
                (Some(TlsMode::Passthrough), Action::Connect) => {
                    vec![Reading::connection(&input.gathered.approvals, &NO_LIMITS)]
                }
                _ => return Err(vec!["policy-denied".into()]),
            };
        let entities = self.entities(&host, asked);
        let mut permits = BTreeSet::new();
        for reading in readings {
            let routes = |path: &str| {
                let matching = self.routes.iter().filter(|route| route.matches(path));
                matching
                    .map(PathPattern::as_str)
                    .collect::<BTreeSet<_>>()
                    .into_iter()
                    .collect()
            };
            let request = evaluate::request(compiled, input, &reading, |_| true, routes);
            let answer = Authorizer::new().is_authorized(&request, &self.set, &entities);
            let errors: BTreeSet<_> = answer
                .diagnostics()
                .errors()
                .map(
                    |cedar_policy::AuthorizationError::PolicyEvaluationError(error)| {
                        error.policy_id().to_string()
                    },
                )
                .collect();
            let decided = answer
                .diagnostics()
                .reason()
                .map(ToString::to_string)
                .collect::<BTreeSet<_>>();
            if !errors.is_empty() {
                return Err(["policy-denied".into()].into_iter().chain(errors).collect());
            }
            match answer.decision() {
                Answer::Allow => permits.extend(decided),
                Answer::Deny => {
                    return Err(["policy-denied".into()]
                        .into_iter()
                        .chain(decided)
                        .collect());
                }
            }
        }
        Ok(permits.into_iter().collect())
    }
}

const HOSTS: [&str; 7] = [
    "*.x.t", "a.x.t", "*.b.x.t", "c.b.x.t", "*.x.t:80", "d.t", "10.0.0.1",
];
const NAMES: [(&str, u16); 9] = [
    ("a.x.t", 443),
    ("z.x.t", 443),
    ("c.b.x.t", 443),
    ("e.b.x.t", 443),
    ("b.x.t", 443),
    ("a.x.t", 80),
    ("d.t", 443),
    ("10.0.0.1", 443),
    ("q.t", 443),
];
const ROUTES: [&str; 7] = ["/**", "/p/*", "/p/**", "/p/q", "/*/q", "/p%2Fq", "/p/q*"];
const PATHS: [&str; 9] = [
    "/", "/p", "/p/", "/p/q", "/p/q/r", "/x/q", "/p%2Fq", "/p/a%2Fq", "/p/q%40",
];
const METHODS: [&str; 5] = ["GET", "POST", "PUT", "ANY", "LOCK"];
const PRINCIPALS: [&str; 4] = [
    "principal",
    "principal == Agent::\"a\"",
    "principal in Agent::\"b\"",
    "principal is Agent",
];
const ACTIONS: [&str; 8] = [
    "action",
    "action == Action::\"GET\"",
    "action in [Action::\"GET\", Action::\"POST\"]",
    "action in Action::\"request\"",
    "action == Action::\"connect\"",
    "action in [Action::\"connect\", Action::\"PUT\"]",
    "action in [Action::\"request\"]",
    "action in [Action::\"request\", Action::\"connect\"]",
];
const CONDITIONS: [&str; 18] = [
    "true",
    "context.path == \"/p/q\"",
    "context.path like \"/p/*\"",
    "context.routes.contains(\"/p/**\")",
    "context.routes.contains(\"/*/q\") || context.segments > 2",
    "context.query.hasTag(\"q\") && context.query.getTag(\"q\") == \"1\"",
    "context.headers.hasTag(\"x-h\")",
    "context.headers.hasTag(principal.risk)",
    "resource.risk == \"high\"",
    "resource.data.contains(\"d\")",
    "principal.risk == \"low\"",
    "resource in Host::\"*.b.x.t\"",
    "Host::\"a.x.t\".risk == \"high\"",
    "context.scheme == \"https\"",
    "resource.name like \"*.x.t\"",
    "context.segments * 9223372036854775807 > 1",
    "Agent::\"b\".owner == principal.owner",
    "action in Action::\"request\"",
];

fn pick(from: &'static [&'static str]) -> impl Strategy<Value = &'static str> {
    (0..from.len()).prop_map(move |index| from[index])
}

prop_compose! {
    fn reach()(host in pick(&HOSTS), pass in 0..4, allow in prop::collection::btree_set((pick(&METHODS), pick(&ROUTES)), 0..6)) -> (&'static str, String) {
        let text = if pass == 0 {
            let allow = if allow.len() > 1 { "\nallow = [\"connect\"]" } else { "" };
            format!("[[reach]]\nhost = \"{host}\"\ntls = \"passthrough\"{allow}\n")
        } else {
            let allow: Vec<_> = allow.iter().map(|(method, route)| format!("\"{method} {route}\"")).collect();
            format!("[[reach]]\nhost = \"{host}\"\nallow = [{}]\n", allow.join(", "))
        };
        (host, text)
    }
}

prop_compose! {
    fn agent()(entries in prop::collection::vec(reach(), 3..9)) -> String {
        let mut seen = HashSet::new();
        entries.into_iter().filter(|(host, _)| seen.insert(*host)).map(|(_, text)| text).collect()
    }
}

prop_compose! {
    fn rule()(permit in prop::bool::weighted(0.8), principal in pick(&PRINCIPALS), action in pick(&ACTIONS), host in pick(&HOSTS), on_host in 0..3, when in pick(&CONDITIONS), unless in prop::option::weighted(0.2, pick(&CONDITIONS))) -> String {
        let effect = if permit { "permit" } else { "forbid" };
        let resource = match on_host {
            0 => "resource".to_owned(),
            _ if host.starts_with('*') => format!("resource in Host::\"{host}\""),
            _ => format!("resource == Host::\"{host}\""),
        };
        let unless = unless.map_or(String::new(), |unless| format!(" unless {{ {unless} }}"));
        format!("{effect} ({principal}, {action}, {resource}) when {{ {when} }}{unless};")
    }
}

prop_compose! {
    fn bundle_sources()(a in agent(), b in agent(), hosts in prop::collection::btree_set(pick(&HOSTS), 0..3), rules in prop::collection::vec(rule(), 0..8)) -> Sources {
        let mut files = BTreeMap::from([("bundle.toml".to_owned(), "name = \"b\"\nserial = 1\n".to_owned())]);
        for (name, reach) in [("a", a), ("b", b)] {
            files.insert(format!("agents/{name}.toml"), format!("[agent]\nname = \"{name}\"\nowner = \"o\"\nrisk = \"low\"\n{reach}"));
        }
        for (index, host) in hosts.into_iter().enumerate() {
            let facts = ["risk = \"high\"\n", "risk = \"low\"\ndata = [\"d\"]\n", ""][index % 3];
            files.insert(format!("hosts/h{index}.toml"), format!("[host]\nname = \"{host}\"\n{facts}"));
        }
        for (index, rule) in rules.into_iter().enumerate() {
            files.insert(format!("rules/r{index}.cedar"), format!("@id(\"r{index}\") {rule}"));
        }
        Sources { files }
    }
}

/// Leaves out the rules that the bundle makes impossible.
fn settle(mut sources: Sources) -> (Sources, Policy) {
    loop {
        match Policy::compile(&sources, &ids(&sources)) {
            Ok(policy) => return (sources, policy),
            Err(found) => {
                for one in found {
                    assert!(one.file.starts_with("rules/"), "{one:?}");
                    sources.files.remove(&one.file);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
    #[test]
    fn the_fast_answer_is_the_whole_sets(sources in bundle_sources()) {
        let (sources, policy) = settle(sources);
        let reference = Reference::new(&sources);
        for agent in policy.agents.keys().copied() {
            for (index, (host, port)) in NAMES.into_iter().enumerate() {
                for (turn, path) in PATHS.into_iter().enumerate() {
                    // Every combination of the rest comes up over the hosts, paths and cases.
                    let turn = index * PATHS.len() + turn;
                    let method = ["GET", "POST", "PUT", "LOCK", "DELETE", "PURGE"][turn % 6];
                    let query = ["", "?q=1", "?q=2&r=1"][turn % 3];
                    let headers: &[(&str, &str)] = [&[][..], &[("x-h", "1")], &[("low", "1"), ("x-i", "1")]][turn / 3 % 3];
                    let scheme = if port == 80 { "http" } else { "https" };
                    let asked = Asked::new(&format!("{method} {scheme}://{host}:{port}{path}{query}"), headers);
                    let mut input = asked.input(agent);
                    if turn.is_multiple_of(9) {
                        input.action = Action::Connect;
                    }
                    let fast = answer(&policy, &input);
                    let whole = reference.answer(&policy, agent, &input, &asked);
                    prop_assert_eq!(fast, whole, "{:?} {} {}:{}{}{} {:?}\n{:#?}", agent, method, host, port, path, query, headers, sources);
                }
            }
        }
    }
}
