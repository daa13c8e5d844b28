//! Why an agent may do nothing at all now: by what operators have done, by its owner, or by the agents it acts for.

use std::collections::BTreeMap;

use agentguard_common::abi::AgentId;
use agentguard_policy::Policy;
use agentguard_record::DenyReason;

use super::registry::{KnownAgent, Out, Registry};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    Killed,
    Retired,
    Suspended,
    /// Its owner is not active.
    Orphaned,
    /// An agent that it acts for is stopped.
    Above,
}

pub(crate) type Stops = BTreeMap<AgentId, Stop>;

impl Stop {
    pub const fn reason(self) -> DenyReason {
        match self {
            Self::Killed => DenyReason::AgentKilled,
            Self::Retired | Self::Suspended => DenyReason::AgentSuspended,
            Self::Orphaned => DenyReason::AgentOrphaned,
            Self::Above => DenyReason::DelegationExceeded,
        }
    }

    /// As `agentguard agents` shows it.
    pub const fn state(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Retired => "retired",
            Self::Suspended => "suspended",
            Self::Orphaned => "orphaned",
            Self::Above => "held",
        }
    }

    pub const fn detail(self) -> &'static str {
        match self {
            Self::Killed => "the agent has been killed",
            Self::Retired => "the agent has been retired",
            Self::Suspended => "the agent has been suspended",
            Self::Orphaned => "the agent's owner is not active",
            Self::Above => "an agent that it acts for is stopped",
        }
    }
}

/// Everyone who is stopped while `policy` is in force.
pub(crate) fn stops(registry: &Registry, policy: Option<&Policy>) -> Stops {
    let own: Stops = registry
        .agents()
        .values()
        .filter_map(|known| Some((known.id, own(registry, known, policy)?)))
        .collect();
    let above = registry.agents().values().map(|known| known.id);
    let above = above.filter(|id| {
        let line = policy.map_or(&[][..], |policy| policy.above(*id));
        !own.contains_key(id) && line.iter().any(|one| own.contains_key(one))
    });
    let above: Vec<AgentId> = above.collect();
    own.into_iter()
        .chain(above.into_iter().map(|id| (id, Stop::Above)))
        .collect()
}

fn own(registry: &Registry, known: &KnownAgent, policy: Option<&Policy>) -> Option<Stop> {
    if known.killed.is_some() {
        return Some(Stop::Killed);
    }
    match known.out.as_ref().map(|(out, _)| *out) {
        Some(Out::Retired) => return Some(Stop::Retired),
        Some(Out::Suspended) => return Some(Stop::Suspended),
        None => {}
    }
    let agent = policy?.agent(known.id)?;
    registry
        .inactive()
        .contains_key(&agent.owner)
        .then_some(Stop::Orphaned)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use jiff::Timestamp;

    use super::super::registry::Intervention;
    use super::*;
    use agentguard_policy::Sources;

    fn policy(registry: &mut Registry) -> Policy {
        let agent = |name: &str, owner: &str, parent: &str| {
            let text = format!("[agent]\nname = \"{name}\"\nowner = \"{owner}\"\n{parent}");
            (format!("agents/{name}.toml"), text)
        };
        let manifest = "name = \"b\"\nserial = 1\n".to_owned();
        let files = [
            ("bundle.toml".to_owned(), manifest),
            agent("top", "ann", ""),
            agent("middle", "bob", "parent = \"top\"\n"),
            agent("bottom", "ann", "parent = \"middle\"\n"),
            agent("other", "ann", ""),
        ];
        let sources = Sources {
            files: files.into(),
        };
        let ids = registry.propose(&Policy::agent_names(&sources)).unwrap();
        registry.keep(&ids).unwrap();
        Policy::compile(&sources, &ids).unwrap()
    }

    #[test]
    fn an_agent_is_stopped_by_itself_its_owner_or_whom_it_acts_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut registry = Registry::open(&dir.path().join("agents.json")).unwrap();
        let policy = policy(&mut registry);
        let done = Intervention {
            reason: None,
            by: "root".into(),
            at: Timestamp::UNIX_EPOCH,
        };
        let state = |registry: &Registry| {
            let stops = stops(registry, Some(&policy));
            let of = |name: &str| stops.get(&registry.id(name).unwrap()).copied();
            ["top", "middle", "bottom", "other"].map(of)
        };
        let names = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(state(&registry), [None; 4]);
        registry
            .set_out(&names(&["middle"]), Some(&(Out::Suspended, done.clone())))
            .unwrap();
        let (suspended, held) = (Some(Stop::Suspended), Some(Stop::Above));
        assert_eq!(state(&registry), [None, suspended, held, None]);
        registry.set_out(&names(&["middle"]), None).unwrap();
        registry.set_inactive("ann", Some(&done)).unwrap();
        let orphaned = Some(Stop::Orphaned);
        assert_eq!(state(&registry), [orphaned, held, orphaned, orphaned]);
        // What counts is the strongest of an agent's own.
        registry.kill(&names(&["top"]), &done).unwrap();
        assert_eq!(state(&registry)[0], Some(Stop::Killed));
        let unlisted = stops(&registry, None);
        assert_eq!(unlisted.len(), 1, "without a bundle nobody has an owner");
        let everyone: BTreeSet<_> = registry.agents().keys().cloned().collect();
        assert_eq!(everyone.len(), 4);
    }
}
