//! Why something was refused: the one list that the agent's answer, the audit record and the metrics share.

use serde::{Deserialize, Serialize};

use crate::Outcome;

macro_rules! reasons {
    ($($name:ident: $slug:literal, $class:ident, $title:literal, $when:literal, $turn:literal;)+) => {
        /// A refusal's reason. Its slug is in the agent's problem document (`urn:agentguard:problem:<slug>`, RFC 9457) and in
        /// the audit record's `reason`.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
        pub enum DenyReason {
            $(#[doc = $when] #[serde(rename = $slug)] $name,)+
        }

        impl DenyReason {
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            pub const fn slug(self) -> &'static str {
                match self {
                    $(Self::$name => $slug,)+
                }
            }

            /// Whose no it is.
            pub const fn class(self) -> ReasonClass {
                match self {
                    $(Self::$name => ReasonClass::$class,)+
                }
            }

            pub const fn title(self) -> &'static str {
                match self {
                    $(Self::$name => $title,)+
                }
            }

            /// When it is given.
            pub const fn when(self) -> &'static str {
                match self {
                    $(Self::$name => $when,)+
                }
            }

            /// Whose turn it is then, and what they can do.
            pub const fn turn(self) -> &'static str {
                match self {
                    $(Self::$name => $turn,)+
                }
            }
        }
    };
}

reasons! {
    PolicyDenied: "policy-denied", Policy, "Refused by policy",
        "no rule permits it, or a forbid applies",
        "who owns the agent: `agentguard audit show ID` names the rules that decided";
    ApprovalRequired: "approval-required", Policy, "A human has to approve this first",
        "only forbids that a human can lift stand against it",
        "people of the roles in `approval`; nobody is asked yet, so a rule has to change";
    AgentKilled: "agent-killed", Policy, "This agent has been stopped",
        "the kill switch was used on the agent, or the canary failed",
        "a responder: `agentguard revive NAME`, when the incident is over";
    AgentSuspended: "agent-suspended", Policy, "This agent is not active",
        "an operator has suspended or retired it, or the bundle in force does not have it",
        "an admin: `agentguard agents activate NAME`, or a bundle that has the agent";
    AgentOrphaned: "agent-orphaned", Policy, "This agent's owner is not active",
        "its owner has been suspended",
        "an admin: `agentguard agents activate --owner OWNER`, or `agents reassign`";
    DelegationExceeded: "delegation-exceeded", Policy, "More than was delegated",
        "an agent that it acts for may not do it, or is stopped",
        "who owns the agent above it, which `detail` names";
    OutsideHours: "outside-hours", Policy, "Not at this time",
        "as the forbid that refused says by `@reason`: not at this time",
        "nobody: it works again when the hours say so";
    UntrustedNetwork: "untrusted-network", Policy, "Not from this network",
        "as the forbid that refused says by `@reason`: not from where the host is",
        "who runs the host: a trusted network, or `[[network.trusted]]`";
    OutsideTask: "outside-task", Policy, "Outside the task",
        "it is permitted, and not on the task that it is on or has to be on",
        "who supervises the agent: a task that allows it";
    RateLimited: "rate-limited", Policy, "A limit has been reached",
        "a limit or budget has no room for it, or cannot be counted",
        "nobody, until the time that `detail` names";
    BodyAmbiguous: "body-ambiguous", Protocol, "The request can be read in more than one way",
        "a fact that a rule reads has more than one value",
        "who writes the agent: each field, header and parameter once";
    BodyUnreadable: "body-unreadable", Protocol, "The request's body cannot be read",
        "a body that a rule reads is not what was declared",
        "who writes the agent, or who declared the body in the host's file";
    BodyTooLarge: "body-too-large", Protocol, "The request's body is too large to be judged",
        "a body that a rule reads is longer or deeper than what is read",
        "who owns the agent: `max_judged_body` in the host's file; or who runs the host: `[forwarder] max_judged_body_bytes`";
    AttributeUnavailable: "attribute-unavailable", Host, "A fact that decides cannot be had",
        "a fact that a rule reads has to be looked up, and could not be",
        "who runs the service of the look-up; the daemon's log names it";
    ProtocolRefused: "protocol-refused", Protocol, "Protocol refused",
        "what arrived is not what the forwarder speaks, or its parts contradict each other",
        "who writes the agent; `detail` names the part";
    PolicyStale: "policy-stale", Policy, "The policy in force has expired",
        "the bundle in force has expired",
        "an admin: apply a newer bundle";
    AuditUnavailable: "audit-unavailable", Host, "The decision cannot be recorded",
        "a decision that cannot be recorded is not taken",
        "who runs the host: make room on the disk of the state";
    UpstreamTls: "upstream-tls", Upstream, "The server's certificate was not accepted",
        "the server's certificate was not accepted",
        "who runs the server; for a CA of one's own `[upstream] roots`";
    UpstreamUnreachable: "upstream-unreachable", Upstream, "The server cannot be reached",
        "the server's name or address could not be used or reached",
        "who runs the server; for private addresses `[upstream] allow_addresses`";
    UpstreamTimeout: "upstream-timeout", Upstream, "The server did not answer in time",
        "the server did not answer in time",
        "who runs the server; or who owns the agent: `timeouts.head` in the host's file";
    ClientTls: "client-tls", Client, "The client did not accept the certificate",
        "the program refused the forwarder's certificate: it does not trust this host's CA, or pins certificates",
        "who runs the program: start it by `agentguard run`, or have it trust the file that `agentguard ca env` names; if it pins certificates, who owns the agent: `tls = \"passthrough\"` for the host";
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
    /// Nobody's decision, and nobody is answered: the client has gone.
    Client,
}

