//! Questions to the daemon that an agent's request waits for.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use agentguard_common::abi::AgentId;
use agentguard_link::frame::{OpenTask, TaskChange, TaskFault, ToDaemon};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

/// How long the daemon may take.
const LIMIT: Duration = Duration::from_secs(10);

type Changed = Result<OpenTask, TaskFault>;

pub struct Asks {
    out: mpsc::UnboundedSender<ToDaemon>,
    waiting: Mutex<HashMap<Uuid, oneshot::Sender<Changed>>>,
}

impl Asks {
    pub fn new(out: mpsc::UnboundedSender<ToDaemon>) -> Self {
        Self {
            out,
            waiting: Mutex::default(),
        }
    }

    /// Has a task of the agent's own opened or ended. `token`: by which the answer comes back.
    pub async fn change(&self, token: Uuid, agent: AgentId, change: TaskChange) -> Changed {
        let (answer, answered) = oneshot::channel();
        self.waiting().insert(token, answer);
        let frame = ToDaemon::ChangeTask {
            token,
            agent,
            change,
        };
        let _forgotten = Forget(self, token);
        self.out.send(frame).map_err(|_| TaskFault::Failed)?;
        match tokio::time::timeout(LIMIT, answered).await {
            Ok(Ok(changed)) => changed,
            Ok(Err(_)) | Err(_) => Err(TaskFault::Failed),
        }
    }

    pub fn answered(&self, token: Uuid, changed: Changed) {
        if let Some(waiting) = self.waiting().remove(&token) {
            // Whoever asked may have gone.
            let _ = waiting.send(changed);
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, oneshot::Sender<Changed>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nobody waits any more.
struct Forget<'a>(&'a Asks, Uuid);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.waiting().remove(&self.1);
    }
}
