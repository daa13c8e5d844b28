//! What an agent speaks, a file each. A protocol answers three questions: whether a request is its own, by the head;
//! which acts the request has; and how no is said in it.

mod git;
mod grpc;
mod http;

use ::http::request::Parts;
use ::http::uri::{Authority, PathAndQuery, Scheme};
use ::http::{HeaderMap, Method, Response};
use agentguard_policy::CanonicalPath;

use super::act::{Act, Message};
use super::headers;
use super::identity::RequestTarget;
use super::refusal::Refusal;
use super::reply::Reply;
use super::tasks::NamedTask;
use super::upgrade::Upgrade;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Whatever no other protocol claims.
    Http,
    Git,
    Grpc,
}

impl Protocol {
    /// Whose a request with this head is.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        if grpc::is_its(headers) {
            Self::Grpc
        } else if git::is_its(headers) {
            Self::Git
        } else {
            Self::Http
        }
    }

    /// Everything that the request does: all of it is permitted, or none of it is sent. A request of any of them is
    /// one act, for which nothing is allocated.
    pub(crate) fn acts(self, message: &Message) -> impl AsRef<[Act<'_>]> {
        match self {
            Self::Http | Self::Git | Self::Grpc => [http::act(message)],
        }
    }

    /// The answer that says no.
    pub(crate) fn refuse(self, refusal: &Refusal, about: &About<'_>) -> Response<Reply> {
        match self {
            Self::Http => http::problem(refusal, about),
            Self::Git => git::text(refusal, about),
            Self::Grpc => grpc::trailers_only(refusal),
        }
    }
}

/// What was refused, for the answer.
pub(crate) struct About<'a> {
    pub decision: uuid::Uuid,
    pub agent: &'a str,
    pub action: &'a str,
    pub resource: &'a str,
}

/// Brings a request into the form in which it is judged, and that in which it is sent.
pub(crate) fn read(
    mut parts: Parts,
    target: RequestTarget,
    scheme: &Scheme,
    upgrade: Option<Upgrade>,
) -> Result<Message, Refusal> {
    let path = path(&parts).map_err(Refusal::protocol)?;
    let authority = target.authority(scheme, &parts);
    let task = NamedTask::take(&mut parts.headers);
    headers::clean(&mut parts, &authority, upgrade.as_ref())?;
    // As it is written: signatures cover it, and `//` is another thing than `/` to some servers.
    let line = parts.uri.path_and_query().cloned();
    Ok(Message {
        parts,
        target,
        scheme: scheme.clone(),
        path,
        task,
        authority: Authority::try_from(authority)
            .map_err(|_| Refusal::protocol("the request's host cannot be sent on"))?,
        line: line.unwrap_or_else(|| PathAndQuery::from_static("/")),
        upgrade,
    })
}

/// The path that is judged. What `OPTIONS *` asks of the server as a whole is asked of its root (RFC 9110 section 9.3.7).
pub(crate) fn path(parts: &Parts) -> Result<CanonicalPath, String> {
    match is_of_server(parts) {
        true => CanonicalPath::parse("/"),
        false => CanonicalPath::parse(parts.uri.path()),
    }
}

/// `OPTIONS *`.
fn is_of_server(parts: &Parts) -> bool {
    parts.method == Method::OPTIONS && parts.uri.path() == "*"
}
