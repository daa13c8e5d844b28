//! The bundle and a request as a plain Cedar evaluator sees them, written as JSON.

use std::collections::HashSet;

use cedar_policy::{
    AuthorizationError, Authorizer, Context, Decision as Answer, Effect, Entities, Entity,
    PolicySet, Request, Response,
};
use serde_json::{Value, json};

use super::super::*;
use crate::glob::PathPattern;
use crate::host::HostPattern;
use crate::parse::{HostFile, Method};

/// Everything that the bundle says.
pub(super) struct Reference {
    set: PolicySet,
    /// Its forbids, as they hold of lenient servers' readings.
    lenient: PolicySet,
    /// Roles and reasons that forbids name.
    roles: BTreeMap<String, String>,
    reasons: BTreeMap<String, String>,
    patterns: HashSet<HostPattern>,
    routes: Vec<PathPattern>,
    hosts: Vec<HostFile>,
    reach: Vec<(String, HostPattern, TlsMode)>,
    /// Agents, actions, and every host that the bundle names.
    entities: Entities,
}

/// A request, or a connection whose bytes are passed.
pub(super) struct Question<'q> {
    agent: &'q str,
    asked: &'q Asked,
    host: HostPattern,
    connects: bool,
    body: Value,
}

impl<'q> Question<'q> {
    pub(super) fn new(agent: &'q str, asked: &'q Asked, connects: bool, body: &str) -> Self {
        Self {
            agent,
            asked,
            host: HostPattern {
                name: asked.host.clone(),
                below: false,
                port: asked.port,
            },
            connects,
            body: serde_json::from_str(body).unwrap_or_default(),
        }
    }

    /// The same, asked by another.
    pub(super) fn of(self, agent: &'q str) -> Self {
        Self { agent, ..self }
    }
}

/// What the policies say to all readings of a request.
enum Said {
    Permitted(BTreeSet<String>),
    Failed(BTreeSet<String>),
    Forbidden(BTreeSet<String>),
    Nothing,
}

impl Reference {
    pub(super) fn new(sources: &Sources) -> Self {
        let mut report = bundle::report(sources);
        let bundle = bundle::read(&mut report, sources);
        let mut made = Self {
            set: PolicySet::new(),
            lenient: lenient(sources),
            roles: BTreeMap::new(),
            reasons: BTreeMap::new(),
            patterns: HashSet::new(),
            routes: Vec::new(),
            hosts: Vec::new(),
            reach: Vec::new(),
            entities: Entities::empty(),
        };
        let mut entities = actions();
        for file in &bundle.agents {
            let agent = &file.agent;
            entities.push(json!({
                "uid": { "type": "Agent", "id": agent.name },
                "attrs": { "owner": agent.owner, "risk": agent.risk },
                "parents": [],
            }));
            for reach in &file.reach {
                made.patterns.insert(reach.host.clone());
                made.reach
                    .push((agent.name.clone(), reach.host.clone(), reach.tls));
                for allow in &reach.allow {
                    let id = lower::id(&report, &agent.name, allow);
                    let text = lower::policy(&id, file, reach, allow);
                    let policy = cedar_policy::Policy::parse(None, &text)
                        .unwrap_or_else(|why| panic!("{text}: {why}"));
                    assert_eq!(policy.annotation("id"), Some(id.as_str()));
                    made.set
                        .add(policy.new_id(cedar_policy::PolicyId::new(id)))
                        .unwrap();
                    if let Method::Any(pattern) | Method::One(_, pattern) = &allow.method {
                        made.routes.push(pattern.clone());
                    }
                }
            }
        }
        for rule in bundle.rules {
            let annotated = |name: &str, kept: &mut BTreeMap<String, String>| {
                if let Some(value) = rule.policy.annotation(name) {
                    assert_eq!(rule.policy.effect(), Effect::Forbid);
                    kept.insert(rule.id.clone(), value.to_owned());
                }
            };
            annotated("approve", &mut made.roles);
            annotated("reason", &mut made.reasons);
            made.patterns
                .extend(rule.literals.hosts.into_iter().map(|(_, host)| host));
            made.routes.extend(rule.routes.into_values());
            made.set.add(rule.policy).unwrap();
        }
        let described = bundle.hosts.iter().map(|file| file.host.clone());
        made.patterns.extend(described);
        made.hosts = bundle.hosts;
        entities.extend(made.patterns.iter().map(|host| made.host(host)));
        made.entities = Entities::from_json_value(entities.into(), None).unwrap();
        made
    }

