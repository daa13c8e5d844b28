//! The connections of one agent to one host, and the requests that wait for one: first come, first out, as on connections of
//! the client's own. The lock is never held across a wait.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::uri::Authority;
use hyper::client::conn::http2;
use tokio::sync::oneshot;

use super::UpstreamFault;
use super::connect::{ConnectionFacts, Http1, Http2Connection, Opened, UNTOLD_STREAMS, Way};
use super::idle::{self, IdleTime};
use super::pool::PoolKey;
use crate::life::Life;
use crate::upload::Upload;

/// Idle HTTP/1.1 connections kept per host of an agent.
const MAX_IDLE: usize = 256;
/// How long an idle connection is kept. Shorter than most servers', so that a request seldom meets a closing one.
const IDLE: Duration = Duration::from_secs(55);
/// Streams put on one HTTP/2 connection before another is opened (RFC 9113 section 5.1.2 asks servers for 100 or more).
const MAX_STREAMS: usize = 100;
/// How long a server has to say how many streams it takes before it is asked for more than one.
const SETTLE: Duration = Duration::from_secs(1);
/// For how long no connection is tried beside those that there are, when one could not be opened.
const FULL: Duration = Duration::from_secs(1);

/// What a request needs of its connection.
#[derive(Clone, Copy, Default)]
pub(super) struct Need {
    /// No request has been on it. For one that cannot be sent again when the server closes a connection that it has had
    /// enough of (RFC 9110 section 9.2.2), and whose client would not have met that, as its own connection is new.
    pub fresh: bool,
    /// It cannot be sent again, so that a connection that has been idle for long is not good enough.
    pub once: bool,
    /// Its place among the host's requests, as they came. It keeps it when it has to be sent again: those before it go first,
    /// so that no request is the one too many on connection after connection.
    pub number: Option<u64>,
    /// How long its connection may have been idle, by the host's file.
    pub idle: Option<Duration>,
    /// How long it waits for a connection at most.
    pub patience: Duration,
}

/// What carries one request.
pub(super) enum Connection {
    Http1(Box<Http1>),
    /// Who sends drops the sender at once: what is sent when the connection ends comes back when its last sender has gone.
    Http2(Http2, http2::SendRequest<Upload>),
}

/// A stream on an HTTP/2 connection, which runs on a task of its own.
pub(crate) struct Http2 {
    pub facts: Arc<ConnectionFacts>,
    /// Its connection has carried a request before.
    pub reused: bool,
    host: Arc<HostPool>,
    connection: u64,
}

/// Nobody else is handed a connection while this is held: until its request is on its way.
pub(super) struct Turn(Arc<HostPool>);

/// A connection for a request, and its turn if others wait behind it.
pub(super) type Handed = (Connection, Option<Turn>);

pub(crate) struct HostPool {
    key: PoolKey,
    way: Arc<Way>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The latest last.
    #[expect(clippy::vec_box, reason = "they go from hand to hand as they are")]
    idle: Vec<Box<Http1>>,
    shared: Vec<Shared>,
    waiting: VecDeque<Waiter>,
    /// Somebody has a [`Turn`].
    in_turn: bool,
    /// Connections that are being opened.
    dials: usize,
    /// It chose HTTP/1.1 although HTTP/2 was offered: each request has a connection for itself.
    http1_only: bool,
    idle_time: IdleTime,
    /// Another connection could not be opened beside those that there are: who waits has to wait for these.
    full: bool,
    connections: u64,
    requests: u64,
    closed: bool,
}

/// An HTTP/2 connection that takes streams.
struct Shared {
    id: u64,
    sender: http2::SendRequest<Upload>,
    facts: Arc<ConnectionFacts>,
    used: usize,
    limit: usize,
    carried: bool,
    /// When the last stream ended.
    last: Instant,
}

struct Waiter {
    number: u64,
    fresh: bool,
    place: oneshot::Sender<Result<Handed, UpstreamFault>>,
}

impl HostPool {
    pub(super) fn new(key: PoolKey, way: Arc<Way>) -> Self {
        Self {
            key,
            way,
            state: Mutex::default(),
        }
    }

