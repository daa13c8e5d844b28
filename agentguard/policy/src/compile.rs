//! A checked bundle, prepared so that a decision meets only the policies that can apply to it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use agentguard_common::abi::AgentId;
use agentguard_record::DenyReason;
use cedar_policy::{Effect, EntityUid};

use super::bundle::ParsedBundle;
use super::candidates::{Candidates, RulesByAgent};
use super::cases::Case;
use super::diagnostic::Report;
use super::entity::{self, HostFacts};
use super::glob::RouteTable;
use super::host::{HostMap, HostPattern};
use super::limit::Limit;
use super::parse::{AgentFile, Method, Reach};
use super::requests::Requests;
use super::slice::{Class, Slicer};
use super::{Agent, Policy, TlsMode, delegation, lower, spelling};

/// One agent's part of the policy.
#[derive(Debug)]
pub(super) struct CompiledAgent {
    pub agent: Agent,
    /// Whom it acts for, the nearest first.
    pub above: Vec<AgentId>,
    pub uid: EntityUid,
    pub reach: Vec<ReachEntry>,
    pub classes: HostMap<Class>,
}

/// A reach entry and what its shorthand permits.
#[derive(Debug)]
pub(super) struct ReachEntry {
    pub host: HostPattern,
    pub tls: TlsMode,
    /// `file:line`.
    pub at: String,
    pub shorthand: RouteTable<Shorthand>,
    /// Ids of the entries that permit passed connections.
    pub connect: Vec<String>,
}

/// One `allow` entry.
#[derive(Debug)]
pub(super) struct Shorthand {
    pub id: String,
    /// `None`: every method.
    pub method: Option<&'static str>,
}

/// A rule as decisions and explanations name it.
#[derive(Debug)]
pub(super) struct CompiledRule {
    pub id: String,
    /// `file:line`.
    pub at: String,
    pub effect: Effect,
    /// The role that can lift it.
    pub approve: Option<String>,
    /// What room lifts it.
    pub limit: Option<Limit>,
    /// What a refusal by it is called.
    pub reason: Option<DenyReason>,
    pub policy: cedar_policy::Policy,
    /// As it holds of lenient servers' readings of a path.
    pub lenient: Option<cedar_policy::Policy>,
}

pub(super) fn compile(
    report: &mut Report<'_>,
    mut bundle: ParsedBundle,
    ids: &BTreeMap<String, AgentId>,
) -> Option<Policy> {
    let mut notes = notes(report, &bundle);
    notes.extend(delegation::narrow(report, &mut bundle.agents));
    let mut facts = HostMap::default();
    for file in &bundle.hosts {
        let known = HostFacts {
            risk: file.risk.clone(),
            data: file.data.clone(),
            requests: Arc::new(Requests {
                body: file.body.clone(),
                lookups: file.lookups.clone(),
                scope: file.scope.clone(),
                exact: file.exact,
            }),
            settings: file.settings.clone(),
            private_paths: file.private_paths.clone(),
        };
        facts.insert(&file.host, known);
    }
    notes.extend(spelling::notes(report, &bundle, &facts));
    let mut agents = BTreeMap::new();
    let files = bundle.agents.iter();
    let files: HashMap<_, _> = files.map(|file| (&*file.agent.name, file)).collect();
    let rules = RulesByAgent::new(&bundle.rules);
    for file in &bundle.agents {
        let name = &file.agent.name;
        let Some(id) = ids.get(name) else {
            report.error(
                file.name_at,
                format!("the host has no id for agent `{name}`"),
            );
            continue;
        };
        if *id == AgentId::NONE || *id == AgentId::AMBIGUOUS || agents.contains_key(id) {
            report.error(
                file.name_at,
                format!("the id {} of agent `{name}` is not its own", id.0),
            );
            continue;
        }
        let candidates = Candidates::new(&rules, name);
        let slicer = Slicer {
            bundle: &bundle,
            files: &files,
            facts: &facts,
            candidates: &candidates,
            file,
        };
        let above = delegation::above(&bundle.agents, file);
        let above = above.filter_map(|one| ids.get(&one.agent.name).copied());
        agents.insert(*id, agent(report, &slicer, above.collect()));
    }
    let cases = bundle.cases.into_iter().map(|case| Case {
        at: report.name(case.name.at),
        name: case.name.value,
        question: case.question,
        expected: case.expected,
    });
    let cases = cases.collect();
    let rules = bundle.rules.into_iter().map(|rule| CompiledRule {
        at: report.name(rule.at),
        id: rule.id,
        effect: rule.effect,
        approve: rule.approve,
        limit: rule.limit,
        reason: rule.reason,
        policy: rule.policy,
        lenient: rule.lenient.map(|forbid| forbid.policy),
    });
    let rules: Vec<_> = rules.collect();
    let by_id = rules.iter().enumerate();
    let by_id = by_id.map(|(index, rule)| (rule.id.clone(), index));
    Some(Policy {
        by_id: by_id.collect(),
        rules,
        meta: bundle.meta?,
        require: bundle.require,
        expires: bundle.expires,
        calendar: bundle.calendar,
        agents,
        facts,
        cases,
        notes,
    })
}