    /// The deciding policies, as [`answer`] gives them.
    pub(super) fn answer(&self, question: &Question<'_>) -> Result<Vec<String>, Vec<String>> {
        let denied = |reason: &str, ids: BTreeSet<String>| {
            let reason = std::iter::once(reason.to_owned());
            Err(reason.chain(ids).collect())
        };
        if !self.is_decided(question) {
            return denied("policy-denied", BTreeSet::new());
        }
        let approvals = question.asked.context.approved_by();
        let ids = match self.said(question, approvals) {
            Said::Permitted(ids) => return Ok(ids.into_iter().collect()),
            Said::Nothing => return denied("policy-denied", BTreeSet::new()),
            Said::Failed(ids) => return denied("policy-denied", ids),
            Said::Forbidden(ids) => ids,
        };
        let roles: Option<BTreeSet<_>> = ids.iter().map(|id| self.roles.get(id)).collect();
        if let Some(roles) = roles {
            let held = approvals.iter().chain(roles).cloned().collect();
            if let Said::Permitted(_) = self.said(question, &held) {
                return denied("approval-required", ids);
            }
        }
        let reasons: BTreeSet<_> = ids.iter().map(|id| self.reasons.get(id)).collect();
        match reasons.into_iter().collect::<Vec<_>>()[..] {
            [Some(reason)] => denied(reason, ids),
            _ => denied("policy-denied", ids),
        }
    }

    /// Whether the readings of the path have different blocks of fields.
    pub(super) fn has_two_bodies(&self, question: &Question<'_>) -> bool {
        let readings = question.asked.path.readings().unwrap();
        let readings = readings.into_iter();
        let readings =
            readings.flat_map(|path| std::iter::once(path.to_owned()).chain(forms(path)));
        let readings: Vec<_> = readings.collect();
        let mut blocks = readings.iter().map(|path| self.block(question, path));
        let first = blocks.next().flatten();
        blocks.any(|other| other != first)
    }

    /// Whether the agent reaches the host in this way: by the longest name that covers it, itself before a wildcard.
    fn is_decided(&self, question: &Question<'_>) -> bool {
        let covering = self.reach.iter().filter(|(agent, pattern, _)| {
            agent == question.agent && pattern.covers(&question.host)
        });
        let nearest = covering
            .max_by_key(|(_, pattern, _)| (!pattern.below, pattern.name.as_str().len()))
            .map(|(_, _, tls)| *tls);
        match nearest {
            None => false,
            Some(TlsMode::Passthrough) => question.connects,
            Some(TlsMode::Terminate) => {
                !question.connects && schema::method(&question.asked.method).is_some()
            }
        }
    }

    fn said(&self, question: &Question<'_>, approvals: &BTreeSet<String>) -> Said {
        let (mut permits, mut forbids) = (BTreeSet::new(), BTreeSet::new());
        let readings: Vec<_> = match question.connects {
            true => vec![None],
            false => {
                let readings = question.asked.path.readings().unwrap();
                readings.into_iter().map(Some).collect()
            }
        };
        let entities = self.entities_for(question);
        for path in readings {
            let context = self.context(question, path, approvals);
            let action = match question.connects {
                true => schema::CONNECT,
                false => &question.asked.method,
            };
            let mut asked = vec![(&self.set, context)];
            let forms = path.into_iter().flat_map(forms);
            asked.extend(forms.map(|form| {
                let context = self.lenient_context(question, path.unwrap(), &form, approvals);
                (&self.lenient, context)
            }));
            for (index, (set, context)) in asked.into_iter().enumerate() {
                let answer = self.asks(question, action, set, context, &entities);
                let failed = answer.diagnostics().errors().map(
                    |AuthorizationError::PolicyEvaluationError(error)| {
                        error.policy_id().to_string()
                    },
                );
                let failed: BTreeSet<_> = failed.collect();
                let decided: BTreeSet<_> = answer
                    .diagnostics()
                    .reason()
                    .map(ToString::to_string)
                    .collect();
                if !failed.is_empty() {
                    return Said::Failed(failed);
                }
                match answer.decision() {
                    Answer::Allow => permits.extend(decided),
                    Answer::Deny if decided.is_empty() && index > 0 => {}
                    Answer::Deny if decided.is_empty() => return Said::Nothing,
                    Answer::Deny if decided.iter().all(|id| self.roles.contains_key(id)) => {
                        forbids.extend(decided);
                    }
                    Answer::Deny => return Said::Forbidden(decided),
                }
            }
        }
        match forbids.is_empty() {
            true => Said::Permitted(permits),
            false => Said::Forbidden(forbids),
        }
    }

