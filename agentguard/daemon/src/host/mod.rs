//! What the machine is, and what was configured for it: found at start, and read only after that.

pub mod config;
pub(crate) mod manifest;
pub(crate) mod names;
pub(crate) mod network;
pub(crate) mod startup;
pub mod tls;
pub mod upstream;
mod ways;

use std::path::Path;

use agentguard_sys::cgroup::CgroupNames;
use agentguard_sys::network::NetworkChanges;
use agentguard_sys::user::Account;
use jiff::Timestamp;

use self::config::Config;
use self::network::Network;
use self::startup::StartError;
use crate::guarantee::Facts;

pub struct Host {
    pub config: Config,
    pub started: Timestamp,
    /// Whom the forwarder and the canary run as.
    pub account: Account,
    pub cgroups: CgroupNames,
    pub network: Network,
    /// What the host offers, as it was found at start.
    pub facts: Facts,
}

impl Host {
    /// Must be called in a tokio runtime.
    pub fn open(
        config: Config,
        account: Account,
        cgroup_root: &Path,
    ) -> Result<(Self, NetworkChanges), StartError> {
        let cgroups = CgroupNames::open(cgroup_root)
            .map_err(|e| StartError::Failed(format!("`{}`: {e}", cgroup_root.display())))?;
        let (network, changes) = Network::start(&config.network.trusted)
            .map_err(|e| StartError::Failed(format!("cannot watch the host's network: {e}")))?;
        let host = Self {
            started: Timestamp::now(),
            account,
            cgroups,
            network,
            facts: Facts::of_host(&config),
            config,
        };
        Ok((host, changes))
    }
}