fn notes(report: &Report<'_>, bundle: &ParsedBundle) -> Vec<String> {
    let reach = || {
        bundle
            .agents
            .iter()
            .flat_map(|file| &file.reach)
            .map(|reach| &reach.host)
    };
    let unreached = bundle
        .hosts
        .iter()
        .filter(|file| !reach().any(|host| host.covers(&file.host) || file.host.covers(host)));
    let observed = bundle.agents.iter().filter(|file| file.agent.observe);
    let observed = observed.map(|file| {
        format!(
            "{}: agent `{}` is only observed: what policy denies is let through",
            report.name(file.name_at),
            file.agent.name
        )
    });
    let notes = unreached.map(|file| {
        format!(
            "{}: no agent reaches `{}`",
            report.name(file.at),
            file.host.id()
        )
    });
    notes.chain(observed).collect()
}

fn agent(report: &Report<'_>, slicer: &Slicer<'_>, above: Vec<AgentId>) -> CompiledAgent {
    let file = slicer.file;
    let mut entries = HostMap::default();
    let mut reach = Vec::new();
    for (index, one) in file.reach.iter().enumerate() {
        entries.insert(&one.host, index);
        reach.push(entry(report, file, one));
    }
    let nodes: BTreeSet<&HostPattern> = file
        .reach
        .iter()
        .map(|entry| &entry.host)
        .chain(slicer.candidates.named.iter().copied())
        .chain(slicer.bundle.hosts.iter().map(|host| &host.host))
        .collect();
    let mut classes = HostMap::default();
    for node in nodes {
        if let Some(entry) = entries.covering(node) {
            let tls = file.reach[*entry].tls;
            classes.insert(node, slicer.class(node, *entry, tls));
        }
    }
    CompiledAgent {
        agent: file.agent.clone(),
        above,
        uid: entity::agent_uid(&file.agent.name),
        reach,
        classes,
    }
}

fn entry(report: &Report<'_>, file: &AgentFile, reach: &Reach) -> ReachEntry {
    let mut shorthand = RouteTable::default();
    let mut connect = Vec::new();
    for allow in &reach.allow {
        let id = lower::id(report, &file.agent.name, allow);
        let (method, pattern) = match &allow.method {
            Method::Any(pattern) => (None, pattern),
            Method::One(method, pattern) => (Some(*method), pattern),
            Method::Connect => {
                connect.push(id);
                continue;
            }
        };
        shorthand.insert(pattern.clone(), Shorthand { id, method });
    }
    ReachEntry {
        host: reach.host.clone(),
        tls: reach.tls,
        at: report.name(reach.at),
        shorthand,
        connect,
    }
}
