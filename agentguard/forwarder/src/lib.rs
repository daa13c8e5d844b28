//! The forwarder process: the only one that parses bytes an agent sent.
//!
//! [`serve_connection`] is the path of one connection; the modules below are in its order. It reads no file, holds no
//! secret but leaf keys, and has no way out but [`upstream`], which takes a permit, or a question that policy declares.

#![forbid(unsafe_code)]
#![warn(clippy::wildcard_enum_match_arm)]

mod accept;
mod asks;
mod canary;
mod doors;
pub mod origin;

mod sniff;

mod leaf;
mod passthrough;
mod terminate;

mod clock;
mod framing;
mod headers;
mod http;
mod identity;
mod refuse;
mod request;

mod body;
mod charges;
mod lookup;

mod upstream;

mod relay;
mod standing;
mod tunnel;
mod upload;

pub mod address;
pub mod dns;
mod io;
mod life;
mod orders;
mod outbox;
mod record;
pub mod resolve;
mod sandbox;
mod situation;
mod tasks;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use agentguard_common::abi::Origin;
use agentguard_link::frame::{Limits, Start, ToDaemon};
use agentguard_policy::Policy;
use agentguard_record::Draft;
use anyhow::Context as _;
use arc_swap::ArcSwap;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

pub use self::standing::{CUT, OVER};

use self::accept::Arrival;
use self::asks::Asks;
use self::charges::Charges;
use self::http::Session;
use self::identity::Entrance;
use self::io::{Client, Leg};
use self::life::Lives;
use self::lookup::Lookups;
use self::origin::OriginSource;
use self::record::{Entry, Records};
use self::resolve::Resolver;
use self::situation::Situation;
use self::sniff::Opening;
use self::tasks::Tasks;
use self::tunnel::Tunnel;
use self::upstream::Upstreams;

/// What the daemon gave the forwarder at start, by inherited descriptor.
pub struct Inherited {
    /// The `SOCK_SEQPACKET` link to the daemon.
    pub link: OwnedFd,
    pub origins: Arc<dyn OriginSource>,
}

/// What every connection is served with.
pub struct Forwarder {
    pub policy: Arc<ArcSwap<Policy>>,
    /// Told when another bundle is in force.
    pub applied: watch::Sender<()>,
    pub lives: Arc<Lives>,
    pub records: Arc<Records>,
    leaves: Arc<leaf::Leaves>,
    upstreams: Upstreams,
    dns: Arc<dns::Server>,
    pub situation: Situation,
    asks: Arc<Asks>,
    lookups: Arc<Lookups>,
    pub charges: Arc<Charges>,
    pub limits: Limits,
    /// What the canary's connections are served with.
    canary: Option<Arc<Self>>,
    /// For the bodies that rules read.
    pub room: body::Room,
}

/// What is on its way to the daemon.
struct Inbox {
    records: mpsc::Receiver<Draft>,
    /// Names that leaves are wanted for.
    names: mpsc::UnboundedReceiver<String>,
    asked: mpsc::UnboundedReceiver<ToDaemon>,
}

impl Forwarder {
    fn new(start: Start, tag: upstream::Tag) -> anyhow::Result<(Arc<Self>, Inbox)> {
        let policy = Arc::new(ArcSwap::from_pointee(orders::compile(&start.policy)?));
        let resolver = Arc::new(Resolver::new(&start.upstream)?);
        let tasks = Tasks::new(&start.tasks).map_err(anyhow::Error::msg)?;
        let (queue, records) = mpsc::channel(record::QUEUE);
        let (wanted, names) = mpsc::unbounded_channel();
        let (asks, asked) = mpsc::unbounded_channel();
        let lives = Arc::new(Lives::default());
        // Nothing of theirs is there yet to wait for.
        drop(lives.kill(&start.killed));
        let book = Arc::new(Records::new(queue.clone()));
        let gate = accept::gate(lives.clone(), book.clone());
        let dns = dns::Server::new(policy.clone(), resolver.clone(), queue, gate);
        let roots = &start.upstream.roots;
        let upstreams = Upstreams::new(resolver, roots, &start.limits, tag)?;
        let mut forwarder = Self {
            policy,
            applied: watch::Sender::new(()),
            lives,
            records: book,
            leaves: Arc::new(leaf::Leaves::new(wanted)?),
            lookups: Arc::new(Lookups::new(upstreams.fetcher())),
            upstreams,
            dns: Arc::new(dns),
            room: body::Room::new(&start.limits),
            situation: Situation::new(
                start.trusted_network,
                start.host_labels,
                tasks,
                start.presences,
            ),
            asks: Arc::new(Asks::new(asks.clone())),
            charges: Arc::new(Charges::new(asks)),
            limits: start.limits,
            canary: None,
        };
        forwarder.canary = Some(Arc::new(forwarder.for_canary(&start.canary, tag)?));
        Ok((
            Arc::new(forwarder),
            Inbox {
                records,
                names,
                asked,
            },
        ))
    }
}

