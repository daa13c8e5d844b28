//! Who opens, ends and sees whose tasks: root, the role `admin`, and whom the agent's `start_by` lists. Names and groups
//! are looked up off the runtime's workers: they may come from elsewhere.

use std::collections::BTreeSet;
use std::sync::Arc;

use agentguard_control::api::TaskLine;
use agentguard_record::Actor;
use agentguard_sys::peer::Peer;
use agentguard_sys::user;

use super::Roster;
use super::book::TaskRow;
use super::tasks::{TaskError, failed};
use crate::census::enrol::may_start;
use crate::enforce::kill::suggest;
use crate::host::Host;
use crate::serve::access;

/// The caller, as who acts.
///
/// # Errors
/// It may not open or end tasks of this agent.
pub(crate) async fn supervisor(
    host: &Arc<Host>,
    roster: &Arc<Roster>,
    peer: &Arc<Peer>,
    agent: String,
) -> Result<Actor, TaskError> {
    let (host, roster, peer) = (host.clone(), roster.clone(), peer.clone());
    let looking = tokio::task::spawn_blocking(move || {
        may(&host, &roster, &peer, &agent)?;
        Ok(Actor::Peer {
            uid: peer.uid,
            user: Some(user::name(peer.uid)),
        })
    });
    looking.await.map_err(failed)?
}

/// The open tasks that the caller may see: all, or those of the agents that it supervises.
///
/// # Errors
/// There is no such agent.
pub(crate) async fn seen(
    host: &Arc<Host>,
    roster: &Arc<Roster>,
    peer: &Arc<Peer>,
) -> Result<Vec<TaskLine>, TaskError> {
    let (host, roster, peer) = (host.clone(), roster.clone(), peer.clone());
    let looking = tokio::task::spawn_blocking(move || {
        let mut open = roster.tasks.list().to_vec();
        if let Err(refused) = access::may_look(&peer, &host.config.roles) {
            let active = roster.active.load_full();
            let its: BTreeSet<&str> = active
                .iter()
                .flat_map(|active| active.policy.agents())
                .filter(|it| may_start(&peer, &it.start_by, user::uid, user::gid))
                .map(|it| it.name.as_str())
                .collect();
            if its.is_empty() {
                return Err(TaskError::Forbidden(refused.to_string()));
            }
            open.retain(|it| its.contains(it.agent.as_str()));
        }
        Ok(open.into_iter().map(TaskRow::shown).collect())
    });
    looking.await.map_err(failed)?
}

fn may(host: &Host, roster: &Roster, peer: &Peer, agent: &str) -> Result<(), TaskError> {
    let active = roster.active.load_full().ok_or_else(|| {
        TaskError::Refused("no bundle is in force; `agentguard policy apply DIR` first".into())
    })?;
    let known = active.policy.agents().find(|it| it.name == agent);
    let admin = access::is_admin(peer, &host.config.roles);
    match known {
        Some(known) if admin || may_start(peer, &known.start_by, user::uid, user::gid) => Ok(()),
        // It may have tasks from when the bundle had it.
        None if admin && roster.tasks.list().iter().any(|it| it.agent == agent) => Ok(()),
        None => {
            let hint = match suggest(agent, active.ids.keys()) {
                Some(name) => format!(", did you mean `{name}`?"),
                None => "; `agentguard agents` lists those of the bundle".into(),
            };
            Err(TaskError::NotFound(format!(
                "unknown agent `{agent}`{hint}"
            )))
        }
        Some(_) => Err(TaskError::Forbidden(format!(
            "{} may not open or end tasks of `{agent}`: root, the role `admin`, and those in the agent's `start_by` may",
            user::name(peer.uid)
        ))),
    }
}
