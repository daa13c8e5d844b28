//! What rules say, against the agents and hosts that the bundle has: strict validation, and rules that nothing can meet.

mod shape;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use cedar_policy::{
    PolicySet, Schema, ValidationError, ValidationMode, ValidationWarning, Validator,
};

use super::bundle::ParsedBundle;
use super::diagnostic::{Place, Report, did_you_mean};
use super::host::{HostMap, HostPattern};
use super::parse::AgentFile;
use super::rules::{CedarRule, HostScope, first_label};
use super::schema::{self, Scope, Shape};
use super::{KernelRule, TlsMode};

/// Which decisions a rule can take part in.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Applies {
    to_requests: bool,
    to_connections: bool,
    /// Some agent and host fit, if only the action did.
    but_for_action: bool,
}

pub(super) fn check(report: &mut Report<'_>, bundle: &ParsedBundle) {
    let world = World::new(bundle);
    let mut described = HostMap::default();
    for file in &bundle.hosts {
        described.insert(&file.host, file);
    }
    let mut groups: BTreeMap<(Scope, Shape), Vec<RuleCheck<'_>>> = BTreeMap::new();
    for rule in &bundle.rules {
        // What another file failed to say would be missed here a second time.
        let mut sound = !rule.literals.faulty && bundle.whole;
        sound = sound && check_literals(report, &world, rule);
        let applies = world.applies(rule);
        if sound && !applies.to_requests && !applies.to_connections {
            never_applies(report, rule, applies);
            sound = false;
        }
        let scope = if applies.to_connections || rule.literals.connect {
            Scope::RequestsAndConnections
        } else {
            Scope::Requests
        };
        let shapes = shape::shapes(bundle, &described, rule);
        if bundle.whole {
            shape::check_fields(report, rule, &shapes);
            shape::check_limit(report, rule, &shapes);
        }
        let count = shapes.len();
        for (shape, host) in shapes {
            let group = groups.entry((scope, shape)).or_default();
            group.push(RuleCheck {
                rule,
                sound,
                host: host.filter(|_| count > 1),
                shapes: count,
            });
        }
    }
    let mut impossible: HashMap<&str, usize> = HashMap::new();
    for ((scope, shape), rules) in &groups {
        validate(report, bundle, *scope, shape, rules, &mut impossible);
    }
}

/// A rule against the requests to some of the hosts that it fits.
struct RuleCheck<'b> {
    rule: &'b CedarRule,
    sound: bool,
    /// One of them, where others have other bodies or look-ups.
    host: Option<String>,
    /// How many different bodies and look-ups those hosts have.
    shapes: usize,
}

/// The bundle's agents and hosts, indexed for look-ups.
struct World<'b> {
    agents: Vec<AgentReach<'b>>,
    by_name: HashMap<&'b str, usize>,
    hosts: HostMap<()>,
    /// Names that some host lies below, by port.
    above_hosts: HashSet<(u16, &'b str)>,
    host_ids: BTreeSet<String>,
}

struct AgentReach<'b> {
    file: &'b AgentFile,
    entries: HostMap<TlsMode>,
}

impl<'b> World<'b> {
    fn new(bundle: &'b ParsedBundle) -> Self {
        let mut world = Self {
            agents: Vec::new(),
            by_name: HashMap::new(),
            hosts: HostMap::default(),
            above_hosts: HashSet::new(),
            host_ids: BTreeSet::new(),
        };
        for file in &bundle.agents {
            let mut entries = HostMap::default();
            for reach in &file.reach {
                entries.insert(&reach.host, reach.tls);
                world.add_host(&reach.host);
            }
            world.by_name.insert(&file.agent.name, world.agents.len());
            world.agents.push(AgentReach { file, entries });
        }
        for file in &bundle.hosts {
            world.add_host(&file.host);
        }
        world
    }

    fn add_host(&mut self, host: &'b HostPattern) {
        self.hosts.insert(host, ());
        self.host_ids.insert(host.id());
        self.above_hosts
            .extend(host.parents().map(|parent| (host.port, parent)));
        if host.below {
            self.above_hosts.insert((host.port, host.name.as_str()));
        }
    }

