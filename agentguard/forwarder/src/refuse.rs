//! What a refused agent sees: one document that says what was refused and why, in the shape its protocol understands.

use std::collections::BTreeMap;
use std::sync::Arc;

use agentguard_common::abi::AgentId;
use agentguard_policy::{Denial, Policy};
use agentguard_record::DenyReason;
use agentguard_record::{ApprovalInfo, Outcome};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::Serialize;
use uuid::Uuid;

use super::accept;
use super::http::Session;
use super::identity::Target;
use super::io::{Client, Peeked};
use super::record::Entry;
use super::relay::Answer;
use super::sniff::SniffError;
use super::standing;
use super::terminate::{Alert, TerminateError, send_alert};
use super::upload::UploadError;

pub const NO_AUDIT: &str = "decisions cannot be recorded on this host at the moment";
pub const STALE: &str = "The policy of this host has expired, so nothing is allowed until its operators apply a newer one; do not retry.";
pub const QUEUE_FULL: &str = "too many decisions wait to be recorded on this host";

/// Why a request is not let through.
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

/// How the agent wants to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub grpc: bool,
    /// An answer to `HEAD` has no body (RFC 9110 section 9.3.2).
    pub head: bool,
    /// The connection cannot be used further: the request's body is not going to be read.
    pub close: bool,
}

/// RFC 9457, with CONTRACT's extensions.
#[derive(Serialize)]
struct Problem<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    instance: String,
    agent: &'a str,
    action: &'a str,
    resource: &'a str,
    policies: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    approval: Option<ApprovalInfo<'a>>,
}

/// What was refused, for the document.
pub struct About<'a> {
    pub decision: Uuid,
    pub agent: &'a str,
    pub action: &'a str,
    pub resource: &'a str,
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

    /// The client broke off, or its body is not what its head announced.
    pub fn upload(error: &UploadError) -> Self {
        match error {
            UploadError::Malformed(detail) => {
                Self::protocol(format!("the request's body: {detail}"))
            }
            UploadError::Gone => Self {
                outcome: Outcome::Error,
                ..Self::protocol("the client broke off its request")
            },
            UploadError::Over => Self::over(),
        }
    }

    /// What was permitted on a task that has ended before the answer began.
    pub fn over() -> Self {
        Self::new(DenyReason::OutsideTask, standing::OVER)
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

impl Shape {
    pub fn of(method: &Method, headers: &HeaderMap) -> Self {
        let grpc = headers
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        Self {
            grpc,
            head: method == Method::HEAD,
            close: false,
        }
    }
}

/// Refuses what there is no room to record.
pub fn unrecorded(session: &Arc<Session>, request: &Request<Incoming>) -> Response<Answer> {
    let policy = session.forwarder.policy.load();
    let mut shape = Shape::of(request.method(), request.headers());
    shape.close = request.version() < Version::HTTP_2;
    let refusal = Refusal::new(DenyReason::AuditUnavailable, QUEUE_FULL);
    let about = About {
        decision: Uuid::nil(),
        agent: &name(&policy, session.life.agent),
        action: request.method().as_str(),
        resource: &accept::place(&session.origin),
    };
    answer(&refusal, shape, &about)
}

pub fn name(policy: &Policy, agent: AgentId) -> String {
    policy
        .agent(agent)
        .map_or_else(String::new, |agent| agent.name.clone())
}

/// The answer that refuses.
pub fn answer(refusal: &Refusal, shape: Shape, about: &About<'_>) -> Response<Answer> {
    let mut response = if shape.grpc {
        trailers_only(refusal)
    } else {
        problem(refusal, shape, about)
    };
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if shape.close {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn problem(refusal: &Refusal, shape: Shape, about: &About<'_>) -> Response<Answer> {
    let status = refusal.status;
    let document = Problem {
        r#type: format!("urn:agentguard:problem:{}", refusal.reason.slug()),
        title: refusal.reason.title(),
        status: status.as_u16(),
        detail: &refusal.detail,
        instance: about.decision.urn().to_string(),
        agent: about.agent,
        action: about.action,
        resource: about.resource,
        policies: &refusal.policies,
        approval: ApprovalInfo::of(&refusal.approval),
    };
    let text = serde_json::to_string(&document).expect("strings and numbers only");
    let length = text.len();
    let mut response = Response::new(if shape.head {
        Answer::empty()
    } else {
        Answer::document(text)
    });
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    headers.insert(header::CONTENT_LENGTH, length.into());
    response
}

/// gRPC over HTTP/2, "Trailers-Only": status in the one header block.
fn trailers_only(refusal: &Refusal) -> Response<Answer> {
    let code = match refusal.reason {
        DenyReason::PolicyDenied
        | DenyReason::ApprovalRequired
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
        | DenyReason::AuditUnavailable => PERMISSION_DENIED,
        DenyReason::UpstreamTls | DenyReason::UpstreamUnreachable => UNAVAILABLE,
        DenyReason::UpstreamTimeout => DEADLINE_EXCEEDED,
    };
    let message = format!("{}: {}", refusal.reason.slug(), refusal.detail);
    let message = utf8_percent_encode(&message, GRPC_MESSAGE).to_string();
    let mut response = Response::new(Answer::empty());
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/grpc"),
    );
    headers.insert("grpc-status", HeaderValue::from_static(code));
    if let Ok(message) = HeaderValue::from_str(&message) {
        headers.insert("grpc-message", message);
    }
    response
}

/// Ends a connection whose beginning was not understood, in TLS's words if it speaks TLS.
pub async fn opening(mut stream: Peeked<Client>, error: SniffError, entry: Entry) {
    let detail = error.to_string();
    match error {
        SniffError::Closed | SniffError::Read(_) => entry.fail(None, detail),
        SniffError::Hello { alert, .. } => {
            entry.refuse(DenyReason::ProtocolRefused, detail);
            send_alert(&mut stream, &alert).await;
        }
        SniffError::HelloTooLong | SniffError::Unknown => {
            entry.refuse(DenyReason::ProtocolRefused, detail);
        }
    }
}

/// Ends a TLS connection for no name, or for another than its tunnel's.
pub async fn unnamed(mut stream: Peeked<Client>, detail: String, entry: Entry) {
    entry.refuse(DenyReason::ProtocolRefused, detail);
    send_alert(&mut stream, &Alert::UnrecognizedName.bytes()).await;
}

/// Records a TLS connection that did not come about. What there was to tell the client it has been told.
pub fn handshake(target: &Target, error: &TerminateError, mut entry: Entry) {
    entry.resource = target.id();
    entry.fail(None, error.to_string());
}

const PERMISSION_DENIED: &str = "7";
const DEADLINE_EXCEEDED: &str = "4";
const UNAVAILABLE: &str = "14";
/// What `grpc-message` encodes: all but printable ASCII, and `%`.
const GRPC_MESSAGE: &AsciiSet = &CONTROLS.add(b'%');
