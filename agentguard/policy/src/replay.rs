//! A decision of the audit log taken again by another bundle, where the record has everything that its rules read.

mod recorded;
#[cfg(test)]
mod tests;

use agentguard_common::abi::AgentId;
use agentguard_record::secret::PRIVATE;
use agentguard_record::{self as record, DenyReason};
use http::HeaderMap;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

pub use self::recorded::{RecordedAct, Then};
use super::context::AttributeName;
use super::facts::MAX_VALUE;
use super::reading::is_method_parameter;
use super::reads::Reads;
use super::{
    Action, CanonicalPath, Context, Decision, HostName, Input, KernelRule, Policy, Proto, TlsMode,
};

/// Why a decision cannot be taken again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ReplayGap {
    /// A parameter or header that the rules then did not read.
    Fact,
    /// The body, of which the rules then did not read the same fields.
    Body,
    /// What was looked up, which then was not the same.
    Lookup,
    /// An attribute of the surroundings.
    Attribute(AttributeName),
    /// A secret, of which the record has the digest alone.
    Secret,
    /// A segment of the path, which is private.
    Path,
    /// A value longer than a record keeps.
    Long,
    /// More values than a record keeps.
    Many,
    /// What rules read then was there more than once, or could not be read.
    Ambiguous,
    /// What it was decided by, which records of earlier versions do not tell.
    DecidedBy,
    /// The bundle that decided, which says what it read.
    Bundle,
    /// Whether its TLS is ended, or it comes to the forwarder at all, is otherwise in the new bundle.
    Way,
    /// Something that is no request as it is written.
    Request,
}

impl ReplayGap {
    pub fn why(self) -> &'static str {
        match self {
            Self::Fact => "the new rules read a parameter or header that the old ones did not",
            Self::Body => "the new rules read the body, and not as the old ones did",
            Self::Lookup => "the new rules read what is looked up, and not as the old ones did",
            Self::Attribute(name) => name.missing(),
            Self::Secret => "the new rules read a secret, which is not in the record",
            Self::Path => "the path has private segments, which are not in the record",
            Self::Long => "the new rules read a value that is longer than records keep",
            Self::Many => "the new rules read values, and there were more than records keep",
            Self::Ambiguous => "the new rules read what then could not be read, or in two ways",
            Self::DecidedBy => {
                "the record is of an earlier version, and does not tell what decided it"
            }
            Self::Bundle => "the bundle that decided is not in the history",
            Self::Way => {
                "the new bundle passes the host's connections where the old judged requests, or the reverse"
            }
            Self::Request => "the record's request cannot be read",
        }
    }

    /// What a record has cut off cannot be read.
    pub(super) fn unless_whole(text: &str) -> Result<(), Self> {
        let whole = text.len() <= MAX_VALUE;
        whole.then_some(()).ok_or(Self::Long)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ReplayOutcome {
    Allow,
    Deny,
    ApprovalRequired,
    /// Would be denied, and is let through.
    Observed,
}

impl ReplayOutcome {
    /// As records have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::ApprovalRequired => "approval-required",
            Self::Observed => "observed",
        }
    }
}

/// What the bundle decides now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplayedDecision {
    pub outcome: ReplayOutcome,
    /// `None`: permitted.
    pub reason: Option<DenyReason>,
    pub policies: Vec<String>,
}

