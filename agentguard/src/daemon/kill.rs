//! The kill switch: the kernel first, because nothing leaves the host from then on; then disk, sockets, forwarder.

use std::sync::Arc;
use std::time::Duration;

use agentguard_common::abi::AgentId;
use jiff::Timestamp;

use super::forwarder::{Ask, Dropped};
use super::lock;
use super::records::{Item, Operated};
use super::state::Shared;
use crate::agents::registry::Killed;
use crate::audit::record::{Operation, Outcome};
use crate::control::api::{Cut, Named, Target};
use crate::sys::netns::Namespace;
use crate::sys::{diag, process, user};

/// How long the forwarder may take to drop connections before it is ended itself.
const FORWARDER_LIMIT: Duration = Duration::from_secs(2);
/// Passes over the agent's sockets: another may be in the middle of being made.
const PASSES: usize = 3;

#[derive(Debug, thiserror::Error)]
pub enum KillError {
    #[error("unknown agent `{name}`{}", did_you_mean(suggestion))]
    Unknown {
        name: String,
        suggestion: Option<String>,
    },
    #[error("{0}")]
    Failed(String),
}

fn did_you_mean(suggestion: &Option<String>) -> String {
    match suggestion {
        Some(name) => format!(", did you mean `{name}`?"),
        None => "; `agentguard agents` lists them".to_owned(),
    }
}

/// The agents a request names, all of them known, or an error about the first that is not.
pub fn named(shared: &Shared, target: &Target) -> Result<Vec<(String, AgentId)>, KillError> {
    let registry = lock(&shared.registry);
    if target.all {
        let all = registry.agents().iter();
        return Ok(all.map(|(name, known)| (name.clone(), known.id)).collect());
    }
    let find = |name: &String| match registry.id(name) {
        Some(id) => Ok((name.clone(), id)),
        None => Err(KillError::Unknown {
            name: name.clone(),
            suggestion: suggest(name, registry.agents().keys()),
        }),
    };
    target.agents.iter().map(find).collect()
}

/// The known name that `name` may have been meant to be.
pub fn suggest<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> Option<String> {
    known
        .map(|known| (strsim::damerau_levenshtein(name, known), known))
        .filter(|(distance, known)| *distance <= 2.max(known.len() / 3))
        .min()
        .map(|(_, known)| known.clone())
}

/// Holds the agents until they are revived, whatever restarts in between.
pub async fn kill(
    shared: &Arc<Shared>,
    target: &Target,
    reason: Option<String>,
    uid: u32,
) -> Result<Vec<Cut>, KillError> {
    let agents = named(shared, target)?;
    // At once, whoever else is at it; and again when a revival under way cannot undo it any more.
    flip(shared, &agents, true);
    let _one_at_a_time = shared.killing.lock().await;
    let mut failures = flip(shared, &agents, true);
    let killed = Killed {
        reason: reason.clone(),
        by: user::name(uid),
        at: Timestamp::now(),
    };
    let before = lock(&shared.registry).killed();
    let names: Vec<String> = agents.iter().map(|(name, _)| name.clone()).collect();
    // Who finds an agent killed wants to know who did it first; the audit log has them all.
    let fresh = agents.iter().filter(|(_, id)| !before.contains(id));
    let fresh: Vec<String> = fresh.map(|(name, _)| name.clone()).collect();
    if let Err(error) = lock(&shared.registry).set_killed(&fresh, Some(&killed)) {
        failures.push(format!("it holds until the daemon restarts only: {error}"));
    }
    // What there is now: some of it ends by itself when its connections do.
    let live: Vec<Vec<u32>> = agents
        .iter()
        .map(|(_, id)| lock(&shared.lineage).running(*id))
        .collect();
    let ids: Vec<AgentId> = agents.iter().map(|(_, id)| *id).collect();
    // Before the sockets are destroyed under it: its records then say that the kill ended them.
    let asked = shared
        .forwarder
        .ask(FORWARDER_LIMIT, |reply| Ask::Kill(ids, reply));
    let dropped = match asked.await {
        Ok(dropped) => dropped,
        Err(error) => {
            tracing::error!(%error, "the forwarder did not drop the killed agents' connections and is ended");
            let why = "it did not drop killed agents' connections";
            shared.forwarder.tell(Ask::Restart(why)).await;
            Dropped::new()
        }
    };
    let mut cuts = Vec::new();
    for ((name, id), tgids) in agents.iter().zip(live) {
        let processes = u32::try_from(tgids.len()).unwrap_or(u32::MAX);
        let sockets = match cut_sockets(shared, *id, tgids).await {
            Ok(sockets) => sockets,
            Err(error) => {
                failures.push(format!(
                    "nothing of `{name}` leaves the host, but its sockets are open: {error}"
                ));
                0
            }
        };
        cuts.push(Cut {
            agent: name.clone(),
            already: before.contains(id),
            processes,
            sockets,
            connections: dropped.get(id).copied().unwrap_or(0),
        });
    }
    let detail = reason.as_deref().unwrap_or("");
    record(shared, Operation::Kill, &names, detail, uid, &failures).await;
    finish(failures, cuts)
}

