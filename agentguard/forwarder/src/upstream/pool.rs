//! An agent's upstream connections between requests. Locks are per host of one agent, and never held across a wait.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use agentguard_common::abi::AgentId;
use agentguard_policy::HostName;
use agentguard_record::UpstreamInfo;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use uuid::Uuid;

use super::Tls;
use super::dial::Wire;
use crate::life::Life;
use crate::upload::Upload;

/// Idle HTTP/1.1 connections kept per host of an agent.
const MAX_IDLE: usize = 256;
/// How long an idle connection is kept. Shorter than most servers', so that a request seldom meets a closing one.
const IDLE: Duration = Duration::from_secs(55);
/// Streams put on one HTTP/2 connection before another is opened (RFC 9113 section 5.1.2 asks servers for 100 or more).
const MAX_STREAMS: usize = 100;

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct PoolKey {
    pub tls: bool,
    pub host: HostName,
    pub port: u16,
    /// HTTP/2 was offered.
    pub http2: bool,
    /// Whose process asks: what one user of an agent's has done on a connection is not another's.
    pub uid: u32,
    /// The tasks that it is permitted on: what was done for one is not another's.
    pub tasks: Vec<Uuid>,
}

/// What records say of a connection.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionFacts(pub UpstreamInfo);

/// An HTTP/1.1 connection. Nobody drives it but who uses it: request, answer and connection are one task's.
pub(crate) struct Http1 {
    pub sender: http1::SendRequest<Upload>,
    pub connection: Box<http1::Connection<TokioIo<Wire>, Upload>>,
    pub facts: Arc<ConnectionFacts>,
    /// It has carried a request before.
    pub reused: bool,
    /// It carries no request after this one.
    pub is_last: bool,
}

/// A place on an HTTP/2 connection, which runs on a task of its own.
pub(crate) struct Http2 {
    pub sender: http2::SendRequest<Upload>,
    pub facts: Arc<ConnectionFacts>,
    usage: Arc<Http2Use>,
}

/// What an HTTP/2 connection carries.
struct Http2Use {
    /// With the pool's own.
    streams: AtomicUsize,
    /// When the last one ended.
    last: Mutex<Instant>,
}

pub(crate) enum Connection {
    Http1(Box<Http1>),
    Http2(Http2),
}

/// Every agent's connections.
#[derive(Default)]
pub(crate) struct Pools {
    by_agent: Mutex<HashMap<AgentId, Arc<Pool>>>,
}

/// One agent's connections, for as long as it lives: never shared with another agent.
pub(crate) struct Pool {
    pub life: Arc<Life>,
    hosts: Mutex<HashMap<PoolKey, Arc<HostPool>>>,
    tls: OnceLock<Tls>,
}

/// The connections that requests of one client connection go out on: its agent's, and those that nobody else may use because
/// somebody has authenticated on them.
pub(crate) struct SessionPools {
    shared: Arc<Pool>,
    own: OnceLock<Pool>,
    pub uid: u32,
}

impl SessionPools {
    pub(crate) fn new(shared: Arc<Pool>, uid: u32) -> Self {
        Self {
            shared,
            own: OnceLock::new(),
            uid,
        }
    }

    /// Where connections for `key` come from. `authenticates`: from now on, for this key, the client connection's own, each
    /// of which carries one request at a time.
    pub(crate) fn of(&self, key: &mut PoolKey, authenticates: bool) -> &Pool {
        let own = match authenticates {
            true => self.own.get_or_init(|| Pool::new(&self.shared.life)),
            // Almost nobody authenticates so.
            false => match self.own.get() {
                Some(own) => own,
                None => return &self.shared,
            },
        };
        let bound = PoolKey {
            http2: false,
            ..key.clone()
        };
        if !authenticates && !own.has(&bound) {
            return &self.shared;
        }
        *key = bound;
        own
    }
}

/// The connections of one agent to one host.
#[derive(Default)]
pub(crate) struct HostPool {
    idle: Mutex<Vec<(Instant, Box<Http1>)>>,
    shared: Mutex<Vec<Http2>>,
    /// It chose HTTP/1.1 although HTTP/2 was offered: each request dials for itself.
    pub http1_only: AtomicBool,
    /// Held to open a connection that others may share.
    pub dialing: tokio::sync::Mutex<()>,
    closed: AtomicBool,
}

impl Pools {
    /// Looked up once per connection of the agent's. Who lives on after a kill begins with an empty one.
    pub(crate) fn of(&self, life: &Arc<Life>) -> Arc<Pool> {
        let mut pools = self.by_agent.lock().expect(UNPOISONED);
        let known = pools.get(&life.agent);
        if let Some(known) = known.filter(|known| Arc::ptr_eq(&known.life, life)) {
            return known.clone();
        }
        let pool = Arc::new(Pool::new(life));
        pools.insert(life.agent, pool.clone());
        drop(pools);
        let ends = Arc::downgrade(&pool);
        life.on_end(move || {
            if let Some(pool) = ends.upgrade() {
                pool.clear();
            }
        });
        pool
    }

