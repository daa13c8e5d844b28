//! Everything that goes to the daemon, from one task and in order: records in batches, and what is said in between.

use std::sync::Arc;
use std::time::Duration;

use agentguard_link::channel::{LinkError, Sender};
use agentguard_link::codec::CodecError;
use agentguard_link::frame::ToDaemon;
use agentguard_record::Draft;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::forwarder::Inbox;
use super::life::Lives;

/// Records go together when there are this many, or [`BATCH_TIME`] after the first of them.
const BATCH: usize = 512;
const BATCH_TIME: Duration = Duration::from_millis(5);
/// Numbers of connections are told at most this often.
const CONNECTIONS_EVERY: Duration = Duration::from_millis(200);

/// Takes what is to be said to the daemon. Whatever is said goes after the records completed before.
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
            batch: Vec::with_capacity(BATCH),
        };
        tokio::spawn(async move {
            if let Err(error) = post.run(said).await {
                // Closing the queue is what makes agents be refused from here on.
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
    batch: Vec<Draft>,
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
                taken = self.inbox.records.recv_many(&mut self.batch, BATCH),
                    if records_due.is_none() =>
                {
                    if taken == BATCH {
                        self.records().await?;
                    } else {
                        records_due = Some(Instant::now() + BATCH_TIME);
                    }
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

    /// Sends every record that is complete.
    async fn records(&mut self) -> Result<(), LinkError> {
        loop {
            while self.batch.len() < BATCH
                && let Ok(draft) = self.inbox.records.try_recv()
            {
                self.batch.push(draft);
            }
            if self.batch.is_empty() {
                return Ok(());
            }
            let drafts = std::mem::replace(&mut self.batch, Vec::with_capacity(BATCH));
            self.send(drafts).await?;
        }
    }

    /// In one frame, or in as many as their size takes.
    async fn send(&mut self, drafts: Vec<Draft>) -> Result<(), LinkError> {
        let mut rest = vec![drafts];
        while let Some(drafts) = rest.pop() {
            let frame = ToDaemon::Records(drafts);
            match self.sender.send(&frame).await {
                Err(LinkError::Codec(CodecError::TooLarge { .. })) => {}
                sent => {
                    sent?;
                    continue;
                }
            }
            let ToDaemon::Records(mut drafts) = frame else {
                continue;
            };
            if drafts.len() < 2 {
                return Err(LinkError::Codec(CodecError::Broken));
            }
            let second = drafts.split_off(drafts.len() / 2);
            rest.push(second);
            rest.push(drafts);
        }
        Ok(())
    }
}

async fn at(due: Option<Instant>) {
    if let Some(due) = due {
        sleep_until(due).await;
    }
}