    fn asks(
        &self,
        question: &Question<'_>,
        action: &str,
        set: &PolicySet,
        context: Value,
        entities: &Entities,
    ) -> Response {
        let request = Request::new(
            entity::agent_uid(question.agent),
            entity::action_uid(action),
            entity::host_uid(&question.host.id()),
            Context::from_json_value(context, None).unwrap(),
            None,
        );
        Authorizer::new().is_authorized(&request.unwrap(), set, entities)
    }

    /// The context of a path as a lenient server has it, with what is written beside it.
    fn lenient_context(
        &self,
        question: &Question<'_>,
        path: &str,
        form: &str,
        approvals: &BTreeSet<String>,
    ) -> Value {
        let written = self.context(question, Some(path), approvals);
        let mut context = written.clone();
        let body = self.body(question, path);
        let routes = self.routes.iter().map(|route| lower(route.as_str()));
        let routes = routes.filter(|route| {
            let pattern = PathPattern::parse(route).unwrap();
            pattern.matches(form)
        });
        context["path"] = form.into();
        context["routes"] = routes.collect::<BTreeSet<_>>().into_iter().collect();
        let segments = form.split('/').filter(|segment| !segment.is_empty());
        context["segments"] = segments.count().into();
        context["scope"] = self.scope(question, form, &body).into_iter().collect();
        for name in ["path", "routes", "segments", "scope"] {
            context[format!("written {name}")] = written[name].clone();
        }
        context
    }

    /// The most specific file about the host, by trying all.
    fn file(&self, host: &HostPattern) -> Option<&HostFile> {
        let covering = self.hosts.iter().filter(|file| file.host.covers(host));
        covering.max_by_key(|file| (!file.host.below, file.host.name.as_str().len()))
    }

    fn host(&self, host: &HostPattern) -> Value {
        let star = if host.below { "*." } else { "" };
        let file = self.file(host);
        let above = self.patterns.iter();
        let above = above.filter(|pattern| *pattern != host && pattern.covers(host));
        let above = above.map(|pattern| json!({ "type": "Host", "id": pattern.id() }));
        json!({
            "uid": { "type": "Host", "id": host.id() },
            "attrs": {
                "name": format!("{star}{}", host.name.as_str()),
                "port": host.port,
                "risk": file.map_or("unknown", |file| &file.risk),
                "data": file.map_or(&[][..], |file| &file.data),
            },
            "parents": above.collect::<Vec<_>>(),
        })
    }

    fn entities_for(&self, question: &Question<'_>) -> Entities {
        let query = question.asked.query.as_deref().unwrap_or_default();
        let query = query.split('&').filter_map(|pair| pair.split_once('='));
        let headers = question.asked.headers.iter();
        let headers = headers.map(|(name, value)| (name.as_str(), value.to_str().unwrap()));
        let mut added = vec![
            json!({ "uid": { "type": "Query", "id": "request" }, "attrs": {}, "parents": [], "tags": query.collect::<BTreeMap<_, _>>() }),
            json!({ "uid": { "type": "Headers", "id": "request" }, "attrs": {}, "parents": [], "tags": headers.collect::<BTreeMap<_, _>>() }),
        ];
        if !self.patterns.contains(&question.host) {
            added.push(self.host(&question.host));
        }
        let added = added
            .into_iter()
            .map(|one| Entity::from_json_value(one, None).unwrap());
        self.entities.clone().add_entities(added, None).unwrap()
    }

    fn block(&self, question: &Question<'_>, path: &str) -> Option<&BodyBlock> {
        let mut blocks = self.file(&question.host)?.body.iter();
        blocks.find(|block| self.fits(block.method, &block.path, question, path))
    }

    /// The declared fields that the request's body has.
    fn body(&self, question: &Question<'_>, path: &str) -> BTreeMap<String, Value> {
        let block = self.block(question, path);
        let fields = block.into_iter().flat_map(|block| block.fields.keys());
        let has = |name: &String| Some((name.clone(), question.body.get(name)?.clone()));
        fields.filter_map(has).collect()
    }

    fn fits(
        &self,
        method: Option<&str>,
        route: &PathPattern,
        question: &Question<'_>,
        path: &str,
    ) -> bool {
        method.is_none_or(|method| method == question.asked.method) && route.matches(path)
    }