/// Runs until the daemon says stop or the link closes. To be called while there is no other thread: the sandbox is for
/// those to come.
pub fn run(inherited: Inherited) -> anyhow::Result<()> {
    let Some((start, listening)) = orders::begin(&inherited.link)? else {
        return Ok(());
    };
    let sandbox = sandbox::enter()?;
    let runtime = runtime(Builder::new_multi_thread())?;
    runtime.block_on(orders::follow(inherited, start, listening, sandbox))
}

/// Without tokio's signal handling, which the forwarder has no use for and its sandbox no calls.
fn runtime(mut builder: Builder) -> anyhow::Result<Runtime> {
    let built = builder.enable_io().enable_time().build();
    built.context("cannot start the runtime")
}

/// The path of one connection, in order. Whoever ends it early completes its entry; an entry that is dropped says so in
/// its record.
async fn serve_connection(forwarder: Arc<Forwarder>, socket: TcpStream, origin: Origin) {
    let Some((arrival, entry)) = Arrival::admit(forwarder, origin) else {
        return;
    };
    let life = arrival.life.clone();
    let _counted = arrival.forwarder.lives.count(&life);
    let client = Client::Socket(Leg::new(socket, life.clone()));
    life.hold(arrival.serve(client, entry)).await;
}

impl Arrival {
    /// Everything between the first byte and the last, for a connection and for what `CONNECT` opens inside one.
    async fn serve(self, client: Client, entry: Entry) {
        let limit = Duration::from_millis(self.forwarder.limits.head_timeout_ms.into());
        let sniffed = timeout(limit, sniff::sniff(client, self.port())).await;
        let (stream, hello) = match sniffed {
            Err(_) => return entry.fail(None, "nothing that can be recognised came in time"),
            Ok((stream, Err(error))) => return refuse::opening(stream, error, entry).await,
            Ok((stream, Ok(Opening::Dns))) => return self.resolve(stream, entry).await,
            Ok((stream, Ok(Opening::Http1))) => return self.plain(stream, false, entry).await,
            Ok((stream, Ok(Opening::Http2))) => return self.plain(stream, true, entry).await,
            Ok((stream, Ok(Opening::Tls(hello)))) => (stream, hello),
        };
        let target = match self.named(&hello) {
            Ok(target) => target,
            Err(detail) => return refuse::unnamed(stream, detail, entry).await,
        };
        if self.passes(&target) {
            return passthrough::carry(&self, target, &hello, stream, entry).await;
        }
        let leaves = &self.forwarder.leaves;
        let terminated = terminate::terminate(leaves, &target.host, stream, limit);
        match Box::pin(terminated).await {
            Ok(terminated) => self.terminated(terminated, target, entry).await,
            Err(error) => refuse::handshake(&target, &error, entry),
        }
    }

    /// Parse, decide, upstream, relay and record of each request: [`request::handle`]. Then what the connection has
    /// become, if it has.
    async fn speak<S>(self, stream: S, entrance: Entrance, entry: Entry)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let session = Session::new(
            self.forwarder.clone(),
            self.life.clone(),
            self.origin,
            entrance,
            entry,
        );
        match http::serve(Arc::new(session), stream).await {
            None => {}
            Some(Tunnel::WebSocket(websocket)) => websocket.pass().await,
            Some(Tunnel::Connect(connect)) => {
                if let Some((client, target, entry)) = connect.open().await {
                    let inside = Self {
                        tunnel: Some(target),
                        ..self
                    };
                    Box::pin(inside.serve(client, entry)).await;
                }
            }
        }
    }
}
