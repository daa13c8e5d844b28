//! An agent's own tasks: opened, looked at and ended by itself.

use agentguard_link::calls::to_daemon::{ChangeTask, TaskChange, TaskFault};
use agentguard_link::state::OpenTask;
use agentguard_policy::{OpenedBy, Terms};
use agentguard_record::{DecidedBy, DenyReason, DraftTask, TaskInfo};
use http::StatusCode;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::document::{Document, wrong};
use crate::exchange::Exchange;
use crate::refusal::Refusal;

/// `POST /v1/tasks`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OpenBody {
    intent: String,
    #[serde(default)]
    allow: Vec<String>,
    #[serde(default)]
    scope: std::collections::BTreeSet<String>,
    /// Seconds; an hour if nothing is said.
    #[serde(default)]
    expires_in_s: Option<u64>,
}

/// A task as its agent sees it.
#[derive(Serialize)]
pub(super) struct TaskView<'t> {
    id: Uuid,
    intent: &'t str,
    allow: &'t [String],
    scope: &'t std::collections::BTreeSet<String>,
    opened_by: OpenedBy,
    ends_at: Timestamp,
}

/// Opens one, if the daemon agrees.
pub(super) async fn open(exchange: &mut Exchange, open: OpenBody) -> Result<Document, Refusal> {
    let terms = Terms {
        intent: open.intent,
        allow: open.allow,
        scope: open.scope,
    };
    let seconds = open.expires_in_s;
    let opened = change(exchange, TaskChange::Open { terms, seconds }).await?;
    exchange.docket.entry.detail = Some("has opened a task".into());
    let view = TaskView::of(&opened);
    Ok(Document {
        status: StatusCode::CREATED,
        ..Document::json(&view)
    })
}

/// Ends one that the agent itself has opened.
pub(super) async fn end(exchange: &mut Exchange, id: &str) -> Result<Document, Refusal> {
    let unknown = || {
        wrong(
            StatusCode::NOT_FOUND,
            "no task of this id is open for this agent",
        )
    };
    let id: Uuid = id.parse().map_err(|_| unknown())?;
    let open = all(exchange);
    let known = open.iter().find(|it| it.id == id).ok_or_else(unknown)?;
    if known.opened_by == OpenedBy::Supervisor {
        let detail = "the task has been opened by a supervisor, and supervisors end it";
        let reason = DenyReason::OutsideTask;
        return Err(Refusal::new(DecidedBy::OwnName, reason, detail));
    }
    change(exchange, TaskChange::End { id }).await?;
    exchange.docket.entry.detail = Some("has ended a task".into());
    Ok(Document {
        status: StatusCode::NO_CONTENT,
        text: String::new(),
    })
}

/// One change of an agent's at a time, and the record names the task.
async fn change(exchange: &mut Exchange, change: TaskChange) -> Result<OpenTask, Refusal> {
    let session = exchange.session.clone();
    let agent = session.life.agent;
    let _one_at_a_time = session.life.changing.lock().await;
    let asked = session.forwarder.daemon.call(ChangeTask { agent, change });
    let changed = asked.await.unwrap_or(Err(TaskFault::Failed));
    let task = changed.map_err(|fault| match fault {
        TaskFault::Terms(why) => wrong(StatusCode::BAD_REQUEST, why),
        TaskFault::Unknown(why) => wrong(StatusCode::NOT_FOUND, why),
        TaskFault::Refused(why) => Refusal::new(DecidedBy::OwnName, DenyReason::OutsideTask, why),
        TaskFault::Failed => Refusal::unrecorded("tasks cannot be kept on this host at the moment"),
    })?;
    exchange.docket.entry.task = DraftTask::On(TaskInfo {
        id: task.id,
        intent: task.terms.intent.clone(),
    });
    Ok(task)
}

/// Those that are open for the agent.
pub(super) fn all(exchange: &Exchange) -> Vec<OpenTask> {
    let tasks = &exchange.session.forwarder.situation.tasks;
    tasks.open(exchange.session.life.agent)
}

impl<'t> TaskView<'t> {
    fn of(task: &'t OpenTask) -> Self {
        Self {
            id: task.id,
            intent: &task.terms.intent,
            allow: &task.terms.allow,
            scope: &task.terms.scope,
            opened_by: task.opened_by,
            ends_at: Timestamp::from_second(task.ends).unwrap_or_default(),
        }
    }
}

pub(super) fn views(open: &[OpenTask]) -> Vec<TaskView<'_>> {
    open.iter().map(TaskView::of).collect()
}
