//! How a refused agent is told: in the shape that its protocol understands, or in TLS's words.

use agentguard_common::abi::AgentId;
use agentguard_policy::Policy;
use agentguard_record::{DenyReason, Ended, TLS_ALERT};
use http::{HeaderValue, Request, Response, Version, header};
use hyper::body::Incoming;
use uuid::Uuid;

use super::identity::RequestTarget;
use super::io::{ClientStream, PeekedStream};
use super::origin;
use super::protocol::{About, Protocol};
use super::record::{ConnectionOver, RecordEntry};
use super::refusal::{NO_ROOM, Refusal};
use super::reply::Reply;
use super::session::Session;
use super::sniff::SniffError;
use super::terminate::{Alert, TerminateError, last_words};

/// Refuses what there is no room to record.
pub(crate) fn unrecorded(session: &Session, request: &Request<Incoming>) -> Response<Reply> {
    let policy = session.forwarder.policy.load();
    let protocol = Protocol::of(request.headers());
    let close = request.version() < Version::HTTP_2;
    let refusal = Refusal::unrecorded(NO_ROOM);
    let about = About {
        decision: Uuid::nil(),
        agent: &name(&policy, session.life.agent),
        action: request.method().as_str(),
        resource: &origin::place(&session.origin),
    };
    answer(&refusal, protocol, close, &about)
}

pub(crate) fn name(policy: &Policy, agent: AgentId) -> String {
    policy
        .agent(agent)
        .map_or_else(String::new, |agent| agent.name.clone())
}

/// The answer that refuses. `close`: the connection cannot be used further, as the request's body is not going to be read.
pub(crate) fn answer(
    refusal: &Refusal,
    protocol: Protocol,
    close: bool,
    about: &About<'_>,
) -> Response<Reply> {
    let mut response = protocol.refuse(refusal, about);
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if close {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Ends a connection whose beginning was not understood, in its protocol's words if it has any.
pub(crate) async fn opening(
    mut stream: PeekedStream<ClientStream>,
    error: SniffError,
    entry: RecordEntry,
) -> ConnectionOver {
    let detail = error.to_string();
    match error {
        SniffError::Closed | SniffError::Read(_) => entry.fail(Ended::ClientGone, None, detail),
        SniffError::Hello { alert, .. } => {
            let over = entry.refuse(Refusal::protocol(detail));
            last_words(&mut stream, &alert).await;
            over
        }
        SniffError::Foreign(foreign) => {
            let no = foreign.no(entry.decision);
            let over = entry.refuse(Refusal::protocol(detail));
            last_words(&mut stream, &no).await;
            over
        }
        SniffError::HelloTooLong | SniffError::Unknown => entry.refuse(Refusal::protocol(detail)),
    }
}

/// Ends a TLS connection for what is no name, or for another than its tunnel's.
pub(crate) async fn unnamed(
    mut stream: PeekedStream<ClientStream>,
    detail: String,
    entry: RecordEntry,
) -> ConnectionOver {
    let over = entry.refuse(Refusal::protocol(detail));
    last_words(&mut stream, &Alert::UnrecognizedName.bytes()).await;
    over
}

/// Records a TLS connection that did not come about. What there was to tell the client it has been told.
pub(crate) fn handshake(
    target: &RequestTarget,
    error: &TerminateError,
    mut entry: RecordEntry,
) -> ConnectionOver {
    entry.resource = target.id();
    let said = match error {
        TerminateError::Leaf(_) | TerminateError::LeafTimeout(_) => {
            return entry.fail(Ended::HostFailed, None, error.to_string());
        }
        TerminateError::Handshake(_) | TerminateError::HandshakeTimeout => {
            return entry.fail(Ended::ClientGone, None, error.to_string());
        }
        TerminateError::Refused(said) => Some(*said),
        TerminateError::Left => None,
    };
    let said = said.map(|said| (TLS_ALERT.to_owned(), said.to_owned()));
    entry.facts.extend(said);
    let reason = DenyReason::ClientTls;
    let detail = format!("{error}; {}", reason.turn());
    entry.fail(Ended::ClientGone, Some(reason), detail)
}
