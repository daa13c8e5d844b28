//! Whose agents are, and whether they are in use: what operators change of the registry, and what follows from it at once.

use std::sync::Arc;

use agentguard_common::abi::AgentId;
use agentguard_control::api::{AgentState, Change, ChangeAnswer, Target};
use agentguard_policy::Reassignment;
use agentguard_record::{Actor, Operation, Outcome};

use super::Roster;
use super::change::{BundleChange, Changes};
use super::registry::{Out, Registry, RegistryError};
use crate::books::Books;
use crate::books::records::OperatorEntry;
use crate::enforce::apply;
use crate::enforce::kill::{self, KillError};
use crate::enforce::stop::Stopper;
use crate::lock::lock;
use crate::serve::view;

/// Bytes of an owner's name.
const MAX_OWNER: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Suspend,
    Activate,
    Retire,
    Reassign,
}

impl Verb {
    const fn operation(self) -> Operation {
        match self {
            Self::Suspend => Operation::Suspend,
            Self::Activate => Operation::Activate,
            Self::Retire => Operation::Retire,
            Self::Reassign => Operation::Reassign,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error("{0}")]
    Usage(String),
    /// Nothing has changed.
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Kill(#[from] KillError),
}

impl From<RegistryError> for ChangeError {
    fn from(error: RegistryError) -> Self {
        Self::Kill(KillError::Failed(error.to_string()))
    }
}

type Agents = Vec<(String, AgentId)>;

/// What it takes to change what agents are.
pub struct Registrar {
    pub changes: Arc<Changes>,
    pub stopper: Stopper,
    pub books: Arc<Books>,
}

impl Registrar {
    /// Changes what agents are. When it returns, who is stopped by it does nothing any more.
    pub async fn change(
        &self,
        verb: Verb,
        change: &Change,
        by: &Actor,
    ) -> Result<ChangeAnswer, ChangeError> {
        check(verb, change)?;
        let Self {
            changes,
            stopper,
            books,
        } = self;
        let roster = &stopper.roster;
        // No bundle comes in between: what is written here goes by the owners of the one in force.
        let bundle = changes.bundle().await;
        let agents = match (verb, &change.owner) {
            (Verb::Suspend | Verb::Activate, Some(owner)) => of_owner(roster, owner),
            (Verb::Suspend | Verb::Activate | Verb::Retire | Verb::Reassign, _) => {
                let target = Target {
                    agents: change.agents.clone(),
                    ..Target::default()
                };
                kill::named(&lock(&roster.registry), &target)?
            }
        };
        let stopping = bundle.stops().await;
        let before = roster.stops();
        let already = match verb {
            Verb::Reassign => {
                let owner = change.owner.as_deref().unwrap_or_default();
                self.reassign(&bundle, owner, &agents).await?
            }
            Verb::Suspend | Verb::Activate | Verb::Retire => {
                write(roster, verb, change, &agents, by)?
            }
        };
        let ids: Vec<AgentId> = agents.iter().map(|(_, id)| *id).collect();
        let (stopped, failures) = stopper.reconcile(&stopping, &before, &ids).await;
        let names: Vec<String> = agents.iter().map(|(name, _)| name.clone()).collect();
        let detail = detail(verb, change);
        if verb != Verb::Reassign
            && let Some(owner) = &change.owner
        {
            record_owner(books, roster, verb, owner, &detail, by).await;
        }
        let operation = verb.operation();
        kill::record(books, roster, operation, &names, &detail, by, &failures).await;
        let lines = view::agents(roster, &stopper.census, books);
        let states = agents.into_iter().map(|(agent, id)| {
            let line = lines.iter().find(|line| line.name == agent);
            AgentState {
                state: line.map_or_else(String::new, |line| line.state.clone()),
                owner: line.and_then(|line| line.owner.clone()),
                already: already.contains(&id),
                agent,
            }
        });
        let changed = ChangeAnswer {
            agents: states.collect(),
            stopped,
        };
        Ok(kill::finish(failures, changed)?)
    }

    /// Gives agents of the bundle in force another owner: rules that read it see the new one from here on.
    async fn reassign(
        &self,
        _change: &BundleChange<'_>,
        owner: &str,
        agents: &Agents,
    ) -> Result<Vec<AgentId>, ChangeError> {
        let Stopper {
            roster, forwarder, ..
        } = &self.stopper;
        let active = roster.active.load_full().ok_or_else(|| {
            ChangeError::Refused(
                "no bundle is in force; `agentguard policy apply DIR` first".into(),
            )
        })?;
        let mut owners = active.owners.clone();
        let mut already = Vec::new();
        for (name, id) in agents {
            let agent = active.policy.agent(*id).ok_or_else(|| {
                let why =
                    format!("agent `{name}` is not in the bundle in force, so it has no owner");
                ChangeError::Refused(why)
            })?;
            if agent.owner == owner {
                already.push(*id);
                continue;
            }
            // The owner that the agent's file names, also when it has been reassigned since.
            let before = owners.get(name).filter(|before| before.to == agent.owner);
            let from = before.map_or(&agent.owner, |before| &before.from).clone();
            owners.remove(name);
            if from != owner {
                let to = owner.to_owned();
                owners.insert(name.clone(), Reassignment { from, to });
            }
        }
        {
            let registry = lock(&roster.registry);
            refuse_retired(&registry, agents)?;
            if registry.inactive().contains_key(owner) {
                return Err(ChangeError::Refused(format!(
                    "`{owner}` is not active; `agentguard agents activate --owner {owner}` first, or name another"
                )));
            }
        }
        if already.len() == agents.len() {
            return Ok(already);
        }
        let ids = active.ids.clone();
        let sources = active.sources.clone();
        let prepared = apply::prepare(
            sources,
            |_| Ok(ids),
            owners.clone(),
            active.generation,
            active.entry.clone(),
        );
        let new = Arc::new(prepared.map_err(|error| KillError::Failed(error.to_string()))?);
        for (name, id) in agents.iter().filter(|(_, id)| !already.contains(id)) {
            debug_assert!(
                new.policy
                    .agent(*id)
                    .is_some_and(|agent| agent.owner == owner)
            );
            lock(&roster.registry).set_owner(name, owners.get(name))?;
        }
        roster.active.store(Some(new.clone()));
        if let Err(error) = apply::tell_forwarder(forwarder, &new).await {
            tracing::error!(%error, "the forwarder did not take an agent's new owner and is ended");
            let why = "it did not take an agent's new owner";
            forwarder.restart(why).await;
        }
        Ok(already)
    }
}

fn check(verb: Verb, change: &Change) -> Result<(), ChangeError> {
    let usage = |why: &str| Err(ChangeError::Usage(why.to_owned()));
    if let Some(owner) = &change.owner {
        let plain = !owner.trim().is_empty()
            && owner.len() <= MAX_OWNER
            && !owner.contains(|c: char| c.is_control());
        if !plain {
            return usage("an owner is 1 to 256 bytes without control characters");
        }
    }
    match (verb, &change.owner, change.agents.len()) {
        (Verb::Suspend | Verb::Activate, None, 1..) => Ok(()),
        (Verb::Suspend | Verb::Activate, Some(_), 0) => Ok(()),
        (Verb::Suspend | Verb::Activate, ..) => usage("name agents, or an `owner`, not both"),
        (Verb::Retire, None, 1..) => Ok(()),
        (Verb::Retire, ..) => usage("name the agents to retire, and no `owner`"),
        (Verb::Reassign, Some(_), 1..) => Ok(()),
        (Verb::Reassign, ..) => usage("name the agents to reassign, and their new `owner`"),
    }
}

/// The agents of the bundle in force that are this owner's.
fn of_owner(roster: &Roster, owner: &str) -> Agents {
    let active = roster.active.load();
    let Some(active) = active.as_ref() else {
        return Agents::new();
    };
    active
        .ids
        .iter()
        .filter(|(_, id)| {
            let agent = active.policy.agent(**id);
            agent.is_some_and(|agent| agent.owner == owner)
        })
        .map(|(name, id)| (name.clone(), *id))
        .collect()
}

/// Puts the change on disk, or refuses it whole. Answers the agents of which nothing has changed.
fn write(
    roster: &Roster,
    verb: Verb,
    change: &Change,
    agents: &Agents,
    by: &Actor,
) -> Result<Vec<AgentId>, ChangeError> {
    let done = kill::done(change.reason.clone(), by);
    let mut registry = lock(&roster.registry);
    if let Some(owner) = &change.owner {
        let inactive = verb == Verb::Suspend;
        let already = registry.inactive().contains_key(owner) == inactive;
        if !already {
            registry.set_inactive(owner, inactive.then_some(&done))?;
        }
        let ids = agents.iter().map(|(_, id)| *id);
        return Ok(ids.filter(|_| already).collect());
    }
    let out = |name: &str| {
        registry
            .agents()
            .get(name)?
            .out
            .as_ref()
            .map(|(out, _)| *out)
    };
    if verb != Verb::Retire {
        refuse_retired(&registry, agents)?;
    }
    let wanted = match verb {
        Verb::Suspend => Some(Out::Suspended),
        Verb::Retire => Some(Out::Retired),
        Verb::Activate | Verb::Reassign => None,
    };
    let (same, fresh): (Vec<_>, Vec<_>) = agents.iter().partition(|(name, _)| out(name) == wanted);
    let fresh: Vec<String> = fresh.iter().map(|(name, _)| name.clone()).collect();
    let same = same.iter().map(|(_, id)| *id).collect();
    registry.set_out(&fresh, wanted.map(|out| (out, done)).as_ref())?;
    Ok(same)
}

fn refuse_retired(registry: &Registry, agents: &Agents) -> Result<(), ChangeError> {
    let is_retired = |name: &str| {
        let out = registry
            .agents()
            .get(name)
            .and_then(|known| known.out.as_ref());
        out.is_some_and(|(out, _)| *out == Out::Retired)
    };
    match agents.iter().find(|(name, _)| is_retired(name)) {
        Some((name, _)) => Err(ChangeError::Refused(format!(
            "agent `{name}` has been retired, which is for good; an agent that takes its place needs a name of its own"
        ))),
        None => Ok(()),
    }
}

fn detail(verb: Verb, change: &Change) -> String {
    let reason = change.reason.as_deref().unwrap_or("");
    let what = match (verb, &change.owner) {
        (Verb::Reassign, Some(owner)) => format!("to {owner}"),
        (Verb::Suspend, Some(owner)) => format!("its owner {owner} is not active"),
        (Verb::Activate, Some(owner)) => format!("its owner {owner} is active"),
        (Verb::Retire, _) | (_, None) => return reason.to_owned(),
    };
    match reason {
        "" => what,
        reason => format!("{what}: {reason}"),
    }
}

/// An owner's status has a record of its own: there may be no agent of theirs.
async fn record_owner(
    books: &Books,
    roster: &Roster,
    verb: Verb,
    owner: &str,
    detail: &str,
    by: &Actor,
) {
    let done = OperatorEntry {
        by: by.clone(),
        operation: verb.operation(),
        agent: None,
        resource: owner.to_owned(),
        outcome: Outcome::Allow,
        detail: detail.to_owned(),
        bundle: roster.meta(),
    };
    books.operated(done);
}
