//! From a request to what the daemon does.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use super::access::{self, Verb};
use super::answer::{Answer, Refusal, json};
use super::api::{Bundle, Run, Target};
use super::records;
use crate::daemon::apply::{self, ApplyError};
use crate::daemon::enrol::{self, RunError};
use crate::daemon::kill::{self, KillError};
use crate::daemon::state::Shared;
use crate::daemon::view;
use crate::policy::Sources;
use crate::policy::explain::Question;
use crate::sys::peer::Peer;

/// Bytes of a request's body; a bundle's apart.
const BODY: usize = 64 * 1024;
/// A bundle as JSON.
const BUNDLE_BODY: usize = 64 * 1024 * 1024;

/// How long a caller may take to send one.
const BODY_LIMIT: Duration = Duration::from_secs(30);

pub async fn answer(shared: &Arc<Shared>, peer: &Arc<Peer>, request: Request<Incoming>) -> Answer {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    match serve(shared, peer, request).await {
        Ok(answer) => answer,
        Err(refusal) => {
            tracing::debug!(uid = peer.uid, pid = peer.tgid, %method, path, ?refusal, "refused");
            refusal.into_answer()
        }
    }
}

async fn serve(
    shared: &Arc<Shared>,
    peer: &Arc<Peer>,
    request: Request<Incoming>,
) -> Result<Answer, Refusal> {
    let path = request.uri().path().to_owned();
    let verb = match (request.method(), path.as_str()) {
        (&Method::GET, "/v1/ca") => Verb::Trust,
        (&Method::GET, "/v1/status" | "/v1/agents" | "/v1/policy" | "/v1/audit") => Verb::Look,
        (&Method::POST, "/v1/policy/explain") => Verb::Look,
        (&Method::POST, "/v1/run") => Verb::Run,
        (&Method::POST, "/v1/kill" | "/v1/revive") => Verb::Kill,
        (&Method::POST, "/v1/policy") => Verb::Apply,
        (&Method::POST, "/v1/unload") => Verb::Unload,
        (method, path) => {
            let unknown = format!("there is no {method} {path}");
            return Err(Refusal::new(StatusCode::NOT_FOUND, unknown));
        }
    };
    let label = |tgid| crate::daemon::lock(&shared.kernel).label(tgid);
    access::check(peer, verb, &shared.config.roles, label)
        .map_err(|refused| Refusal::new(StatusCode::FORBIDDEN, refused))?;
    match (request.method(), path.as_str()) {
        (_, "/v1/status") => Ok(json(&view::status(shared))),
        (_, "/v1/agents") => Ok(json(&view::agents(shared))),
        (_, "/v1/ca") => Ok(json(shared.authority.info())),
        (_, "/v1/audit") => records::answer(shared, request.uri().query().unwrap_or("")).await,
        (&Method::GET, "/v1/policy") => show_policy(shared),
        (_, "/v1/policy") => apply_policy(shared, peer, body(request, BUNDLE_BODY).await?).await,
        (_, "/v1/policy/explain") => explain_policy(shared, &body(request, BODY).await?),
        (_, "/v1/run") => run(shared, peer, body(request, BODY).await?).await,
        (_, "/v1/kill") => kill_agents(shared, peer, body(request, BODY).await?).await,
        (_, "/v1/revive") => revive_agents(shared, peer, body(request, BODY).await?).await,
        _ => {
            shared.unload.store(true, Ordering::Release);
            shared.stop.cancel();
            Ok(json(&serde_json::json!({ "unloading": true })))
        }
    }
}

async fn body<T: DeserializeOwned>(request: Request<Incoming>, limit: usize) -> Result<T, Refusal> {
    let bad = |why: String| {
        Refusal::new(
            StatusCode::BAD_REQUEST,
            format!("the request's body: {why}"),
        )
    };
    let collecting = Limited::new(request.into_body(), limit).collect();
    let collected = tokio::time::timeout(BODY_LIMIT, collecting)
        .await
        .map_err(|_| bad(format!("it was not there within {BODY_LIMIT:?}")))?;
    let bytes: Bytes = collected.map_err(|e| bad(e.to_string()))?.to_bytes();
    serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))
}

