//! Why something is not let through, as a value: what stages return by `?`. How an agent is told is
//! [`respond`](super::respond)'s.

use std::collections::BTreeMap;

use agentguard_policy::Denial;
use agentguard_record::{DenyReason, Outcome};
use http::StatusCode;

pub const NO_AUDIT: &str = "decisions cannot be recorded on this host at the moment";
pub const STALE: &str = "The policy of this host has expired, so nothing is allowed until its operators apply a newer one; do not retry.";
pub const QUEUE_FULL: &str = "too many decisions wait to be recorded on this host";
/// Said of what a new bundle ends, or the time.
pub const CUT: &str = "permitted, and cut when the policy did not any more";
/// Said of what has not been answered when its task ends.
pub const OVER: &str = "The task that the request was permitted on has ended, and the request with it; what has been sent of it may have been done.";

/// Why a request or a connection is not let through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
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
    pub fn new(reason: DenyReason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            policies: Vec::new(),
            facts: BTreeMap::new(),
            approval: Vec::new(),
            status: StatusCode::from_u16(reason.status()).expect("reasons have valid statuses"),
            outcome: match reason {
                DenyReason::ApprovalRequired => Outcome::ApprovalRequired,
                DenyReason::PolicyDenied
                | DenyReason::AgentKilled
                | DenyReason::AgentSuspended
                | DenyReason::AgentOrphaned
                | DenyReason::DelegationExceeded
                | DenyReason::OutsideHours
                | DenyReason::UntrustedNetwork
                | DenyReason::OutsideTask
                | DenyReason::RateLimited
                | DenyReason::BodyAmbiguous
                | DenyReason::BodyUnreadable
                | DenyReason::BodyTooLarge
                | DenyReason::AttributeUnavailable
                | DenyReason::ProtocolRefused
                | DenyReason::PolicyStale
                | DenyReason::AuditUnavailable => Outcome::Deny,
                DenyReason::UpstreamTls
                | DenyReason::UpstreamUnreachable
                | DenyReason::UpstreamTimeout => Outcome::Error,
            },
        }
    }

    /// What was permitted on a task that has ended before the answer began.
    pub fn over() -> Self {
        Self::new(DenyReason::OutsideTask, OVER)
    }

    /// Nothing is permitted by a bundle whose time is over.
    pub fn stale() -> Self {
        Self::new(DenyReason::PolicyStale, STALE)
    }

    pub fn protocol(detail: impl Into<String>) -> Self {
        Self::new(DenyReason::ProtocolRefused, detail)
    }
}

impl From<Denial> for Refusal {
    fn from(denial: Denial) -> Self {
        Self {
            policies: denial.policies,
            facts: denial.facts,
            approval: denial.approval,
            ..Self::new(denial.reason, denial.detail)
        }
    }
}
