//! Answers `CONNECT`, by which an agent takes the forwarder for its proxy.

use agentguard_record::{ActionName, RequestInfo};
use http::uri::Scheme;
use http::{Request, Response};
use hyper::body::Incoming;

use super::protocol::{About, Protocol};
use super::record::RecordEntry;
use super::refusal::{NO_ROOM, Refusal};
use super::reply::Reply;
use super::session::Session;
use super::tunnel::{Connect, Tunnel};
use super::{identity, origin, respond};

/// Answers `CONNECT`: always with 200 where it is well-formed, since every request inside is judged, and refused in a way
/// that clients can read.
pub(crate) fn answer(session: &Session, mut request: Request<Incoming>) -> Response<Reply> {
    let client = hyper::upgrade::on(&mut request);
    let (parts, _) = request.into_parts();
    let refusal = if session.entrance.http2 {
        "`CONNECT` over HTTP/2"
    } else if session.entrance.tunnel {
        "`CONNECT` inside `CONNECT`"
    } else if session.entrance.scheme == Scheme::HTTPS {
        "`CONNECT` inside TLS"
    } else {
        ""
    };
    let target = match refusal {
        "" => identity::connect_target(&parts),
        refusal => Err(refusal.to_owned()),
    };
    let Some(mut entry) = session.entry() else {
        let refusal = Refusal::unrecorded(NO_ROOM);
        return refuse(session, None, refusal);
    };
    match target {
        Ok(target) => {
            entry.resource = target.id();
            session.becomes(Tunnel::Connect(Connect {
                client,
                target,
                entry,
            }));
            Response::new(Reply::empty())
        }
        Err(detail) => {
            entry.action = ActionName::Method("CONNECT".into());
            entry.resource = origin::place(&session.origin);
            refuse(session, Some(entry), Refusal::protocol(detail))
        }
    }
}

fn refuse(session: &Session, entry: Option<RecordEntry>, refusal: Refusal) -> Response<Reply> {
    let policy = session.forwarder.policy.load();
    let about = About {
        decision: entry
            .as_ref()
            .map_or(uuid::Uuid::nil(), |entry| entry.decision),
        agent: &respond::name(&policy, session.life.agent),
        action: "CONNECT",
        resource: &origin::place(&session.origin),
    };
    let response = respond::answer(&refusal, Protocol::Http, !session.entrance.http2, &about);
    if let Some(mut entry) = entry {
        entry.request = Some(RequestInfo {
            scheme: session.entrance.scheme.to_string(),
            method: "CONNECT".into(),
            status: response.status().as_u16(),
            ..RequestInfo::default()
        });
        entry.refuse(refusal);
    }
    response
}
