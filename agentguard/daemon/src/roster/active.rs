//! The bundle in force.

use std::collections::BTreeMap;
use std::sync::Arc;

use agentguard_bundle::history::HistoryEntry;
use agentguard_common::abi::AgentId;
use agentguard_link::state::PolicyUpdate;
use agentguard_policy::{Policy, Reassignment, Sources};
use agentguard_record::Meta;

use crate::census::identify::Blocks;

pub struct Active {
    pub sources: Sources,
    pub policy: Policy,
    pub meta: Arc<Meta>,
    pub ids: BTreeMap<String, AgentId>,
    /// Agents that have another owner than the sources say.
    pub owners: BTreeMap<String, Reassignment>,
    pub blocks: Blocks,
    /// Who put it in force, and when.
    pub entry: HistoryEntry,
    /// 1 for the first bundle since the daemon started.
    pub generation: u64,
}

impl Active {
    /// As the forwarder takes it.
    pub fn update(&self) -> PolicyUpdate {
        PolicyUpdate {
            sources: self.sources.clone(),
            agents: self.ids.iter().map(|(n, id)| (*id, n.clone())).collect(),
            owners: self.owners.clone(),
        }
    }
}

/// What the forwarder has while there is no bundle.
pub(crate) fn no_bundle() -> PolicyUpdate {
    PolicyUpdate {
        sources: Sources::default(),
        agents: BTreeMap::new(),
        owners: BTreeMap::new(),
    }
}