    /// Drops what has been idle for too long.
    pub(crate) fn sweep(&self) {
        let pools: Vec<_> = self
            .by_agent
            .lock()
            .expect(UNPOISONED)
            .values()
            .cloned()
            .collect();
        pools.iter().for_each(|pool| pool.sweep());
    }
}

impl Pool {
    fn new(life: &Arc<Life>) -> Self {
        Self {
            life: life.clone(),
            hosts: Mutex::default(),
            tls: OnceLock::new(),
        }
    }

    fn has(&self, key: &PoolKey) -> bool {
        self.hosts.lock().expect(UNPOISONED).contains_key(key)
    }

    pub(crate) fn host(&self, key: &PoolKey) -> Arc<HostPool> {
        let mut hosts = self.hosts.lock().expect(UNPOISONED);
        if let Some(host) = hosts.get(key) {
            return host.clone();
        }
        hosts.entry(key.clone()).or_default().clone()
    }

    pub(crate) fn tls(&self, make: impl FnOnce() -> Tls) -> &Tls {
        self.tls.get_or_init(make)
    }

    /// Drops every connection; none is taken back any more.
    pub(crate) fn clear(&self) {
        for (_, host) in self.hosts.lock().expect(UNPOISONED).drain() {
            host.close();
        }
    }

    /// Drops what has been idle for too long.
    fn sweep(&self) {
        self.hosts.lock().expect(UNPOISONED).retain(|_, host| {
            let in_use = host.sweep();
            in_use || Arc::strong_count(host) > 1
        });
    }
}

impl HostPool {
    /// A connection that is open as far as can be known. `upgrade`: the request may turn it into a tunnel.
    pub(crate) async fn take(&self, upgrade: bool) -> Option<Connection> {
        if !upgrade && let Some(shared) = self.stream() {
            return Some(Connection::Http2(shared));
        }
        loop {
            let (_, mut http1) = self.idle.lock().expect(UNPOISONED).pop()?;
            if poll_fn(|cx| Poll::Ready(http1.poll_open(cx))).await {
                http1.reused = true;
                return Some(Connection::Http1(http1));
            }
        }
    }

    /// A place on an HTTP/2 connection that has one.
    pub(crate) fn stream(&self) -> Option<Http2> {
        let mut shared = self.shared.lock().expect(UNPOISONED);
        shared.retain(|http2| !http2.sender.is_closed());
        let free = shared
            .iter()
            .find(|http2| http2.usage.streams.load(Ordering::Relaxed) < MAX_STREAMS)?;
        Some(free.join())
    }

    pub(crate) fn share(&self, http2: Http2) {
        let mut shared = self.shared.lock().expect(UNPOISONED);
        if !self.closed.load(Ordering::Relaxed) {
            shared.push(http2);
        }
    }

    /// Takes a connection back for the next request.
    pub(crate) fn keep(&self, http1: Box<Http1>) {
        let mut idle = self.idle.lock().expect(UNPOISONED);
        if idle.len() < MAX_IDLE && !self.closed.load(Ordering::Relaxed) {
            idle.push((Instant::now(), http1));
        }
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.idle.lock().expect(UNPOISONED).clear();
        self.shared.lock().expect(UNPOISONED).clear();
    }

    /// Whether anything is left.
    fn sweep(&self) -> bool {
        let mut idle = self.idle.lock().expect(UNPOISONED);
        idle.retain(|(since, _)| since.elapsed() < IDLE);
        let mut shared = self.shared.lock().expect(UNPOISONED);
        shared.retain(|http2| !http2.sender.is_closed() && !http2.is_idle());
        !idle.is_empty() || !shared.is_empty()
    }
}

impl Http1 {
    /// Drives the connection between requests; whether it can take another one.
    pub(crate) fn poll_open(&mut self, cx: &mut Context<'_>) -> bool {
        Pin::new(&mut *self.connection).poll(cx).is_pending() && self.sender.is_ready()
    }
}

impl Http2 {
    pub(crate) fn new(sender: http2::SendRequest<Upload>, facts: Arc<ConnectionFacts>) -> Self {
        Self {
            sender,
            facts,
            usage: Arc::new(Http2Use {
                streams: AtomicUsize::new(1),
                last: Mutex::new(Instant::now()),
            }),
        }
    }

    /// Whether the pool alone has had it for so long that it goes.
    fn is_idle(&self) -> bool {
        self.usage.streams.load(Ordering::Relaxed) <= 1
            && self.usage.last.lock().expect(UNPOISONED).elapsed() >= IDLE
    }

    pub(crate) fn join(&self) -> Self {
        self.usage.streams.fetch_add(1, Ordering::Relaxed);
        Self {
            sender: self.sender.clone(),
            facts: self.facts.clone(),
            usage: self.usage.clone(),
        }
    }
}

impl Drop for Http2 {
    fn drop(&mut self) {
        *self.usage.last.lock().expect(UNPOISONED) = Instant::now();
        self.usage.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

const UNPOISONED: &str = "nothing panics with the lock held";
