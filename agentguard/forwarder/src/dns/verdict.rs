//! How a query ends: what the agent is told and what is recorded.

use std::net::{IpAddr, Ipv4Addr};

use agentguard_policy::HostName;
use agentguard_record::{DecidedBy, DenyReason, Ended, Outcome};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{RData, RecordType};

use super::service::given;
use crate::resolve::{Family, FoundRecords, ResolveError, ResolvedAddresses};

/// Nobody's (RFC 5737): whatever an agent connects to comes to the forwarder, and goes no further with that name.
pub(super) const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Seconds.
const OWN_TTL: u32 = 60;
/// Seconds: a bundle that covers the name is seen soon.
const TOLD_TTL: u32 = 1;

const OTHER_TYPE: &str = "records of this type are not answered";
const UNCOVERED: &str = "no reach entry of this agent covers the name";

/// Extended errors (RFC 8914 section 4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub(super) enum ExtendedError {
    Blocked = 15,
    NoReachableAuthority = 22,
    NetworkError = 23,
}

/// How one query ends.
pub(super) struct QueryVerdict {
    pub(super) code: ResponseCode,
    pub(super) answers: Vec<(RData, u32)>,
    pub(super) extended: Option<(ExtendedError, &'static str)>,
    pub(super) outcome: Outcome,
    pub(super) decided_by: DecidedBy,
    pub(super) ended: Ended,
    pub(super) reason: Option<DenyReason>,
    pub(super) detail: String,
}

impl QueryVerdict {
    /// `by` let the name be looked up.
    fn allowed(by: DecidedBy, code: ResponseCode, detail: &str) -> Self {
        Self {
            code,
            answers: Vec::new(),
            extended: None,
            outcome: Outcome::Allow,
            decided_by: by,
            ended: Ended::Whole,
            reason: None,
            detail: detail.to_owned(),
        }
    }

    pub(super) fn refused(
        by: DecidedBy,
        reason: DenyReason,
        code: ResponseCode,
        detail: &str,
    ) -> Self {
        Self {
            outcome: Outcome::Deny,
            ended: Ended::Refused,
            reason: Some(reason),
            ..Self::allowed(by, code, detail)
        }
    }

    fn saying(mut self, extended: ExtendedError, text: &'static str) -> Self {
        self.extended = Some((extended, text));
        self
    }

    pub(super) fn resolved(found: &ResolvedAddresses) -> Self {
        let ttl = u32::try_from(found.ttl.as_secs()).unwrap_or(u32::MAX);
        let shown: Vec<String> = found.addresses.iter().map(ToString::to_string).collect();
        let detail = format!("answered with {}", shown.join(", "));
        let mut verdict = Self::allowed(DecidedBy::Reach, ResponseCode::NoError, &detail);
        verdict.answers = found
            .addresses
            .iter()
            .map(|ip| (RData::from(*ip), ttl))
            .collect();
        verdict
    }

    /// Those of the records that the agent is given. `may`: whether it reaches a target.
    pub(super) fn records(found: FoundRecords, may: impl Fn(&HostName) -> bool) -> Self {
        let all = found.records.len();
        let ttl = u32::try_from(found.ttl.as_secs()).unwrap_or(u32::MAX);
        let given = found.records.into_iter().filter_map(|it| given(it, &may));
        let answers: Vec<(RData, u32)> = given.map(|data| (data, ttl)).collect();
        let detail = match all - answers.len() {
            0 => format!("answered with {all} records"),
            left => format!("answered without {left} of {all} records, which lead elsewhere"),
        };
        Self {
            answers,
            ..Self::allowed(DecidedBy::Reach, ResponseCode::NoError, &detail)
        }
    }

    /// Of the name at which agents find AgentGuard.
    pub(super) fn own(kind: RecordType) -> Self {
        if !matches!(kind, RecordType::A | RecordType::AAAA) {
            return Self::other_type();
        }
        let detail = "AgentGuard's own name";
        let mut verdict = Self::allowed(DecidedBy::OwnName, ResponseCode::NoError, detail);
        if kind == RecordType::A {
            verdict.answers = vec![(RData::from(IpAddr::V4(OWN)), OWN_TTL)];
        }
        verdict
    }

