//! `run`: labels a child of the caller's that waits for it before it executes anything.

use std::os::fd::AsFd;
use std::path::PathBuf;

use agentguard_common::abi::{AgentId, Label};
use agentguard_control::api::{Enrolment, Run};
use agentguard_policy::Starter;
use agentguard_sys::peer::Peer;
use agentguard_sys::process::{self, Snapshot};
use agentguard_sys::user;

use super::Census;
use crate::enforce::Enforce;
use crate::enforce::kill::suggest;
use crate::host::Host;
use crate::host::config::Config;
use crate::host::startup::own_files;
use crate::lock::lock;
use crate::roster::Roster;
use crate::roster::stops::Stop;

#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Forbidden(String),
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    Failed(String),
}

/// Labels `request.pid` for the agent, if `peer` may start it.
pub(crate) fn run(
    host: &Host,
    roster: &Roster,
    census: &Census,
    enforce: &Enforce,
    request: &Run,
    peer: &Peer,
) -> Result<(AgentId, Enrolment), RunError> {
    let active = roster.active.load_full().ok_or_else(|| {
        RunError::Conflict("no bundle is in force; `agentguard policy apply DIR` first".into())
    })?;
    let Some((id, agent)) = active
        .ids
        .get(&request.agent)
        .and_then(|id| Some((*id, active.policy.agent(*id)?)))
    else {
        let hint = match suggest(&request.agent, active.ids.keys()) {
            Some(name) => format!(", did you mean `{name}`?"),
            None => "; `agentguard agents` lists those of the bundle".into(),
        };
        return Err(RunError::NotFound(format!(
            "unknown agent `{}`{hint}",
            request.agent
        )));
    };
    if !may_start(peer, &agent.start_by, user::uid, user::gid) {
        return Err(RunError::Forbidden(format!(
            "{} may not start `{}`: only root and those in the agent's `start_by` may",
            user::name(peer.uid),
            agent.name
        )));
    }
    if enforce.is_held() {
        return Err(RunError::Conflict(
            "agents are held closed: the canary failed; see `agentguard status`".into(),
        ));
    }
    if let Some(stop) = roster
        .stops()
        .get(&id)
        .filter(|stop| **stop != Stop::Killed)
    {
        let remedy = match stop {
            Stop::Suspended => format!(
                "; `agentguard agents activate {}` lets it run again",
                agent.name
            ),
            Stop::Orphaned => format!(
                "; `agentguard agents reassign {} OWNER` gives it another than {}",
                agent.name, agent.owner
            ),
            Stop::Above => "; `agentguard agents show` says who".to_owned(),
            Stop::Killed | Stop::Retired => String::new(),
        };
        let why = stop.detail();
        return Err(RunError::Conflict(format!(
            "agent `{}` does not run: {why}{remedy}",
            agent.name
        )));
    }
    if let Some(killed) = lock(&roster.registry)
        .agents()
        .get(&agent.name)
        .and_then(|known| known.killed.clone())
    {
        let why = killed
            .reason
            .map(|reason| format!(" ({reason})"))
            .unwrap_or_default();
        return Err(RunError::Conflict(format!(
            "agent `{}` has been killed{why}; `agentguard revive {}` lets it run again",
            agent.name, agent.name
        )));
    }
    label_child(census, enforce, id, request.pid, peer)?;
    tracing::info!(
        agent = agent.name,
        pid = request.pid,
        by = user::name(peer.uid),
        "started"
    );
    let runtime = &host.config.paths.runtime;
    let started = Enrolment {
        agent: agent.name.clone(),
        keep_privileges: agent.keep_privileges,
        hidden: vec![
            host.config.paths.state.clone(),
            host.config.paths.pins.clone(),
        ],
        kept: kept(&host.config),
        trust: crate::trust_bundle(runtime),
        wgetrc: crate::wgetrc(runtime),
        task: None,
    };
    Ok((id, started))
}

fn label_child(
    census: &Census,
    enforce: &Enforce,
    id: AgentId,
    tgid: u32,
    peer: &Peer,
) -> Result<(), RunError> {
    let gone = || RunError::Conflict(format!("process {tgid} has ended"));
    // From here on the descriptor says whether the tgid still means the process that is looked at.
    let pidfd = process::pidfd_open(tgid).map_err(|_| gone())?;
    let child = Snapshot::of(tgid).ok_or_else(gone)?;
    if child.parent != peer.tgid {
        return Err(RunError::Forbidden(format!(
            "process {tgid} is not a child of the caller's"
        )));
    }
    // Of a set-user-id program the real uid is its caller's, and what it does its owner's.
    let is_callers = || peer.uid == 0 || process::uids(tgid) == Some([peer.uid; 4]);
    let not_callers =
        || RunError::Forbidden(format!("process {tgid} does not run as the caller's user"));
    if !is_callers() {
        return Err(not_callers());
    }
    let mut kernel = lock(&enforce.kernel);
    let call = |e: agentguard_kernel::KernelError| RunError::Failed(e.to_string());
    let before = kernel.label(tgid).map_err(call)?;
    if before != Label::default() {
        return Err(RunError::Conflict(format!(
            "process {tgid} is an agent's already"
        )));
    }
    let label = Label {
        agent: id,
        flags: 0,
    };
    kernel.set_label(tgid, label).map_err(call)?;
    // From here on its execs are judged as the agent's.
    let alive = process::pidfd_alive(pidfd.as_fd());
    if !alive || !is_callers() {
        // The label must not wait for the next process that gets the tgid, nor stay on what it has become meanwhile.
        kernel.set_label(tgid, Label::default()).map_err(call)?;
        return Err(if alive { not_callers() } else { gone() });
    }
    drop(kernel);
    lock(&census.lineage).adopted(&child, id);
    Ok(())
}

fn kept(config: &Config) -> Vec<PathBuf> {
    let files = own_files(config).into_iter().filter(|file| !file.secret);
    files.map(|file| file.path).collect()
}

/// Root, or who `start_by` lists.
pub(crate) fn may_start(
    peer: &Peer,
    start_by: &[Starter],
    uid: impl Fn(&str) -> Option<u32>,
    gid: impl Fn(&str) -> Option<u32>,
) -> bool {
    peer.uid == 0
        || start_by.iter().any(|starter| match starter {
            Starter::User(name) => uid(name) == Some(peer.uid),
            Starter::Group(name) => gid(name).is_some_and(|gid| peer.groups.contains(&gid)),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_the_listed_may_start() {
        let by = [Starter::User("ann".into()), Starter::Group("ops".into())];
        let uid = |name: &str| (name == "ann").then_some(1000);
        let gid = |name: &str| (name == "ops").then_some(50);
        for (peer_uid, groups, list, expected) in [
            (0, vec![], &by[..0], true),
            (1000, vec![1000], &by[..], true),
            (1001, vec![1001], &by[..], false),
            (1001, vec![1001, 50], &by[..], true),
            (1000, vec![50], &by[..0], false),
        ] {
            let peer = Peer::known(7, peer_uid, groups);
            assert_eq!(may_start(&peer, list, uid, gid), expected, "{peer:?}");
        }
    }
}
