//! The right to act, which only a decision gives.

use std::collections::BTreeMap;

use agentguard_common::abi::AgentId;
use agentguard_record::{DecidedBy, DenyReason};
use jiff::Timestamp;

use super::Denial;
use super::facts::bounded;
use super::host::HostName;
use super::limit::{Charge, Room};
use super::task::CoveringTasks;

/// The right to do one act at one host. Only a decision makes one. `State` says whether it can be spent: `upstream`
/// consumes a [`Permit<Settled>`], and nothing takes a [`Permit<Owed>`] but what settles it.
#[derive(Debug)]
#[must_use = "a permit is spent by sending what it permits"]
pub struct Permit<State = Settled> {
    agent: AgentId,
    host: HostName,
    port: u16,
    policies: Vec<String>,
    facts: BTreeMap<String, String>,
    covered: Vec<CoveringTasks>,
    observed: Option<Denial>,
    state: State,
}

/// Nothing is owed.
#[derive(Debug)]
pub struct Settled(());

/// What has to be settled before the permit can be spent: room in every limit that counts the act. What else a permit
/// comes to owe, as a human's yes, is a field of this.
#[derive(Debug)]
pub struct Owed {
    pub(super) charges: Vec<Charge>,
    /// Without room it is let through and recorded.
    pub(super) observed: bool,
    /// What limits the agent, as a sentence begins.
    pub(super) whose: String,
}

impl Permit {
    pub(super) fn new(
        agent: AgentId,
        host: HostName,
        port: u16,
        policies: Vec<String>,
        facts: BTreeMap<String, String>,
        covered: Vec<CoveringTasks>,
    ) -> Self {
        Self {
            agent,
            host,
            port,
            policies,
            facts,
            covered,
            observed: None,
            state: Settled(()),
        }
    }

    /// The same right, once `owed` is settled.
    pub(super) fn owing(self, owed: Owed) -> Permit<Owed> {
        self.with(owed).0
    }

    /// The right to do both acts at the one host, of one request that does both.
    pub fn and(mut self, other: Self) -> Self {
        for policy in other.policies {
            if !self.policies.contains(&policy) {
                self.policies.push(policy);
            }
        }
        for (name, value) in other.facts {
            self.facts.entry(name).or_insert(value);
        }
        self.covered.extend(other.covered);
        self.observed = self.observed.or(other.observed);
        self
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

    /// Why it would have been denied, were its agent not only observed.
    pub fn would_deny(&self) -> Option<&Denial> {
        self.observed.as_ref()
    }
}

impl<State> Permit<State> {
    /// The same right in another state, and the state that it was in.
    fn with<Other>(self, state: Other) -> (Permit<Other>, State) {
        let permit = Permit {
            agent: self.agent,
            host: self.host,
            port: self.port,
            policies: self.policies,
            facts: self.facts,
            covered: self.covered,
            observed: self.observed,
            state,
        };
        (permit, self.state)
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

    /// Ids of the policies that permitted, or would have denied.
    pub fn policies(&self) -> &[String] {
        &self.policies
    }

    /// The tasks that it ends with.
    pub fn covered(&self) -> &[CoveringTasks] {
        &self.covered
    }

    /// What rules read.
    pub fn facts(&self) -> &BTreeMap<String, String> {
        &self.facts
    }
}

impl Permit<Owed> {
    /// To be taken all together or not at all.
    pub fn charges(&self) -> &[Charge] {
        &self.state.charges
    }

    /// `room`: what the counters say of [`Self::charges`].
    ///
    /// # Errors
    /// Why there is none.
    pub fn answered(self, room: &Room) -> Result<Permit, Denial> {
        // From here on it lives in this function alone: what leaves is settled, or a denial.
        let (mut permit, owed) = self.with(Settled(()));
        let charges = &owed.charges;
        let fact = |charge: &Charge, used| {
            let name = format!("limit.{}", charge.counter.rule);
            (name, charge.used(used))
        };
        let (charge, rest) = match room {
            Room::Taken(used) => {
                let used = charges.iter().zip(used);
                let facts = used.map(|(charge, used)| fact(charge, *used));
                permit.facts.extend(facts);
                return Ok(permit);
            }
            Room::Full {
                charge,
                used,
                until,
            } => {
                let charge = charges.get(*charge as usize);
                let used = charge.map(|charge| fact(charge, *used));
                permit.facts.extend(used);
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
                charges.get(*charge as usize),
                "has counted another request with the same key; do not use a key again for another request.".to_owned(),
            ),
            Room::Unavailable(why) => {
                permit.facts.insert("limit_failed".into(), bounded(why));
                (
                    None,
                    "cannot be counted on this host at the moment; do not retry before its operators have looked at it.".to_owned(),
                )
            }
        };
        // Rules that nobody could ask have not said no.
        let judged = !matches!(room, Room::Unavailable(_));
        let denial = Denial {
            reason: DenyReason::RateLimited,
            decided_by: match judged {
                true => DecidedBy::Limit,
                false => DecidedBy::Host,
            },
            policies: charge
                .map(|charge| charge.counter.rule.clone())
                .into_iter()
                .collect(),
            detail: format!("{} {rest}", owed.whose),
            facts: permit.facts.clone(),
            approval: Vec::new(),
        };
        if owed.observed && judged {
            return Ok(permit.observed(denial));
        }
        Err(denial)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permit(policy: &str, facts: &[(&str, &str)]) -> Permit {
        let facts = facts
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()));
        Permit::new(
            AgentId(1),
            HostName::parse("h").unwrap(),
            443,
            vec![policy.into()],
            facts.collect(),
            Vec::new(),
        )
    }

    #[test]
    fn two_acts_of_one_request_have_one_permit() {
        let both = permit("a", &[("path", "/x")]).and(permit("b", &[("path", "/y"), ("z", "1")]));
        assert_eq!(both.policies(), ["a", "b"]);
        assert_eq!((&*both.facts()["path"], &*both.facts()["z"]), ("/x", "1"));
        let denial = Denial {
            reason: DenyReason::PolicyDenied,
            decided_by: DecidedBy::Rules,
            policies: vec!["c".into()],
            detail: String::new(),
            facts: BTreeMap::new(),
            approval: Vec::new(),
        };
        let both = both.and(permit("b", &[]).observed(denial));
        assert_eq!(both.policies(), ["a", "b", "c"]);
        assert!(both.would_deny().is_some(), "one of them is only observed");
    }
}