    fn scope(
        &self,
        question: &Question<'_>,
        path: &str,
        body: &BTreeMap<String, Value>,
    ) -> BTreeSet<&'static str> {
        let entries = self
            .file(&question.host)
            .map_or(&[][..], |file| &file.scope);
        let mut found = BTreeSet::new();
        for entry in entries {
            let holds = entry.conditions.iter().all(|(name, values)| {
                let value = body.get(name).and_then(Value::as_str);
                value.is_some_and(|value| values.contains(value))
            });
            if holds && self.fits(entry.method, &entry.path, question, path) {
                found.extend(&entry.is);
            }
        }
        if found.is_empty() {
            let reads = ["GET", "HEAD", "OPTIONS"].contains(&&*question.asked.method);
            found.insert(if reads { "read" } else { "write" });
        }
        found
    }

    fn context(
        &self,
        question: &Question<'_>,
        path: Option<&str>,
        approvals: &BTreeSet<String>,
    ) -> Value {
        let gathered = &question.asked.context;
        let network = gathered.network.unwrap();
        let host = gathered.host.as_ref().unwrap();
        let time = gathered.time.as_ref().unwrap();
        let mut context = json!({
            "approvals": approvals,
            "time": {
                "hour": time.hour, "minute": time.minute, "weekday": time.weekday, "date": time.date,
                "within": time.within,
            },
            "network": { "trusted": network.trusted },
            "host": { "labels": host.labels },
        });
        let Some(path) = path else {
            return context;
        };
        let body = self.body(question, path);
        let scope = self.scope(question, path, &body);
        let fields = body.into_iter().map(|(name, value)| match name.as_str() {
            "amount" => {
                let mut text = value.to_string();
                if !text.contains('.') {
                    text.push_str(".0");
                }
                (name, json!({ "__extn": { "fn": "decimal", "arg": text } }))
            }
            _ => (name, value),
        });
        let routes = self.routes.iter().filter(|route| route.matches(path));
        let routes: BTreeSet<_> = routes.map(PathPattern::as_str).collect();
        let segments = path.split('/').filter(|segment| !segment.is_empty());
        let of_request = json!({
            "scheme": question.asked.scheme,
            "path": path,
            "segments": segments.count(),
            "routes": routes,
            "query": { "__entity": { "type": "Query", "id": "request" } },
            "headers": { "__entity": { "type": "Headers", "id": "request" } },
            "body": fields.collect::<serde_json::Map<_, _>>(),
            "scope": scope,
        });
        let of_request = of_request.as_object().unwrap().clone();
        context.as_object_mut().unwrap().extend(of_request);
        context
    }
}

fn actions() -> Vec<Value> {
    let uid = |name: &str| json!({ "type": "Action", "id": name });
    let methods = schema::METHODS.iter().map(
        |method| json!({ "uid": uid(method), "attrs": {}, "parents": [uid(schema::REQUEST)] }),
    );
    let others = [schema::REQUEST, schema::CONNECT];
    let others = others.map(|name| json!({ "uid": uid(name), "attrs": {}, "parents": [] }));
    methods.chain(others).collect()
}

/// The forbids: what they hold for with its letters folded, and what lifts them by what is written.
fn lenient(sources: &Sources) -> PolicySet {
    let mut set = PolicySet::new();
    for (name, text) in &sources.files {
        let Some((when, unless)) = text.split_once("} unless {").or(Some((text, ""))) else {
            continue;
        };
        if !name.starts_with("rules/") || !text.contains("forbid (") {
            continue;
        }
        let mut unless = unless.to_owned();
        for name in ["path", "routes", "segments", "scope"] {
            unless = unless.replace(
                &format!("context.{name}"),
                &format!("context[\"written {name}\"]"),
            );
        }
        let when = when.replace("\"/P/", "\"/p/").replace("\"/X/", "\"/x/");
        let text = match unless.is_empty() {
            true => when,
            false => format!("{when}}} unless {{{unless}"),
        };
        let policy = cedar_policy::Policy::parse(None, &text).unwrap();
        let id = policy.annotation("id").unwrap().to_owned();
        set.add(policy.new_id(cedar_policy::PolicyId::new(id)))
            .unwrap();
    }
    set
}

/// The letters that the paths and patterns have in both cases.
fn lower(text: &str) -> String {
    text.replace("/P", "/p")
        .replace("/Q", "/q")
        .replace("/X", "/x")
}

/// Every form in which a lenient server may compare the path, by leaving out whatever can be left out.
fn forms(path: &str) -> BTreeSet<String> {
    let mut open = vec![(lower(path), false)];
    let mut found = BTreeSet::new();
    while let Some((form, cut)) = open.pop() {
        open.extend(
            form.strip_suffix("%20")
                .map(|short| (short.to_owned(), cut)),
        );
        let short = form.strip_suffix('/').filter(|short| !short.is_empty());
        open.extend(short.map(|short| (short.to_owned(), cut)));
        let short = form.strip_suffix(".r").filter(|_| !cut);
        open.extend(short.map(|short| (short.to_owned(), true)));
        found.insert(form);
    }
    found
}
