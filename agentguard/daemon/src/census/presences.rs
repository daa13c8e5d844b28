//! Since when each agent is up, and whether somebody's terminal shows it: what rules read of it as `context.agent`.

use std::collections::{BTreeMap, BTreeSet};

use agentguard_common::abi::AgentId;
use agentguard_link::presence::{Presence, PresenceChanges};

#[derive(Debug, Default)]
pub struct Presences {
    up: BTreeMap<AgentId, Up>,
    /// Callers of `run` with a terminal, by agent.
    terminals: BTreeMap<AgentId, u32>,
    untold: BTreeSet<AgentId>,
}

#[derive(Debug)]
struct Up {
    processes: u32,
    since_ns: u64,
}

impl Presences {
    /// A process is the agent's from `at_ns` on.
    pub fn begins(&mut self, agent: AgentId, at_ns: u64) {
        if agent.is_canary() || agent == AgentId::NONE {
            return;
        }
        let up = self.up.entry(agent).or_insert_with(|| {
            self.untold.insert(agent);
            Up {
                processes: 0,
                since_ns: at_ns,
            }
        });
        up.processes += 1;
        if at_ns < up.since_ns {
            up.since_ns = at_ns;
            self.untold.insert(agent);
        }
    }

    /// A process of the agent's has ended, or is another's.
    pub fn ends(&mut self, agent: AgentId) {
        let Some(up) = self.up.get_mut(&agent) else {
            return;
        };
        up.processes -= 1;
        if up.processes == 0 {
            self.up.remove(&agent);
            self.untold.insert(agent);
        }
    }

    pub fn terminal_came(&mut self, agent: AgentId) {
        *self.terminals.entry(agent).or_default() += 1;
        self.untold.insert(agent);
    }

    pub fn terminal_left(&mut self, agent: AgentId) {
        if let Some(count) = self.terminals.get_mut(&agent) {
            *count -= 1;
            if *count == 0 {
                self.terminals.remove(&agent);
            }
            self.untold.insert(agent);
        }
    }

    pub fn of(&self, agent: AgentId) -> Option<Presence> {
        self.up.get(&agent).map(|up| Presence {
            since_ns: up.since_ns,
            attended: self.terminals.contains_key(&agent),
        })
    }

    /// What the forwarder has not been told.
    pub fn untold(&self) -> PresenceChanges {
        let untold = self.untold.iter();
        untold.map(|agent| (*agent, self.of(*agent))).collect()
    }

    /// The forwarder has been told this.
    pub fn told(&mut self, changes: &PresenceChanges) {
        for (agent, presence) in changes {
            if self.of(*agent) == *presence {
                self.untold.remove(agent);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: AgentId = AgentId(7);

    #[test]
    fn an_agent_is_up_while_it_has_a_process() {
        let mut presences = Presences::default();
        assert_eq!(presences.of(A), None);
        presences.begins(A, 5_000_000_000);
        presences.begins(A, 9_000_000_000);
        // What started it may end: it has been up all the time.
        presences.ends(A);
        let up = presences.of(A).unwrap();
        assert_eq!((up.since_ns, up.attended), (5_000_000_000, false));
        assert_eq!(up.uptime_s(7_900_000_000), 2);
        assert_eq!(up.uptime_s(1), 0);
        presences.ends(A);
        assert_eq!(presences.of(A), None);
        presences.ends(A);
        presences.begins(A, 11_000_000_000);
        assert_eq!(presences.of(A).unwrap().since_ns, 11_000_000_000);
    }

    #[test]
    fn who_was_there_before_is_found_in_any_order() {
        let mut presences = Presences::default();
        presences.begins(A, 9);
        presences.begins(A, 5);
        assert_eq!(presences.of(A).unwrap().since_ns, 5);
    }

    #[test]
    fn it_is_attended_until_the_last_terminal_leaves() {
        let mut presences = Presences::default();
        presences.begins(A, 1);
        let attended = |presences: &Presences| presences.of(A).unwrap().attended;
        presences.terminal_came(A);
        presences.terminal_came(A);
        presences.terminal_left(A);
        assert!(attended(&presences));
        presences.terminal_left(A);
        presences.terminal_left(A);
        assert!(!attended(&presences));
    }

    #[test]
    fn what_changes_while_it_is_told_is_told_again() {
        let mut presences = Presences::default();
        presences.begins(A, 1);
        let changes = presences.untold();
        presences.terminal_came(A);
        presences.told(&changes);
        let changes = presences.untold();
        assert!(changes[&A].unwrap().attended);
        presences.told(&changes);
        assert!(presences.untold().is_empty());
        presences.ends(A);
        assert_eq!(presences.untold()[&A], None);
        presences.begins(AgentId::CANARY, 1);
        assert_eq!(presences.untold().len(), 1, "nothing is said of the canary");
    }
}
