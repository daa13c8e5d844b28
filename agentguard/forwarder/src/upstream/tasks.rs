//! What hyper spawns for one HTTP/2 connection, on the task of who drives it.
//!
//! On tasks of their own, a request that the server has acted upon may be told as one that it refused: hyper looks for a GOAWAY
//! once more when it has handed the request to the connection, which may have sent it and got one meanwhile.

use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use hyper::rt::Executor;
use tokio::sync::mpsc;

type Task = BoxFuture<'static, ()>;

pub(super) struct Tasks {
    spawned: mpsc::UnboundedReceiver<Task>,
    running: FuturesUnordered<Task>,
}

#[derive(Clone)]
pub(super) struct Spawner(mpsc::UnboundedSender<Task>);

pub(super) fn tasks() -> (Spawner, Tasks) {
    let (spawner, spawned) = mpsc::unbounded_channel();
    let running = FuturesUnordered::new();
    (Spawner(spawner), Tasks { spawned, running })
}

impl Tasks {
    /// Ready when all have ended and there is nobody to spawn another.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let over = loop {
                match self.spawned.poll_recv(cx) {
                    Poll::Ready(Some(task)) => self.running.push(task),
                    Poll::Ready(None) => break true,
                    Poll::Pending => break false,
                }
            };
            match self.running.poll_next_unpin(cx) {
                Poll::Ready(Some(())) => {}
                Poll::Ready(None) if over => return Poll::Ready(()),
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl<F> Executor<F> for Spawner
where
    F: Future + Send + 'static,
{
    fn execute(&self, task: F) {
        // Nobody drives the connection any more: it has ended with its agent.
        let _ = self.0.send(task.map(drop).boxed());
    }
}