    fn has_host(&self, host: &HostPattern) -> bool {
        self.hosts.covering(host).is_some()
            || host.below && self.above_hosts.contains(&(host.port, host.name.as_str()))
    }

    fn applies(&self, rule: &CedarRule) -> Applies {
        let mut found = Applies::default();
        let named = rule
            .agent
            .as_ref()
            .map(|name| self.by_name.get(name.as_str()));
        let agents = match named {
            None => &self.agents[..],
            Some(Some(index)) => std::slice::from_ref(&self.agents[*index]),
            Some(None) => &[],
        };
        for agent in agents {
            agent.applies(rule, &mut found);
            if found.to_requests && found.to_connections {
                break;
            }
        }
        found
    }

    /// The `to` entry that reaches the address without the forwarder.
    fn kernel_rule(&self, host: &HostPattern) -> Option<Place> {
        let ip = host.name.ip()?;
        let rules = self
            .agents
            .iter()
            .flat_map(|agent| agent.file.agent.kernel.iter().zip(&agent.file.kernel_at));
        rules
            .filter_map(|(rule, at)| match rule {
                KernelRule::Reach { net, port, .. } => Some((net, port, at)),
                KernelRule::Listen { .. } => None,
            })
            .find(|(net, port, _)| net.contains(&ip) && port.is_none_or(|port| port == host.port))
            .map(|(_, _, at)| *at)
    }
}

impl AgentReach<'_> {
    fn applies(&self, rule: &CedarRule, found: &mut Applies) {
        let mut meet = |tls: TlsMode| {
            found.but_for_action = true;
            match tls {
                TlsMode::Terminate => found.to_requests |= rule.actions.has_requests(),
                TlsMode::Passthrough => found.to_connections |= rule.actions.has_connect(),
            }
        };
        match &rule.host {
            HostScope::Any => self.file.reach.iter().for_each(|reach| meet(reach.tls)),
            HostScope::Is(host) => {
                if let Some(tls) = self.entries.covering(host) {
                    meet(*tls);
                }
                if host.below {
                    let inside = self
                        .file
                        .reach
                        .iter()
                        .filter(|reach| host.covers(&reach.host));
                    inside.for_each(|reach| meet(reach.tls));
                }
            }
        }
    }
}

/// Whether the bundle has every agent and host that the rule names.
fn check_literals(report: &mut Report<'_>, world: &World<'_>, rule: &CedarRule) -> bool {
    let mut known = true;
    for (at, name) in &rule.literals.agents {
        if !world.by_name.contains_key(name.as_str()) {
            known = false;
            let help = did_you_mean(name, world.by_name.keys().copied());
            report.error_with(
                *at,
                format!("the bundle has no agent `{}`", super::host::show(name)),
                Some(help.unwrap_or_else(|| "add it to agents/, or correct the name".into())),
            );
        }
    }
    for (at, host) in &rule.literals.hosts {
        if world.has_host(host) {
            continue;
        }
        known = false;
        let id = host.id();
        if let Some(kernel) = world.kernel_rule(host) {
            let kernel = report.name(kernel);
            report.error_help(
                *at,
                format!("no rule sees `{id}`: {kernel} reaches it straight through the kernel"),
                "reach it as a `host` to have its requests decided",
            );
            continue;
        }
        let help = did_you_mean(&id, world.host_ids.iter().map(String::as_str));
        report.error_with(
            *at,
            format!("the bundle has no host `{id}`"),
            Some(help.unwrap_or_else(|| {
                "add a [[reach]] for it to an agent, or correct the name".into()
            })),
        );
    }
    known
}