fn show_policy(shared: &Shared) -> Result<Answer, Refusal> {
    let active = shared.active.load_full().ok_or_else(no_bundle)?;
    let mut shown = view::in_force(&active);
    shown.files = active.sources.files.clone();
    Ok(json(&shown))
}

fn no_bundle() -> Refusal {
    let hint = "no bundle is in force; `agentguard policy apply DIR` first";
    Refusal::new(StatusCode::CONFLICT, hint)
}

async fn apply_policy(
    shared: &Arc<Shared>,
    peer: &Peer,
    bundle: Bundle,
) -> Result<Answer, Refusal> {
    let sources = Sources {
        files: bundle.files,
    };
    // Not to be cut half-way by a caller that hangs up.
    let (shared, uid) = (shared.clone(), peer.uid);
    let applying = tokio::spawn(async move { apply::apply(&shared, sources, uid).await });
    let applied = applying
        .await
        .map_err(internal)?
        .map_err(|error| match error {
            ApplyError::Invalid(diagnostics) => {
                Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "the bundle is not valid")
                    .with(diagnostics)
            }
            ApplyError::Refused(_) => Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, error),
            ApplyError::Failed(_) => internal(error),
        })?;
    let mut shown = view::in_force(&applied.active);
    shown.unchanged = applied.unchanged;
    shown.warnings = applied.warnings;
    Ok(json(&shown))
}

fn explain_policy(shared: &Shared, question: &Question) -> Result<Answer, Refusal> {
    let active = shared.active.load_full().ok_or_else(no_bundle)?;
    let explained = active.policy.explain(question);
    explained
        .map(|explanation| json(&explanation))
        .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, error))
}

async fn run(shared: &Arc<Shared>, peer: &Arc<Peer>, request: Run) -> Result<Answer, Refusal> {
    let (enrolling, peer, tgid) = (shared.clone(), peer.clone(), request.pid);
    let running = tokio::task::spawn_blocking(move || enrol::run(&enrolling, &request, &peer));
    match running.await.map_err(internal)? {
        Ok(started) => {
            // Before its first instruction: no connect of it comes too early.
            shared.namespaces.settle(tgid).await;
            Ok(json(&started))
        }
        Err(error @ RunError::NotFound(_)) => Err(Refusal::new(StatusCode::NOT_FOUND, error)),
        Err(error @ RunError::Forbidden(_)) => Err(Refusal::new(StatusCode::FORBIDDEN, error)),
        Err(error @ RunError::Conflict(_)) => Err(Refusal::new(StatusCode::CONFLICT, error)),
        Err(error @ RunError::Failed(_)) => Err(internal(error)),
    }
}

async fn kill_agents(shared: &Arc<Shared>, peer: &Peer, target: Target) -> Result<Answer, Refusal> {
    check_target(&target)?;
    let (shared, uid) = (shared.clone(), peer.uid);
    // A kill once begun is finished, whether the caller waits or not.
    let killing =
        tokio::spawn(async move { kill::kill(&shared, &target, target.reason.clone(), uid).await });
    let cuts = killing.await.map_err(internal)?.map_err(kill_refusal)?;
    Ok(json(&serde_json::json!({ "killed": cuts })))
}

async fn revive_agents(
    shared: &Arc<Shared>,
    peer: &Peer,
    target: Target,
) -> Result<Answer, Refusal> {
    check_target(&target)?;
    let (shared, uid) = (shared.clone(), peer.uid);
    let reviving =
        tokio::spawn(
            async move { kill::revive(&shared, &target, target.reason.clone(), uid).await },
        );
    let revived = reviving.await.map_err(internal)?.map_err(kill_refusal)?;
    Ok(json(&serde_json::json!({ "revived": revived })))
}

fn check_target(target: &Target) -> Result<(), Refusal> {
    if target.all == target.agents.is_empty() {
        return Ok(());
    }
    let hint = "name agents, or say `all`, not both";
    Err(Refusal::new(StatusCode::BAD_REQUEST, hint))
}

fn kill_refusal(error: KillError) -> Refusal {
    match error {
        KillError::Unknown { .. } => Refusal::new(StatusCode::NOT_FOUND, error),
        KillError::Failed(_) => internal(error),
    }
}

fn internal(error: impl ToString) -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error)
}
