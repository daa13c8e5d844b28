//! Why something is not let through, as a value: what stages return by `?`. How an agent is told is
//! [`respond`](super::respond)'s.

use std::collections::BTreeMap;

use agentguard_policy::Denial;
use agentguard_record::{DecidedBy, DenyReason, Ended, Outcome};
use http::StatusCode;

pub(crate) const NO_AUDIT: &str = "decisions cannot be recorded on this host at the moment";
pub(crate) const STALE: &str = "The policy of this host has expired, so nothing is allowed until its operators apply a newer one; do not retry.";
pub(crate) const NO_ROOM: &str = "too many decisions wait to be recorded on this host";
pub(crate) const NO_ROOM_OF_ITS_OWN: &str = "this agent has as much open at once as may wait to be recorded of one agent; wait until some of its requests are over";
/// Said of what a new bundle ends, or the time.
pub(crate) const CUT: &str = "permitted, and cut when the policy did not any more";
/// Said of what has not been answered when its task ends.
const OVER: &str = "The task that the request was permitted on has ended, and the request with it; what has been sent of it may have been done.";

/// What became of a request or a connection that does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// It was refused.
    Decided(DecidedBy),
    /// Whatever was decided of it, it ended like this.
    Ended(Ended),
}

/// Why a request or a connection is not let through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub cause: Cause,
    pub reason: DenyReason,
    pub detail: String,
    pub policies: Vec<String>,
    pub facts: BTreeMap<String, String>,
    /// Roles of the people who can lift it.
    pub approval: Vec<String>,
    pub status: StatusCode,
    pub outcome: Outcome,
}

impl Refusal {
    pub(crate) fn new(by: DecidedBy, reason: DenyReason, detail: impl Into<String>) -> Self {
        Self::of(Cause::Decided(by), reason, detail)
    }

    /// Of what was permitted, or was not decided yet, and did not come to its end.
    pub(crate) fn ended(ended: Ended, reason: DenyReason, detail: impl Into<String>) -> Self {
        Self::of(Cause::Ended(ended), reason, detail)
    }

    fn of(cause: Cause, reason: DenyReason, detail: impl Into<String>) -> Self {
        Self {
            cause,
            reason,
            detail: detail.into(),
            policies: Vec::new(),
            facts: BTreeMap::new(),
            approval: Vec::new(),
            status: StatusCode::from_u16(reason.status()).expect("reasons have valid statuses"),
            outcome: reason.outcome(),
        }
    }

    /// What was permitted on a task that has ended before the answer began.
    pub(crate) fn over() -> Self {
        Self::ended(Ended::TaskOver, DenyReason::OutsideTask, OVER)
    }

    /// What was permitted, has begun, and may not go on.
    pub(crate) fn cut(reason: DenyReason) -> Self {
        let ended = match reason == DenyReason::OutsideTask {
            true => Ended::TaskOver,
            false => Ended::NotPermitted,
        };
        Self::ended(ended, reason, CUT)
    }

    /// What cannot be written down is not decided.
    pub(crate) fn unrecorded(detail: impl Into<String>) -> Self {
        Self::new(DecidedBy::Host, DenyReason::AuditUnavailable, detail)
    }

    /// Nothing is permitted by a bundle whose time is over.
    pub(crate) fn stale() -> Self {
        Self::new(DecidedBy::Expiry, DenyReason::PolicyStale, STALE)
    }

    /// Beside its status in HTTP/1.1: the reason's words, where the status is the reason's own.
    pub(crate) fn phrase(&self) -> Option<&'static str> {
        let own = self.status.as_u16() == self.reason.status();
        self.reason.phrase().filter(|_| own)
    }

    pub(crate) fn protocol(detail: impl Into<String>) -> Self {
        Self::new(DecidedBy::Protocol, DenyReason::ProtocolRefused, detail)
    }
}

impl From<Denial> for Refusal {
    fn from(denial: Denial) -> Self {
        Self {
            policies: denial.policies,
            facts: denial.facts,
            approval: denial.approval,
            ..Self::new(denial.decided_by, denial.reason, denial.detail)
        }
    }
}
