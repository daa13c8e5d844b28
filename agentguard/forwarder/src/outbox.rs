//! Everything that goes to the daemon, from one task and in order: how far the spool has been written, and what is said in
//! between.

use std::sync::Arc;
use std::time::Duration;

use agentguard_link::channel::{LinkError, Sender};
use agentguard_link::frame::ToDaemon;
use agentguard_link::spool::SpoolEnd;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::forwarder::Inbox;
use super::life::Lives;

/// The daemon is told of records this long after the first of them.
const BATCH_TIME: Duration = Duration::from_millis(5);
/// Numbers of connections are told at most this often.
const CONNECTIONS_EVERY: Duration = Duration::from_millis(200);

/// Takes what is to be said to the daemon. It learns of the records completed before first.
#[derive(Clone)]
pub(crate) struct Outbox {
    frames: mpsc::UnboundedSender<Said>,
}

enum Said {
    Frame(ToDaemon),
    Finish(oneshot::Sender<()>),
}

impl Outbox {
    pub(crate) fn start(sender: Sender<ToDaemon>, inbox: Inbox, lives: Arc<Lives>) -> Self {
        let (frames, said) = mpsc::unbounded_channel();
        let post = Post {
            sender,
            inbox,
            lives,
            told: SpoolEnd::default(),
        };
        tokio::spawn(async move {
            if let Err(error) = post.run(said).await {
                // The daemon is gone, which ends the orders, too.
                tracing::error!(%error, "nothing can be recorded any more");
            }
        });
        Self { frames }
    }

    pub(crate) fn say(&self, frame: ToDaemon) {
        // Without the task there is no daemon to hear it, and the orders end, too.
        let _ = self.frames.send(Said::Frame(frame));
    }

    /// Sends what records there are, and no more.
    pub(crate) async fn finish(self) {
        let (done, finished) = oneshot::channel();
        if self.frames.send(Said::Finish(done)).is_ok() {
            // An error is the task's end, which is what was to be waited for.
            let _ = finished.await;
        }
    }
}

struct Post {
    sender: Sender<ToDaemon>,
    inbox: Inbox,
    lives: Arc<Lives>,
    /// How far the daemon knows the spool to be written.
    told: SpoolEnd,
}

impl Post {
    async fn run(mut self, mut said: mpsc::UnboundedReceiver<Said>) -> Result<(), LinkError> {
        let mut records_due: Option<Instant> = None;
        let mut connections_due: Option<Instant> = None;
        let mut told = Instant::now();
        loop {
            tokio::select! {
                biased;
                frame = said.recv() => {
                    self.records().await?;
                    records_due = None;
                    match frame {
                        Some(Said::Frame(frame)) => self.sender.send(&frame).await?,
                        Some(Said::Finish(done)) => {
                            let _ = done.send(());
                            return Ok(());
                        }
                        None => return Ok(()),
                    }
                }
                Some(frame) = self.inbox.calls.recv() => self.sender.send(&frame).await?,
                () = at(records_due), if records_due.is_some() => {
                    self.records().await?;
                    records_due = None;
                }
                () = self.inbox.spool.grown.notified(), if records_due.is_none() => {
                    records_due = Some(Instant::now() + BATCH_TIME);
                }
                () = at(connections_due), if connections_due.is_some() => {
                    connections_due = None;
                    told = Instant::now();
                    let connections = self.lives.connections();
                    self.sender.send(&ToDaemon::Connections(connections)).await?;
                }
                () = self.lives.changed.notified(), if connections_due.is_none() => {
                    connections_due = Some(told + CONNECTIONS_EVERY);
                }
            }
        }
    }

    /// Tells of every record that is complete.
    async fn records(&mut self) -> Result<(), LinkError> {
        let end = self.inbox.spool.end();
        if end != self.told {
            self.sender.send(&ToDaemon::Spooled(end)).await?;
            self.told = end;
        }
        Ok(())
    }
}

async fn at(due: Option<Instant>) {
    if let Some(due) = due {
        sleep_until(due).await;
    }
}
