//! What each agent has done since the daemon started, for `agents` and `status`.

use std::collections::BTreeMap;

use agentguard_common::abi::AgentId;
use agentguard_record::Outcome;
use jiff::Timestamp;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    pub allowed: u64,
    pub denied: u64,
    /// Of its latest decision.
    pub last_seen: Option<Timestamp>,
    /// Live connections in the forwarder.
    pub connections: u32,
}

#[derive(Debug, Default)]
pub struct Activities(BTreeMap<AgentId, Activity>);

impl Activities {
    pub fn of(&self, agent: AgentId) -> Activity {
        self.0.get(&agent).copied().unwrap_or_default()
    }

    pub fn decided(&mut self, agent: AgentId, outcome: Outcome, count: u64, time_us: i64) {
        let activity = self.0.entry(agent).or_default();
        match outcome {
            Outcome::Deny | Outcome::ApprovalRequired => activity.denied += count,
            Outcome::Allow | Outcome::Observed | Outcome::Killed | Outcome::Error => {
                activity.allowed += count;
            }
        }
        let time = Timestamp::from_microsecond(time_us).ok();
        activity.last_seen = activity.last_seen.max(time);
    }

    /// Replaces every agent's count.
    pub fn connected(&mut self, connections: &BTreeMap<AgentId, u32>) {
        for activity in self.0.values_mut() {
            activity.connections = 0;
        }
        for (agent, count) in connections {
            self.0.entry(*agent).or_default().connections = *count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_and_connections_are_counted_per_agent() {
        let mut all = Activities::default();
        let (a, b) = (AgentId(2), AgentId(3));
        all.decided(a, Outcome::Allow, 1, 2_000_000);
        all.decided(a, Outcome::Deny, 1, 1_000_000);
        all.connected(&BTreeMap::from([(a, 2), (b, 1)]));
        all.connected(&BTreeMap::from([(b, 4)]));
        let seen = all.of(a);
        assert_eq!((seen.allowed, seen.denied, seen.connections), (1, 1, 0));
        assert_eq!(seen.last_seen, Some(Timestamp::from_second(2).unwrap()));
        assert_eq!(all.of(b).connections, 4);
    }
}