    /// A connection that is open as far as can be known.
    pub(super) async fn take(self: &Arc<Self>, need: &mut Need) -> Result<Handed, UpstreamFault> {
        loop {
            let (connection, turn) = match self.at_once(need) {
                Ok(connection) => (connection, None),
                Err(number) => self.wait(number, need).await?,
            };
            let mut http1 = match connection {
                Connection::Http1(http1) if !http1.is_fresh() => http1,
                Connection::Http1(_) | Connection::Http2(..) => return Ok((connection, turn)),
            };
            // One that was opened and not needed is as good as a kept one.
            http1.reused = true;
            let open = poll_fn(|cx| Poll::Ready(http1.poll_open(cx))).await;
            http1.idle = http1.since.elapsed();
            let too_old = need.idle.is_some_and(|idle| http1.idle >= idle);
            let lasts = self.state().idle_time.saw(http1.idle, open);
            if open && !too_old && (lasts || !need.once) {
                return Ok((Connection::Http1(http1), turn));
            }
            need.fresh |= open && !too_old;
        }
    }

    /// As an absolute URL has it; the port is left out where it is the scheme's own.
    pub(super) fn authority(&self) -> Authority {
        let PoolKey { host, port, .. } = &self.key;
        let host = match host.as_str().contains(':') {
            true => format!("[{host}]"),
            false => host.as_str().to_owned(),
        };
        let text = match *port {
            80 => host,
            port => format!("{host}:{port}"),
        };
        Authority::try_from(text).expect("a judged name and a port are an authority")
    }

    pub(super) fn life(&self) -> &Arc<Life> {
        &self.way.life
    }

    /// A connection, or the number under which to wait for one.
    fn at_once(self: &Arc<Self>, need: &mut Need) -> Result<Connection, u64> {
        let mut state = self.state();
        let came_before = need.number.is_some();
        let number = *need.number.get_or_insert_with(|| {
            state.requests += 1;
            state.requests
        });
        let first = state.waiting.front().is_none_or(|it| it.number > number);
        let picked = match first && (came_before || !state.in_turn) {
            true => state.pick(need.fresh, self),
            false => None,
        };
        picked.ok_or(number)
    }

    async fn wait(self: &Arc<Self>, number: u64, need: &Need) -> Result<Handed, UpstreamFault> {
        let (place, handed) = oneshot::channel();
        self.queue(Waiter {
            number,
            fresh: need.fresh,
            place,
        });
        let ended = || UpstreamFault::unreachable("the agent's connections have ended");
        match tokio::time::timeout(need.patience, handed).await {
            Ok(handed) => handed.unwrap_or_else(|_| Err(ended())),
            Err(_) => Err(UpstreamFault::timeout(format!(
                "its connections were busy for {} ms, and another could not be opened",
                need.patience.as_millis()
            ))),
        }
    }

    fn queue(self: &Arc<Self>, waiter: Waiter) {
        let mut state = self.state();
        if state.closed {
            return;
        }
        let behind = state
            .waiting
            .partition_point(|it| it.number < waiter.number);
        state.waiting.insert(behind, waiter);
        self.serve(state);
    }

