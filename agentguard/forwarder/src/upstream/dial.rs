//! Opens an upstream connection: resolved by the forwarder, marked as the agent's, its certificate verified.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use agentguard_common::abi::{AgentId, TAG_PORT};
use agentguard_policy::HostName;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpSocket;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::UpstreamFault;
use super::proxy::{AbsoluteForm, Hop, Proxies, Reached};
use super::race::{SlowAddresses, race};
use super::silence::Silence;
use crate::io::{Leg, or_end};
use crate::life::Life;
use crate::resolve::NameResolver;
use crate::terminate::version;

/// No address gets less than this to answer, however many there are.
const MIN_ATTEMPT: Duration = Duration::from_millis(250);
/// How soon a peer is probed when nothing is sent either way, how often then, and how many times without an answer.
const PROBED_AFTER: Duration = Duration::from_secs(15);
const PROBED_EVERY: Duration = Duration::from_secs(5);
const PROBES: u32 = 3;

/// Marks a socket that is to be connected as the agent's, so that the kernel holds it to the kill.
pub(crate) type Tag = fn(&Socket, SocketAddr, AgentId) -> io::Result<()>;

/// How upstreams are found and reached.
#[derive(Clone)]
pub(super) struct Dialer {
    pub resolver: Arc<NameResolver>,
    pub tag: Tag,
    pub connect_timeout: Duration,
    pub proxies: Arc<Proxies>,
    pub slow: Arc<SlowAddresses>,
    pub silence: Arc<Silence>,
}

/// An open connection, and what the record says of it.
pub(super) struct DialledConnection {
    pub wire: Wire,
    pub addr: SocketAddr,
    /// Empty for plain.
    pub tls: &'static str,
    pub http2: bool,
    /// Empty: none.
    pub proxy: String,
    /// Requests go to that proxy itself, in this form.
    pub absolute: Option<AbsoluteForm>,
}

impl Dialer {
    /// `tls`: the configuration for a TLS upstream;
    /// `absolute`: a plain one's proxy may get the requests, which are HTTP/1.1 and no tunnel.
    pub(super) async fn dial(
        &self,
        life: &Arc<Life>,
        host: &HostName,
        port: u16,
        tls: Option<Arc<ClientConfig>>,
        absolute: bool,
    ) -> Result<DialledConnection, UpstreamFault> {
        let deadline = Instant::now() + self.connect_timeout;
        let absolute = absolute && tls.is_none();
        let reached = self.reach(life, host, port, absolute).await?;
        let Some(config) = tls else {
            return Ok(DialledConnection {
                wire: Wire::Plain(reached.hop),
                addr: reached.addr,
                tls: "",
                http2: false,
                proxy: reached.proxy,
                absolute: reached.absolute,
            });
        };
        let name = ServerName::try_from(host.as_str().to_owned())
            .map_err(|_| UpstreamFault::tls("its name cannot be in a certificate"))?;
        let Reached {
            hop, addr, proxy, ..
        } = reached;
        let handshake = TlsConnector::from(config).connect(name, hop);
        let remaining = deadline
            .saturating_duration_since(Instant::now())
            .max(MIN_ATTEMPT);
        let stream = timeout(remaining, handshake)
            .await
            .map_err(|_| UpstreamFault::timeout("the TLS handshake took too long"))
            .and_then(|done| done.map_err(|error| UpstreamFault::handshake(&error)))
            .map_err(|fault| fault.through(&proxy))?;
        let session = stream.get_ref().1;
        Ok(DialledConnection {
            addr,
            tls: version(session.protocol_version()),
            http2: session.alpn_protocol() == Some(b"h2"),
            proxy,
            absolute: None,
            wire: Wire::Tls(Box::new(stream)),
        })
    }

    /// A plain connection, for [`Self::dial`] and for what is passed through, to whichever of the host's addresses answers
    /// first.
    pub(super) async fn connect(
        &self,
        life: &Arc<Life>,
        host: &HostName,
        port: u16,
    ) -> Result<(Leg, SocketAddr), UpstreamFault> {
        let deadline = Instant::now() + self.connect_timeout;
        let lookup = self.resolver.addresses(host);
        let addresses = timeout(self.connect_timeout, lookup)
            .await
            .map_err(|_| UpstreamFault::timeout("resolving its name took too long"))?
            .map_err(|error| UpstreamFault::unreachable(error.to_string()))?;
        let addresses: Vec<_> = self.slow.order(&addresses);
        let attempt = |ip| self.attempt(life, SocketAddr::new(ip, port));
        let until = deadline.max(Instant::now() + MIN_ATTEMPT);
        let (leg, ip) = race(&self.slow, &addresses, until, attempt).await?;
        Ok((leg, SocketAddr::new(ip, port)))
    }

    async fn attempt(&self, life: &Arc<Life>, addr: SocketAddr) -> Result<Leg, UpstreamFault> {
        let of_socket = |error| UpstreamFault::unreachable(format!("a socket for {addr}: {error}"));
        let socket = self.socket(life.agent, addr).map_err(of_socket)?;
        let socket = TcpSocket::from_std_stream(socket.into())
            .connect(addr)
            .await
            .map_err(|error| UpstreamFault::unreachable(format!("{addr}: {error}")))?;
        let watched = self.silence.watch(&socket).map_err(of_socket)?;
        Ok(Leg::watched(socket, life.clone(), watched))
    }

    fn socket(&self, agent: AgentId, addr: SocketAddr) -> io::Result<Socket> {
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(addr), kind, Some(Protocol::TCP))?;
        (self.tag)(&socket, addr, agent)?;
        socket.set_tcp_nodelay(true)?;
        let probes = TcpKeepalive::new()
            .with_time(PROBED_AFTER)
            .with_interval(PROBED_EVERY)
            .with_retries(PROBES);
        socket.set_tcp_keepalive(&probes)?;
        Ok(socket)
    }
}

/// The mark as the bind hook reads it: the agent id as the last four bytes of an address, at [`TAG_PORT`]. Without the
/// hook the bind fails (no such address, and a port for the privileged alone), and nothing is dialled.
pub(crate) fn tag(socket: &Socket, addr: SocketAddr, agent: AgentId) -> io::Result<()> {
    let mark: IpAddr = match addr {
        SocketAddr::V4(_) => Ipv4Addr::from_bits(agent.0).into(),
        SocketAddr::V6(_) => Ipv6Addr::from_bits(agent.0.into()).into(),
    };
    socket
        .bind(&SocketAddr::new(mark, TAG_PORT).into())
        .map_err(|error| {
            io::Error::new(
                error.kind(),
                format!(
                    "the kernel did not take the agent's mark ({error}); is the bind hook attached?"
                ),
            )
        })
}

/// For a socket of the forwarder's own.
#[expect(
    clippy::unnecessary_wraps,
    reason = "as `tag`, in whose place it stands"
)]
pub(super) fn untagged(_: &Socket, _: SocketAddr, _: AgentId) -> io::Result<()> {
    Ok(())
}

/// An upstream's bytes, plain or TLS.
pub(crate) enum Wire {
    Plain(Hop),
    Tls(Box<TlsStream<Hop>>),
}

macro_rules! either {
    ($self:ident, $io:ident => $call:expr) => {
        match $self.get_mut() {
            Wire::Plain($io) => $call,
            Wire::Tls($io) => $call,
        }
    };
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        or_end(either!(self, io => Pin::new(io).poll_read(cx, buf)))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, io => Pin::new(io).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, io => Pin::new(io).poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}
