//! What one agent may have at once of what all agents share in this process: the place that says how much, but for the
//! spool's room (`spool`) and questions to the resolver (`dns::serve`). The page on known limits has the table.
//!
//! A share is either waited for, so that only its own agent is late, or it is made smaller as it is used up. Whoever waits
//! for all agents' room has its own agent's before: in each queue an agent stands once per place of its share, and the
//! queues are in the order of arrival.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use tokio::sync::Semaphore;

/// One in so many of the places for connections is kept for agents that have few: each has its part of them for itself,
/// however many others take what they can.
const KEPT_PLACES: usize = 4;
/// One in so many bytes for bodies that rules read is kept for other agents.
const KEPT_MEMORY: usize = 4;
/// Questions to other services: of one agent, and of all.
const LOOKUPS: usize = 8;
const ALL_LOOKUPS: usize = 32;
/// Certificates that the daemon is being asked for, for one agent.
const LEAVES: usize = 8;
/// What HTTP/2 connections of one agent let it send before upstream takes it, bytes.
const WINDOWS: Budget = Budget::of(32 << 20, 4 << 20, 64 << 10);
/// What they let upstreams send before it takes it, bytes.
const UPSTREAM_WINDOWS: Budget = Budget::of(64 << 20, 8 << 20, 256 << 10);
/// Requests at once on its HTTP/2 connections.
const STREAMS: Budget = Budget::of(1024, 128, 8);

/// The part of what is left that the next one gets.
const PART: u32 = 8;

/// Whether an agent with this many connections may have another one, of `all` places with so many left beside it, where
/// there are so many agents.
pub(crate) fn may_connect(
    connections: usize,
    left: usize,
    all: usize,
    agents: impl FnOnce() -> usize,
) -> bool {
    let kept = all / KEPT_PLACES;
    left >= kept || connections < (kept / agents().max(1)).max(1)
}

/// Of the memory for bodies that rules read, what one agent may have.
pub(crate) fn of_judged_bodies(all: usize) -> usize {
    all - all / KEPT_MEMORY
}

/// One agent's.
pub(crate) struct Shares {
    pub lookups: Semaphore,
    pub leaves: Arc<Semaphore>,
    handshakes: Semaphore,
    windows: Arc<Mutex<Budget>>,
    upstream_windows: Arc<Mutex<Budget>>,
    streams: Arc<Mutex<Budget>>,
}

/// What all agents wait for after their own.
pub(crate) struct AllShares {
    pub lookups: Semaphore,
    handshakes: Semaphore,
}

/// What an HTTP/2 connection of an agent's has, for as long as it is there.
pub(crate) struct Http2Share {
    window: Part,
    streams: Part,
}

/// An amount whose parts become smaller the less is left, down to a part that everybody gets.
#[derive(Clone, Copy)]
struct Budget {
    left: u32,
    most: u32,
    least: u32,
}

/// Taken of a budget, and given back when dropped.
pub(crate) struct Part {
    pub size: u32,
    taken: u32,
    of: Arc<Mutex<Budget>>,
}

impl Default for Shares {
    fn default() -> Self {
        let shared = |budget| Arc::new(Mutex::new(budget));
        Self {
            lookups: Semaphore::new(LOOKUPS),
            leaves: Arc::new(Semaphore::new(LEAVES)),
            // What is more would only stand in the runtime's queue, in front of other agents' work.
            handshakes: Semaphore::new((cores() / 2).max(1)),
            windows: shared(WINDOWS),
            upstream_windows: shared(UPSTREAM_WINDOWS),
            streams: shared(STREAMS),
        }
    }
}

impl Shares {
    /// For another HTTP/2 connection of the agent's to us.
    pub(crate) fn http2(&self) -> Http2Share {
        Http2Share {
            window: Part::of(&self.windows),
            streams: Part::of(&self.streams),
        }
    }

    /// The window of another HTTP/2 connection to an upstream.
    pub(crate) fn upstream_window(&self) -> Part {
        Part::of(&self.upstream_windows)
    }
}

impl Default for AllShares {
    fn default() -> Self {
        Self {
            lookups: Semaphore::new(ALL_LOOKUPS),
            // More than one agent's, so that no agent waits for another one alone.
            handshakes: Semaphore::new(cores().max(2)),
        }
    }
}

