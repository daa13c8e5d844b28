//! Tasks: opened and ended by supervisors or the agents themselves, kept on disk, known to the forwarder.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use agentguard_common::abi::AgentId;
use agentguard_control::api::{TaskLine, TaskStart};
use agentguard_link::calls::to_daemon::{TaskChange, TaskFault};
use agentguard_link::state::{Delta, OpenTask};
use agentguard_policy::{OpenedBy, Terms};
use agentguard_record::{Operation, Outcome, TaskInfo};
use agentguard_sys::peer::Peer;
use arc_swap::ArcSwap;
use jiff::Timestamp;
use tokio::sync::{Mutex, Notify, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

use crate::books::records::{Item, Operated};
use crate::lock;
use crate::roster::book::{Book, BookError, Wanted};
use crate::roster::registry::Registry;
use crate::roster::supervise;
use crate::state::Shared;

/// The clock is looked at this often at least: it may be set.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Changes of agents' own tasks that may be under way at once: an agent makes one at a time.
const MAX_CHANGES: usize = 64;
/// How long the forwarder may take to know of a change.
const FORWARDER_LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Forbidden(String),
    /// Nothing has changed.
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Failed(String),
}

impl From<BookError> for TaskError {
    fn from(error: BookError) -> Self {
        match error {
            BookError::Terms(why) => Self::Usage(why),
            BookError::Full(why) => Self::Refused(why),
            error @ (BookError::Unreadable { .. } | BookError::Write { .. }) => {
                Self::Failed(error.to_string())
            }
        }
    }
}

pub struct Handle {
    /// Held for one change, until the forwarder has been told of it: so it is told of them in their order.
    book: Arc<Mutex<Book>>,
    /// What is in the book. Who looks does not wait for the disk.
    open: ArcSwap<Vec<TaskLine>>,
    changes: Arc<Semaphore>,
    changed: Notify,
}

impl Handle {
    pub fn new(book: Book) -> Self {
        Self {
            open: ArcSwap::from_pointee(book.tasks().to_vec()),
            book: Arc::new(Mutex::new(book)),
            changes: Arc::new(Semaphore::new(MAX_CHANGES)),
            changed: Notify::new(),
        }
    }

    /// For a change of an agent's own; `None`: there are too many under way.
    pub fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.changes.clone().try_acquire_owned().ok()
    }

    /// Oldest first.
    pub fn list(&self) -> Arc<Vec<TaskLine>> {
        self.open.load_full()
    }

    /// Changes the book, off the runtime's workers: it is written.
    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Book) -> Result<T, TaskError> + Send + 'static,
    ) -> Result<(OwnedMutexGuard<Book>, T), TaskError> {
        let mut book = self.book.clone().lock_owned().await;
        let changing = tokio::task::spawn_blocking(move || {
            let changed = change(&mut book);
            (book, changed)
        });
        let (book, changed) = changing.await.map_err(failed)?;
        self.open.store(Arc::new(book.tasks().to_vec()));
        Ok((book, changed?))
    }

    /// As a forwarder starts with them. Agents that the registry has forgotten have none.
    pub fn open(&self, registry: &Registry) -> BTreeMap<AgentId, Vec<OpenTask>> {
        let mut open = BTreeMap::new();
        for line in self.list().iter() {
            if let Some(id) = registry.id(&line.agent) {
                let of: &mut Vec<_> = open.entry(id).or_default();
                of.push(line.open());
            }
        }
        open
    }
}

/// Opens a task for a supervisor: root, the role `admin`, or who the agent's `start_by` lists.
pub async fn start(
    shared: &Arc<Shared>,
    peer: &Arc<Peer>,
    start: TaskStart,
) -> Result<TaskLine, TaskError> {
    let by = supervise::name(shared, peer, start.agent.clone()).await?;
    let wanted = Wanted {
        agent: start.agent,
        opened_by: OpenedBy::Supervisor,
        by: Some(by),
        terms: Terms {
            intent: start.intent,
            allow: start.allow,
            scope: start.scope,
        },
        seconds: start.for_s,
    };
    let (line, gone) = {
        let add = |book: &mut Book| Ok(book.add(wanted, Timestamp::now())?);
        let (_told_in_order, added) = shared.tasks.change(add).await?;
        tell(shared, vec![added.0.agent.clone()]).await;
        added
    };
    settle(shared).await;
    let mut detail = line.intent.clone();
    if !line.allow.is_empty() {
        detail += &format!("; allow {}", line.allow.join(", "));
    }
    if !line.scope.is_empty() {
        let scope: Vec<&str> = line.scope.iter().map(String::as_str).collect();
        detail += &format!("; scope {}", scope.join(", "));
    }
    detail += &format!("; until {}", line.ends_at);
    record(shared, Operation::TaskStart, &line, peer.uid, detail).await;
    for own in gone {
        let why = "ended by the task that a supervisor has opened".to_owned();
        record(shared, Operation::TaskEnd, &own, peer.uid, why).await;
    }
    Ok(line)
}

