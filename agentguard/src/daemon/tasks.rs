//! Tasks: opened and ended by supervisors or the agents themselves, kept on disk, known to the forwarder.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentguard_common::abi::AgentId;
use jiff::Timestamp;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

use super::enrol::may_start;
use super::forwarder::Ask;
use super::kill::suggest;
use super::lock;
use super::records::{Item, Operated};
use super::state::Shared;
use crate::agents::registry::Registry;
use crate::agents::tasks::{Book, BookError, Wanted};
use crate::audit::record::{Operation, Outcome, TaskInfo};
use crate::control::access;
use crate::control::api::{TaskLine, TaskStart};
use crate::link::frame::{OpenTask, TaskChange, TaskFault};
use crate::policy::{OpenedBy, Terms};
use crate::sys::peer::Peer;
use crate::sys::user;

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
    book: Mutex<Book>,
    /// One change at a time, so that the forwarder is told of them in their order.
    turn: tokio::sync::Mutex<()>,
    changes: Arc<Semaphore>,
    changed: Notify,
}

impl Handle {
    pub fn new(book: Book) -> Self {
        Self {
            book: Mutex::new(book),
            turn: tokio::sync::Mutex::default(),
            changes: Arc::new(Semaphore::new(MAX_CHANGES)),
            changed: Notify::new(),
        }
    }

    /// For a change of an agent's own; `None`: there are too many under way.
    pub fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.changes.clone().try_acquire_owned().ok()
    }

    pub fn list(&self) -> Vec<TaskLine> {
        lock(&self.book).tasks().to_vec()
    }

    /// As a forwarder starts with them. Agents that the registry has forgotten have none.
    pub fn open(&self, registry: &Registry) -> BTreeMap<AgentId, Vec<OpenTask>> {
        let mut open = BTreeMap::new();
        for line in lock(&self.book).tasks() {
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
    peer: &Peer,
    start: TaskStart,
) -> Result<TaskLine, TaskError> {
    may_supervise(shared, peer, &start.agent)?;
    let wanted = Wanted {
        agent: start.agent,
        opened_by: OpenedBy::Supervisor,
        by: Some(user::name(peer.uid)),
        terms: Terms {
            intent: start.intent,
            allow: start.allow,
            scope: start.scope,
        },
        seconds: start.for_s,
    };
    let (line, gone) = {
        let _one_at_a_time = shared.tasks.turn.lock().await;
        let added = lock(&shared.tasks.book).add(wanted, Timestamp::now())?;
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

/// [`start`], for a process that is to run on it.
pub async fn start_for(
    shared: &Arc<Shared>,
    peer: &Peer,
    task: TaskStart,
    tgid: u32,
) -> Result<TaskLine, TaskError> {
    let line = start(shared, peer, task).await?;
    let info = TaskInfo {
        id: line.id,
        intent: line.intent.clone(),
    };
    lock(&shared.lineage).set_task(tgid, info);
    Ok(line)
}

/// Ends a task for a supervisor; what was permitted on it is cut.
pub async fn end(shared: &Arc<Shared>, peer: &Peer, id: Uuid) -> Result<TaskLine, TaskError> {
    let known = shared.tasks.list().into_iter().find(|it| it.id == id);
    let unknown = || {
        TaskError::NotFound(format!(
            "no task `{id}` is open; `agentguard task list` has those that are"
        ))
    };
    let known = known.ok_or_else(unknown)?;
    may_supervise(shared, peer, &known.agent)?;
    let ended = remove(shared, |it| it.id == id).await?;
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
            let is_own =
                |it: &TaskLine| it.id == id && it.agent == agent && it.opened_by == OpenedBy::Agent;
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
    let _one_at_a_time = shared.tasks.turn.lock().await;
    let line = {
        let mut book = lock(&shared.tasks.book);
        if book
            .of(&agent)
            .any(|it| it.opened_by == OpenedBy::Supervisor)
        {
            return refused(
                "a supervisor has opened a task for this agent, which holds for all that it does",
            );
        }
        let wanted = Wanted {
            agent: agent.clone(),
            opened_by: OpenedBy::Agent,
            by: None,
            terms,
            seconds,
        };
        book.add(wanted, Timestamp::now())?.0
    };
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
        match remove(&shared, |it| it.ends_at <= now).await {
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
    is: impl Fn(&TaskLine) -> bool + Send,
) -> Result<Vec<TaskLine>, TaskError> {
    let _one_at_a_time = shared.tasks.turn.lock().await;
    let gone = lock(&shared.tasks.book).end(is)?;
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
        let open = {
            let book = lock(&shared.tasks.book);
            book.of(&agent).map(TaskLine::open).collect()
        };
        shared.forwarder.tell(Ask::Tasks(id, open)).await;
    }
    shared.tasks.changed.notify_one();
}

/// Waits until the forwarder has heard what it was told.
async fn settle(shared: &Arc<Shared>) {
    let heard = shared.forwarder.ask(FORWARDER_LIMIT, Ask::Flush).await;
    if let Err(error) = heard {
        tracing::error!(%error, "the forwarder is started again: it may not know the open tasks");
        let why = "it did not take the open tasks in time";
        shared.forwarder.tell(Ask::Restart(why)).await;
    }
}

fn may_supervise(shared: &Shared, peer: &Peer, agent: &str) -> Result<(), TaskError> {
    let active = shared.active.load_full().ok_or_else(|| {
        TaskError::Refused("no bundle is in force; `agentguard policy apply DIR` first".into())
    })?;
    let known = active.policy.agents().find(|it| it.name == agent);
    let admin = access::is_admin(peer, &shared.config.roles);
    match known {
        Some(known) if admin || may_start(peer, &known.start_by, user::uid, user::gid) => Ok(()),
        // It may have tasks from when the bundle had it.
        None if admin && lock(&shared.tasks.book).of(agent).next().is_some() => Ok(()),
        None => {
            let hint = match suggest(agent, active.ids.keys()) {
                Some(name) => format!(", did you mean `{name}`?"),
                None => "; `agentguard agents` lists those of the bundle".into(),
            };
            Err(TaskError::NotFound(format!(
                "unknown agent `{agent}`{hint}"
            )))
        }
        Some(_) => Err(TaskError::Forbidden(format!(
            "{} may not open or end tasks of `{agent}`: root, the role `admin`, and those in the agent's `start_by` may",
            user::name(peer.uid)
        ))),
    }
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
mod tests {
    use super::*;

    fn handle(dir: &tempfile::TempDir) -> Handle {
        Handle::new(Book::open(&dir.path().join("tasks.json")).unwrap())
    }

    #[test]
    fn agents_changes_are_bounded() {
        let handle = handle(&tempfile::tempdir().unwrap());
        let mut places: Vec<_> = (0..MAX_CHANGES).map(|_| handle.place().unwrap()).collect();
        assert!(handle.place().is_none());
        places.pop();
        assert!(handle.place().is_some());
    }
}
