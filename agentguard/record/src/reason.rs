//! Why something was refused: the one list that the agent's answer, the audit record and the metrics share.

use serde::{Deserialize, Serialize};

use crate::Outcome;

/// A refusal's reason. Its slug is in the agent's problem document (`urn:agentguard:problem:<slug>`, RFC 9457) and in
/// the audit record's `reason`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DenyReason {
    /// No rule permits it, or a forbid applies.
    PolicyDenied,
    /// Only forbids that a human can lift stand against it.
    ApprovalRequired,
    AgentKilled,
    /// An operator has suspended or retired it, or the active bundle does not have it.
    AgentSuspended,
    /// Its owner is not active.
    AgentOrphaned,
    /// An agent that it acts for may not, or is stopped.
    DelegationExceeded,
    /// As the forbid that refused says (`@reason`): not at this time.
    OutsideHours,
    /// As the forbid that refused says: not from where the host is.
    UntrustedNetwork,
    /// Permitted, and not on the task that it is on or has to be on.
    OutsideTask,
    /// A limit has no room for it, or cannot be counted.
    RateLimited,
    /// A fact that a rule reads has more than one value.
    BodyAmbiguous,
    /// A body that a rule reads is not what was declared.
    BodyUnreadable,
    /// A body that a rule reads is longer or deeper than what is read.
    BodyTooLarge,
    /// A fact that a rule reads has to be looked up, and could not be.
    AttributeUnavailable,
    /// What arrived is not what the forwarder speaks, or its parts contradict each other.
    ProtocolRefused,
    /// The bundle in force has expired.
    PolicyStale,
    /// A decision that cannot be recorded is not taken.
    AuditUnavailable,
    /// Upstream's certificate was not accepted.
    UpstreamTls,
    /// Upstream's name or address could not be used or reached.
    UpstreamUnreachable,
    /// Upstream did not answer in time.
    UpstreamTimeout,
}

/// Whose no a reason is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReasonClass {
    /// The policy's, or that of an operator who has stopped the agent.
    Policy,
    /// What the agent sent cannot be judged as it is.
    Protocol,
    /// What has to be known or written down cannot be, at the moment.
    Host,
    /// Nobody's decision: upstream's fault, or the way's to it.
    Upstream,
}

impl DenyReason {
    pub const ALL: [Self; 20] = [
        Self::PolicyDenied,
        Self::ApprovalRequired,
        Self::AgentKilled,
        Self::AgentSuspended,
        Self::AgentOrphaned,
        Self::DelegationExceeded,
        Self::OutsideHours,
        Self::UntrustedNetwork,
        Self::OutsideTask,
        Self::RateLimited,
        Self::BodyAmbiguous,
        Self::BodyUnreadable,
        Self::BodyTooLarge,
        Self::AttributeUnavailable,
        Self::ProtocolRefused,
        Self::PolicyStale,
        Self::AuditUnavailable,
        Self::UpstreamTls,
        Self::UpstreamUnreachable,
        Self::UpstreamTimeout,
    ];

