//! HTTP/1.1 and HTTP/2 towards the agent: one session per connection, bounded in time, every request handed to
//! [`request`](super::request).

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentguard_common::abi::Origin;
use agentguard_record::DenyReason;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::accept;
use super::clock::{Clock, Watched};
use super::framing::Heads;
use super::identity::Entrance;
use super::life::{Life, OfLife};
use super::record::Entry;
use super::tunnel::Tunnel;
use super::{Forwarder, request};

/// Bytes that an agent may send on a stream, and on a connection, before upstream takes them.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Requests of one HTTP/2 connection at once.
const MAX_STREAMS: u32 = 128;
/// Header lists up to this many times the limit get an answer and a record, longer ones only a status (HTTP/2).
const HEADER_SLACK: u32 = 4;
/// The read buffer of an HTTP/1.1 connection, at most, bytes.
const READ_BUFFER: usize = 256 * 1024;

/// One connection of an agent's that speaks HTTP.
pub struct Session {
    pub forwarder: Arc<Forwarder>,
    pub life: Arc<Life>,
    pub origin: Origin,
    pub entrance: Entrance,
    /// The connection's record, until a request takes it.
    unused: Mutex<Option<Entry>>,
    /// What the connection becomes after the last answer.
    next: Mutex<Option<Tunnel>>,
    pub clock: Clock,
    heads: Mutex<Heads>,
}

impl Session {
    pub fn new(
        forwarder: Arc<Forwarder>,
        life: Arc<Life>,
        origin: Origin,
        entrance: Entrance,
        entry: Entry,
    ) -> Self {
        let limits = &forwarder.limits;
        let clock = Clock::new(
            Duration::from_millis(limits.head_timeout_ms.into()),
            Duration::from_millis(limits.idle_timeout_ms.into()),
        );
        Self {
            forwarder,
            life,
            origin,
            entrance,
            unused: Mutex::new(Some(entry)),
            next: Mutex::new(None),
            clock,
            heads: Mutex::default(),
        }
    }

    /// The record for the next request: the connection's own for the first one.
    pub fn entry(&self) -> Option<Entry> {
        let unused = self.unused.lock().expect(UNPOISONED).take();
        match unused {
            Some(mut entry) => {
                entry.restart();
                Some(entry)
            }
            None => self.forwarder.records.open(&self.life, &self.origin),
        }
    }

    /// Bytes of HTTP/1.1 came.
    pub fn arrived(&self, bytes: &[u8]) {
        if self.clock.is_head() {
            self.heads.lock().expect(UNPOISONED).feed(bytes);
        }
    }

    /// The bytes of the head that has just been parsed.
    pub fn head(&self) -> Vec<u8> {
        self.heads.lock().expect(UNPOISONED).take()
    }

    /// What takes the connection over when the answer has been sent.
    pub fn becomes(&self, tunnel: Tunnel) {
        *self.next.lock().expect(UNPOISONED) = Some(tunnel);
    }
}

/// Serves requests until either side is done. The tunnel that the connection has become, if it has.
pub async fn serve<S>(session: Arc<Session>, stream: S) -> Option<Tunnel>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let limits = &session.forwarder.limits;
    let io = TokioIo::new(Watched::new(stream, session.clone()));
    let service = service_fn({
        let session = session.clone();
        move |request| {
            let session = session.clone();
            // On the heap, so that an idle connection does not hold the room for it.
            Box::pin(async move { Ok::<_, Infallible>(request::handle(&session, request).await) })
        }
    });
    let served: Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>> = if session.entrance.http2
    {
        Box::pin(
            http2::Builder::new(OfLife(session.life.clone()))
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_concurrent_streams(MAX_STREAMS)
                .max_header_list_size(limits.max_header_bytes.saturating_mul(HEADER_SLACK))
                .auto_date_header(false)
                .serve_connection(io, service),
        )
    } else {
        Box::pin(
            http1::Builder::new()
                .half_close(true)
                .max_header_size(limits.max_header_bytes as usize)
                .max_buf_size(READ_BUFFER.max(limits.max_header_bytes as usize))
                .auto_date_header(false)
                .serve_connection(io, service)
                .with_upgrades(),
        )
    };
    let end = tokio::select! {
        served = served => End::from(served),
        late = session.clock.late() => End::Late(late),
    };
    session.close(end)
}

/// Why a session is over.
enum End {
    Closed,
    Malformed(hyper::Error),
    Failed(hyper::Error),
    Late(super::clock::Late),
}

impl From<hyper::Result<()>> for End {
    fn from(served: hyper::Result<()>) -> Self {
        match served {
            Ok(()) => Self::Closed,
            Err(error) if error.is_parse() || is_http2_error(&error) => Self::Malformed(error),
            Err(error) => Self::Failed(error),
        }
    }
}

impl Session {
    /// Records what no request has: a connection that never had one, or ended in something that is none.
    fn close(&self, end: End) -> Option<Tunnel> {
        use super::clock::Late;
        let unused = self.unused.lock().expect(UNPOISONED).take();
        match end {
            End::Closed => {
                if let Some(entry) = unused {
                    entry.fail(None, "the connection ended before a request");
                }
            }
            End::Malformed(error) => {
                let records = &self.forwarder.records;
                let entry = unused.or_else(|| records.open(&self.life, &self.origin));
                if let Some(mut entry) = entry {
                    entry.resource = self.place();
                    entry.refuse(DenyReason::ProtocolRefused, chain(&error));
                }
            }
            End::Failed(error) => {
                if let Some(entry) = unused {
                    let detail = match has_io(&error) {
                        true => "the connection ended before a request".into(),
                        false => chain(&error),
                    };
                    entry.fail(None, detail);
                }
            }
            End::Late(Late::Head) => {
                let records = &self.forwarder.records;
                let entry = unused.or_else(|| records.open(&self.life, &self.origin));
                if let Some(mut entry) = entry {
                    entry.resource = self.place();
                    let limit = self.forwarder.limits.head_timeout_ms;
                    entry.fail(None, format!("no whole request head within {limit} ms"));
                }
            }
            End::Late(Late::Idle) => drop(unused),
        }
        self.next.lock().expect(UNPOISONED).take()
    }

    /// The connection, where no request says more.
    fn place(&self) -> String {
        match &self.entrance.name {
            Some(name) if self.entrance.port == 443 => name.as_str().to_owned(),
            Some(name) => format!("{}:{}", name.as_str(), self.entrance.port),
            None => accept::place(&self.origin),
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

const UNPOISONED: &str = "nothing panics with the lock held";
