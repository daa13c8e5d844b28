//! What the daemon wants the forwarder to hold, and how it changes: the same code keeps it on both sides, so that a
//! forwarder that was told of every change holds what the next one is started with.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use agentguard_common::abi::AgentId;
use agentguard_policy::{OpenedBy, Reassignment, Sources, Terms};
use agentguard_record::DenyReason;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::presence::{self, Presence, PresenceChanges};

/// What every decision of the forwarder's depends on and the daemon alone knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub policy: Box<PolicyUpdate>,
    /// Agents that may do nothing, and why.
    pub stopped: BTreeMap<AgentId, DenyReason>,
    /// Whether decisions can be recorded: while they cannot, agents are refused with `audit-unavailable`.
    pub audit_writable: bool,
    /// Whether the host's network is one that its configuration trusts.
    pub trusted_network: bool,
    pub names: Names,
    /// By the host's configuration, which does not change while the daemon runs.
    pub host_labels: BTreeSet<String>,
    /// Open tasks, of agents that have any.
    pub tasks: BTreeMap<AgentId, Vec<OpenTask>>,
    /// How agents are up that have a process.
    pub presences: BTreeMap<AgentId, Presence>,
}

/// Where the host finds names: by its files as they were last read, where the configuration does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// Lower-case name → addresses: the configuration's, then `/etc/hosts`.
    pub hosts: BTreeMap<String, Vec<IpAddr>>,
    pub resolvers: Vec<SocketAddr>,
}

/// One change of the [`State`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Delta {
    /// In force for every decision after it has been compiled.
    Policy(Box<PolicyUpdate>),
    /// Agents that have been killed or stopped otherwise: their connections are dropped, both sides, and what comes is
    /// refused.
    Stopped(BTreeMap<AgentId, DenyReason>),
    /// Agents that are stopped no longer.
    Freed(BTreeSet<AgentId>),
    AuditWritable(bool),
    TrustedNetwork(bool),
    /// In the place of those before.
    Names(Names),
    /// The open tasks of an agent, in the place of those before.
    Tasks {
        agent: AgentId,
        open: Vec<OpenTask>,
    },
    Presences(PresenceChanges),
}

/// A bundle that the daemon has compiled without error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyUpdate {
    pub sources: Sources,
    /// Id → name of every agent of the bundle.
    pub agents: BTreeMap<AgentId, String>,
    /// Agents that have another owner than the sources say.
    pub owners: BTreeMap<String, Reassignment>,
}

/// A task that is open until it ends, or the daemon says that it is not any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenTask {
    pub id: Uuid,
    pub opened_by: OpenedBy,
    pub terms: Terms,
    /// Seconds since the Unix epoch.
    pub ends: i64,
}

