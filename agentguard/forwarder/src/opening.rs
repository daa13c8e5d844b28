//! What a connection turns out to be, from its first bytes to the first request. A stage that ends it tells the client in
//! its own words and completes the entry.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use agentguard_record::Ended;
use tokio::time::timeout;

use super::admit::Arrival;
use super::identity::RequestTarget;
use super::io::{ClientStream, PeekedStream};
use super::record::{ConnectionOver, RecordEntry};
use super::respond;
use super::seat::GIVEN_UP;
use super::sniff::{self, Hello, Opening};
use super::terminate::{self, TerminatedConnection};
use super::tunnel::CountingStream;

/// How it begins. The bytes that it takes to know are read again.
pub(crate) async fn sniff(
    arrival: &Arrival,
    client: ClientStream,
    entry: RecordEntry,
) -> Result<(Opening, PeekedStream<ClientStream>, RecordEntry), ConnectionOver> {
    let Arrival {
        forwarder, life, ..
    } = arrival;
    // A hello is parsed when it is its agent's turn, as what follows from it is done.
    let sniffed = pin!(sniff::sniff(client, arrival.port()));
    let sniffed = forwarder.shares.in_turn(&life.shares, sniffed);
    let sniffed = timeout(limit(arrival), sniffed);
    let sniffed = tokio::select! {
        sniffed = sniffed => sniffed,
        () = arrival.counted.seat.given_up() => {
            return Err(entry.fail(Ended::HostFailed, None, GIVEN_UP));
        }
    };
    match sniffed {
        Err(_) => {
            let detail = "nothing that can be recognised came in time";
            Err(entry.fail(Ended::ClientGone, None, detail))
        }
        Ok((stream, Err(error))) => Err(respond::opening(stream, error, entry).await),
        Ok((stream, Ok(opening))) => Ok((opening, stream, entry)),
    }
}

/// Which host TLS is for.
pub(crate) async fn named(
    arrival: &Arrival,
    hello: &Hello,
    stream: PeekedStream<ClientStream>,
    entry: RecordEntry,
) -> Result<(RequestTarget, PeekedStream<ClientStream>, RecordEntry), ConnectionOver> {
    match arrival.named(hello) {
        Ok(target) => Ok((target, stream, entry)),
        Err(detail) => Err(respond::unnamed(stream, detail, entry).await),
    }
}

/// Ends the client's TLS with a leaf for `target`.
pub(crate) async fn terminate(
    arrival: &Arrival,
    target: &RequestTarget,
    stream: PeekedStream<ClientStream>,
    entry: RecordEntry,
) -> Result<(TerminatedConnection, RecordEntry), ConnectionOver> {
    let terminated = terminate::terminate(arrival, &target.host, stream, limit(arrival));
    // On the heap, so that a connection that is served does not hold the room for its handshake.
    let terminated = tokio::select! {
        terminated = Box::pin(terminated) => terminated,
        () = arrival.counted.seat.given_up() => {
            return Err(entry.fail(Ended::HostFailed, None, GIVEN_UP));
        }
    };
    match terminated {
        Ok(terminated) => Ok((terminated, entry)),
        Err(error) => Err(respond::handshake(target, &error, entry)),
    }
}

/// DNS over TCP: the resolver records each query itself.
pub(crate) async fn resolve(
    arrival: &Arrival,
    stream: PeekedStream<ClientStream>,
    entry: RecordEntry,
) -> ConnectionOver {
    let _occupied = arrival.counted.seat.occupy();
    let dns = &arrival.forwarder.dns;
    let passed = entry.passed.clone();
    let stream = CountingStream {
        inner: stream,
        read: &passed.up,
    };
    let served = dns.serve_stream(stream, &arrival.origin).await;
    match served {
        _ if passed.up.load(Ordering::Relaxed) > 2 => entry.hand_over(),
        Ok(()) => {
            let detail = "the connection ended before a query";
            entry.fail(Ended::ClientGone, None, detail)
        }
        Err(error) => entry.fail(Ended::ClientGone, None, format!("DNS over TCP: {error}")),
    }
}

fn limit(arrival: &Arrival) -> Duration {
    Duration::from_millis(arrival.forwarder.limits.head_timeout_ms.into())
}
