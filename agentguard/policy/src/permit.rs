//! The right to act, which only a decision gives.

use std::collections::BTreeMap;

use agentguard_common::abi::AgentId;
use agentguard_record::DenyReason;
use jiff::Timestamp;

use super::Denial;
use super::facts::bounded;
use super::host::HostName;
use super::limit::{Charge, Room};
use super::task::Covered;

/// The right to send one request to one host. Only a decision makes one, and `upstream` consumes it.
#[derive(Debug)]
#[must_use = "a permit is spent by sending what it permits"]
pub struct Permit {
    agent: AgentId,
    host: HostName,
    port: u16,
    policies: Vec<String>,
    facts: BTreeMap<String, String>,
    covered: Vec<Covered>,
    observed: Option<Denial>,
}

impl Permit {
    pub(super) fn new(
        agent: AgentId,
        host: HostName,
        port: u16,
        policies: Vec<String>,
        facts: BTreeMap<String, String>,
        covered: Vec<Covered>,
    ) -> Self {
        Self {
            agent,
            host,
            port,
            policies,
            facts,
            covered,
            observed: None,
        }
    }

    /// For an agent that is only observed: what would have been denied.
    pub(super) fn observed(self, denial: Denial) -> Self {
        Self {
            policies: denial.policies.clone(),
            facts: denial.facts.clone(),
            observed: Some(denial),
            ..self
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

    /// The tasks that it ends with.
    pub fn covered(&self) -> &[Covered] {
        &self.covered
    }

    /// What rules read.
    pub fn facts(&self) -> &BTreeMap<String, String> {
        &self.facts
    }
}

/// The right to act once there is room in every limit that counts it.
#[derive(Debug)]
#[must_use = "it permits nothing before its charges have been answered"]
pub struct Limited {
    pub(super) permit: Permit,
    pub(super) charges: Vec<Charge>,
    /// Without room it is let through and recorded.
    pub(super) observed: bool,
    /// What limits the agent, as a sentence begins.
    pub(super) whose: String,
}

impl Limited {
    /// To be taken all together or not at all.
    pub fn charges(&self) -> &[Charge] {
        &self.charges
    }

    /// Ids of the policies that permit.
    pub fn policies(&self) -> &[String] {
        self.permit.policies()
    }

    /// As [`Permit::covered`].
    pub fn covered(&self) -> &[Covered] {
        self.permit.covered()
    }

    /// `room`: what the counters say of [`Self::charges`].
    ///
    /// # Errors
    /// Why there is none.
    pub fn answered(mut self, room: &Room) -> Result<Permit, Denial> {
        let fact = |charge: &Charge, used| {
            let name = format!("limit.{}", charge.counter.rule);
            (name, charge.used(used))
        };
        let (charge, rest) = match room {
            Room::Taken(used) => {
                let used = self.charges.iter().zip(used);
                let facts = used.map(|(charge, used)| fact(charge, *used));
                self.permit.facts.extend(facts);
                return Ok(self.permit);
            }
            Room::Full {
                charge,
                used,
                until,
            } => {
                let charge = self.charges.get(*charge as usize);
                let used = charge.map(|charge| fact(charge, *used));
                self.permit.facts.extend(used);
                let until = until.and_then(|until| Timestamp::from_millisecond(until).ok());
                let rest = match until {
                    Some(until) => {
                        format!("is used up until {until:.0}; do not retry before that.")
                    }
                    None => "is smaller than what this request asks for; repeating it will not change this, ask for less.".to_owned(),
                };
                (charge, rest)
            }
            Room::Reused { charge } => (
                self.charges.get(*charge as usize),
                "has counted another request with the same key; do not use a key again for another request.".to_owned(),
            ),
            Room::Unavailable(why) => {
                self.permit.facts.insert("limit_failed".into(), bounded(why));
                (
                    None,
                    "cannot be counted on this host at the moment; do not retry before its operators have looked at it.".to_owned(),
                )
            }
        };
        let denial = Denial {
            reason: DenyReason::RateLimited,
            policies: charge
                .map(|charge| charge.counter.rule.clone())
                .into_iter()
                .collect(),
            detail: format!("{} {rest}", self.whose),
            facts: self.permit.facts.clone(),
            approval: Vec::new(),
        };
        // Rules that nobody could ask have not said no.
        let judged = !matches!(room, Room::Unavailable(_));
        if self.observed && judged {
            return Ok(self.permit.observed(denial));
        }
        Err(denial)
    }
}
