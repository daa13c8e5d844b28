//! What agents ask AgentGuard itself, at its own name: their tasks, whether they may do something, and what they may at
//! all. Each is answered about itself alone, and every question leaves its record like any request.

pub(crate) mod document;
mod may;
mod page;
mod tasks;

use std::time::Duration;

use agentguard_policy::Permissions;
use agentguard_record::{DecidedBy, DenyReason};
use bytes::Bytes;
use http::request::Parts;
use http::{Method, StatusCode};
use http_body_util::{BodyExt, Limited};
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::document::{Document, wrong};
use self::tasks::TaskView;
use super::body::RequestBody;
use super::exchange::Exchange;
use super::refusal::Refusal;

/// Bytes of a question.
const MAX_BODY: usize = 64 * 1024;

const TASKS: &str = "/v1/tasks";
const MAY: &str = "/v1/may";
const PERMISSIONS: &str = "/v1/permissions";

#[derive(Serialize)]
struct PermissionsView<'p> {
    #[serde(flatten)]
    policy: Permissions,
    open_tasks: Vec<TaskView<'p>>,
}

/// Answers a request for AgentGuard's own name. Refused, what is left of its body stays there to be drained.
pub(crate) async fn answer(
    exchange: &mut Exchange,
    parts: &Parts,
    body: &mut RequestBody,
) -> Result<Document, Refusal> {
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
            let open = read(exchange, body).await?;
            tasks::open(exchange, open).await
        }
        (&Method::GET, TASKS, _) => {
            let open = tasks::all(exchange);
            Ok(Document::json(
                &serde_json::json!({ "tasks": tasks::views(&open) }),
            ))
        }
        (&Method::DELETE, _, Some(id)) => tasks::end(exchange, id).await,
        (&Method::POST, MAY, _) => {
            let ask = read(exchange, body).await?;
            may::may(exchange, ask, parts)
        }
        (&Method::GET, PERMISSIONS, _) => permissions(exchange),
        _ => Err(wrong(
            StatusCode::NOT_FOUND,
            "there are `POST /v1/tasks`, `GET /v1/tasks`, `DELETE /v1/tasks/ID`, `POST /v1/may` and `GET /v1/permissions`",
        )),
    }
}

async fn read<T: DeserializeOwned>(
    exchange: &Exchange,
    body: &mut RequestBody,
) -> Result<T, Refusal> {
    let wait = exchange.session.forwarder.limits.judged_body_timeout_ms;
    let body = match body {
        RequestBody::Streamed(body) => body,
        RequestBody::Whole(_) | RequestBody::Spent => {
            return Err(Refusal::protocol(
                "the request's body has been read already",
            ));
        }
    };
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

fn permissions(exchange: &Exchange) -> Result<Document, Refusal> {
    let permissions = exchange
        .docket
        .policy
        .permissions(exchange.session.life.agent);
    let Some(policy) = permissions else {
        let detail = "this agent is not part of the policy in force";
        let reason = DenyReason::AgentSuspended;
        return Err(Refusal::new(DecidedBy::Reach, reason, detail));
    };
    let open = tasks::all(exchange);
    let open_tasks = tasks::views(&open);
    Ok(Document::json(&PermissionsView { policy, open_tasks }))
}