impl Policy {
    /// `decided_by`: the bundle that took the decision, if it is known.
    ///
    /// # Errors
    /// What the record lacks.
    pub fn replay(
        &self,
        recorded: &RecordedAct<'_>,
        decided_by: Option<&Self>,
    ) -> Result<ReplayedDecision, ReplayGap> {
        if recorded.path.contains(PRIVATE) {
            return Err(ReplayGap::Path);
        }
        let host = HostName::parse(recorded.host).map_err(|_| ReplayGap::Request)?;
        let path = recorded.written_path()?;
        // What leads to another reading is in the record whatever rules read.
        let (mut query, mut headers) = recorded.overrides()?;
        // What a bundle does not have, it denies whatever else is said.
        let agent = self.id_of(recorded.agent).unwrap_or(AgentId::NONE);
        let nothing = Context::default();
        let input = input(recorded, agent, &host, &path, &query, &headers, &nothing);
        if !self.takes_it_the_same_way(&input) {
            return Err(ReplayGap::Way);
        }
        let mut context = Context::recall(recorded)?;
        let above = self.above(agent).iter().filter_map(|id| self.agent(*id));
        if above.into_iter().any(|agent| agent.tasks_required) {
            return Err(ReplayGap::Attribute(AttributeName::Task));
        }
        let input = self::input(recorded, agent, &host, &path, &query, &headers, &context);
        let needs = self.needs(&input);
        let values = [
            AttributeName::Query,
            AttributeName::Headers,
            AttributeName::Body,
            AttributeName::Lookup,
        ];
        let needs_values = values.into_iter().any(|it| needs.has(it));
        let (mut pairs, mut lines, mut body) = (Vec::new(), HeaderMap::new(), None);
        if (needs_values || needs.body.is_some()) && !recorded.is_connection() {
            let old = decided_by.ok_or(ReplayGap::Bundle)?;
            let then = recorded.needs_then(old, &input)?;
            let (new, old) = (all(&needs.reads), all(&then.reads));
            pairs = recorded.query(&new, &old)?;
            lines = recorded.headers(&new, &old)?;
            body = match (&needs.body, &then.body) {
                (Some(now), Some(then)) => Some(recorded.body(now, then)?),
                (Some(_), None) => return Err(ReplayGap::Body),
                (None, _) => None,
            };
            if !needs.lookups.is_empty() && needs.lookups != then.lookups {
                return Err(ReplayGap::Lookup);
            }
            for lookup in &needs.lookups {
                let answer = recorded.answer(lookup)?;
                context.lookups.push(((*lookup).clone(), Ok(answer)));
            }
        }
        context.recall_read(recorded, self.calendar.as_ref(), |name| needs.has(name))?;
        context.body = body.unwrap_or_default();
        headers.extend(lines);
        let known = query.clone();
        for (name, value) in pairs {
            if !known.is_empty() && is_method_parameter(name) {
                continue;
            }
            let encode = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
            query.push_str(&format!("{}={}&", encode(name), encode(value)));
        }
        let input = self::input(recorded, agent, &host, &path, &query, &headers, &context);
        Ok(self.decide(&input).into())
    }

    pub(super) fn id_of(&self, agent: &str) -> Option<AgentId> {
        let mut agents = self.agents.iter();
        agents
            .find(|(_, of)| of.agent.name == agent)
            .map(|(id, _)| *id)
    }

    /// Whether what the record is about would come as the same: a request, or a connection whose bytes are passed.
    fn takes_it_the_same_way(&self, input: &Input<'_>) -> bool {
        let way = match input.action {
            Action::Connect => TlsMode::Passthrough,
            Action::Request { .. } => TlsMode::Terminate,
        };
        let mode = self.reach(input.agent, input.host, input.port);
        let (agent, address) = (self.agent(input.agent), input.host.ip());
        let direct = agent.zip(address).is_some_and(|(agent, address)| {
            agent.kernel.iter().any(|rule| match rule {
                KernelRule::Reach { proto, net, port } => {
                    *proto == Proto::Tcp
                        && net.contains(&address)
                        && port.is_none_or(|port| port == input.port)
                }
                KernelRule::Listen { .. } => false,
            })
        });
        !direct && mode.is_none_or(|mode| mode == way)
    }
}

impl From<Decision> for ReplayedDecision {
    fn from(decision: Decision) -> Self {
        let (outcome, reason, policies) = match decision {
            // Whether there was room is told by the record.
            Decision::Owing(permit) => (ReplayOutcome::Allow, None, permit.policies().to_vec()),
            Decision::Permit(permit) => match permit.would_deny() {
                Some(denial) => (
                    ReplayOutcome::Observed,
                    Some(denial.reason),
                    denial.policies.clone(),
                ),
                None => (ReplayOutcome::Allow, None, permit.policies().to_vec()),
            },
            Decision::Deny(denial) => {
                let outcome = match denial.reason.outcome() {
                    record::Outcome::ApprovalRequired => ReplayOutcome::ApprovalRequired,
                    record::Outcome::Allow
                    | record::Outcome::Deny
                    | record::Outcome::Observed
                    | record::Outcome::Killed
                    | record::Outcome::Error => ReplayOutcome::Deny,
                };
                (outcome, Some(denial.reason), denial.policies)
            }
        };
        Self {
            outcome,
            reason,
            policies,
        }
    }
}

fn all(reads: &[&Reads]) -> Reads {
    let mut all = Reads::default();
    reads.iter().for_each(|one| all.add(one));
    all
}

fn input<'i>(
    recorded: &'i RecordedAct<'_>,
    agent: AgentId,
    host: &'i HostName,
    path: &'i CanonicalPath,
    query: &'i str,
    headers: &'i HeaderMap,
    context: &'i Context,
) -> Input<'i> {
    let action = if recorded.is_connection() {
        Action::Connect
    } else {
        Action::Request {
            method: recorded.method,
            scheme: recorded.scheme,
            path,
            query: Some(query),
            headers,
        }
    };
    Input {
        agent,
        host,
        port: recorded.port,
        action,
        context,
    }
}
