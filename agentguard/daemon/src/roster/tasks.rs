//! Tasks: opened and ended by supervisors or the agents themselves, kept on disk, known to the forwarder.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use agentguard_common::abi::AgentId;
use agentguard_control::api::{TaskLine, TaskStart};
use agentguard_link::calls::to_daemon::{TaskChange, TaskFault};
use agentguard_link::state::{Delta, OpenTask};
use agentguard_policy::{OpenedBy, Terms};
use agentguard_record::{Actor, Operation, Outcome, TaskInfo};
use agentguard_sys::peer::Peer;
use arc_swap::ArcSwap;
use jiff::Timestamp;
use tokio::sync::{Mutex, Notify, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Roster;
use super::book::{Book, BookError, NewTask, TaskRow};
use super::registry::Registry;
use super::supervise;
use crate::books::Books;
use crate::books::records::OperatorEntry;
use crate::census::Census;
use crate::forwarder::ForwarderLink;
use crate::host::Host;
use crate::lock::lock;

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

/// The open tasks of all agents.
pub struct Tasks {
    /// Held for one change, until the forwarder has been told of it: so it is told of them in their order.
    book: Arc<Mutex<Book>>,
    /// What is in the book. Who looks does not wait for the disk.
    open: ArcSwap<Vec<TaskRow>>,
    changes: Arc<Semaphore>,
    changed: Notify,
}

impl Tasks {
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
    pub fn list(&self) -> Arc<Vec<TaskRow>> {
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

/// What supervisors open and end tasks with.
#[derive(Clone)]
pub struct Supervision {
    pub host: Arc<Host>,
    pub roster: Arc<Roster>,
    pub census: Arc<Census>,
    pub books: Arc<Books>,
    pub forwarder: ForwarderLink,
}

impl Supervision {
    /// Opens a task for a supervisor: root, the role `admin`, or who the agent's `start_by` lists.
    pub async fn start(&self, peer: &Arc<Peer>, start: TaskStart) -> Result<TaskLine, TaskError> {
        let row = self.open(peer, start).await?;
        Ok(row.shown())
    }

    async fn open(&self, peer: &Arc<Peer>, start: TaskStart) -> Result<TaskRow, TaskError> {
        let Self {
            host,
            roster,
            books,
            forwarder,
            ..
        } = self;
        let by = supervise::supervisor(host, roster, peer, start.agent.clone()).await?;
        let new = NewTask {
            agent: start.agent,
            opened_by: OpenedBy::Supervisor,
            by: by.user().map(str::to_owned),
            terms: Terms {
                intent: start.intent,
                allow: start.allow,
                scope: start.scope,
            },
            seconds: start.for_s,
        };
        let (row, gone) = {
            let add = |book: &mut Book| Ok(book.add(new, Timestamp::now())?);
            let (_told_in_order, added) = roster.tasks.change(add).await?;
            tell(roster, forwarder, vec![added.0.agent.clone()]).await;
            added
        };
        settle(forwarder).await;
        let mut detail = row.intent.clone();
        if !row.allow.is_empty() {
            detail += &format!("; allow {}", row.allow.join(", "));
        }
        if !row.scope.is_empty() {
            let scope: Vec<&str> = row.scope.iter().map(String::as_str).collect();
            detail += &format!("; scope {}", scope.join(", "));
        }
        detail += &format!("; until {}", row.ends_at);
        record(roster, books, Operation::TaskStart, &row, &by, detail).await;
        for own in gone {
            let why = "ended by the task that a supervisor has opened".to_owned();
            record(roster, books, Operation::TaskEnd, &own, &by, why).await;
        }
        Ok(row)
    }

    /// [`Self::start`], for a process that is to run on it.
    pub async fn start_for(
        self,
        peer: Arc<Peer>,
        task: TaskStart,
        tgid: u32,
    ) -> Result<Unheard, TaskError> {
        let row = self.open(&peer, task).await?;
        let id = row.id;
        let info = TaskInfo {
            id,
            intent: row.intent,
        };
        lock(&self.census.lineage).set_task(tgid, info);
        Ok(Unheard {
            supervision: self,
            peer,
            id,
            told: false,
        })
    }

    /// Ends a task for a supervisor; what was permitted on it is cut.
    pub async fn end(&self, peer: &Arc<Peer>, id: Uuid) -> Result<TaskLine, TaskError> {
        let Self {
            host,
            roster,
            books,
            forwarder,
            ..
        } = self;
        let known = roster.tasks.list();
        let known = known.iter().find(|it| it.id == id);
        let unknown = || {
            TaskError::NotFound(format!(
                "no task `{id}` is open; `agentguard task list` has those that are"
            ))
        };
        let agent = known.ok_or_else(unknown)?.agent.clone();
        let by = supervise::supervisor(host, roster, peer, agent).await?;
        let ended = remove(roster, forwarder, move |it| it.id == id).await?;
        settle(forwarder).await;
        // Somebody else, or its time, may have been first.
        let row = ended.into_iter().next().ok_or_else(unknown)?;
        record(roster, books, Operation::TaskEnd, &row, &by, "ended".into()).await;
        Ok(row.shown())
    }
}

/// A task that is ended unless who asked for it is told: nobody else would end it.
pub struct Unheard {
    supervision: Supervision,
    peer: Arc<Peer>,
    pub id: Uuid,
    told: bool,
}

impl Unheard {
    pub fn mark_told(mut self) {
        self.told = true;
    }
}

impl Drop for Unheard {
    fn drop(&mut self) {
        if self.told {
            return;
        }
        let (supervision, peer, id) = (self.supervision.clone(), self.peer.clone(), self.id);
        tokio::spawn(async move {
            if let Err(error) = supervision.end(&peer, id).await {
                tracing::warn!(%error, task = %id, "a task that nobody knows of stays open");
            }
        });
    }
}

/// Opens or ends a task for the agent itself. Its request is the record.
pub(crate) async fn change_own(
    roster: &Roster,
    forwarder: &ForwarderLink,
    id: AgentId,
    change: TaskChange,
) -> Result<OpenTask, TaskFault> {
    let Some(agent) = lock(&roster.registry).name(id).map(str::to_owned) else {
        return Err(TaskFault::Refused("this agent is not known".into()));
    };
    let changed = match change {
        TaskChange::Open { terms, seconds } => {
            open_own(roster, forwarder, id, agent, terms, seconds).await
        }
        TaskChange::End { id } => {
            let is_own = move |it: &TaskRow| {
                it.id == id && it.agent == agent && it.opened_by == OpenedBy::Agent
            };
            let ended = remove(roster, forwarder, is_own).await;
            let unknown =
                || TaskError::NotFound("no task of this id is open for this agent".into());
            ended.and_then(|ended| ended.into_iter().next().ok_or_else(unknown))
        }
    };
    changed.map(|row| row.open()).map_err(|error| match error {
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
    roster: &Roster,
    forwarder: &ForwarderLink,
    id: AgentId,
    agent: String,
    terms: Terms,
    seconds: Option<u64>,
) -> Result<TaskRow, TaskError> {
    let active = roster.active.load_full();
    let known = active.as_ref().and_then(|active| active.policy.agent(id));
    let refused = |why: &str| Err(TaskError::Refused(why.to_owned()));
    match known {
        None => return refused("this agent is not part of the policy in force"),
        Some(known) if known.tasks_required => {
            return refused("this agent's tasks are opened by supervisors alone");
        }
        Some(_) => {}
    }
    let new = NewTask {
        agent: agent.clone(),
        opened_by: OpenedBy::Agent,
        by: None,
        terms,
        seconds,
    };
    let add = move |book: &mut Book| {
        let supervised = |it: &TaskRow| it.opened_by == OpenedBy::Supervisor;
        if book.of(&new.agent).any(supervised) {
            return Err(TaskError::Refused(
                "a supervisor has opened a task for this agent, which holds for all that it does"
                    .into(),
            ));
        }
        Ok(book.add(new, Timestamp::now())?.0)
    };
    let (_told_in_order, row) = roster.tasks.change(add).await?;
    tell(roster, forwarder, vec![agent]).await;
    Ok(row)
}

/// Ends tasks when their time is over.
pub(crate) struct TaskClock {
    pub roster: Arc<Roster>,
    pub books: Arc<Books>,
    pub forwarder: ForwarderLink,
    pub stop: CancellationToken,
}

impl TaskClock {
    /// Until the daemon stops.
    pub(crate) async fn serve(self) {
        let Self {
            roster,
            books,
            forwarder,
            stop,
        } = self;
        loop {
            let next = roster.tasks.list().iter().map(|it| it.ends_at).min();
            let wait = next.map_or(LOOK_EVERY, |ends| {
                let left = Duration::try_from(Timestamp::now().duration_until(ends));
                left.unwrap_or_default().min(LOOK_EVERY)
            });
            tokio::select! {
                () = stop.cancelled() => return,
                () = roster.tasks.changed.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
            let now = Timestamp::now();
            let is_over = move |it: &TaskRow| it.ends_at <= now;
            if !roster.tasks.list().iter().any(is_over) {
                continue;
            }
            match remove(&roster, &forwarder, is_over).await {
                Ok(ended) => {
                    for row in ended {
                        let (operation, by) = (Operation::TaskEnd, Actor::Daemon);
                        let detail = format!("its time was over at {}", row.ends_at);
                        record(&roster, &books, operation, &row, &by, detail).await;
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "tasks whose time is over are still on disk");
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            }
        }
    }
}

/// Takes them out of the book, and tells the forwarder.
async fn remove(
    roster: &Roster,
    forwarder: &ForwarderLink,
    is: impl Fn(&TaskRow) -> bool + Send + 'static,
) -> Result<Vec<TaskRow>, TaskError> {
    let end = move |book: &mut Book| Ok(book.end(is)?);
    let (_told_in_order, gone) = roster.tasks.change(end).await?;
    if gone.is_empty() {
        return Ok(gone);
    }
    let agents = gone.iter().map(|it| it.agent.clone()).collect();
    tell(roster, forwarder, agents).await;
    Ok(gone)
}

/// What the agents' tasks are now.
async fn tell(roster: &Roster, forwarder: &ForwarderLink, agents: Vec<String>) {
    for agent in agents {
        let Some(id) = lock(&roster.registry).id(&agent) else {
            continue;
        };
        let open = roster
            .tasks
            .list()
            .iter()
            .filter(|it| it.agent == agent)
            .map(TaskRow::open)
            .collect();
        forwarder.tell(Delta::Tasks { agent: id, open }).await;
    }
    roster.tasks.changed.notify_one();
}

/// Waits until the forwarder has heard what it was told.
async fn settle(forwarder: &ForwarderLink) {
    let heard = forwarder.flush(FORWARDER_LIMIT).await;
    if let Err(error) = heard {
        tracing::error!(%error, "the forwarder is started again: it may not know the open tasks");
        let why = "it did not take the open tasks in time";
        forwarder.restart(why).await;
    }
}

pub(crate) fn failed(error: tokio::task::JoinError) -> TaskError {
    TaskError::Failed(error.to_string())
}

async fn record(
    roster: &Roster,
    books: &Books,
    operation: Operation,
    row: &TaskRow,
    by: &Actor,
    detail: String,
) {
    let done = OperatorEntry {
        by: by.clone(),
        operation,
        agent: Some(row.agent.clone()),
        resource: row.id.to_string(),
        outcome: Outcome::Allow,
        detail,
        bundle: roster.meta(),
    };
    books.operated(done);
}

#[cfg(test)]
mod tests;
