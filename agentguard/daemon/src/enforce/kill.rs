//! The kill switch: the kernel first, because nothing leaves the host from then on; then disk, sockets, forwarder.

use std::sync::Arc;

use agentguard_common::abi::AgentId;
use agentguard_control::api::{Cut, Named, Target};
use agentguard_record::{Operation, Outcome};
use agentguard_sys::user;
use jiff::Timestamp;

use super::stop;
use crate::books::records::{Item, Operated};
use crate::lock;
use crate::roster::registry::Done;
use crate::state::Shared;

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

/// Holds the agents, and those that act for them, until they are revived, whatever restarts in between.
pub async fn kill(
    shared: &Arc<Shared>,
    target: &Target,
    reason: Option<String>,
    uid: u32,
) -> Result<Vec<Cut>, KillError> {
    let agents = named(shared, target)?;
    let all: Vec<_> = agents.iter().map(|(name, id)| (id, name)).collect();
    // At once, whoever else is at it; and again when a revival under way cannot undo it any more.
    stop::flip(shared, &all, true);
    let _one_at_a_time = shared.killing.lock().await;
    let mut failures = stop::flip(shared, &all, true);
    let killed = done(reason.clone(), uid);
    let before = shared.stops();
    let names: Vec<String> = agents.iter().map(|(name, _)| name.clone()).collect();
    // Who finds an agent killed wants to know who did it first; the audit log has them all.
    let killed_before = lock(&shared.registry).killed();
    let fresh = agents.iter().filter(|(_, id)| !killed_before.contains(id));
    let fresh: Vec<String> = fresh.map(|(name, _)| name.clone()).collect();
    let result = lock(&shared.registry).set_killed(&fresh, Some(&killed));
    let ids: Vec<AgentId> = agents.iter().map(|(_, id)| *id).collect();
    let (cuts, more) = stop::follow(shared, &before, &ids).await;
    failures.extend(more);
    if let Err(error) = result {
        // What the registry does not have, nobody else holds.
        failures.extend(stop::flip(shared, &all, true));
        failures.push(format!("it holds until the daemon restarts only: {error}"));
    }
    let detail = reason.as_deref().unwrap_or("");
    record(shared, Operation::Kill, &names, detail, uid, &failures).await;
    finish(failures, cuts)
}

/// Lets agents go on where the policy says so, and nothing else stops them.
pub async fn revive(
    shared: &Arc<Shared>,
    target: &Target,
    reason: Option<String>,
    uid: u32,
) -> Result<Vec<Named>, KillError> {
    let agents = named(shared, target)?;
    let _one_at_a_time = shared.killing.lock().await;
    let before = shared.stops();
    let killed_before = lock(&shared.registry).killed();
    let names: Vec<String> = agents.iter().map(|(name, _)| name.clone()).collect();
    // Disk first: an agent that runs must not be one that is killed after a restart.
    lock(&shared.registry)
        .set_killed(&names, None)
        .map_err(|error| KillError::Failed(error.to_string()))?;
    let ids: Vec<AgentId> = agents.iter().map(|(_, id)| *id).collect();
    let (_, failures) = stop::follow(shared, &before, &ids).await;
    let detail = reason.as_deref().unwrap_or("");
    record(shared, Operation::Revive, &names, detail, uid, &failures).await;
    let stops = shared.stops();
    let revived = agents
        .into_iter()
        .map(|(agent, id)| Named {
            agent,
            already: !killed_before.contains(&id),
            stopped: stops.get(&id).map(|stop| stop.detail().to_owned()),
        })
        .collect();
    finish(failures, revived)
}

/// What `uid` does now.
pub fn done(reason: Option<String>, uid: u32) -> Done {
    Done {
        reason,
        by: user::name(uid),
        at: Timestamp::now(),
    }
}

pub fn finish<T>(failures: Vec<String>, done: T) -> Result<T, KillError> {
    if failures.is_empty() {
        Ok(done)
    } else {
        Err(KillError::Failed(failures.join("; ")))
    }
}

/// One record for each agent.
pub async fn record(
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
