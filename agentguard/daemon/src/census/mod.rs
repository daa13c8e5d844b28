//! Which processes run, whose they are, and where.

pub(crate) mod activity;
pub(crate) mod adopt;
pub(crate) mod adoption;
pub(crate) mod attendance;
pub(crate) mod enrol;
pub(crate) mod identify;
pub(crate) mod lineage;
pub(crate) mod namespaces;
pub(crate) mod presences;

use std::collections::BTreeMap;
use std::sync::Mutex;

use agentguard_common::abi::AgentId;
use tokio::sync::mpsc;

use self::activity::{Activities, Activity};
use self::adoption::Unread;
use self::attendance::Attendance;
use self::lineage::Lineage;
use self::namespaces::{Look, Namespaces};
use crate::host::startup::StartError;
use crate::lock::lock;

pub struct Census {
    pub lineage: Mutex<Lineage>,
    pub activity: Mutex<Activities>,
    pub attendance: Attendance,
    pub namespaces: Namespaces,
    pub unread: Unread,
}

impl Census {
    /// Nobody runs, as far as is known; and what there is to look into.
    pub fn open() -> Result<(Self, mpsc::Receiver<Look>), StartError> {
        let (namespaces, looks) =
            Namespaces::new().map_err(|e| StartError::Failed(e.to_string()))?;
        let census = Self {
            lineage: Mutex::default(),
            activity: Mutex::default(),
            attendance: Attendance::default(),
            namespaces,
            unread: Unread::default(),
        };
        Ok((census, looks))
    }

    /// What agents have done, and their running processes.
    pub fn seen(
        &self,
        agents: impl Iterator<Item = AgentId> + Clone,
    ) -> BTreeMap<AgentId, (Activity, Vec<u32>)> {
        let did: Vec<Activity> = {
            let activity = lock(&self.activity);
            agents.clone().map(|agent| activity.of(agent)).collect()
        };
        let lineage = lock(&self.lineage);
        agents
            .zip(did)
            .map(|(agent, did)| (agent, (did, lineage.running(agent))))
            .collect()
    }
}
