//! HTTP/1.1 and HTTP/2 towards the agent: one session per connection, bounded in time, each request handed on.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use agentguard_record::Ended;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::clock::{Late, WatchedStream};
use super::frames::{FLOOD, Flooded, MeteredStream, Peer};
use super::framing;
use super::order::{InOrder, ReadsInOrder, StreamsInOrder};
use super::refusal::Refusal;
use super::reply::Reply;
use super::seat::GIVEN_UP;
use super::session::Session;
use super::tunnel::Tunnel;

/// Bytes that an agent may send on a stream before upstream takes them, at most.
const STREAM_WINDOW: u32 = 1 << 20;
/// Heads up to this many times the limit get an answer and a record, longer ones only a status.
const HEADER_SLACK: u32 = 4;
/// The read buffer of an HTTP/1.1 connection, at most, bytes.
const READ_BUFFER: usize = 256 * 1024;

/// Has each request answered by `answer` until either side is done. The tunnel that the connection has become, if it has.
pub(crate) async fn each<S, A, F>(session: Arc<Session>, stream: S, answer: A) -> Option<Tunnel>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    A: Fn(Arc<Session>, Request<Incoming>) -> F + Copy + Send + 'static,
    F: Future<Output = Response<Reply>> + Send + 'static,
{
    let limits = &session.forwarder.limits;
    let service = service_fn({
        let session = session.clone();
        move |request| {
            let session = session.clone();
            // On the heap, so that an idle connection does not hold the room for it.
            Box::pin(async move { Ok::<_, Infallible>(answer(session, request).await) })
        }
    });
    let mut flooded = Flooded::default();
    let served: Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>> = if session.entrance.http2
    {
        let share = session.life.shares.http2();
        let stream = MeteredStream::new(stream, Peer::Client);
        flooded = stream.flooded();
        let serving = http2::Builder::new(StreamsInOrder(session.life.clone()))
            .initial_stream_window_size(STREAM_WINDOW.min(share.window()))
            .initial_connection_window_size(share.window())
            .max_concurrent_streams(share.streams())
            .max_send_buf_size(share.send_buffer())
            .max_header_list_size(limits.max_header_bytes.saturating_mul(HEADER_SLACK))
            .auto_date_header(false)
            .serve_connection(TokioIo::new(stream), service);
        Box::pin(async move {
            let _share = share;
            serving.await
        })
    } else {
        let longest = limits.max_header_bytes.saturating_mul(HEADER_SLACK) as usize;
        let (heard, flushed) = (session.clone(), session.clone());
        let io = TokioIo::new(WatchedStream::new(
            ReadsInOrder::new(session.place.clone(), stream),
            move |bytes: &[u8]| heard.arrived(bytes),
            move || flushed.flushed(),
        ));
        let serving = http1::Builder::new()
            .half_close(true)
            .max_headers(framing::max_lines(limits.max_header_bytes))
            .max_header_size(longest)
            .max_buf_size(READ_BUFFER.max(longest))
            .preserve_header_case(true)
            .title_case_headers(true)
            .auto_date_header(false)
            .serve_connection(io, service)
            .with_upgrades();
        Box::pin(InOrder::new(session.place.clone(), serving))
    };
    let end = tokio::select! {
        served = served => match flooded.is() {
            true => HttpEnd::Refused(FLOOD.into()),
            false => HttpEnd::from(served),
        },
        late = session.clock.late() => HttpEnd::Late(late),
        () = session.clock.seat.given_up() => HttpEnd::GivenUp,
    };
    close(&session, end);
    session.next()
}

/// Why a session is over.
enum HttpEnd {
    Closed,
    /// For what it has sent.
    Refused(String),
    Failed(hyper::Error),
    Late(Late),
    /// For another connection of the agent's.
    GivenUp,
}

impl From<hyper::Result<()>> for HttpEnd {
    fn from(served: hyper::Result<()>) -> Self {
        match served {
            Ok(()) => Self::Closed,
            Err(error) if error.is_parse() || is_http2_error(&error) => {
                Self::Refused(chain(&error))
            }
            Err(error) => Self::Failed(error),
        }
    }
}

/// Records what no request has: a connection that never had one, or ended in something that is none.
fn close(session: &Session, end: HttpEnd) {
    let unused = session.unused();
    match end {
        HttpEnd::Closed => {
            if let Some(entry) = unused {
                let detail = "the connection ended before a request";
                entry.fail(Ended::ClientGone, None, detail);
            }
        }
        HttpEnd::Refused(why) => {
            let records = &session.forwarder.records;
            let entry = unused.or_else(|| records.open(&session.life, &session.origin));
            if let Some(mut entry) = entry {
                entry.resource = session.resource();
                entry.refuse(Refusal::protocol(why));
            }
        }
        HttpEnd::Failed(error) => {
            if let Some(entry) = unused {
                let detail = match has_io(&error) {
                    true => "the connection ended before a request".into(),
                    false => chain(&error),
                };
                entry.fail(Ended::ClientGone, None, detail);
            }
        }
        HttpEnd::Late(Late::Head) => {
            let records = &session.forwarder.records;
            let entry = unused.or_else(|| records.open(&session.life, &session.origin));
            if let Some(mut entry) = entry {
                entry.resource = session.resource();
                let limit = session.forwarder.limits.head_timeout_ms;
                let detail = format!("no whole request head within {limit} ms");
                entry.fail(Ended::ClientGone, None, detail);
            }
        }
        HttpEnd::Late(Late::Idle) => drop(unused),
        HttpEnd::GivenUp => {
            if let Some(entry) = unused {
                entry.fail(Ended::HostFailed, None, GIVEN_UP);
            }
        }
    }
}

/// An error of HTTP/2 itself, not of the bytes under it.
fn is_http2_error(error: &hyper::Error) -> bool {
    let text = error.to_string();
    text.starts_with("http2 error") && !has_io(error)
}

fn has_io(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if cause.is::<std::io::Error>() {
            return true;
        }
        source = cause.source();
    }
    false
}

fn chain(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