/// Lets agents go on where the policy says so.
pub async fn revive(
    shared: &Arc<Shared>,
    target: &Target,
    reason: Option<String>,
    uid: u32,
) -> Result<Vec<Named>, KillError> {
    let agents = named(shared, target)?;
    let _one_at_a_time = shared.killing.lock().await;
    let before = lock(&shared.registry).killed();
    let names: Vec<String> = agents.iter().map(|(name, _)| name.clone()).collect();
    let mut failures = Vec::new();
    // Disk first: an agent that runs must not be one that is killed after a restart.
    match lock(&shared.registry).set_killed(&names, None) {
        Ok(()) => {}
        Err(error) => return Err(KillError::Failed(error.to_string())),
    }
    let ids: Vec<AgentId> = agents.iter().map(|(_, id)| *id).collect();
    let revived = ids.clone();
    let asked = shared
        .forwarder
        .ask(FORWARDER_LIMIT, |reply| Ask::Revive(revived, reply));
    if let Err(error) = asked.await {
        failures.push(error);
    }
    failures.extend(flip(shared, &agents, false));
    let detail = reason.as_deref().unwrap_or("");
    record(shared, Operation::Revive, &names, detail, uid, &failures).await;
    let revived = agents
        .into_iter()
        .map(|(agent, id)| Named {
            agent,
            already: !before.contains(&id),
        })
        .collect();
    finish(failures, revived)
}

/// In the kernel; what could not be flipped is told.
fn flip(shared: &Shared, agents: &[(String, AgentId)], killed: bool) -> Vec<String> {
    let mut failures = Vec::new();
    for (name, id) in agents {
        if let Err(error) = lock(&shared.kernel).set_killed(*id, killed || shared.is_held()) {
            failures.push(format!("agent `{name}` in the kernel: {error}"));
        }
    }
    failures
}

fn finish<T>(failures: Vec<String>, done: T) -> Result<T, KillError> {
    if failures.is_empty() {
        Ok(done)
    } else {
        Err(KillError::Failed(failures.join("; ")))
    }
}

/// How many of the agent's sockets were destroyed.
async fn cut_sockets(shared: &Arc<Shared>, agent: AgentId, tgids: Vec<u32>) -> Result<u32, String> {
    let shared = shared.clone();
    let cutting = tokio::task::spawn_blocking(move || cut_now(&shared, agent, &tgids));
    cutting.await.map_err(|e| e.to_string())?
}

/// Those that carry the agent's mark, wherever they are; then what its processes hold besides. `sock_diag` sees one network
/// namespace at a time.
fn cut_now(shared: &Shared, agent: AgentId, tgids: &[u32]) -> Result<u32, String> {
    let elsewhere = shared.namespaces.all_of(tgids);
    let mut destroyed = 0;
    everywhere(&elsewhere, || {
        let marked = lock(&shared.kernel).destroy_sockets(agent);
        destroyed += marked.map_err(|e| e.to_string())?;
        Ok(())
    })?;
    for _ in 0..PASSES {
        let held = tgids.iter().flat_map(|tgid| process::socket_inodes(*tgid));
        let held = held.collect();
        let before = destroyed;
        everywhere(&elsewhere, || {
            let cut = diag::destroy(&held, diag::Which::AllButListeners);
            destroyed += cut.map_err(|e| e.to_string())?.destroyed;
            Ok(())
        })?;
        if destroyed == before {
            break;
        }
    }
    Ok(destroyed)
}

/// Does `work` here and in each of these namespaces; the first error is told when all have been tried.
pub fn everywhere(
    elsewhere: &[Arc<Namespace>],
    mut work: impl FnMut() -> Result<(), String> + Send,
) -> Result<(), String> {
    let mut result = work();
    for namespace in elsewhere {
        let done = namespace.run(&mut work).map_err(|e| e.to_string());
        result = result.and(done.flatten());
    }
    result
}

async fn record(
    shared: &Shared,
    operation: Operation,
    names: &[String],
    detail: &str,
    uid: u32,
    failures: &[String],
) {
    let bundle = shared
        .active
        .load()
        .as_ref()
        .map(|active| active.meta.clone());
    let item = |name: &String| {
        Item::Operator(Operated {
            uid,
            operation,
            agent: Some(name.clone()),
            resource: name.clone(),
            outcome: if failures.is_empty() {
                Outcome::Allow
            } else {
                Outcome::Error
            },
            detail: if failures.is_empty() {
                detail.to_owned()
            } else {
                failures.join("; ")
            },
            bundle: bundle.clone(),
        })
    };
    shared
        .records
        .append(names.iter().map(item).collect())
        .await;
    shared.records.settled().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_suggested() {
        let known = ["procurement".to_owned(), "billing".to_owned()];
        for (name, expected) in [
            ("procurment", Some("procurement")),
            ("biling", Some("billing")),
            ("x", None),
            ("something-else", None),
        ] {
            assert_eq!(suggest(name, known.iter()).as_deref(), expected, "{name}");
        }
    }
}