    /// Of a name that only a proxy looks up: with an address at which the forwarder is met.
    pub(super) fn of_proxy(family: Family) -> Self {
        let detail = "a proxy looks the name up";
        let mut verdict = Self::allowed(DecidedBy::Reach, ResponseCode::NoError, detail);
        if family == Family::V4 {
            verdict.answers = vec![(RData::from(IpAddr::V4(OWN)), OWN_TTL)];
        }
        verdict
    }

    pub(super) fn failed(error: &ResolveError) -> Self {
        let detail = error.to_string();
        let allowed = |code| Self::allowed(DecidedBy::Reach, code, &detail);
        let failed = |code, reason: DenyReason, outcome| Self {
            outcome,
            ended: Ended::UpstreamFailed,
            reason: Some(reason),
            ..allowed(code)
        };
        let (no_error, servfail) = (ResponseCode::NoError, ResponseCode::ServFail);
        match error {
            ResolveError::NotFound(_) => allowed(ResponseCode::NXDomain),
            ResolveError::NoAddress(_) => allowed(no_error),
            // Not SERVFAIL, which resolvers retry elsewhere.
            ResolveError::Refused { .. } => {
                failed(no_error, DenyReason::UpstreamUnreachable, Outcome::Deny).saying(
                    ExtendedError::Blocked,
                    "every address of this name is refused on this host",
                )
            }
            ResolveError::Timeout(_) => {
                failed(servfail, DenyReason::UpstreamTimeout, Outcome::Error).saying(
                    ExtendedError::NoReachableAuthority,
                    "no resolver answered in time",
                )
            }
            ResolveError::Failed { .. } | ResolveError::NoResolvers(_) => {
                failed(servfail, DenyReason::UpstreamUnreachable, Outcome::Error)
                    .saying(ExtendedError::NetworkError, "the host's resolvers failed")
            }
        }
    }

    /// Of a name that would not have been looked up, were its agent not only observed.
    pub(super) fn observed(mut self) -> Self {
        if self.outcome == Outcome::Allow {
            self.outcome = Outcome::Observed;
            self.reason = Some(DenyReason::PolicyDenied);
            self.detail = format!("{UNCOVERED}; {}", self.detail);
        }
        self
    }

    pub(super) fn uncovered() -> Self {
        Self::refused(
            DecidedBy::Reach,
            DenyReason::PolicyDenied,
            ResponseCode::NXDomain,
            UNCOVERED,
        )
        .saying(
            ExtendedError::Blocked,
            "no rule lets this agent reach this name",
        )
    }

    /// Of a refused name whose requests come here. To other types of records nothing says no but that there is no such name.
    pub(super) fn told(kind: RecordType) -> Self {
        let refused = Self::uncovered();
        if !matches!(kind, RecordType::A | RecordType::AAAA) {
            return refused;
        }
        let answers = match kind == RecordType::A {
            true => vec![(RData::from(IpAddr::V4(OWN)), TOLD_TTL)],
            false => Vec::new(),
        };
        Self {
            code: ResponseCode::NoError,
            answers,
            detail: format!("{UNCOVERED}; answered with AgentGuard's own address"),
            ..refused
        }
    }

    pub(super) fn other_type() -> Self {
        Self::refused(
            DecidedBy::Protocol,
            DenyReason::PolicyDenied,
            ResponseCode::NoError,
            OTHER_TYPE,
        )
        .saying(ExtendedError::Blocked, OTHER_TYPE)
    }

    /// Of what is refused whatever it asks. What may be other in a moment is no answer about the name.
    pub(super) fn stopped(by: DecidedBy, reason: DenyReason) -> Self {
        let code = match matches!(by, DecidedBy::Limit | DecidedBy::Host) {
            true => ResponseCode::ServFail,
            false => ResponseCode::NXDomain,
        };
        Self::refused(by, reason, code, reason.title())
            .saying(ExtendedError::Blocked, reason.title())
    }
}
