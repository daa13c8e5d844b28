//! The right to act, which only a decision gives.

use std::collections::BTreeMap;

use agentguard_common::abi::AgentId;

use super::Denial;
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
    observed: Option<Denial>,
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
            observed: None,
        }
    }

    /// For an agent that is only observed: what would have been denied.
    pub(super) fn observed(agent: AgentId, host: HostName, port: u16, denial: Denial) -> Self {
        Self {
            policies: denial.policies.clone(),
            facts: denial.facts.clone(),
            observed: Some(denial),
            ..Self::new(agent, host, port, Vec::new(), BTreeMap::new())
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

    /// Why it would have been denied, were its agent not only observed.
    pub fn would_deny(&self) -> Option<&Denial> {
        self.observed.as_ref()
    }

    /// Ids of the policies that permitted, or would have denied.
    pub fn policies(&self) -> &[String] {
        &self.policies
    }

    /// What rules read.
    pub fn facts(&self) -> &BTreeMap<String, String> {
        &self.facts
    }
}
