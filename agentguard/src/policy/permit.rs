//! The right to act, which only a decision gives.

use std::collections::BTreeMap;

use agentguard_common::abi::AgentId;

use super::host::HostName;

/// The right to send one request to one host. Only a decision makes one, and `upstream` consumes it.
#[derive(Debug)]
#[must_use = "a permit is spent by sending what it permits"]
pub struct Permit {
    agent: AgentId,
    host: HostName,
    port: u16,
    policies: Vec<String>,
    facts: BTreeMap<String, String>,
}

impl Permit {
    pub(super) fn new(
        agent: AgentId,
        host: HostName,
        port: u16,
        policies: Vec<String>,
        facts: BTreeMap<String, String>,
    ) -> Self {
        Self {
            agent,
            host,
            port,
            policies,
            facts,
        }
    }

    pub fn agent(&self) -> AgentId {
        self.agent
    }

    pub fn host(&self) -> &HostName {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ids of the policies that permitted.
    pub fn policies(&self) -> &[String] {
        &self.policies
    }

    /// What rules read.
    pub fn facts(&self) -> &BTreeMap<String, String> {
        &self.facts
    }
}
