//! What `status`, `agents` and `policy show` tell.

use std::collections::BTreeMap;

use agentguard_common::abi::AgentId;
use agentguard_control::api::{
    AgentCounts, AgentLine, AuditView, DoneView, ForwarderView, HookView, InForce, LimitView,
    Status,
};
use jiff::Timestamp;

use crate::books::limits::counters::Used;
use crate::enforce::expiry;
use crate::forwarder;
use crate::lock;
use crate::roster::registry::Done;
use crate::roster::stops::Stop;
use crate::state::{Active, Shared};

pub fn status(shared: &Shared) -> Status {
    let agents = counts(shared);
    let (hooks, counters) = {
        let kernel = lock(&shared.kernel);
        (kernel.hooks(), kernel.counters())
    };
    let guarantees = shared.guarantees();
    let hooks: Vec<HookView> = hooks
        .iter()
        .map(|hook| HookView {
            name: hook.name.to_owned(),
            attached: hook.attached,
        })
        .collect();
    let audit = AuditView {
        path: crate::audit_dir(&shared.config.paths.state),
        available: *shared.records.available().borrow(),
        seq: shared.records.head().borrow().seq,
        error: shared.records.trouble(),
    };
    let forwarder = forwarder_view(shared);
    let mut alarms: Vec<String> = lock(&shared.alarms).values().cloned().collect();
    if let Some(error) = &forwarder.error {
        alarms.push(format!(
            "no forwarder, agents' connects are refused: {error}"
        ));
    }
    if let Some(error) = &audit.error {
        alarms.push(format!(
            "no audit records, agents' requests are refused: {error}"
        ));
    }
    if let Some(error) = shared.ledger.trouble() {
        alarms.push(format!(
            "nothing is counted, requests that have limits are refused: {error}"
        ));
    }
    for hook in hooks.iter().filter(|hook| !hook.attached) {
        alarms.push(format!("hook `{}` is not attached", hook.name));
    }
    let expires = shared
        .active
        .load()
        .as_ref()
        .and_then(|it| it.policy.expires());
    alarms.extend(expiry::alarm(expires, Timestamp::now()));
    alarms.extend(shared.active.load().as_ref().and_then(|it| observed(it)));
    if shared.active.load().is_none() {
        alarms.push("no bundle is in force: every agent is denied everything".into());
    }
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        started_at: shared.started,
        forwarder,
        bundle: shared.active.load().as_ref().map(|active| in_force(active)),
        agents,
        hooks,
        guarantees,
        drops: counters
            .unwrap_or_default()
            .into_iter()
            .map(|(name, count)| (name.to_owned(), count))
            .collect(),
        audit,
        alarms,
    }
}

/// What an operator must never overlook.
fn observed(active: &Active) -> Option<String> {
    let agents = active.policy.agents().filter(|agent| agent.observe);
    let names: Vec<&str> = agents.map(|agent| agent.name.as_str()).collect();
    (!names.is_empty()).then(|| {
        format!(
            "only observed, what policy denies is let through: {}",
            names.join(", ")
        )
    })
}

fn counts(shared: &Shared) -> AgentCounts {
    let stopped = shared.stops();
    let killed = stopped.values().filter(|stop| **stop == Stop::Killed);
    let killed = killed.count();
    let registry = lock(&shared.registry);
    let activity = lock(&shared.activity);
    let lineage = lock(&shared.lineage);
    let ids = registry.agents().values().map(|known| known.id);
    AgentCounts {
        known: registry.agents().len(),
        killed,
        stopped: stopped.len() - killed,
        processes: lineage.all_running().len(),
        connections: ids.map(|id| activity.of(id).connections).sum(),
    }
}

fn forwarder_view(shared: &Shared) -> ForwarderView {
    let (status, restarts) = shared.forwarder.status();
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
        namespaces: shared.namespaces.count(),
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

fn view(done: &Done) -> DoneView {
    DoneView {
        reason: done.reason.clone(),
        by: done.by.clone(),
        at: done.at,
    }
}

/// As the bundle in force has them: what another has counted otherwise is over.
fn limits(shared: &Shared, active: Option<&Active>, agent: &str) -> Vec<LimitView> {
    let used = shared.ledger.of(agent).into_iter();
    let views = used.filter_map(
        |Used {
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

pub fn agents(shared: &Shared) -> Vec<AgentLine> {
    let active = shared.active.load_full();
    let stops = shared.stops();
    let registry = lock(&shared.registry);
    let activity = lock(&shared.activity);
    let lineage = lock(&shared.lineage);
    let mut lines: Vec<AgentLine> = registry
        .agents()
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
            let inactive = listed.and_then(|agent| registry.inactive().get(&agent.owner));
            let seen = activity.of(known.id);
            AgentLine {
                name: name.clone(),
                id: known.id.0,
                state: state.into(),
                owner: listed.map(|agent| agent.owner.clone()),
                owner_in_bundle: reassigned.map(|now| now.from.clone()),
                parent: listed.and_then(|agent| agent.parent.clone()),
                risk: listed.map(|agent| agent.risk.clone()),
                processes: lineage.running(known.id),
                connections: seen.connections,
                allowed: seen.allowed,
                denied: seen.denied,
                last_seen: seen.last_seen,
                killed: known.killed.as_ref().map(view),
                out: known.out.as_ref().map(|(_, done)| view(done)),
                owner_inactive: inactive.map(view),
                limits: limits(shared, active.as_deref(), name),
            }
        })
        .collect();
    let ambiguous = lineage.running(AgentId::AMBIGUOUS);
    if !ambiguous.is_empty() {
        let seen = activity.of(AgentId::AMBIGUOUS);
        lines.push(AgentLine {
            name: crate::books::records::unnamed(AgentId::AMBIGUOUS),
            id: AgentId::AMBIGUOUS.0,
            state: "unlisted".into(),
            owner: None,
            owner_in_bundle: None,
            parent: None,
            risk: None,
            processes: ambiguous,
            connections: 0,
            allowed: seen.allowed,
            denied: seen.denied,
            last_seen: seen.last_seen,
            killed: None,
            out: None,
            owner_inactive: None,
            limits: Vec::new(),
        });
    }
    lines
}
