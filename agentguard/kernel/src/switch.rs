//! The kill by the pinned maps alone, for when the daemon does not answer.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use agentguard_common::abi::{AgentId, Label};

use super::maps::{self, Map};
use super::pin::Folders;
use super::{KernelError, load, sockets};

/// The maps that a kill needs, of programs that a daemon has pinned.
pub struct Switch {
    orders: Map<u32, u32>,
    labels: Map<u32, Label>,
    marks: OwnedFd,
}

impl Switch {
    /// `None` if nothing is pinned below `pins`: no agent is held then.
    ///
    /// # Errors
    /// [`KernelError::Pins`] if a map is missing; [`KernelError::Call`] without `CAP_BPF`.
    pub fn open(pins: &Path) -> Result<Option<Self>, KernelError> {
        let folders = Folders::below(pins);
        if !load::is_any_pinned(&folders) {
            return Ok(None);
        }
        Ok(Some(Self {
            orders: Map::open(&folders.maps, "KILL_ORDERS", 0)?,
            labels: Map::open(&folders.maps, "LABELS", 0)?,
            marks: maps::open(&folders.maps, "MARKS", 0)?,
        }))
    }

    /// Nothing of the agent's leaves the host any more, until a daemon has taken the order in or clears it.
    pub fn hold(&self, agent: AgentId) -> Result<(), KernelError> {
        self.orders.update(&agent.0, &1)
    }

    /// The agent whose process `tgid` is; [`AgentId::NONE`] if it is nobody's.
    pub fn agent_of(&self, tgid: u32) -> Result<AgentId, KernelError> {
        Ok(self.labels.lookup(&tgid)?.unwrap_or_default().agent)
    }

    /// As [`super::Kernel::labelled`].
    pub fn labelled(&self) -> Result<Vec<(u32, Label)>, KernelError> {
        labelled(&self.labels)
    }

    /// The agent's running processes, by tgid.
    pub fn processes(&self, agent: AgentId) -> Result<Vec<u32>, KernelError> {
        let labelled = self.labelled()?.into_iter();
        let own = labelled.filter(|(_, label)| label.agent == agent);
        Ok(own.map(|(tgid, _)| tgid).collect())
    }

    /// As [`super::Kernel::destroy_sockets`].
    ///
    /// # Errors
    /// A kernel without `CONFIG_INET_DIAG_DESTROY`: the sockets stay, mute.
    pub fn destroy_sockets(&self, agent: AgentId) -> Result<u32, KernelError> {
        sockets::destroy(self.marks.as_fd(), agent)
    }
}

/// Every running process that has a label, with it.
pub(super) fn labelled(labels: &Map<u32, Label>) -> Result<Vec<(u32, Label)>, KernelError> {
    let entries = std::fs::read_dir("/proc").map_err(|source| KernelError::Call {
        call: "open /proc",
        source,
    })?;
    let mut found = Vec::new();
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let Some(tgid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let label = labels.lookup(&tgid)?.unwrap_or_default();
        if label.agent != AgentId::NONE {
            found.push((tgid, label));
        }
    }
    Ok(found)
}
