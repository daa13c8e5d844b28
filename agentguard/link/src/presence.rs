//! Since when an agent is up, and whether somebody's terminal shows it: what rules read of it as `context.agent`.

use std::collections::BTreeMap;

use agentguard_common::abi::AgentId;
use serde::{Deserialize, Serialize};

/// How an agent that has a process is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// `CLOCK_BOOTTIME`, ns, of when it last had none.
    pub since_ns: u64,
    /// Whether one of those who started it is on a terminal.
    pub attended: bool,
}

impl Presence {
    /// Whole seconds until `now_ns`.
    pub fn uptime_s(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.since_ns) / 1_000_000_000
    }
}

/// What has changed, by agent; `None`: it has no process any more.
pub type PresenceChanges = BTreeMap<AgentId, Option<Presence>>;

/// Takes up what has changed.
pub fn follow(presences: &mut BTreeMap<AgentId, Presence>, changes: &PresenceChanges) {
    for (agent, presence) in changes {
        match presence {
            Some(presence) => presences.insert(*agent, *presence),
            None => presences.remove(agent),
        };
    }
}
