//! What agents ask AgentGuard itself, at its own name: their tasks, whether they may do something, and what they may at
//! all. Each is answered about itself alone, and every question leaves its record like any request.

mod page;

use std::time::Duration;

use agentguard_link::frame::{OpenTask, TaskChange, TaskFault};
use agentguard_policy::explain::Question;
use agentguard_policy::{Decision, OpenedBy, Permissions, Terms};
use agentguard_record::DenyReason;
use agentguard_record::{Outcome, TaskInfo};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Exchange;
use crate::clock::Busy;
use crate::refuse;
use crate::refuse::Refusal;
use crate::relay::Answer;
use crate::tasks::Named;

/// Bytes of a question.
const MAX_BODY: usize = 64 * 1024;

const TASKS: &str = "/v1/tasks";
const MAY: &str = "/v1/may";
const PERMISSIONS: &str = "/v1/permissions";

/// `POST /v1/tasks`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Open {
    intent: String,
    #[serde(default)]
    allow: Vec<String>,
    #[serde(default)]
    scope: std::collections::BTreeSet<String>,
    /// Seconds; an hour if nothing is said.
    #[serde(default)]
    expires_in_s: Option<u64>,
}

/// `POST /v1/may`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ask {
    method: String,
    url: String,
    #[serde(default)]
    headers: std::collections::BTreeMap<String, String>,
    /// Its text as it would be sent.
    #[serde(default)]
    body: Option<String>,
}

/// A task as its agent sees it.
#[derive(Serialize)]
struct TaskView<'t> {
    id: Uuid,
    intent: &'t str,
    allow: &'t [String],
    scope: &'t std::collections::BTreeSet<String>,
    opened_by: OpenedBy,
    ends_at: Timestamp,
}

#[derive(Serialize)]
struct MayView {
    /// `allow`, `deny`, `approval-required`.
    decision: Outcome,
    reason: Option<DenyReason>,
    detail: Option<String>,
    policies: Vec<String>,
    /// Roles whose approval is needed.
    approval: Vec<String>,
    /// It would be denied, and is let through and recorded.
    observed: bool,
}

#[derive(Serialize)]
struct PermissionsView<'p> {
    #[serde(flatten)]
    policy: Permissions,
    open_tasks: Vec<TaskView<'p>>,
}

/// What is said back.
struct Said {
    status: StatusCode,
    text: String,
}

/// Answers a request for AgentGuard's own name.
pub(super) async fn answer(
    mut exchange: Exchange<'_>,
    parts: Parts,
    mut body: Incoming,
    busy: Busy,
) -> Response<Answer> {
    match exchange.ask(&parts, &mut body).await {
        Ok(said) => exchange.say(said),
        Err(refusal) => exchange.refuse(refusal, Some(body), busy),
    }
}

