//! What is written down: records, what limits have counted, what an operator must know.

pub mod alarms;
mod complete;
mod distrust;
pub(crate) mod events;
pub(crate) mod limits;
pub(crate) mod records;
pub(crate) mod unix;

use std::time::Duration;

use agentguard_audit::Log;
use tokio::sync::{mpsc, oneshot};

use self::alarms::Alarms;
use self::distrust::Distrust;
use self::limits::Ledger;
use self::records::{OperatorEntry, Records};
use crate::forwarder::ForwarderLink;
use crate::host::config::Config;
use crate::host::startup::StartError;

/// How long the forwarder may take to hand over its records.
const FORWARDER_LIMIT: Duration = Duration::from_secs(5);

pub struct Books {
    pub records: Records,
    /// What limits have counted.
    pub ledger: Ledger,
    pub alarms: Alarms,
    pub distrust: Distrust,
    /// Asks for what is in the kernel's ring to be taken now.
    drains: mpsc::Sender<oneshot::Sender<()>>,
}

impl Books {
    /// And who asks for the kernel's ring to be read. Must be called in a tokio runtime.
    pub fn open(
        config: &Config,
    ) -> Result<(Self, mpsc::Receiver<oneshot::Sender<()>>), StartError> {
        let state = &config.paths.state;
        let log = Log::open(&crate::audit_dir(state), config.audit.durability)
            .map_err(|e| StartError::Failed(e.to_string()))?;
        let records = Records::start(log)
            .map_err(|e| StartError::Failed(format!("cannot start the audit log's thread: {e}")))?;
        let ledger = Ledger::start(&state.join("limits.log"))
            .map_err(|e| StartError::Failed(format!("cannot start the thread that counts: {e}")))?;
        let (drains, asked) = mpsc::channel(16);
        let books = Self {
            records,
            ledger,
            alarms: Alarms::default(),
            distrust: Distrust::default(),
            drains,
        };
        Ok((books, asked))
    }

    /// Writes what somebody has done to the guard, or the daemon by itself.
    pub fn operated(&self, done: OperatorEntry) {
        self.records.operated(done);
    }

    /// Everything decided before this was called can be read from the log when it returns, or the log cannot be written.
    pub async fn settle(&self, forwarder: &ForwarderLink) {
        let (reply, drained) = oneshot::channel();
        let mut available = self.records.available();
        let kernel = async {
            let drained = async {
                if self.drains.send(reply).await.is_ok() {
                    let _ = drained.await;
                }
            };
            tokio::select! {
                () = drained => {}
                _ = available.wait_for(|available| !available) => {}
            }
        };
        let flush = forwarder.flush(FORWARDER_LIMIT);
        let (_, flushed) = tokio::join!(kernel, flush);
        if let Err(error) = flushed {
            tracing::warn!(%error, "the forwarder's latest records may be missing");
        }
        self.records.settled().await;
    }
}