/// A task that is ended unless who asked for it is told: nobody else would end it.
pub struct Unheard {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    pub id: Uuid,
    told: bool,
}

impl Unheard {
    pub fn is_told(mut self) {
        self.told = true;
    }
}

impl Drop for Unheard {
    fn drop(&mut self) {
        if self.told {
            return;
        }
        let (shared, peer, id) = (self.shared.clone(), self.peer.clone(), self.id);
        tokio::spawn(async move {
            if let Err(error) = end(&shared, &peer, id).await {
                tracing::warn!(%error, task = %id, "a task that nobody knows of stays open");
            }
        });
    }
}

/// [`start`], for a process that is to run on it.
pub async fn start_for(
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    task: TaskStart,
    tgid: u32,
) -> Result<Unheard, TaskError> {
    let line = start(&shared, &peer, task).await?;
    let info = TaskInfo {
        id: line.id,
        intent: line.intent.clone(),
    };
    lock(&shared.lineage).set_task(tgid, info);
    Ok(Unheard {
        shared,
        peer,
        id: line.id,
        told: false,
    })
}

/// Ends a task for a supervisor; what was permitted on it is cut.
pub async fn end(shared: &Arc<Shared>, peer: &Arc<Peer>, id: Uuid) -> Result<TaskLine, TaskError> {
    let known = shared.tasks.list();
    let known = known.iter().find(|it| it.id == id);
    let unknown = || {
        TaskError::NotFound(format!(
            "no task `{id}` is open; `agentguard task list` has those that are"
        ))
    };
    let agent = known.ok_or_else(unknown)?.agent.clone();
    supervise::name(shared, peer, agent).await?;
    let ended = remove(shared, move |it| it.id == id).await?;
    settle(shared).await;
    // Somebody else, or its time, may have been first.
    let line = ended.into_iter().next().ok_or_else(unknown)?;
    record(shared, Operation::TaskEnd, &line, peer.uid, "ended".into()).await;
    Ok(line)
}

/// Opens or ends a task for the agent itself. Its request is the record.
pub async fn change_own(
    shared: &Arc<Shared>,
    id: AgentId,
    change: TaskChange,
) -> Result<OpenTask, TaskFault> {
    let Some(agent) = lock(&shared.registry).name(id).map(str::to_owned) else {
        return Err(TaskFault::Refused("this agent is not known".into()));
    };
    let changed = match change {
        TaskChange::Open { terms, seconds } => open_own(shared, id, agent, terms, seconds).await,
        TaskChange::End { id } => {
            let is_own = move |it: &TaskLine| {
                it.id == id && it.agent == agent && it.opened_by == OpenedBy::Agent
            };
            let ended = remove(shared, is_own).await;
            let unknown =
                || TaskError::NotFound("no task of this id is open for this agent".into());
            ended.and_then(|ended| ended.into_iter().next().ok_or_else(unknown))
        }
    };
    changed
        .map(|line| line.open())
        .map_err(|error| match error {
            TaskError::Usage(why) => TaskFault::Terms(why),
            TaskError::NotFound(why) => TaskFault::Unknown(why),
            TaskError::Refused(why) | TaskError::Forbidden(why) => TaskFault::Refused(why),
            TaskError::Failed(why) => {
                tracing::error!(error = why, "an agent's task cannot be kept");
                TaskFault::Failed
            }
        })
}