impl AllShares {
    /// Has a part of a TLS handshake done step by step, each when it is its agent's turn: between two of them, while the
    /// client is waited for, it holds nothing up.
    pub(crate) async fn in_turn<T>(
        &self,
        own: &Shares,
        mut handshake: Pin<&mut impl Future<Output = T>>,
    ) -> T {
        loop {
            let step = {
                let _own = own.handshakes.acquire().await;
                let _of_all = self.handshakes.acquire().await;
                poll_fn(|cx| Poll::Ready(handshake.as_mut().poll(cx))).await
            };
            match step {
                Poll::Ready(done) => return done,
                Poll::Pending => woken().await,
            }
        }
    }
}

impl Http2Share {
    /// Bytes that the agent may send on the connection.
    pub(crate) fn window(&self) -> u32 {
        self.window.size
    }

    /// Requests at once.
    pub(crate) fn streams(&self) -> u32 {
        self.streams.size
    }

    /// Bytes of an answer that are held for a client that does not read, per request.
    pub(crate) fn send_buffer(&self) -> usize {
        const LEAST: u32 = 16 << 10;
        (self.window.size / 16).max(LEAST) as usize
    }
}

impl Budget {
    const fn of(left: u32, most: u32, least: u32) -> Self {
        Self { left, most, least }
    }
}

impl Part {
    fn of(budget: &Arc<Mutex<Budget>>) -> Self {
        let mut left = budget.lock().expect(UNPOISONED);
        let size = (left.left / PART).clamp(left.least, left.most);
        let taken = size.min(left.left);
        left.left -= taken;
        Self {
            size,
            taken,
            of: budget.clone(),
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.of.lock().expect(UNPOISONED).left += self.taken;
    }
}

/// Resolves when the task is woken: what was polled last in it has seen to that.
async fn woken() {
    let mut waited = false;
    poll_fn(|_| match std::mem::replace(&mut waited, true) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

const UNPOISONED: &str = "nothing panics with the lock held";

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn each_newcomer_finds_a_place() {
        let all = 4096;
        let agents = 20;
        let mut left = all;
        let mut takes_what_it_can = || {
            let mut connections = 0;
            while left > 0 && may_connect(connections, left - 1, all, || agents) {
                connections += 1;
                left -= 1;
            }
            connections
        };
        let taken: Vec<_> = (0..agents).map(|_| takes_what_it_can()).collect();
        assert_eq!(taken[0], all / 4 * 3);
        assert!(
            taken.iter().all(|&taken| taken >= all / 4 / agents),
            "{taken:?}"
        );
        assert!(may_connect(0, 0, 1, || 1), "the only place is somebody's");
    }

    #[test]
    fn parts_become_smaller_and_come_back() {
        let shares = Shares::default();
        let first = shares.http2();
        assert_eq!((first.window(), first.streams()), (4 << 20, 128));
        let many: Vec<_> = (0..3072).map(|_| shares.http2()).collect();
        let last = many.last().unwrap();
        assert_eq!((last.window(), last.streams()), (64 << 10, 8));
        let windows: u64 = many.iter().map(|it| u64::from(it.window())).sum();
        let floor = 3072 * u64::from(last.window());
        assert!(windows <= u64::from(WINDOWS.left) + floor);
        drop(many);
        drop(first);
        assert_eq!(shares.http2().window(), 4 << 20);
    }

    #[tokio::test]
    async fn who_waits_for_its_own_agent_keeps_no_other_waiting() {
        let all = AllShares::default();
        let (greedy, other) = (Shares::default(), Shares::default());
        let its = u32::try_from(greedy.handshakes.available_permits()).unwrap();
        let its = greedy.handshakes.acquire_many(its).await;
        let one = pin!(async { 1 });
        let mut waits = pin!(all.in_turn(&greedy, one));
        assert_eq!(waits.as_mut().now_or_never(), None);
        assert_eq!(
            all.in_turn(&other, pin!(async { 2 })).now_or_never(),
            Some(2)
        );
        drop(its);
        assert_eq!(waits.now_or_never(), Some(1));
    }

    #[tokio::test]
    async fn a_handshake_that_waits_for_its_client_holds_nothing() {
        let all = AllShares::default();
        let own = Shares::default();
        let (tell, told) = tokio::sync::oneshot::channel::<()>();
        let told = pin!(told);
        let mut silent = pin!(all.in_turn(&own, told));
        assert!(silent.as_mut().now_or_never().is_none());
        assert_eq!(all.in_turn(&own, pin!(async { 1 })).now_or_never(), Some(1));
        tell.send(()).unwrap();
        assert_eq!(silent.await, Ok(()));
    }
}
