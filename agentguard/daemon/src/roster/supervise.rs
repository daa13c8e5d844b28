//! Who opens, ends and sees whose tasks: root, the role `admin`, and whom the agent's `start_by` lists. Names and groups
//! are looked up off the runtime's workers: they may come from elsewhere.

use std::collections::BTreeSet;
use std::sync::Arc;

use agentguard_control::api::TaskLine;
use agentguard_sys::peer::Peer;
use agentguard_sys::user;

use crate::census::enrol::may_start;
use crate::enforce::kill::suggest;
use crate::roster::tasks::{TaskError, failed};
use crate::serve::access;
use crate::state::Shared;

/// The caller's name.
///
/// # Errors
/// It may not open or end tasks of this agent.
pub async fn name(
    shared: &Arc<Shared>,
    peer: &Arc<Peer>,
    agent: String,
) -> Result<String, TaskError> {
    let (shared, peer) = (shared.clone(), peer.clone());
    let looking = tokio::task::spawn_blocking(move || {
        may(&shared, &peer, &agent)?;
        Ok(user::name(peer.uid))
    });
    looking.await.map_err(failed)?
}

/// The open tasks that the caller may see: all, or those of the agents that it supervises.
///
/// # Errors
/// There is no such agent.
pub async fn seen(shared: &Arc<Shared>, peer: &Arc<Peer>) -> Result<Vec<TaskLine>, TaskError> {
    let (shared, peer) = (shared.clone(), peer.clone());
    let looking = tokio::task::spawn_blocking(move || {
        let mut open = shared.tasks.list().to_vec();
        let Err(refused) = access::may_look(&peer, &shared.config.roles) else {
            return Ok(open);
        };
        let active = shared.active.load_full();
        let all = active.iter().flat_map(|active| active.policy.agents());
        let its = all.filter(|it| may_start(&peer, &it.start_by, user::uid, user::gid));
        let its: BTreeSet<&str> = its.map(|it| it.name.as_str()).collect();
        if its.is_empty() {
            return Err(TaskError::Forbidden(refused.to_string()));
        }
        open.retain(|it| its.contains(it.agent.as_str()));
        Ok(open)
    });
    looking.await.map_err(failed)?
}

fn may(shared: &Shared, peer: &Peer, agent: &str) -> Result<(), TaskError> {
    let active = shared.active.load_full().ok_or_else(|| {
        TaskError::Refused("no bundle is in force; `agentguard policy apply DIR` first".into())
    })?;
    let known = active.policy.agents().find(|it| it.name == agent);
    let admin = access::is_admin(peer, &shared.config.roles);
    match known {
        Some(known) if admin || may_start(peer, &known.start_by, user::uid, user::gid) => Ok(()),
        // It may have tasks from when the bundle had it.
        None if admin && shared.tasks.list().iter().any(|it| it.agent == agent) => Ok(()),
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
