//! Opens the connections that requests go out on.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use agentguard_record::UpstreamInfo;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::client::Resumption;

use super::UpstreamFault;
use super::dial::{Dialer, Wire};
use super::pool::PoolKey;
use super::proxy::AbsoluteForm;
use super::tasks::{Spawner, Tasks, tasks};
use crate::frames::{MeteredStream, Peer};
use crate::framing;
use crate::life::Life;
use crate::shares::Part;
use crate::upload::Upload;

/// TLS sessions kept per agent for resumption.
const SESSIONS: usize = 64;
/// Bytes that upstream may send on a stream before we take them (RFC 9113 section 6.9), at most.
const STREAM_WINDOW: u32 = 1 << 20;
/// The read buffer of an HTTP/1.1 connection, at most.
const READ_BUFFER: usize = 256 * 1024;
/// Streams that the library would open before the server has said how many it takes: a number that no server says.
pub(super) const UNTOLD_STREAMS: usize = 99_991;

/// What every agent's upstream connections are made with.
pub(crate) struct Connector {
    pub(super) dialer: Dialer,
    pub(super) tls: ClientConfig,
    pub(super) max_header_bytes: u32,
}

/// How one agent's connections are made: its mark, its end, its TLS sessions.
pub(crate) struct Way {
    connector: Arc<Connector>,
    pub life: Arc<Life>,
    tls: OnceLock<Tls>,
}

/// TLS configurations that share their sessions.
struct Tls {
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
}

/// What records say of a connection, and the form that requests have on it where they go to a proxy.
#[derive(Debug)]
pub(crate) struct ConnectionFacts(pub UpstreamInfo, pub(super) Option<AbsoluteForm>);

/// An HTTP/1.1 connection. Nobody drives it but who uses it: request, answer and connection are one task's.
pub(crate) struct Http1 {
    pub sender: http1::SendRequest<Upload>,
    pub connection: Box<http1::Connection<TokioIo<Wire>, Upload>>,
    pub facts: Arc<ConnectionFacts>,
    /// It has carried a request before.
    pub reused: bool,
    /// When it was opened or the last answer ended on it.
    pub since: Instant,
    /// How long it had been idle when it was taken.
    pub idle: Duration,
    /// It carries no request after this one.
    pub is_last: bool,
}

/// An HTTP/2 connection, which somebody has to drive.
pub(super) struct Http2Connection {
    pub sender: http2::SendRequest<Upload>,
    pub connection: http2::Connection<TokioIo<MeteredStream<Wire>>, Upload, Spawner>,
    pub tasks: Tasks,
    pub facts: Arc<ConnectionFacts>,
    pub window: Part,
}

pub(super) enum Opened {
    Http1(Box<Http1>),
    Http2(Box<Http2Connection>),
}

impl Connector {
    /// TLS as `protocols` (ALPN) have it, with sessions of its own.
    pub(super) fn tls(&self, protocols: &[&[u8]]) -> Arc<ClientConfig> {
        let mut config = self.tls.clone();
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Arc::new(config)
    }
}

impl Way {
    pub(super) fn new(connector: &Arc<Connector>, life: &Arc<Life>) -> Self {
        Self {
            connector: connector.clone(),
            life: life.clone(),
            tls: OnceLock::new(),
        }
    }

    /// One with TLS sessions of its own.
    pub(super) fn renewed(&self) -> Self {
        Self::new(&self.connector, &self.life)
    }

    /// `upgrade`: for a request that may turn the connection into a tunnel, which HTTP/2 does not have.
    pub(super) async fn open(&self, key: &PoolKey, upgrade: bool) -> Result<Opened, UpstreamFault> {
        let Connector {
            dialer,
            max_header_bytes,
            ..
        } = &*self.connector;
        let http2 = key.http2 && !upgrade;
        let config = key.tls.then(|| {
            let configs = self.tls.get_or_init(|| Tls {
                http1: self.connector.tls(&[b"http/1.1"]),
                http2: self.connector.tls(&[b"h2", b"http/1.1"]),
            });
            match http2 {
                true => configs.http2.clone(),
                false => configs.http1.clone(),
            }
        });
        let absolute = !key.http2 && !upgrade;
        let dialled = dialer.dial(&self.life, &key.host, key.port, config, absolute);
        let dialled = dialled.await?;
        let info = UpstreamInfo {
            addr: dialled.addr.to_string(),
            tls: dialled.tls.to_owned(),
            proxy: dialled.proxy,
        };
        let facts = Arc::new(ConnectionFacts(info, dialled.absolute));
        let prior_knowledge = !key.tls && http2;
        if !dialled.http2 && !prior_knowledge {
            let (sender, connection) = http1::Builder::new()
                .max_buf_size(READ_BUFFER)
                .max_headers(framing::max_lines(*max_header_bytes))
                .max_header_size(*max_header_bytes as usize)
                .preserve_header_case(true)
                .title_case_headers(true)
                .allow_spaces_after_header_name_in_responses(true)
                .allow_obsolete_multiline_headers_in_responses(true)
                .handshake(TokioIo::new(dialled.wire))
                .await
                .map_err(|error| UpstreamFault::exchange(&error))?;
            return Ok(Opened::Http1(Box::new(Http1 {
                sender,
                connection: Box::new(connection),
                facts,
                reused: false,
                since: Instant::now(),
                idle: Duration::ZERO,
                is_last: false,
            })));
        }
        let window = self.life.shares.upstream_window();
        let (spawner, tasks) = tasks();
        let wire = MeteredStream::new(dialled.wire, Peer::Server);
        let (sender, connection) = http2::Builder::new(spawner)
            .initial_max_send_streams(UNTOLD_STREAMS)
            .initial_stream_window_size(STREAM_WINDOW.min(window.size))
            .initial_connection_window_size(window.size)
            .max_header_list_size(*max_header_bytes)
            .handshake(TokioIo::new(wire))
            .await
            .map_err(|error| UpstreamFault::exchange(&error))?;
        Ok(Opened::Http2(Box::new(Http2Connection {
            sender,
            connection,
            tasks,
            facts,
            window,
        })))
    }
}
