//! The order in which one process's requests come, on however many connections: workers that take them up side by side would
//! lose it, and a server is told what a client has not said.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::FutureExt as _;
use futures_util::task::AtomicWaker;
use hyper::rt::Executor;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::life::Life;

/// A process that has more connections on which something came at once does not count on an order, and would wait for it.
const FEW: usize = 4;

/// One agent's connections on which something has come that nobody has looked at yet.
#[derive(Default)]
pub(crate) struct Order {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: u64,
    /// By their numbers.
    woken: Vec<Woken>,
    /// Who waits for those before.
    waiting: Vec<Waker>,
}

struct Woken {
    number: u64,
    tgid: u32,
}

/// The place of one connection in the order. It takes a number when the kernel tells that something has come on it, which is in
/// the order in which it came, and has it until it has been polled.
pub(crate) struct Place {
    life: Arc<Life>,
    tgid: u32,
    number: Mutex<Number>,
    task: AtomicWaker,
}

#[derive(Default)]
struct Number {
    /// Since something has come.
    next: Option<u64>,
    /// While it is polled, and as long as its request waits for others.
    now: Option<u64>,
    waits: bool,
    /// It carries no requests any more: what comes is a tunnel's.
    is_over: bool,
}

impl Order {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(UNPOISONED)
    }

    fn take(&self, tgid: u32) -> u64 {
        let mut state = self.state();
        state.last += 1;
        let number = state.last;
        state.woken.push(Woken { number, tgid });
        number
    }

    fn give_back(&self, number: u64) {
        let waiting = {
            let mut state = self.state();
            state.woken.retain(|woken| woken.number != number);
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// Whether none, or too many, of the process's connections come before.
    fn is_next(&self, number: u64, tgid: u32, cx: &Context<'_>) -> bool {
        let mut state = self.state();
        let before = state.woken.iter().take_while(|woken| woken.number < number);
        let before = before.filter(|woken| woken.tgid == tgid).count();
        let is_next = before == 0 || before > FEW;
        if !is_next {
            state.waiting.push(cx.waker().clone());
        }
        is_next
    }
}

impl Place {
    pub(crate) fn new(life: &Arc<Life>, tgid: u32) -> Arc<Self> {
        Arc::new(Self {
            number: Mutex::default(),
            life: life.clone(),
            tgid,
            task: AtomicWaker::new(),
        })
    }

    /// Waits until requests of the process that came before have gone out, or wait for something else.
    pub(crate) async fn wait(&self) {
        let _waits = Waits(self);
        poll_fn(|cx| {
            let mut number = self.number();
            let order = &self.life.order;
            let is_next = number.now.is_none_or(|it| order.is_next(it, self.tgid, cx));
            number.waits = !is_next;
            match is_next {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await;
    }

    fn number(&self) -> MutexGuard<'_, Number> {
        self.number.lock().expect(UNPOISONED)
    }

    fn take_number(&self) {
        let order = &self.life.order;
        let mut number = self.number();
        if number.is_over {
            return;
        }
        if let Some(earlier) = number.next.replace(order.take(self.tgid)) {
            order.give_back(earlier);
        }
    }

    fn begin(&self) {
        let mut number = self.number();
        if number.now.is_none() {
            number.now = number.next.take();
        }
    }

    fn end(&self) {
        let mut number = self.number();
        if !number.waits
            && let Some(number) = number.now.take()
        {
            self.life.order.give_back(number);
        }
    }
}

impl Wake for Place {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.take_number();
        self.task.wake();
    }
}

/// A request that may wait. Nobody waits for one that has been given up.
struct Waits<'place>(&'place Place);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.number().waits = false;
    }
}

/// A connection's bytes, of which its [`Place`] is told when they come.
pub(crate) struct ReadsInOrder<S> {
    place: Arc<Place>,
    waker: Waker,
    stream: S,
}