fn never_applies(report: &mut Report<'_>, rule: &CedarRule, applies: Applies) {
    let who = match &rule.agent {
        Some(name) => format!("agent `{name}`"),
        None => "any agent".to_owned(),
    };
    let (message, help) = match &rule.host {
        _ if applies.but_for_action && rule.actions.has_requests() => (
            "policy can never apply: the hosts it fits are passed through, where only `connect` is decided".to_owned(),
            "name `Action::\"connect\"`, or leave out `tls = \"passthrough\"` in the agent's [[reach]]",
        ),
        _ if applies.but_for_action => (
            "policy can never apply: `connect` is decided only where the agent's [[reach]] says `tls = \"passthrough\"`".to_owned(),
            "name HTTP methods, or the group `Action::\"request\"` with `in`",
        ),
        HostScope::Any => (
            format!("policy can never apply: no [[reach]] of {who} names a host"),
            "add a [[reach]] with `host`",
        ),
        HostScope::Is(host) => (
            format!("policy can never apply: no [[reach]] of {who} covers `{}`", host.id()),
            "add a [[reach]] with this `host` to the agent",
        ),
    };
    report.error_help(rule.at, message, help);
}

/// Cedar's strict validation, its warnings too: a rule that is always false protects nobody.
fn validate<'b>(
    report: &mut Report<'_>,
    bundle: &'b ParsedBundle,
    scope: Scope,
    shape: &Shape,
    rules: &[RuleCheck<'b>],
    impossible: &mut HashMap<&'b str, usize>,
) {
    let named: BTreeSet<&str> = bundle
        .rules
        .iter()
        .flat_map(|rule| rule.literals.methods.iter().copied())
        .collect();
    let mut by_id = HashMap::new();
    let mut set = PolicySet::new();
    for checked in rules {
        // A repeated id has been reported.
        if set.add(checked.rule.policy.clone()).is_ok() {
            by_id.insert(checked.rule.id.as_str(), checked);
        }
    }
    if by_id.is_empty() {
        return;
    }
    let schema = match Schema::from_cedarschema_str(&schema::text(&named, scope, shape)) {
        Ok((schema, _)) => schema,
        Err(why) => {
            report.file_error(
                "bundle.toml",
                format!("no schema can be made of the bundle: {why}"),
                None,
            );
            return;
        }
    };
    let result = Validator::new(schema).validate(&set, ValidationMode::Strict);
    let mut place = |id: &str, of_head: bool, error: &dyn miette::Diagnostic| {
        let Some(RuleCheck {
            rule, sound, host, ..
        }) = by_id.get(id)
        else {
            return;
        };
        // Cedar's view of a head that has been reported in the bundle's own terms.
        if of_head && !sound {
            return;
        }
        let at = first_label(error).map_or(rule.at, |offset| Place::new(rule.at.file, offset));
        let message = error.to_string();
        let message = message
            .strip_prefix(&format!("for policy `{id}`, "))
            .unwrap_or(&message);
        let path = message.contains(schema::CONNECT) && scope == Scope::RequestsAndConnections;
        let help = match error.help() {
            _ if path => Some("a passed connection has no request; write `action in Action::\"request\"` in the rule's head".to_owned()),
            help => help.map(|help| help.to_string()),
        };
        let message = if path {
            message.to_owned()
        } else {
            without_action(message)
        };
        let message = match host {
            Some(host) => format!("{message}, in requests to `{host}`"),
            None => message,
        };
        report.error_with(at, message, help);
    };
    for error in result.validation_errors() {
        let of_head = matches!(error, ValidationError::UnrecognizedActionId(_));
        place(error.policy_id().as_ref(), of_head, error);
    }
    for warning in result.validation_warnings() {
        let of_head = matches!(
            warning,
            ValidationWarning::ImpossiblePolicy(_) | ValidationWarning::InvalidActionApplication(_)
        );
        // What cannot hold at one host may hold at another that has other bodies or look-ups.
        if let ValidationWarning::ImpossiblePolicy(_) = warning
            && let Some(checked) = by_id.get(AsRef::<str>::as_ref(warning.policy_id()))
        {
            let times = impossible.entry(&checked.rule.id).or_default();
            *times += 1;
            if *times < checked.shapes {
                continue;
            }
        }
        place(warning.policy_id().as_ref(), of_head, warning);
    }
}

/// Cedar says the same for each method.
fn without_action(message: &str) -> String {
    let cut = message
        .split_once(" for Action::\"")
        .and_then(|(before, rest)| {
            let (_, after) = rest.split_once('"')?;
            Some(format!("{before}{after}"))
        });
    cut.unwrap_or_else(|| message.to_owned())
}
