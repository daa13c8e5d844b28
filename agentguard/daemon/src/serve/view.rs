//! What `status`, `agents` and `policy show` tell.

use std::collections::BTreeMap;

use agentguard_common::abi::AgentId;
use agentguard_control::api::{
    AgentCounts, AgentLine, AuditView, DoneView, ForwarderView, HookView, InForce, LimitView,
    Status,
};
use jiff::Timestamp;

use crate::Parts;
use crate::books::Books;
use crate::books::alarms::Alarm;
use crate::books::limits::Ledger;
use crate::books::limits::counters::Usage;
use crate::books::records;
use crate::census::Census;
use crate::enforce::expiry;
use crate::forwarder::{self, ForwarderLink};
use crate::lock::lock;
use crate::roster::Roster;
use crate::roster::active::Active;
use crate::roster::registry::Intervention;
use crate::roster::stops::Stop;

pub fn status(parts: &Parts) -> Status {
    let Parts {
        host,
        roster,
        enforce,
        books,
        forwarder,
        ..
    } = parts;
    let agents = counts(roster, &parts.census);
    let (hooks, counters) = {
        let kernel = lock(&enforce.kernel);
        (kernel.hooks(), kernel.counters())
    };
    let active = roster.active.load();
    let policy = active.as_deref().map(|active| &active.policy);
    let guarantees = enforce.guarantees(host, &parts.census, forwarder, policy);
    let audit = AuditView {
        path: crate::audit_dir(&host.config.paths.state),
        available: *books.records.available().borrow(),
        seq: books.records.head().borrow().seq,
        error: books.records.trouble(),
    };
    let forwarder = forwarder_view(forwarder, &parts.census);
    let mut alarms = books.alarms.raised();
    alarms.extend(forwarder.error.clone().map(Alarm::NoForwarder));
    alarms.extend(audit.error.clone().map(Alarm::NoRecords));
    alarms.extend(books.ledger.trouble().map(Alarm::NothingCounted));
    let detached = hooks.iter().filter(|hook| !hook.attached);
    alarms.extend(detached.map(|hook| Alarm::HookDetached(hook.name)));
    match active.as_deref() {
        Some(active) => {
            alarms.extend(expiry::alarm(active.policy.expires(), Timestamp::now()));
            alarms.extend(observed(active));
        }
        None => alarms.push(Alarm::NoBundle),
    }
    alarms.extend(books.distrust.alarms(Timestamp::now()));
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        started_at: host.started,
        forwarder,
        bundle: active.as_deref().map(in_force),
        agents,
        hooks: hooks
            .iter()
            .map(|hook| HookView {
                name: hook.name.to_owned(),
                attached: hook.attached,
            })
            .collect(),
        guarantees,
        drops: counters
            .unwrap_or_default()
            .into_iter()
            .map(|(name, count)| (name.to_owned(), count))
            .collect(),
        audit,
        distrust: books.distrust.views(),
        alarms: alarms.iter().map(Alarm::to_string).collect(),
    }
}

/// What an operator must never overlook.
fn observed(active: &Active) -> Option<Alarm> {
    let names: Vec<String> = active
        .policy
        .agents()
        .filter(|agent| agent.observe)
        .map(|agent| agent.name.clone())
        .collect();
    (!names.is_empty()).then_some(Alarm::OnlyObserved(names))
}

fn counts(roster: &Roster, census: &Census) -> AgentCounts {
    let stopped = roster.stops();
    let killed = stopped.values().filter(|stop| **stop == Stop::Killed);
    let killed = killed.count();
    let known = roster.known();
    let processes = lock(&census.lineage).all_running().len();
    let activity = lock(&census.activity);
    AgentCounts {
        known: known.len(),
        killed,
        stopped: stopped.len() - killed,
        processes,
        connections: known
            .iter()
            .map(|(_, id)| activity.of(*id).connections)
            .sum(),
    }
}

fn forwarder_view(forwarder: &ForwarderLink, census: &Census) -> ForwarderView {
    let (status, restarts) = forwarder.status();
    let (state, up, error) = match status {
        forwarder::Status::Starting => ("starting", None, None),
        forwarder::Status::Up {
            pid, port, sandbox, ..
        } => ("up", Some((pid, port, sandbox)), None),
        forwarder::Status::Down { error } => ("down", None, Some(error)),
    };
    ForwarderView {
        state: state.into(),
        pid: up.map(|(pid, ..)| pid),
        port: up.map(|(_, port, _)| port),
        namespaces: census.namespaces.count(),
        restarts,
        landlock_abi: up.map(|(.., sandbox)| sandbox.landlock_abi),
        error,
    }
}

