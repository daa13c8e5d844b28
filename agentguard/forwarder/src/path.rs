//! The path of one connection and of one request, each stage in the order in which it happens: the product on one screen.
//!
//! `?` ends a connection whose entry is complete, which [`ConnectionOver`] stands for, or hands up the [`Refusal`] of a
//! request, which [`answer`] alone answers. An answer that is to be rewritten on its way back is rewritten in
//! [`relay::back`], where its body is made of upstream's.

use std::pin::pin;
use std::sync::Arc;

use agentguard_policy::is_reserved;
use http::request::Parts;
use http::uri::Scheme;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::admit::{Arrival, ConnectionSlot, Door};
use super::body::RequestBody;
use super::exchange::Exchange;
use super::http::each as each_request;
use super::io::{ClientStream, Leg};
use super::record::{ConnectionOver, RecordEntry};
use super::refusal::Refusal;
use super::relay::Return;
use super::reply::Reply;
use super::session::Session;
use super::sniff::Opening;
use super::tunnel::Tunnel;
use super::{
    admit, connect, forward, judge, opening, origin, own, passthrough, protocol, relay, respond,
};

/// One connection of an agent's, which a kill ends wherever it is.
pub(crate) async fn connection(
    door: &Door,
    socket: TcpStream,
    place: Option<ConnectionSlot>,
) -> Result<(), ConnectionOver> {
    // Whose it is, and where it was to go. There is no default.
    let origin = origin::recover(&*door.origins, &socket);
    let origin = origin.map_err(|error| admit::nobodys(&door.forwarder, &error))?;
    // No place in the log, no place among the connections, or an agent that has been stopped: no connection.
    let (arrival, entry) = admit::admit(door, origin, place.as_ref())?;
    let life = arrival.life.clone();
    let client = ClientStream::Socket(Leg::new(socket, life.clone()));
    let _tracked = life.tracked();
    let served = pin!(opened(arrival, client, entry));
    let served = life.hold(served).await;
    served.unwrap_or(Err(ConnectionOver))
}

/// Everything between the first byte and the last, for a connection and for what `CONNECT` opens inside one.
async fn opened(
    arrival: Arrival,
    client: ClientStream,
    entry: RecordEntry,
) -> Result<(), ConnectionOver> {
    let (opening, stream, entry) = opening::sniff(&arrival, client, entry).await?;
    let (hello, http2) = match opening {
        Opening::Dns => return Err(opening::resolve(&arrival, stream, entry).await),
        Opening::Http1 => (None, false),
        Opening::Http2 => (None, true),
        Opening::Tls(hello) => (Some(hello), false),
    };
    let Some(hello) = hello else {
        let session = arrival.session(Scheme::HTTP, None, http2, entry);
        return speak(arrival, session, stream).await;
    };
    let (target, stream, entry) = opening::named(&arrival, &hello, stream, entry).await?;
    if arrival.passes(&target) {
        return Err(passthrough::pass(&arrival, target, &hello, stream, entry).await);
    }
    let (tls, entry) = opening::terminate(&arrival, &target, stream, entry).await?;
    let session = arrival.session(Scheme::HTTPS, Some(target.host), tls.http2, entry);
    speak(arrival, session, tls.stream).await
}

/// Each request, then what the connection has become, if it has.
async fn speak<S>(arrival: Arrival, session: Arc<Session>, stream: S) -> Result<(), ConnectionOver>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    match each_request(session, stream, answer).await {
        None => Ok(()),
        Some(Tunnel::Upgrade(tunnel)) => Err(tunnel.pass().await),
        Some(Tunnel::Connect(connect)) => {
            let (client, target, entry) = connect.open().await?;
            let tunnel = Some(target);
            Box::pin(opened(Arrival { tunnel, ..arrival }, client, entry)).await
        }
    }
}

/// Answers one request: with what it has led to, or with why not, in one place for every refusal.
async fn answer(session: Arc<Session>, request: Request<Incoming>) -> Response<Reply> {
    let busy = session.clock.busy();
    let head = session.head();
    if request.method() == Method::CONNECT {
        return connect::answer(&session, request);
    }
    let Some(entry) = session.entry() else {
        return respond::unrecorded(&session, &request);
    };
    let (parts, body) = request.into_parts();
    let mut exchange = Exchange::new(session, busy, entry, &parts);
    let mut body = RequestBody::Streamed(body);
    match self::request(&mut exchange, parts, &head, &mut body).await {
        // Streamed, judged again while it goes on, recorded at its end.
        Ok(from) => relay::back(exchange, from),
        // Answered in its protocol, its body drained, recorded.
        Err(refusal) => exchange.refuse(refusal, body.rest()),
    }
}

/// One request. What is judged is what is sent, and what is sent is what is recorded.
async fn request(
    exchange: &mut Exchange,
    parts: Parts,
    head: &[u8],
    body: &mut RequestBody,
) -> Result<Return, Refusal> {
    // Server name, `Host` and `:authority` agree; one framing; within bounds; it can be recorded.
    let target = admit::head(exchange, &parts, head)?;
    if is_reserved(&target.host) {
        exchange.docket.entry.begin().await?;
        return own::answer(exchange, &parts, body).await.map(Return::Own);
    }
    // What it asks its connection to become is what the host's file lets it.
    let upgrade = admit::upgrade(exchange, &parts, &target)?;
    // A request has a body where its method means something by it: no other request hides in one.
    admit::body(exchange, &parts, &target, body, upgrade.as_ref())?;
    // What it does: its acts. From here on it has one form.
    let message = protocol::read(parts, target, exchange.scheme(), upgrade)?;
    let acts = exchange.protocol.acts(&message);
    // What rules read is gathered, then they decide, then `settle::settle` settles what the permit owes. Again if a
    // bundle came between, which is why settling is in there: it waits, and what was decided before may not hold after.
    let (subject, docket) = exchange.subject(&message.task);
    let grant = judge::judge(subject, acts.as_ref(), body, docket).await?;
    drop(acts);
    // The permit is spent, its act recorded.
    let forwarded = forward::send(exchange, message, grant, body).await?;
    Ok(Return::Upstream(forwarded))
}