    pub const fn slug(self) -> &'static str {
        match self {
            Self::PolicyDenied => "policy-denied",
            Self::ApprovalRequired => "approval-required",
            Self::AgentKilled => "agent-killed",
            Self::AgentSuspended => "agent-suspended",
            Self::AgentOrphaned => "agent-orphaned",
            Self::DelegationExceeded => "delegation-exceeded",
            Self::OutsideHours => "outside-hours",
            Self::UntrustedNetwork => "untrusted-network",
            Self::OutsideTask => "outside-task",
            Self::RateLimited => "rate-limited",
            Self::BodyAmbiguous => "body-ambiguous",
            Self::BodyUnreadable => "body-unreadable",
            Self::BodyTooLarge => "body-too-large",
            Self::AttributeUnavailable => "attribute-unavailable",
            Self::ProtocolRefused => "protocol-refused",
            Self::PolicyStale => "policy-stale",
            Self::AuditUnavailable => "audit-unavailable",
            Self::UpstreamTls => "upstream-tls",
            Self::UpstreamUnreachable => "upstream-unreachable",
            Self::UpstreamTimeout => "upstream-timeout",
        }
    }

    /// Whose no it is.
    pub const fn class(self) -> ReasonClass {
        match self {
            Self::PolicyDenied
            | Self::ApprovalRequired
            | Self::AgentKilled
            | Self::AgentSuspended
            | Self::AgentOrphaned
            | Self::DelegationExceeded
            | Self::OutsideHours
            | Self::UntrustedNetwork
            | Self::OutsideTask
            | Self::RateLimited
            | Self::PolicyStale => ReasonClass::Policy,
            Self::BodyAmbiguous
            | Self::BodyUnreadable
            | Self::BodyTooLarge
            | Self::ProtocolRefused => ReasonClass::Protocol,
            Self::AttributeUnavailable | Self::AuditUnavailable => ReasonClass::Host,
            Self::UpstreamTls | Self::UpstreamUnreachable | Self::UpstreamTimeout => {
                ReasonClass::Upstream
            }
        }
    }

    /// The HTTP status an agent gets: 403 for every policy outcome (popular SDKs retry 408, 409, 429 and 5xx by
    /// themselves), 502 or 504 for upstream faults.
    pub const fn status(self) -> u16 {
        match self.class() {
            ReasonClass::Policy | ReasonClass::Protocol | ReasonClass::Host => 403,
            ReasonClass::Upstream if self.is_timeout() => 504,
            ReasonClass::Upstream => 502,
        }
    }

    /// The outcome of what was refused for it.
    pub const fn outcome(self) -> Outcome {
        match self.class() {
            ReasonClass::Policy if matches!(self, Self::ApprovalRequired) => {
                Outcome::ApprovalRequired
            }
            ReasonClass::Policy | ReasonClass::Protocol | ReasonClass::Host => Outcome::Deny,
            ReasonClass::Upstream => Outcome::Error,
        }
    }

    /// Whether upstream was too slow.
    pub const fn is_timeout(self) -> bool {
        matches!(self, Self::UpstreamTimeout)
    }

    pub const fn title(self) -> &'static str {
        match self {
            Self::PolicyDenied => "Refused by policy",
            Self::ApprovalRequired => "A human has to approve this first",
            Self::AgentKilled => "This agent has been stopped",
            Self::AgentSuspended => "This agent is not active",
            Self::AgentOrphaned => "This agent's owner is not active",
            Self::DelegationExceeded => "More than was delegated",
            Self::OutsideHours => "Not at this time",
            Self::UntrustedNetwork => "Not from this network",
            Self::OutsideTask => "Outside the task",
            Self::RateLimited => "A limit has been reached",
            Self::BodyAmbiguous => "The request can be read in more than one way",
            Self::BodyUnreadable => "The request's body cannot be read",
            Self::BodyTooLarge => "The request's body is too large to be judged",
            Self::AttributeUnavailable => "A fact that decides cannot be had",
            Self::ProtocolRefused => "Protocol refused",
            Self::PolicyStale => "The policy in force has expired",
            Self::AuditUnavailable => "The decision cannot be recorded",
            Self::UpstreamTls => "The server's certificate was not accepted",
            Self::UpstreamUnreachable => "The server cannot be reached",
            Self::UpstreamTimeout => "The server did not answer in time",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slugs_are_what_is_written_and_read() {
        for reason in DenyReason::ALL {
            let written = serde_json::to_string(&reason).unwrap();
            assert_eq!(written, format!("\"{}\"", reason.slug()));
            assert_eq!(
                serde_json::from_str::<DenyReason>(&written).unwrap(),
                reason
            );
        }
    }

    #[test]
    fn only_upstreams_faults_are_no_denials() {
        for reason in DenyReason::ALL {
            let expected = match reason {
                DenyReason::ApprovalRequired => (403, Outcome::ApprovalRequired),
                DenyReason::UpstreamTls | DenyReason::UpstreamUnreachable => (502, Outcome::Error),
                DenyReason::UpstreamTimeout => (504, Outcome::Error),
                _ => (403, Outcome::Deny),
            };
            assert_eq!((reason.status(), reason.outcome()), expected, "{reason:?}");
        }
    }
}
