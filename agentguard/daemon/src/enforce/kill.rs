//! The kill switch: the kernel first, because nothing leaves the host from then on; then disk, sockets, forwarder.

use std::sync::Arc;

use agentguard_common::abi::AgentId;
use agentguard_control::api::{Cut, NamedAgent, Target};
use agentguard_record::{Actor, Operation, Outcome};
use agentguard_sys::user;
use jiff::Timestamp;

use super::stop::Stopper;
use crate::books::Books;
use crate::books::records::OperatorEntry;
use crate::lock::lock;
use crate::roster::Roster;
use crate::roster::change::Changes;
use crate::roster::registry::{Intervention, Registry, RegistryError};

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
pub(crate) fn named(
    registry: &Registry,
    target: &Target,
) -> Result<Vec<(String, AgentId)>, KillError> {
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

/// The kill switch.
pub struct KillSwitch {
    pub changes: Arc<Changes>,
    pub stopper: Stopper,
    pub books: Arc<Books>,
}

impl KillSwitch {
    /// Holds the agents, and those that act for them, until they are revived, whatever restarts in between. `by` may take
    /// its time: it is asked when nothing of the agents' leaves the host any more.
    pub async fn kill(
        &self,
        target: &Target,
        reason: Option<String>,
        by: impl Future<Output = Actor> + Send,
    ) -> Result<Vec<Cut>, KillError> {
        let Self {
            changes,
            stopper,
            books,
        } = self;
        let (roster, enforce) = (&stopper.roster, &stopper.enforce);
        let agents = named(&lock(&roster.registry), target)?;
        // The kernel is flipped at once, whatever other change is under way; and again when a revival cannot undo it any more.
        enforce.flip(&agents, true);
        let change = changes.stops().await;
        let mut failures = enforce.flip(&agents, true);
        let by = by.await;
        let before = roster.stops();
        let names: Vec<String> = agents.iter().map(|(name, _)| name.clone()).collect();
        let result = write(roster, &agents, reason.clone(), &by);
        let ids: Vec<AgentId> = agents.iter().map(|(_, id)| *id).collect();
        let (cuts, more) = stopper.reconcile(&change, &before, &ids).await;
        failures.extend(more);
        match result {
            // Those that act for them are held by now, too.
            Ok(()) => failures.extend(enforce.clear_orders(&roster.stopped())),
            Err(error) => failures.push(format!(
                "it holds, and not over a restart of the daemon until it can be written; kill again then: {error}"
            )),
        }
        let detail = reason.as_deref().unwrap_or("");
        record(
            books,
            roster,
            Operation::Kill,
            &names,
            detail,
            &by,
            &failures,
        )
        .await;
        finish(failures, cuts)
    }

    /// Lets agents go on where the policy says so, and nothing else stops them.
    pub async fn revive(
        &self,
        target: &Target,
        reason: Option<String>,
        by: &Actor,
    ) -> Result<Vec<NamedAgent>, KillError> {
        let Self {
            changes,
            stopper,
            books,
        } = self;
        let roster = &stopper.roster;
        let agents = named(&lock(&roster.registry), target)?;
        let change = changes.stops().await;
        let before = roster.stops();
        let killed_before = lock(&roster.registry).killed();
        let names: Vec<String> = agents.iter().map(|(name, _)| name.clone()).collect();
        // Disk first: an agent that runs must not be one that is killed after a restart.
        lock(&roster.registry)
            .revive(&names)
            .map_err(|error| KillError::Failed(error.to_string()))?;
        let ids: Vec<AgentId> = agents.iter().map(|(_, id)| *id).collect();
        // Those that act for them were held by such an order, too.
        let mut failures = stopper.enforce.clear_orders(&roster.line_below(&ids));
        let (_, more) = stopper.reconcile(&change, &before, &ids).await;
        failures.extend(more);
        let detail = reason.as_deref().unwrap_or("");
        record(
            books,
            roster,
            Operation::Revive,
            &names,
            detail,
            by,
            &failures,
        )
        .await;
        let stops = roster.stops();
        let revived = agents
            .into_iter()
            .map(|(agent, id)| NamedAgent {
                agent,
                already: !killed_before.contains(&id),
                stopped: stops.get(&id).map(|stop| stop.detail().to_owned()),
            })
            .collect();
        finish(failures, revived)
    }
}

/// Who finds an agent killed wants to know who did it first; the audit log has them all.
fn write(
    roster: &Roster,
    agents: &[(String, AgentId)],
    reason: Option<String>,
    by: &Actor,
) -> Result<(), RegistryError> {
    let killed = done(reason, by);
    let mut registry = lock(&roster.registry);
    let killed_before = registry.killed();
    let fresh: Vec<String> = agents
        .iter()
        .filter(|(_, id)| !killed_before.contains(id))
        .map(|(name, _)| name.clone())
        .collect();
    registry.kill(&fresh, &killed)
}

/// What `by` does now.
pub(crate) fn done(reason: Option<String>, by: &Actor) -> Intervention {
    Intervention {
        reason,
        by: match by.user() {
            Some(user) => user.to_owned(),
            None => user::name(by.uid()),
        },
        at: Timestamp::now(),
    }
}

pub(crate) fn finish<T>(failures: Vec<String>, done: T) -> Result<T, KillError> {
    if failures.is_empty() {
        Ok(done)
    } else {
        Err(KillError::Failed(failures.join("; ")))
    }
}

/// One record for each agent.
pub(crate) async fn record(
    books: &Books,
    roster: &Roster,
    operation: Operation,
    names: &[String],
    detail: &str,
    by: &Actor,
    failures: &[String],
) {
    let bundle = roster.meta();
    let (outcome, detail) = match failures {
        [] => (Outcome::Allow, detail.to_owned()),
        failures => (Outcome::Error, failures.join("; ")),
    };
    for name in names {
        books.operated(OperatorEntry {
            by: by.clone(),
            operation,
            agent: Some(name.clone()),
            resource: name.clone(),
            outcome,
            detail: detail.clone(),
            bundle: bundle.clone(),
        });
    }
    books.records.settled().await;
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
