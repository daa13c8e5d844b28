//! What `status`, `agents` and `policy show` tell.

use std::collections::BTreeMap;

use agentguard_common::abi::AgentId;
use jiff::Timestamp;

use super::state::{Active, Shared};
use super::{expiry, lock};
use crate::control::api::{
    AgentCounts, AgentLine, AuditView, ForwarderView, HookView, InForce, KilledView, Status,
};
use crate::daemon::forwarder;

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
        path: super::audit_dir(&shared.config.paths.state),
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
    for hook in hooks.iter().filter(|hook| !hook.attached) {
        alarms.push(format!("hook `{}` is not attached", hook.name));
    }
    let expires = shared
        .active
        .load()
        .as_ref()
        .and_then(|it| it.policy.expires());
    alarms.extend(expiry::alarm(expires, Timestamp::now()));
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

fn counts(shared: &Shared) -> AgentCounts {
    let registry = lock(&shared.registry);
    let activity = lock(&shared.activity);
    let lineage = lock(&shared.lineage);
    let ids = registry.agents().values().map(|known| known.id);
    AgentCounts {
        known: registry.agents().len(),
        killed: registry.killed().len(),
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

pub fn agents(shared: &Shared) -> Vec<AgentLine> {
    let active = shared.active.load_full();
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
            let state = match (&known.killed, listed) {
                (Some(_), _) => "killed",
                (None, Some(_)) => "active",
                (None, None) => "unlisted",
            };
            let seen = activity.of(known.id);
            AgentLine {
                name: name.clone(),
                id: known.id.0,
                state: state.into(),
                owner: listed.map(|agent| agent.owner.clone()),
                risk: listed.map(|agent| agent.risk.clone()),
                processes: lineage.running(known.id),
                connections: seen.connections,
                allowed: seen.allowed,
                denied: seen.denied,
                last_seen: seen.last_seen,
                killed: known.killed.clone().map(|killed| KilledView {
                    reason: killed.reason,
                    by: killed.by,
                    at: killed.at,
                }),
            }
        })
        .collect();
    let ambiguous = lineage.running(AgentId::AMBIGUOUS);
    if !ambiguous.is_empty() {
        let seen = activity.of(AgentId::AMBIGUOUS);
        lines.push(AgentLine {
            name: super::records::unnamed(AgentId::AMBIGUOUS),
            id: AgentId::AMBIGUOUS.0,
            state: "unlisted".into(),
            owner: None,
            risk: None,
            processes: ambiguous,
            connections: 0,
            allowed: seen.allowed,
            denied: seen.denied,
            last_seen: seen.last_seen,
            killed: None,
        });
    }
    lines
}