impl<S> ReadsInOrder<S> {
    pub(crate) fn new(place: Arc<Place>, stream: S) -> Self {
        Self {
            waker: Waker::from(place.clone()),
            place,
            stream,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadsInOrder<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.place.task.register(cx.waker());
        Pin::new(&mut this.stream).poll_read(&mut Context::from_waker(&this.waker), buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ReadsInOrder<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A connection that is polled in its [`Place`].
pub(crate) struct InOrder<F> {
    place: Arc<Place>,
    serving: Pin<Box<F>>,
}

impl<F> InOrder<F> {
    pub(crate) fn new(place: Arc<Place>, serving: F) -> Self {
        place.take_number();
        Self {
            place,
            serving: Box::pin(serving),
        }
    }
}

impl<F: Future> Future for InOrder<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        this.place.begin();
        let polled = this.serving.as_mut().poll(cx);
        this.place.end();
        polled
    }
}

impl<F> Drop for InOrder<F> {
    fn drop(&mut self) {
        let mut number = self.place.number();
        number.is_over = true;
        let numbers = [number.now.take(), number.next.take()];
        for number in numbers.into_iter().flatten() {
            self.place.life.order.give_back(number);
        }
    }
}

/// Runs the streams of an HTTP/2 connection for as long as the agent lives, each up to where it first waits before the next
/// one begins.
#[derive(Clone)]
pub(crate) struct StreamsInOrder(pub Arc<Life>);

impl<F> Executor<F> for StreamsInOrder
where
    F: Future + Send + 'static,
{
    fn execute(&self, stream: F) {
        let mut stream = Box::pin(stream);
        // Its task polls it again at once.
        let begun = stream
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
        if begun.is_pending() {
            self.0.spawn(stream.map(drop));
        }
    }
}

const UNPOISONED: &str = "nothing panics with the lock held";

#[cfg(test)]
mod tests {
    use super::*;

    fn polled(wait: Pin<&mut impl Future<Output = ()>>) -> bool {
        wait.poll(&mut Context::from_waker(Waker::noop()))
            .is_ready()
    }

    fn places(life: &Arc<Life>, tgids: &[u32]) -> Vec<Arc<Place>> {
        let woken = |tgid: &u32| {
            let place = Place::new(life, *tgid);
            place.take_number();
            place.begin();
            place
        };
        tgids.iter().map(woken).collect()
    }

    #[test]
    fn who_came_later_waits_until_who_came_before_has_been_looked_at() {
        let places = places(&Life::own(), &[1, 1, 2]);
        let mut second = Box::pin(places[1].wait());
        assert!(!polled(second.as_mut()));
        assert!(
            polled(Box::pin(places[2].wait()).as_mut()),
            "another process"
        );
        assert!(polled(Box::pin(places[0].wait()).as_mut()));
        places[1].end();
        assert!(!polled(second.as_mut()), "it keeps its number");
        places[0].end();
        assert!(polled(second.as_mut()));
    }

    #[test]
    fn nobody_waits_for_a_request_that_was_given_up() {
        let places = places(&Life::own(), &[1, 1, 1]);
        let mut second = Box::pin(places[1].wait());
        assert!(!polled(second.as_mut()));
        places[0].end();
        drop(second);
        places[1].end();
        assert!(polled(Box::pin(places[2].wait()).as_mut()));
    }

    #[test]
    fn what_comes_for_a_tunnel_holds_no_request_up() {
        let life = Life::own();
        let tunnel = Place::new(&life, 1);
        drop(InOrder::new(tunnel.clone(), std::future::ready(())));
        tunnel.take_number();
        let later = places(&life, &[1]);
        assert!(polled(Box::pin(later[0].wait()).as_mut()));
    }

    #[test]
    fn many_at_once_do_not_wait() {
        let places = places(&Life::own(), &[1; FEW + 2]);
        assert!(!polled(Box::pin(places[FEW].wait()).as_mut()));
        assert!(polled(Box::pin(places[FEW + 1].wait()).as_mut()));
    }
}