impl State {
    pub fn apply(&mut self, delta: Delta) {
        match delta {
            Delta::Policy(update) => self.policy = update,
            Delta::Stopped(agents) => self.stopped.extend(agents),
            Delta::Freed(agents) => self.stopped.retain(|agent, _| !agents.contains(agent)),
            Delta::AuditWritable(is) => self.audit_writable = is,
            Delta::TrustedNetwork(is) => self.trusted_network = is,
            Delta::Names(names) => self.names = names,
            Delta::Tasks { agent, open } if open.is_empty() => {
                self.tasks.remove(&agent);
            }
            Delta::Tasks { agent, open } => {
                self.tasks.insert(agent, open);
            }
            Delta::Presences(changes) => presence::follow(&mut self.presences, &changes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Assembler, datagrams, encode};
    use crate::frame::ToForwarder;
    use proptest::collection::{btree_map, btree_set, vec};
    use proptest::option;
    use proptest::prelude::*;

    const A: AgentId = AgentId(2);
    const B: AgentId = AgentId(3);

    fn policy(files: &[&str]) -> Box<PolicyUpdate> {
        let files = files.iter().map(|file| (file.to_string(), String::new()));
        Box::new(PolicyUpdate {
            sources: Sources {
                files: files.collect(),
            },
            ..PolicyUpdate::default()
        })
    }

    fn task(id: u128, ends: i64) -> OpenTask {
        OpenTask {
            id: Uuid::from_u128(id),
            opened_by: OpenedBy::Agent,
            terms: Terms::default(),
            ends,
        }
    }

    fn names(last: u8) -> Names {
        let address = IpAddr::from([192, 0, 2, last]);
        Names {
            hosts: [("a.test".into(), vec![address])].into(),
            resolvers: vec![(address, 53).into()],
        }
    }

    #[test]
    fn each_delta_changes_its_part_and_no_other() {
        let mut state = State::default();
        let mut expected = State::default();
        let mut apply = |delta: Delta, change: &dyn Fn(&mut State)| {
            state.apply(delta.clone());
            change(&mut expected);
            assert_eq!(state, expected, "{delta:?}");
        };
        apply(Delta::Policy(policy(&["bundle.toml"])), &|state| {
            state.policy = policy(&["bundle.toml"]);
        });
        let (killed, orphaned) = (DenyReason::AgentKilled, DenyReason::AgentOrphaned);
        let both = BTreeMap::from([(A, killed), (B, killed)]);
        apply(Delta::Stopped(both.clone()), &|state| {
            state.stopped = both.clone();
        });
        apply(Delta::Stopped([(A, orphaned)].into()), &|state| {
            state.stopped.insert(A, orphaned);
        });
        apply(Delta::Freed([A, AgentId(9)].into()), &|state| {
            state.stopped.remove(&A);
        });
        apply(Delta::AuditWritable(true), &|state| {
            state.audit_writable = true
        });
        apply(Delta::TrustedNetwork(true), &|state| {
            state.trusted_network = true
        });
        apply(Delta::Names(names(7)), &|state| state.names = names(7));
        let open = vec![task(1, 60), task(2, 70)];
        let tasks = |agent, open: &[OpenTask]| Delta::Tasks {
            agent,
            open: open.to_vec(),
        };
        apply(tasks(A, &open), &|state| {
            state.tasks.insert(A, open.clone());
        });
        apply(tasks(B, &open[..1]), &|state| {
            state.tasks.insert(B, open[..1].to_vec());
        });
        apply(tasks(A, &[]), &|state| {
            state.tasks.remove(&A);
        });
        let presence = Presence {
            since_ns: 7,
            attended: true,
        };
        apply(Delta::Presences([(A, Some(presence))].into()), &|state| {
            state.presences.insert(A, presence);
        });
        apply(Delta::Presences([(A, None), (B, None)].into()), &|state| {
            state.presences.clear();
        });
    }

    fn agents() -> impl Strategy<Value = AgentId> {
        (2..6u32).prop_map(AgentId)
    }

    fn deltas() -> impl Strategy<Value = Delta> {
        let reasons = prop_oneof![
            Just(DenyReason::AgentKilled),
            Just(DenyReason::AgentSuspended),
            Just(DenyReason::AgentOrphaned),
        ];
        let presences = (any::<u64>(), any::<bool>())
            .prop_map(|(since_ns, attended)| Presence { since_ns, attended });
        let tasks = (any::<u128>(), any::<i64>()).prop_map(|(id, ends)| task(id, ends));
        prop_oneof![
            vec("[a-z]{1,3}", 0..3).prop_map(|files| {
                let files: Vec<_> = files.iter().map(String::as_str).collect();
                Delta::Policy(policy(&files))
            }),
            btree_map(agents(), reasons, 0..4).prop_map(Delta::Stopped),
            btree_set(agents(), 0..4).prop_map(Delta::Freed),
            any::<bool>().prop_map(Delta::AuditWritable),
            any::<bool>().prop_map(Delta::TrustedNetwork),
            any::<u8>().prop_map(|last| Delta::Names(names(last))),
            (agents(), vec(tasks, 0..3)).prop_map(|(agent, open)| Delta::Tasks { agent, open }),
            btree_map(agents(), option::of(presences), 0..4).prop_map(Delta::Presences),
        ]
    }

    fn over_the_link(delta: &Delta) -> Delta {
        let encoded = encode(&ToForwarder::Delta(delta.clone())).unwrap();
        let mut assembler = Assembler::default();
        let mut frames = datagrams(&encoded)
            .filter_map(|(head, piece)| assembler.push(&[&head[..], piece].concat()).unwrap());
        match frames.next() {
            Some(ToForwarder::Delta(delta)) => delta,
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        /// Whenever a forwarder was started, before or between the changes, it holds what the daemon has.
        #[test]
        fn both_sides_hold_the_same_whenever_the_forwarder_began(
            deltas in vec(deltas(), 0..20),
            begins in 0..20usize,
        ) {
            let mut daemon = State::default();
            let mut forwarder = None;
            for (at, delta) in deltas.iter().enumerate() {
                if at == begins {
                    forwarder = Some(daemon.clone());
                }
                daemon.apply(delta.clone());
                if let Some(forwarder) = &mut forwarder {
                    forwarder.apply(over_the_link(delta));
                }
            }
            prop_assert_eq!(forwarder.unwrap_or(daemon.clone()), daemon);
        }

        /// A delta says what is, and not how it was before.
        #[test]
        fn a_delta_applied_again_changes_nothing(
            deltas in vec(deltas(), 1..20),
        ) {
            let mut state = State::default();
            for delta in deltas {
                state.apply(delta.clone());
                let once = state.clone();
                state.apply(delta);
                prop_assert_eq!(&state, &once);
            }
        }
    }
}
