//! Accepted connections: bounded, attributed or closed, and what is known of them before their first byte.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use agentguard_common::abi::{AgentId, Origin};
use agentguard_policy::{HostName, TlsMode, is_reserved};
use agentguard_record::DenyReason;
use http::uri::Scheme;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::identity::{Entrance, Target};
use super::io::{Client, Peeked};
use super::life::{Life, Lives};
use super::origin::{self, OriginSource};
use super::record::{Entry, Records};
use super::sniff::Hello;
use super::terminate::Terminated;
use super::tunnel::Counting;
use super::{Forwarder, serve_connection};

/// How long to wait when the process has no descriptor left to accept with.
const EXHAUSTED: Duration = Duration::from_millis(50);

/// A connection whose agent and destination are known.
pub struct Arrival {
    pub forwarder: Arc<Forwarder>,
    pub life: Arc<Life>,
    pub origin: Origin,
    /// What `CONNECT` named, inside one.
    pub tunnel: Option<Target>,
}

/// Accepts until `stop`, or until the listener is destroyed.
pub async fn accept(
    forwarder: Arc<Forwarder>,
    listener: TcpListener,
    origins: Arc<dyn OriginSource>,
    places: Arc<Semaphore>,
    stop: CancellationToken,
) -> io::Error {
    loop {
        let socket = tokio::select! {
            () = stop.cancelled() => return io::ErrorKind::Interrupted.into(),
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => socket,
                // It does not listen any more (`inet_csk_accept`): SOCK_DESTROY.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return error,
                Err(error) => {
                    // Of the connection that was to be accepted, or for want of descriptors (accept(2)).
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(EXHAUSTED).await;
                    continue;
                }
            },
        };
        // Best effort: without it small answers wait for acknowledgements.
        let _ = socket.set_nodelay(true);
        let origin = match origin::recover(&*origins, &socket) {
            Ok(origin) => origin,
            Err(error) => {
                unattributed(&forwarder, &error.to_string());
                continue;
            }
        };
        match places.clone().try_acquire_owned() {
            Ok(place) => {
                let forwarder = forwarder.clone();
                tokio::spawn(async move {
                    serve_connection(forwarder, socket, origin).await;
                    drop(place);
                });
            }
            Err(_) => too_many(&forwarder, socket, &origin),
        }
    }
}

/// Somebody's connection, and nobody knows whose: closed, and recorded as nobody's.
fn unattributed(forwarder: &Forwarder, why: &str) {
    let nobody = Origin::default();
    let life = forwarder.lives.of(AgentId::NONE);
    if let Some(entry) = forwarder.records.open(&life, &nobody) {
        entry.refuse(DenyReason::ProtocolRefused, why);
    }
}

fn too_many(forwarder: &Forwarder, socket: TcpStream, origin: &Origin) {
    let life = forwarder.lives.of(origin.agent);
    if let Some(mut entry) = forwarder.records.open(&life, origin) {
        entry.resource = place(origin);
        let limit = forwarder.limits.max_connections;
        entry.fail(None, format!("more than {limit} connections at once"));
    }
    drop(socket);
}

/// Why an agent may do nothing at all now, for the resolver.
pub fn gate(
    lives: Arc<Lives>,
    records: Arc<Records>,
) -> Box<dyn Fn(AgentId) -> Option<DenyReason> + Send + Sync> {
    Box::new(move |agent| {
        let no_record = || (!records.available()).then_some(DenyReason::AuditUnavailable);
        lives.of(agent).why().or_else(no_record)
    })
}

/// `address:port` as the agent asked for it.
pub fn place(origin: &Origin) -> String {
    let ip = IpAddr::from(origin.addr);
    std::net::SocketAddr::new(ip, origin.port).to_string()
}

impl Arrival {
    /// Opens the connection's record. `None`: it cannot be recorded, or its agent has been stopped.
    pub fn admit(forwarder: Arc<Forwarder>, origin: Origin) -> Option<(Self, Entry)> {
        let forwarder = forwarder.serving(origin.agent);
        let life = forwarder.lives.of(origin.agent);
        let mut entry = forwarder.records.open(&life, &origin)?;
        entry.resource = place(&origin);
        if let Some(why) = life.why() {
            entry.refuse(why, "this agent has been stopped");
            return None;
        }
        let arrival = Self {
            forwarder,
            life,
            origin,
            tunnel: None,
        };
        Some((arrival, entry))
    }

    /// The port that the agent asked for.
    pub fn port(&self) -> u16 {
        match &self.tunnel {
            Some(target) => target.port,
            None => self.origin.port,
        }
    }

    /// The one name that a TLS connection is for: no name, no connection.
    pub fn named(&self, hello: &Hello) -> Result<Target, String> {
        let name = hello
            .server_name
            .as_deref()
            .ok_or("the TLS ClientHello names no host (no usable SNI)")?;
        let host =
            HostName::parse(name).map_err(|error| format!("the TLS server name: {error}"))?;
        if let Some(target) = &self.tunnel
            && target.host != host
        {
            return Err(format!(
                "`CONNECT` was for `{}`, the TLS inside it for `{}`",
                target.host.as_str(),
                host.as_str()
            ));
        }
        Ok(Target {
            host,
            port: self.port(),
        })
    }

    /// Whether the host's TLS is not ended here. Names that nothing covers are: a request can be told why not.
    pub fn passes(&self, target: &Target) -> bool {
        if is_reserved(&target.host) {
            return false;
        }
        let policy = self.forwarder.policy.load();
        let reach = policy.reach(self.life.agent, &target.host, target.port);
        matches!(reach, Some(TlsMode::Passthrough))
    }

    pub async fn plain(self, stream: Peeked<Client>, http2: bool, entry: Entry) {
        let entrance = self.entrance(Scheme::HTTP, None, http2);
        self.speak(stream, entrance, entry).await;
    }

    pub async fn terminated(self, terminated: Terminated, target: Target, entry: Entry) {
        let entrance = self.entrance(Scheme::HTTPS, Some(target.host), terminated.http2);
        self.speak(terminated.stream, entrance, entry).await;
    }

    /// DNS over TCP: the resolver records each query itself.
    pub async fn resolve(&self, stream: Peeked<Client>, entry: Entry) {
        let dns = &self.forwarder.dns;
        let passed = entry.passed.clone();
        let stream = Counting {
            inner: stream,
            read: &passed.up,
        };
        let served = dns.serve_stream(stream, &self.origin).await;
        match served {
            _ if passed.up.load(Ordering::Relaxed) > 2 => entry.hand_over(),
            Ok(()) => entry.fail(None, "the connection ended before a query"),
            Err(error) => entry.fail(None, format!("DNS over TCP: {error}")),
        }
    }

    fn entrance(&self, scheme: Scheme, name: Option<HostName>, http2: bool) -> Entrance {
        let tunnel = self.tunnel.as_ref().map(|target| target.host.clone());
        Entrance {
            scheme,
            name: name.or(tunnel),
            port: self.port(),
            tunnel: self.tunnel.is_some(),
            http2,
        }
    }
}
