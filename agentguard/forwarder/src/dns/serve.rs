//! The resolver's sockets: datagrams attributed by their flow, streams that the forwarder accepted for port 53.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentguard_common::abi::{AgentId, FlowKey, Origin};
use agentguard_common::net::Addr;
use agentguard_common::share::{QUESTIONS_IN_A_ROW, QuestionMark};
use agentguard_policy::Policy;
use agentguard_record::{DecidedBy, DenyReason, Draft};
use agentguard_sys::socket::receive_marked;
use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest};
use tokio::net::UdpSocket;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::{DnsAnswer, Transport, answer};
use crate::resolve::NameResolver;

/// Questions of one agent that may wait for upstream at once: as many as the kernel lets it ask in a row. Those beyond are
/// told so at once, of which the kernel's rate is the bound.
const PENDING_PER_AGENT: usize = QUESTIONS_IN_A_ROW as usize;
/// How long a stream may be idle between queries (RFC 7766 section 6.2.3).
const STREAM_IDLE: Duration = Duration::from_secs(10);
/// Larger than any query needs to be: what is longer is truncated and found malformed.
const DATAGRAM_BYTES: usize = 4096;

/// Why an agent may do nothing at all now, if it may not: it is stopped, or nothing can be recorded.
pub type Gate = Box<dyn Fn(AgentId) -> Option<(DecidedBy, DenyReason)> + Send + Sync>;

/// Keeps a record before its answer leaves. False: there is no room for it.
pub type Keep = Box<dyn Fn(Draft) -> BoxFuture<'static, bool> + Send + Sync>;

/// What every query is judged with.
pub struct Server {
    pub policy: Arc<ArcSwap<Policy>>,
    pub resolver: Arc<NameResolver>,
    pub keep: Keep,
    pub gate: Gate,
    /// Names that are refused lead to AgentGuard's own address.
    tells: bool,
    /// Datagrams without an answer, as their mark is nobody's: the kernel knows no such question any more, or of another
    /// socket.
    pub unattributed: AtomicU64,
    pending: Mutex<HashMap<AgentId, Arc<Semaphore>>>,
}

impl Server {
    pub fn new(
        policy: Arc<ArcSwap<Policy>>,
        resolver: Arc<NameResolver>,
        keep: Keep,
        gate: Gate,
        tells: bool,
    ) -> Self {
        Self {
            policy,
            resolver,
            keep,
            gate,
            tells,
            unattributed: AtomicU64::default(),
            pending: Mutex::default(),
        }
    }

    /// Answers datagrams until the socket fails. `socket` is bound to one address, so that answers come from the
    /// address that was asked, and takes none without a mark; `netns`: `SO_NETNS_COOKIE` of the socket; `origins`:
    /// [`OriginSource::question`](crate::origin::OriginSource::question).
    pub async fn serve_datagrams(
        self: Arc<Self>,
        socket: UdpSocket,
        netns: u64,
        origins: impl Fn(QuestionMark, &FlowKey) -> io::Result<Option<Origin>>,
    ) -> io::Result<()> {
        let local = socket.local_addr()?;
        let socket = Arc::new(socket);
        let mut buffer = vec![0; DATAGRAM_BYTES];
        loop {
            let received =
                socket.async_io(Interest::READABLE, || receive_marked(&*socket, &mut buffer));
            let (length, peer, mark) = match received.await {
                Ok(received) => received,
                // An ICMP error for an earlier answer to a client that has gone.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return Err(error),
            };
            let mark = QuestionMark(mark.unwrap_or_default());
            let origin = match origins(mark, &flow(netns, peer, local)) {
                Ok(Some(origin)) => origin,
                Ok(None) | Err(_) => {
                    self.unattributed.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
            };
            let slot = self.slot(origin.agent);
            let refused = match slot {
                Some(_) => (self.gate)(origin.agent),
                None => Some((DecidedBy::Limit, DenyReason::RateLimited)),
            };
            let (server, socket) = (self.clone(), socket.clone());
            let query = buffer[..length].to_vec();
            tokio::spawn(async move {
                let answer = server.judge(&query, Transport::Udp, &origin, refused);
                if let Some(bytes) = answer.await {
                    // The client may be gone.
                    let _ = socket.send_to(&bytes, peer).await;
                }
                drop(slot);
            });
        }
    }

    /// Answers queries on one accepted stream, in their order, until the client is done (RFC 7766).
    pub async fn serve_stream<S>(&self, mut io: S, origin: &Origin) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut query = Vec::new();
        loop {
            let mut length = [0; 2];
            match timeout(STREAM_IDLE, io.read_exact(&mut length)).await {
                Err(_idle) => return Ok(()),
                Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Ok(read) => read?,
            };
            query.resize(usize::from(u16::from_be_bytes(length)), 0);
            match timeout(STREAM_IDLE, io.read_exact(&mut query)).await {
                Err(_slow) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(read) => read?,
            };
            let refused = (self.gate)(origin.agent);
            let answer = self.judge(&query, Transport::Tcp, origin, refused);
            let Some(bytes) = answer.await else {
                return Ok(());
            };
            let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
            let mut framed = length.to_be_bytes().to_vec();
            framed.extend_from_slice(&bytes);
            io.write_all(&framed).await?;
        }
    }

    /// The answer, after its record is kept: what cannot be recorded is told so. `refused`: why it is refused whatever it asks.
    async fn judge(
        &self,
        query: &[u8],
        transport: Transport,
        origin: &Origin,
        refused: Option<(DecidedBy, DenyReason)>,
    ) -> Option<Vec<u8>> {
        let policy = self.policy.load_full();
        let answer = |refused| {
            let (resolver, tells) = (&self.resolver, self.tells);
            answer(query, transport, origin, refused, &policy, resolver, tells)
        };
        let DnsAnswer { bytes, record } = answer(refused).await;
        match (self.keep)(record).await {
            true => bytes,
            false => {
                let unrecorded = (DecidedBy::Host, DenyReason::AuditUnavailable);
                answer(Some(unrecorded)).await.bytes
            }
        }
    }

    fn slot(&self, agent: AgentId) -> Option<OwnedSemaphorePermit> {
        let mut pending = self
            .pending
            .lock()
            .expect("nothing panics with the lock held");
        let slots = pending
            .entry(agent)
            .or_insert_with(|| Arc::new(Semaphore::new(PENDING_PER_AGENT)));
        slots.clone().try_acquire_owned().ok()
    }
}

/// The way that the datagram took.
fn flow(netns: u64, peer: SocketAddr, local: SocketAddr) -> FlowKey {
    FlowKey {
        netns,
        local: Addr::from(peer.ip()),
        remote: Addr::from(local.ip()),
        local_port: peer.port(),
        remote_port: local.port(),
        proto: libc::IPPROTO_UDP as u32,
    }
}

#[cfg(test)]
mod tests;
