//! How long a client may take. One timer per connection that is looked at now and then, none per request.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::seat::{Occupied, Seat};

/// Looks at the clock per limit: a limit may be exceeded by a quarter.
const LOOKS: u32 = 4;
/// Nothing is being waited for.
const NEVER: u64 = u64::MAX;

pub(crate) struct SessionClock {
    start: Instant,
    head: Duration,
    idle: Duration,
    pub seat: Arc<Seat>,
    /// Requests that are being answered.
    busy: AtomicU32,
    /// Milliseconds after `start`: when a request's first byte came that is not whole yet.
    head_since: AtomicU64,
    idle_since: AtomicU64,
}

/// What took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Late {
    /// A request's head, the first one from the connection's beginning.
    Head,
    /// A kept connection without a request.
    Idle,
}

impl SessionClock {
    pub(crate) fn new(head: Duration, idle: Duration, seat: Arc<Seat>) -> Self {
        Self {
            start: Instant::now(),
            head,
            idle,
            seat,
            busy: AtomicU32::new(0),
            head_since: AtomicU64::new(0),
            idle_since: AtomicU64::new(0),
        }
    }

    /// A request's head is whole; it is being answered for as long as the guard is held.
    pub(crate) fn busy(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Ordering::Relaxed);
        self.head_since.store(NEVER, Ordering::Relaxed);
        Busy {
            clock: self.clone(),
            _occupied: self.seat.occupy(),
        }
    }

    /// Resolves when the client has taken too long.
    pub(crate) async fn late(&self) -> Late {
        loop {
            if let Some(late) = self.look() {
                return late;
            }
            let pause = self.head.min(self.idle) / LOOKS;
            tokio::time::sleep(pause.max(Duration::from_millis(1))).await;
        }
    }

    fn look(&self) -> Option<Late> {
        if self.busy.load(Ordering::Relaxed) != 0 {
            return None;
        }
        let now = self.now();
        let exceeded = |since: u64, limit: Duration| {
            since != NEVER && now.saturating_sub(since) as u128 >= limit.as_millis()
        };
        if exceeded(self.head_since.load(Ordering::Relaxed), self.head) {
            Some(Late::Head)
        } else if exceeded(self.idle_since.load(Ordering::Relaxed), self.idle) {
            Some(Late::Idle)
        } else {
            None
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(NEVER - 1)
    }

    /// Bytes came. Whether they are of a request's head: none is being answered.
    pub(crate) fn is_head(&self) -> bool {
        if self.busy.load(Ordering::Relaxed) != 0 {
            return false;
        }
        if self.head_since.load(Ordering::Relaxed) == NEVER {
            self.head_since.store(self.now(), Ordering::Relaxed);
        }
        true
    }
}

/// Held while a request is being answered, the body included.
pub(crate) struct Busy {
    clock: Arc<SessionClock>,
    _occupied: Occupied,
}

impl Drop for Busy {
    fn drop(&mut self) {
        let clock = &self.clock;
        clock.idle_since.store(clock.now(), Ordering::Relaxed);
        clock.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A stream that tells what is read of it, and when all that was written is on its way.
pub(crate) struct WatchedStream<S, H, F> {
    inner: S,
    heard: H,
    flushed: F,
}

impl<S, H: Fn(&[u8]), F: Fn()> WatchedStream<S, H, F> {
    /// `heard` is called with bytes as they come, `flushed` when there are none to be sent.
    pub(crate) fn new(inner: S, heard: H, flushed: F) -> Self {
        Self {
            inner,
            heard,
            flushed,
        }
    }
}

impl<S: AsyncRead + Unpin, H: Fn(&[u8]) + Unpin, F: Unpin> AsyncRead for WatchedStream<S, H, F> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        let fresh = &buf.filled()[before..];
        if !fresh.is_empty() {
            (self.heard)(fresh);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin, H: Unpin, F: Fn() + Unpin> AsyncWrite for WatchedStream<S, H, F> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            (self.flushed)();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