impl DenyReason {
    /// The HTTP status an agent gets: 403 for every policy outcome (popular SDKs retry 408, 409, 429 and 5xx by
    /// themselves), 502 or 504 for upstream faults. Of a client that has gone, the status that stands for its fault.
    pub const fn status(self) -> u16 {
        match self.class() {
            ReasonClass::Policy | ReasonClass::Protocol | ReasonClass::Host => 403,
            ReasonClass::Upstream if self.is_timeout() => 504,
            ReasonClass::Upstream => 502,
            ReasonClass::Client => 400,
        }
    }

    /// What stands beside the status in HTTP/1.1 (RFC 9112 section 4), which is all that many programs show of an answer.
    /// `None`: what the status says by itself.
    pub const fn phrase(self) -> Option<&'static str> {
        match self.class() {
            ReasonClass::Policy => Some("Refused by AgentGuard policy: do not retry"),
            ReasonClass::Protocol => Some("Refused by AgentGuard: cannot be judged as it is"),
            ReasonClass::Host => Some("Refused by AgentGuard: cannot be decided at the moment"),
            ReasonClass::Upstream | ReasonClass::Client => None,
        }
    }

    /// The outcome of what was refused for it.
    pub const fn outcome(self) -> Outcome {
        match self.class() {
            ReasonClass::Policy if matches!(self, Self::ApprovalRequired) => {
                Outcome::ApprovalRequired
            }
            ReasonClass::Policy | ReasonClass::Protocol | ReasonClass::Host => Outcome::Deny,
            ReasonClass::Upstream | ReasonClass::Client => Outcome::Error,
        }
    }

    /// Whether upstream was too slow.
    pub const fn is_timeout(self) -> bool {
        matches!(self, Self::UpstreamTimeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slugs_are_what_is_written_and_read() {
        for &reason in DenyReason::ALL {
            let written = serde_json::to_string(&reason).unwrap();
            assert_eq!(written, format!("\"{}\"", reason.slug()));
            assert_eq!(
                serde_json::from_str::<DenyReason>(&written).unwrap(),
                reason
            );
        }
    }

    #[test]
    fn only_faults_of_upstream_and_client_are_no_denials() {
        for &reason in DenyReason::ALL {
            let expected = match reason {
                DenyReason::ApprovalRequired => (403, Outcome::ApprovalRequired),
                DenyReason::UpstreamTls | DenyReason::UpstreamUnreachable => (502, Outcome::Error),
                DenyReason::UpstreamTimeout => (504, Outcome::Error),
                DenyReason::ClientTls => (400, Outcome::Error),
                _ => (403, Outcome::Deny),
            };
            assert_eq!((reason.status(), reason.outcome()), expected, "{reason:?}");
        }
    }
}