impl Exchange<'_> {
    async fn ask(&mut self, parts: &Parts, body: &mut Incoming) -> Result<Said, Refusal> {
        let path = parts.uri.path();
        let task = path.strip_prefix(TASKS).and_then(|it| it.strip_prefix('/'));
        if path != MAY && parts.method != Method::GET && page::asks(&parts.headers) {
            return Err(wrong(
                StatusCode::FORBIDDEN,
                "a page of another site asks for this, in a browser: only the agent itself changes its tasks",
            ));
        }
        match (&parts.method, path, task) {
            (&Method::POST, TASKS, _) => {
                let open: Open = self.read(body).await?;
                self.open_task(open).await
            }
            (&Method::GET, TASKS, _) => {
                let open = self.open_tasks();
                Ok(Said::json(&serde_json::json!({ "tasks": views(&open) })))
            }
            (&Method::DELETE, _, Some(id)) => self.end_task(id).await,
            (&Method::POST, MAY, _) => {
                let ask: Ask = self.read(body).await?;
                self.may(ask, parts)
            }
            (&Method::GET, PERMISSIONS, _) => self.permissions(),
            _ => Err(wrong(
                StatusCode::NOT_FOUND,
                "there are `POST /v1/tasks`, `GET /v1/tasks`, `DELETE /v1/tasks/ID`, `POST /v1/may` and `GET /v1/permissions`",
            )),
        }
    }

    async fn read<T: DeserializeOwned>(&self, body: &mut Incoming) -> Result<T, Refusal> {
        let wait = self.session.forwarder.limits.judged_body_timeout_ms;
        let collecting = Limited::new(body, MAX_BODY).collect();
        let collected = tokio::time::timeout(Duration::from_millis(wait.into()), collecting).await;
        let bytes: Bytes = match collected {
            Ok(Ok(collected)) => collected.to_bytes(),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
                let detail = format!("the body is longer than {MAX_BODY} bytes");
                return Err(wrong(StatusCode::PAYLOAD_TOO_LARGE, detail));
            }
            Ok(Err(error)) => {
                return Err(Refusal::protocol(format!("the request's body: {error}")));
            }
            Err(_) => {
                let detail = format!("the body did not come whole within {wait} ms");
                return Err(Refusal::protocol(detail));
            }
        };
        serde_json::from_slice(&bytes).map_err(|error| {
            let detail = format!("the body is not the JSON that is expected: {error}");
            wrong(StatusCode::BAD_REQUEST, detail)
        })
    }

    async fn open_task(&mut self, open: Open) -> Result<Said, Refusal> {
        let terms = Terms {
            intent: open.intent,
            allow: open.allow,
            scope: open.scope,
        };
        let seconds = open.expires_in_s;
        let opened = self.change(TaskChange::Open { terms, seconds }).await?;
        self.entry.detail = Some("has opened a task".into());
        let view = TaskView::of(&opened);
        Ok(Said {
            status: StatusCode::CREATED,
            ..Said::json(&view)
        })
    }

    async fn end_task(&mut self, id: &str) -> Result<Said, Refusal> {
        let unknown = || {
            wrong(
                StatusCode::NOT_FOUND,
                "no task of this id is open for this agent",
            )
        };
        let id: Uuid = id.parse().map_err(|_| unknown())?;
        let open = self.open_tasks();
        let known = open.iter().find(|it| it.id == id).ok_or_else(unknown)?;
        if known.opened_by == OpenedBy::Supervisor {
            let detail = "the task has been opened by a supervisor, and supervisors end it";
            return Err(Refusal::new(DenyReason::OutsideTask, detail));
        }
        self.change(TaskChange::End { id }).await?;
        self.entry.detail = Some("has ended a task".into());
        Ok(Said {
            status: StatusCode::NO_CONTENT,
            text: String::new(),
        })
    }

    /// One change of an agent's at a time, and the record names the task.
    async fn change(&mut self, change: TaskChange) -> Result<OpenTask, Refusal> {
        let session = self.session;
        let agent = session.life.agent;
        let _one_at_a_time = session.life.changing.lock().await;
        let asked = session
            .forwarder
            .asks
            .change(self.entry.decision, agent, change);
        let task = asked.await.map_err(|fault| match fault {
            TaskFault::Terms(why) => wrong(StatusCode::BAD_REQUEST, why),
            TaskFault::Unknown(why) => wrong(StatusCode::NOT_FOUND, why),
            TaskFault::Refused(why) => Refusal::new(DenyReason::OutsideTask, why),
            TaskFault::Failed => Refusal::new(
                DenyReason::AuditUnavailable,
                "tasks cannot be kept on this host at the moment",
            ),
        })?;
        self.entry.task = Some(TaskInfo {
            id: task.id,
            intent: task.terms.intent.clone(),
        });
        Ok(task)
    }

    fn open_tasks(&self) -> Vec<OpenTask> {
        let tasks = &self.session.forwarder.situation.tasks;
        tasks.open(self.session.life.agent)
    }

    fn may(&mut self, ask: Ask, parts: &Parts) -> Result<Said, Refusal> {
        let agent = self.session.life.agent;
        let question = Question {
            agent: String::new(),
            method: ask.method,
            url: ask.url,
            headers: ask.headers.into_iter().collect(),
            body: ask.body,
            ..Question::default()
        };
        let situation = &self.session.forwarder.situation;
        let mut headers = parts.headers.clone();
        let named = Named::take(&mut headers);
        let tasks = situation.tasks.held(&self.policy, agent, &named);
        let asked = self.policy.may(agent, &question, tasks, |input, gathered| {
            situation.gather(&self.policy, input, gathered);
        });
        let (resource, decision) = asked.map_err(|why| wrong(StatusCode::BAD_REQUEST, why))?;
        let view = match decision {
            _ if self.policy.is_expired(Timestamp::now()) => MayView {
                decision: Outcome::Deny,
                reason: Some(DenyReason::PolicyStale),
                detail: Some(refuse::STALE.into()),
                policies: Vec::new(),
                approval: Vec::new(),
                observed: false,
            },
            Decision::Permit(permit) => MayView {
                decision: Outcome::Allow,
                reason: permit.would_deny().map(|denial| denial.reason),
                detail: permit.would_deny().map(|denial| denial.detail.clone()),
                policies: permit.policies().to_vec(),
                approval: Vec::new(),
                observed: permit.would_deny().is_some(),
            },
            // Asking takes nothing.
            Decision::Limited(limited) => MayView {
                decision: Outcome::Allow,
                reason: None,
                detail: Some("allowed while its limits have room".into()),
                policies: limited.policies().to_vec(),
                approval: Vec::new(),
                observed: false,
            },
            Decision::Deny(denial) => MayView {
                decision: if denial.reason == DenyReason::ApprovalRequired {
                    Outcome::ApprovalRequired
                } else {
                    Outcome::Deny
                },
                reason: Some(denial.reason),
                detail: Some(denial.detail),
                policies: denial.policies,
                approval: denial.approval,
                observed: false,
            },
        };
        self.entry.detail = Some(format!("has asked about {resource}"));
        Ok(Said::json(&view))
    }

    fn permissions(&self) -> Result<Said, Refusal> {
        let permissions = self.policy.permissions(self.session.life.agent);
        let Some(policy) = permissions else {
            let detail = "this agent is not part of the policy in force";
            return Err(Refusal::new(DenyReason::AgentSuspended, detail));
        };
        let open = self.open_tasks();
        let open_tasks = views(&open);
        Ok(Said::json(&PermissionsView { policy, open_tasks }))
    }

    fn say(mut self, said: Said) -> Response<Answer> {
        self.status(said.status);
        let length = said.text.len();
        let mut response = Response::new(Answer::document(said.text));
        *response.status_mut() = said.status;
        let headers = response.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if length > 0 {
            let json = HeaderValue::from_static("application/json");
            headers.insert(header::CONTENT_TYPE, json);
            headers.insert(header::CONTENT_LENGTH, length.into());
        }
        self.entry.complete(Outcome::Allow);
        response
    }
}

impl Said {
    fn json(value: &impl Serialize) -> Self {
        Self {
            status: StatusCode::OK,
            text: serde_json::to_string(value).expect("strings, numbers and times only"),
        }
    }
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

fn views(open: &[OpenTask]) -> Vec<TaskView<'_>> {
    open.iter().map(TaskView::of).collect()
}

/// What is asked is none of what there is.
fn wrong(status: StatusCode, detail: impl Into<String>) -> Refusal {
    Refusal {
        status,
        ..Refusal::protocol(detail)
    }
}