async fn open_own(
    shared: &Arc<Shared>,
    id: AgentId,
    agent: String,
    terms: Terms,
    seconds: Option<u64>,
) -> Result<TaskLine, TaskError> {
    let active = shared.active.load_full();
    let known = active.as_ref().and_then(|active| active.policy.agent(id));
    let refused = |why: &str| Err(TaskError::Refused(why.to_owned()));
    match known {
        None => return refused("this agent is not part of the policy in force"),
        Some(known) if known.tasks_required => {
            return refused("this agent's tasks are opened by supervisors alone");
        }
        Some(_) => {}
    }
    let wanted = Wanted {
        agent: agent.clone(),
        opened_by: OpenedBy::Agent,
        by: None,
        terms,
        seconds,
    };
    let add = move |book: &mut Book| {
        let supervised = |it: &TaskLine| it.opened_by == OpenedBy::Supervisor;
        if book.of(&wanted.agent).any(supervised) {
            return Err(TaskError::Refused(
                "a supervisor has opened a task for this agent, which holds for all that it does"
                    .into(),
            ));
        }
        Ok(book.add(wanted, Timestamp::now())?.0)
    };
    let (_told_in_order, line) = shared.tasks.change(add).await?;
    tell(shared, vec![agent]).await;
    Ok(line)
}

/// Ends tasks when their time is over, until the daemon stops.
pub async fn serve(shared: Arc<Shared>) {
    loop {
        let next = shared.tasks.list().iter().map(|it| it.ends_at).min();
        let wait = next.map_or(LOOK_EVERY, |ends| {
            let left = Duration::try_from(Timestamp::now().duration_until(ends));
            left.unwrap_or_default().min(LOOK_EVERY)
        });
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = shared.tasks.changed.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
        let now = Timestamp::now();
        let is_over = move |it: &TaskLine| it.ends_at <= now;
        if !shared.tasks.list().iter().any(is_over) {
            continue;
        }
        match remove(&shared, is_over).await {
            Ok(ended) => {
                for line in ended {
                    let detail = format!("its time was over at {}", line.ends_at);
                    record(&shared, Operation::TaskEnd, &line, 0, detail).await;
                }
            }
            Err(error) => {
                tracing::error!(%error, "tasks whose time is over are still on disk");
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }
}

/// Takes them out of the book, and tells the forwarder.
async fn remove(
    shared: &Arc<Shared>,
    is: impl Fn(&TaskLine) -> bool + Send + 'static,
) -> Result<Vec<TaskLine>, TaskError> {
    let end = move |book: &mut Book| Ok(book.end(is)?);
    let (_told_in_order, gone) = shared.tasks.change(end).await?;
    if gone.is_empty() {
        return Ok(gone);
    }
    let agents = gone.iter().map(|it| it.agent.clone()).collect();
    tell(shared, agents).await;
    Ok(gone)
}

/// What the agents' tasks are now.
async fn tell(shared: &Arc<Shared>, agents: Vec<String>) {
    for agent in agents {
        let Some(id) = lock(&shared.registry).id(&agent) else {
            continue;
        };
        let open = shared.tasks.list();
        let its = open.iter().filter(|it| it.agent == agent);
        let open = its.map(TaskLine::open).collect();
        shared
            .forwarder
            .tell(Delta::Tasks { agent: id, open })
            .await;
    }
    shared.tasks.changed.notify_one();
}

/// Waits until the forwarder has heard what it was told.
async fn settle(shared: &Arc<Shared>) {
    let heard = shared.forwarder.flush(FORWARDER_LIMIT).await;
    if let Err(error) = heard {
        tracing::error!(%error, "the forwarder is started again: it may not know the open tasks");
        let why = "it did not take the open tasks in time";
        shared.forwarder.restart(why).await;
    }
}

pub fn failed(error: tokio::task::JoinError) -> TaskError {
    TaskError::Failed(error.to_string())
}

async fn record(shared: &Shared, operation: Operation, line: &TaskLine, uid: u32, detail: String) {
    let active = shared.active.load();
    let bundle = active.as_ref().map(|active| active.meta.clone());
    let done = Operated {
        uid,
        operation,
        agent: Some(line.agent.clone()),
        resource: line.id.to_string(),
        outcome: Outcome::Allow,
        detail,
        bundle,
    };
    shared.records.append(vec![Item::Operator(done)]).await;
}

#[cfg(test)]
mod tests;
