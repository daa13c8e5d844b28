//! The way back: what upstream has answered, as the agent gets it.

use agentguard_record::{DenyReason, Ended};
use http::{Response, StatusCode, Version, header};

use super::exchange::Exchange;
use super::forward::ForwardedAnswer;
use super::framing;
use super::headers;
use super::own::document::Document;
use super::refusal::Refusal;
use super::reply::Reply;
use super::tunnel::{Tunnel, UpgradeTunnel};

/// What a request has led to.
#[expect(
    clippy::large_enum_variant,
    reason = "it is moved on at once; a box would be one more allocation for each request"
)]
pub(crate) enum Return {
    /// It was for AgentGuard's own name.
    Own(Document),
    Upstream(ForwardedAnswer),
}

/// Hands it back to the agent. At its end the entry is complete, and the connection no longer busy.
pub(crate) fn back(exchange: Exchange, from: Return) -> Response<Reply> {
    match from {
        Return::Own(document) => document.back(exchange),
        Return::Upstream(forwarded) => upstream(exchange, forwarded),
    }
}

fn upstream(mut exchange: Exchange, forwarded: ForwardedAnswer) -> Response<Reply> {
    let ForwardedAnswer {
        answer,
        standing,
        upgrade,
    } = forwarded;
    let (mut head, body) = answer.response.into_parts();
    exchange.docket.entry.upstream = Some(answer.facts.0.clone());
    exchange.status(head.status);
    head.version = Version::HTTP_11;
    let changes = head.status == StatusCode::SWITCHING_PROTOCOLS;
    let client = match upgrade {
        Some((client, upgrade)) if changes && upgrade.is_granted_by(&head.headers) => Some(client),
        _ if changes => {
            return unusable(exchange, "it changed to a protocol that was not asked for");
        }
        _ => None,
    };
    if let Err(detail) = framing::repair(&mut head.headers) {
        return unusable(exchange, detail);
    }
    let Exchange {
        session,
        docket,
        busy,
        ..
    } = exchange;
    let entry = docket.entry;
    let Some(client) = client else {
        headers::strip(&mut head.headers, false);
        // Another place or protocol to go to, which the agent cannot use.
        head.headers.remove(header::ALT_SVC);
        let body = Reply::upstream(body, answer.lease, entry, standing, session, busy);
        return Response::from_parts(head, body);
    };
    let upstream = hyper::upgrade::on(Response::from_parts(head.clone(), body));
    head.extensions.clear();
    session.becomes(Tunnel::Upgrade(Box::new(UpgradeTunnel {
        client,
        upstream,
        standing,
        entry,
        busy,
    })));
    Response::from_parts(head, Reply::empty())
}

/// Upstream has answered with what cannot be passed on.
fn unusable(exchange: Exchange, detail: &str) -> Response<Reply> {
    let detail = format!("{}: {detail}", exchange.docket.entry.resource);
    let reason = DenyReason::UpstreamUnreachable;
    exchange.refuse(Refusal::ended(Ended::UpstreamFailed, reason, detail), None)
}