    /// Hands out what there is to whoever waits longest for it, one after the other, and opens what is missing.
    fn serve<'a>(self: &'a Arc<Self>, mut state: MutexGuard<'a, State>) {
        while !state.in_turn
            && let Some((waiter, connection)) = state.next(self)
        {
            state.in_turn = true;
            let turn = Turn(self.clone());
            if let Err(Ok((connection, turn))) = waiter.place.send(Ok((connection, Some(turn)))) {
                // It has gone since. Both come back when they are dropped, which takes the lock.
                let stream = match connection {
                    Connection::Http1(http1) => {
                        state.put(http1);
                        None
                    }
                    Connection::Http2(http2, _) => Some(http2),
                };
                drop(state);
                drop((stream, turn));
                state = self.state();
            }
        }
        let missing = state.missing(self.one_for_all(&state));
        while state.dials < missing && !state.closed {
            state.dials += 1;
            self.dial();
        }
    }

    /// Whether one connection, by HTTP/2, will do for all who wait.
    fn one_for_all(&self, state: &State) -> bool {
        self.key.http2 && !state.http1_only
    }

    /// Opens a connection, whoever is there to use it when it is open.
    fn dial(self: &Arc<Self>) {
        let host = self.clone();
        self.way.life.spawn(async move {
            match host.way.open(&host.key, false).await {
                Ok(Opened::Http1(http1)) => host.has_opened(http1),
                Ok(Opened::Http2(http2)) => host.drive(*http2).await,
                Err(fault) => host.has_failed(&fault),
            }
        });
    }

    /// A connection of its own, for a request that may turn it into a tunnel.
    pub(super) async fn open(&self) -> Result<Box<Http1>, UpstreamFault> {
        match self.way.open(&self.key, true).await? {
            Opened::Http1(http1) => Ok(http1),
            Opened::Http2(_) => Err(UpstreamFault::unreachable("it answered in HTTP/2")),
        }
    }

    fn has_opened(self: &Arc<Self>, http1: Box<Http1>) {
        let mut state = self.state();
        state.dials -= 1;
        state.http1_only = true;
        state.put(http1);
        self.serve(state);
    }

    fn has_failed(self: &Arc<Self>, fault: &UpstreamFault) {
        let mut state = self.state();
        state.dials -= 1;
        state.full = state.shared.iter().any(Shared::is_good);
        let fails = match self.one_for_all(&state) {
            true if state.full => 0,
            true => state.waiting.len(),
            false => usize::from(state.missing(false) > state.dials),
        };
        for waiter in state.waiting.drain(..fails) {
            // Who has gone does not wait for it.
            let _ = waiter.place.send(Err(fault.clone()));
        }
        if state.full {
            self.try_again();
        }
        self.serve(state);
    }

    /// Who waits for the connections that there are may have to for long.
    fn try_again(self: &Arc<Self>) {
        let host = self.clone();
        self.way.life.spawn(async move {
            tokio::time::sleep(FULL).await;
            let mut state = host.state();
            state.full = false;
            host.serve(state);
        });
    }

    /// Runs an HTTP/2 connection until it takes no more requests and all on it have ended. Its first stream goes out at once, the
    /// others when the server has said how many it takes (RFC 9113 section 3.4 has it say so first).
    async fn drive(self: Arc<Self>, http2: Http2Connection) {
        let Http2Connection {
            sender,
            connection,
            facts,
            mut tasks,
            window: _window,
        } = http2;
        let id = self.add(sender, facts);
        let mut taking = Some(connection);
        let mut told = UNTOLD_STREAMS;
        let mut settled = false;
        let mut patience = Box::pin(tokio::time::sleep(SETTLE));
        poll_fn(|cx| {
            if let Some(connection) = &mut taking
                && Pin::new(connection).poll(cx).is_ready()
            {
                taking = None;
                self.takes_no_more(id, !settled);
            }
            let ended = tasks.poll(cx);
            let Some(connection) = &taking else {
                return ended;
            };
            let says = connection.current_max_send_streams();
            let impatient = !settled && patience.as_mut().poll(cx).is_ready();
            if says != told || impatient {
                told = says;
                self.allow(id, says.min(MAX_STREAMS), !settled);
                settled = true;
            }
            Poll::Pending
        })
        .await;
    }

    fn add(
        self: &Arc<Self>,
        sender: http2::SendRequest<Upload>,
        facts: Arc<ConnectionFacts>,
    ) -> u64 {
        let mut state = self.state();
        state.http1_only = false;
        state.connections += 1;
        let id = state.connections;
        if !state.closed {
            state.shared.push(Shared {
                id,
                sender,
                facts,
                used: 0,
                limit: 1,
                carried: false,
                last: Instant::now(),
            });
        }
        self.serve(state);
        id
    }

    /// The connection takes so many streams. `first`: until now it counted as one that is being opened.
    fn allow(self: &Arc<Self>, id: u64, limit: usize, first: bool) {
        let mut state = self.state();
        state.dials -= usize::from(first);
        state.full = false;
        if let Some(shared) = state.shared.iter_mut().find(|shared| shared.id == id) {
            shared.limit = limit;
        }
        self.serve(state);
    }

    /// `first`: it was still being opened, by the same count.
    fn takes_no_more(self: &Arc<Self>, id: u64, first: bool) {
        let mut state = self.state();
        state.dials -= usize::from(first);
        state.full = false;
        state.shared.retain(|shared| shared.id != id);
        self.serve(state);
    }

    /// Takes a connection back for the next request.
    pub(super) fn keep(self: &Arc<Self>, mut http1: Box<Http1>) {
        http1.reused = true;
        http1.since = Instant::now();
        let mut state = self.state();
        state.put(http1);
        if !state.waiting.is_empty() {
            self.serve(state);
        }
    }

    /// What the server says of how long it keeps an idle connection.
    pub(super) fn keeps_for(&self, time: Duration) {
        self.state().idle_time.announced(time.min(IDLE));
    }

    /// The server closed a connection under a request that came after it had been idle for `time`.
    pub(super) fn closed_after(&self, time: Duration) {
        self.state().idle_time.saw(time, false);
    }

    pub(super) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        let gone = (
            std::mem::take(&mut state.idle),
            std::mem::take(&mut state.shared),
            std::mem::take(&mut state.waiting),
        );
        drop(state);
        drop(gone);
    }

    /// Drops what has been idle for too long. Whether anything is left.
    pub(super) fn sweep(&self) -> bool {
        let mut state = self.state();
        state.idle.retain(|idle| idle.since.elapsed() < IDLE);
        state.shared.retain(|shared| {
            let idle = shared.used == 0 && shared.last.elapsed() >= IDLE;
            !idle && !shared.sender.is_closed()
        });
        !state.idle.is_empty() || !state.shared.is_empty()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(UNPOISONED)
    }
}