pub fn in_force(active: &Active) -> InForce {
    InForce {
        meta: (*active.meta).clone(),
        generation: active.generation,
        applied_at: active.entry.applied_at,
        expires: active.policy.expires(),
        signer: active.entry.signer.clone(),
        agents: active.ids.keys().cloned().collect(),
        unchanged: false,
        warnings: Vec::new(),
        files: BTreeMap::new(),
    }
}

fn view(done: &Intervention) -> DoneView {
    DoneView {
        reason: done.reason.clone(),
        by: done.by.clone(),
        at: done.at,
    }
}

/// As the bundle in force has them: what another has counted otherwise is over.
fn limits(ledger: &Ledger, active: Option<&Active>, agent: &str) -> Vec<LimitView> {
    let used = ledger.of(agent).into_iter();
    let views = used.filter_map(
        |Usage {
             counter,
             used,
             next,
         }| {
            let limit = active?.policy.limit(&counter.rule)?;
            (limit.unit() == counter.unit).then(|| LimitView {
                limit: limit.text.clone(),
                used: limit.shown(used),
                rule: counter.rule,
                host: counter.host,
                task: counter.task,
                shared: counter.agent.is_none(),
                next: Timestamp::from_millisecond(next).unwrap_or(Timestamp::MAX),
            })
        },
    );
    views.collect()
}

pub fn agents(roster: &Roster, census: &Census, books: &Books) -> Vec<AgentLine> {
    let active = roster.active.load_full();
    let stops = roster.stops();
    // Copies, one after another: no table is held while another is read.
    let (known, inactive) = {
        let registry = lock(&roster.registry);
        (registry.agents().clone(), registry.inactive().clone())
    };
    let ids = known.values().map(|known| known.id);
    let seen = census.seen(ids.chain([AgentId::AMBIGUOUS]));
    let mut lines: Vec<AgentLine> = known
        .iter()
        .map(|(name, known)| {
            let listed = active.as_ref().and_then(|active| {
                let id = active.ids.get(name)?;
                active.policy.agent(*id)
            });
            let state = match (stops.get(&known.id), listed) {
                (Some(stop), _) => stop.state(),
                (None, Some(_)) => "active",
                (None, None) => "unlisted",
            };
            let reassigned = known.owner.as_ref();
            let reassigned = reassigned.filter(|now| listed.is_some_and(|it| it.owner == now.to));
            let inactive = listed.and_then(|agent| inactive.get(&agent.owner));
            let (activity, processes) = seen.get(&known.id).cloned().unwrap_or_default();
            AgentLine {
                name: name.clone(),
                id: known.id.0,
                state: state.into(),
                owner: listed.map(|agent| agent.owner.clone()),
                owner_in_bundle: reassigned.map(|now| now.from.clone()),
                parent: listed.and_then(|agent| agent.parent.clone()),
                risk: listed.map(|agent| agent.risk.clone()),
                processes,
                connections: activity.connections,
                allowed: activity.allowed,
                denied: activity.denied,
                last_seen: activity.last_seen,
                killed: known.killed.as_ref().map(view),
                out: known.out.as_ref().map(|(_, done)| view(done)),
                owner_inactive: inactive.map(view),
                limits: limits(&books.ledger, active.as_deref(), name),
            }
        })
        .collect();
    if let Some((activity, processes)) = seen.get(&AgentId::AMBIGUOUS)
        && !processes.is_empty()
    {
        lines.push(AgentLine {
            name: records::unnamed(AgentId::AMBIGUOUS),
            id: AgentId::AMBIGUOUS.0,
            state: "unlisted".into(),
            owner: None,
            owner_in_bundle: None,
            parent: None,
            risk: None,
            processes: processes.clone(),
            connections: 0,
            allowed: activity.allowed,
            denied: activity.denied,
            last_seen: activity.last_seen,
            killed: None,
            out: None,
            owner_inactive: None,
            limits: Vec::new(),
        });
    }
    lines
}