impl State {
    /// The next who can be served, and with what.
    fn next(&mut self, host: &Arc<HostPool>) -> Option<(Waiter, Connection)> {
        self.waiting.retain(|waiter| !waiter.place.is_closed());
        for index in 0..self.waiting.len() {
            let fresh = self.waiting[index].fresh;
            if let Some(connection) = self.pick(fresh, host) {
                return Some((self.waiting.remove(index)?, connection));
            }
        }
        None
    }

    fn pick(&mut self, fresh: bool, host: &Arc<HostPool>) -> Option<Connection> {
        self.shared.retain(|shared| !shared.sender.is_closed());
        let shared = self.shared.iter_mut().find(|it| it.used < it.limit);
        if let Some(shared) = shared {
            shared.used += 1;
            let reused = std::mem::replace(&mut shared.carried, true);
            let http2 = Http2 {
                reused,
                facts: shared.facts.clone(),
                host: host.clone(),
                connection: shared.id,
            };
            return Some(Connection::Http2(http2, shared.sender.clone()));
        }
        let idle = match fresh {
            true => {
                let index = self.idle.iter().rposition(|it| it.is_fresh())?;
                self.idle.remove(index)
            }
            false => self.idle.pop()?,
        };
        Some(Connection::Http1(idle))
    }

    fn put(&mut self, http1: Box<Http1>) {
        if self.idle.len() < MAX_IDLE && !self.closed {
            self.idle.push(http1);
        }
    }

    fn leave(&mut self, connection: u64) {
        if let Some(shared) = self.shared.iter_mut().find(|it| it.id == connection) {
            shared.used -= 1;
            shared.last = Instant::now();
            self.full = false;
        }
    }

    /// Connections that are wanted beside those that are there.
    fn missing(&self, one_for_all: bool) -> usize {
        let free = self
            .shared
            .iter()
            .map(|it| it.limit.saturating_sub(it.used));
        let streams: usize = free.sum();
        let fresh = self.waiting.iter().filter(|waiter| waiter.fresh).count();
        let new = self.idle.iter().filter(|idle| idle.is_fresh()).count();
        let others = self.waiting.len() - fresh;
        let missing = match streams {
            0 => fresh.saturating_sub(new) + others.saturating_sub(self.idle.len()),
            _ => self.waiting.len().saturating_sub(streams),
        };
        match one_for_all {
            true if self.full => 0,
            true => missing.min(1),
            false => missing,
        }
    }
}

impl Shared {
    fn is_good(&self) -> bool {
        self.limit > 0 && !self.sender.is_closed()
    }
}

impl Http1 {
    /// Nothing has been on it, and it is not so old that its server may have had enough of waiting.
    fn is_fresh(&self) -> bool {
        !self.reused && self.since.elapsed() < idle::LEAST / 2
    }

    /// Drives the connection between requests; whether it can take another one.
    pub(super) fn poll_open(&mut self, cx: &mut Context<'_>) -> bool {
        Pin::new(&mut *self.connection).poll(cx).is_pending() && self.sender.is_ready()
    }
}

impl Http2 {
    /// The connection gets no more requests.
    pub(super) fn retire(&self) {
        let mut state = self.host.state();
        state.shared.retain(|shared| shared.id != self.connection);
    }
}

impl Drop for Http2 {
    fn drop(&mut self) {
        let mut state = self.host.state();
        state.leave(self.connection);
        if !state.waiting.is_empty() {
            self.host.serve(state);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.in_turn = false;
        if !state.waiting.is_empty() {
            self.0.serve(state);
        }
    }
}

const UNPOISONED: &str = "nothing panics with the lock held";
