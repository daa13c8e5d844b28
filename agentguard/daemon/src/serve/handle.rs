//! From a request to what the daemon does: its route is looked up, its caller is judged, and the route's handler answers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use agentguard_bundle::history::HistoryEntry;
use agentguard_control::api::{Bundle, Change, Past, Rollback, Run, Target, TaskEnd, TaskStart};
use agentguard_policy::Sources;
use agentguard_policy::explain::Question;
use agentguard_sys::peer::Peer;
use agentguard_sys::process::boottime_ns;
use agentguard_sys::user;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use serde::de::DeserializeOwned;

use super::actor::actor;
use super::response::{ControlError, ControlResponse, ErrorCode, json};
use super::routes::{Route, RouteError};
use super::{access, records};
use crate::Parts;
use crate::census::attendance;
use crate::census::enrol::{self, RunError};
use crate::enforce::apply::{ApplyError, Candidate};
use crate::enforce::kill::KillError;
use crate::lock::lock;
use crate::roster::registration::{self, ChangeError};
use crate::roster::supervise;
use crate::roster::tasks::TaskError;
use crate::serve::view;

/// Bytes of a request's body; a bundle's apart.
const BODY: usize = 64 * 1024;
/// A bundle as JSON.
const BUNDLE_BODY: usize = 64 * 1024 * 1024;

/// Digits of a digest that name a bundle at least.
const DIGEST_START: usize = 8;

/// How long the task of a command is open that has not ended before, seconds.
const RUN_TASK: u64 = 86_400;

/// How long a caller may take to send one.
const BODY_LIMIT: Duration = Duration::from_secs(30);

pub(super) async fn answer(
    parts: &Parts,
    peer: &Arc<Peer>,
    request: Request<Incoming>,
) -> ControlResponse {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    match serve(parts, peer, request).await {
        Ok(answer) => answer,
        Err(error) => {
            tracing::debug!(uid = peer.uid, pid = peer.tgid, %method, path, ?error, "refused");
            error.into_response()
        }
    }
}

async fn serve(
    parts: &Parts,
    peer: &Arc<Peer>,
    request: Request<Incoming>,
) -> Result<ControlResponse, ControlError> {
    let path = request.uri().path().to_owned();
    let found = Route::parse(request.method(), &path)
        .map_err(|error| unserved(error, request.method(), &path))?;
    let label = |tgid| lock(&parts.enforce.kernel).label(tgid);
    access::check(peer, found.access, &parts.host.config.roles, label)
        .map_err(|refused| ControlError::new(ErrorCode::Forbidden, refused))?;
    match found.route {
        Route::Status => Ok(json(&view::status(parts))),
        Route::Audit => records::answer(parts, peer, request.uri().query().unwrap_or("")).await,
        Route::Authority => Ok(json(parts.authority.info())),
        Route::Run => run(parts, peer, body(request, BODY).await?).await,
        Route::Tasks => {
            let seen = supervise::seen(&parts.host, &parts.roster, peer)
                .await
                .map_err(task_error)?;
            Ok(json(&seen))
        }
        Route::StartTask => start_task(parts, peer, body(request, BODY).await?).await,
        Route::EndTask => end_task(parts, peer, body(request, BODY).await?).await,
        Route::Agents => Ok(json(&view::agents(
            &parts.roster,
            &parts.census,
            &parts.books,
        ))),
        Route::Suspend => {
            let change = body(request, BODY).await?;
            register(parts, peer, registration::Verb::Suspend, change).await
        }
        Route::Activate => {
            let change = body(request, BODY).await?;
            register(parts, peer, registration::Verb::Activate, change).await
        }
        Route::Retire => {
            let change = body(request, BODY).await?;
            register(parts, peer, registration::Verb::Retire, change).await
        }
        Route::Reassign => {
            let change = body(request, BODY).await?;
            register(parts, peer, registration::Verb::Reassign, change).await
        }
        Route::Kill => kill_agents(parts, peer, body(request, BODY).await?).await,
        Route::Revive => revive_agents(parts, peer, body(request, BODY).await?).await,
        Route::Policy => show_policy(parts),
        Route::Apply => apply_policy(parts, peer, body(request, BUNDLE_BODY).await?).await,
        Route::Rollback => {
            let Rollback { serial } = body(request, BODY).await?;
            put_in_force(parts, peer, Candidate::Earlier(serial)).await
        }
        Route::Explain => explain_policy(parts, body(request, BODY).await?),
        Route::History => Ok(list_history(parts)),
        Route::Past => show_past(parts, found.parameter),
        Route::Unload => Ok(unload(parts)),
    }
}

fn unserved(error: RouteError, method: &Method, path: &str) -> ControlError {
    match error {
        RouteError::UnknownPath => {
            ControlError::new(ErrorCode::NotFound, format!("there is no {method} {path}"))
        }
        RouteError::OtherMethod(allowed) => {
            let names: Vec<&str> = allowed.iter().map(Method::as_str).collect();
            let message = format!(
                "there is no {method} {path}; it is served by {}",
                names.join(" and ")
            );
            ControlError::new(ErrorCode::MethodNotAllowed, message).allowing(allowed)
        }
    }
}

async fn body<T: DeserializeOwned>(
    request: Request<Incoming>,
    limit: usize,
) -> Result<T, ControlError> {
    let bad = |why: String| {
        ControlError::new(ErrorCode::BadRequest, format!("the request's body: {why}"))
    };
    let collecting = Limited::new(request.into_body(), limit).collect();
    let collected = tokio::time::timeout(BODY_LIMIT, collecting)
        .await
        .map_err(|_| bad(format!("it was not there within {BODY_LIMIT:?}")))?;
    let bytes: Bytes = collected.map_err(|e| bad(e.to_string()))?.to_bytes();
    serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))
}

fn show_policy(parts: &Parts) -> Result<ControlResponse, ControlError> {
    let active = parts.roster.active.load_full().ok_or_else(no_bundle)?;
    let mut shown = view::in_force(&active);
    shown.files = active.sources.files.clone();
    Ok(json(&shown))
}

/// Every bundle that has been in force, newest first, without its files.
fn list_history(parts: &Parts) -> ControlResponse {
    let in_force = seq_in_force(parts);
    let history = lock(&parts.roster.history);
    let entries = history.entries().iter().rev();
    let all: Vec<Past> = entries.map(|entry| past(entry, in_force)).collect();
    json(&all)
}

/// With its files, the newest that `candidate` names: a serial, or the beginning of a digest.
fn show_past(parts: &Parts, candidate: &str) -> Result<ControlResponse, ControlError> {
    let in_force = seq_in_force(parts);
    let history = lock(&parts.roster.history);
    let serial = candidate.parse::<u64>().ok();
    let is_wanted = |entry: &&HistoryEntry| {
        serial == Some(entry.meta.serial)
            || candidate.len() >= DIGEST_START && entry.meta.digest.starts_with(candidate)
    };
    let Some(entry) = history.entries().iter().rev().find(is_wanted) else {
        let unknown = format!(
            "the history has no bundle `{candidate}`; name a serial or {DIGEST_START} digits of a digest that `agentguard policy history` lists"
        );
        return Err(ControlError::new(ErrorCode::NotFound, unknown));
    };
    let sources = history.sources(entry).map_err(ControlError::internal)?;
    Ok(json(&Past {
        files: sources.files,
        ..past(entry, in_force)
    }))
}

fn seq_in_force(parts: &Parts) -> Option<u64> {
    parts
        .roster
        .active
        .load()
        .as_ref()
        .map(|active| active.entry.seq)
}

fn past(entry: &HistoryEntry, in_force: Option<u64>) -> Past {
    Past {
        user: user::name(entry.by.uid()),
        in_force: in_force == Some(entry.seq),
        entry: entry.clone(),
        files: BTreeMap::new(),
    }
}

fn no_bundle() -> ControlError {
    let hint = "no bundle is in force; `agentguard policy apply DIR` first";
    ControlError::new(ErrorCode::Conflict, hint)
}

async fn apply_policy(
    parts: &Parts,
    peer: &Arc<Peer>,
    bundle: Bundle,
) -> Result<ControlResponse, ControlError> {
    let candidate = match bundle.packed {
        Some(packed) if bundle.files.is_empty() => Candidate::Packed(packed),
        Some(_) => {
            let hint = "say `files` or `packed`, not both";
            return Err(ControlError::new(ErrorCode::BadRequest, hint));
        }
        None => Candidate::Files(Sources {
            files: bundle.files,
        }),
    };
    put_in_force(parts, peer, candidate).await
}

async fn put_in_force(
    parts: &Parts,
    peer: &Arc<Peer>,
    candidate: Candidate,
) -> Result<ControlResponse, ControlError> {
    // Not to be cut half-way by a caller that hangs up.
    let (installer, by) = (parts.installer(), actor(peer.clone()));
    let applying = tokio::spawn(async move { installer.apply(candidate, by.await).await });
    let applied = applying
        .await
        .map_err(ControlError::internal)?
        .map_err(|error| match error {
            ApplyError::Invalid(diagnostics) => {
                ControlError::new(ErrorCode::Invalid, "the bundle is not valid").with(diagnostics)
            }
            ApplyError::Refused(_) => ControlError::new(ErrorCode::Invalid, error),
            ApplyError::Failed(_) => ControlError::internal(error),
        })?;
    let mut shown = view::in_force(&applied.active);
    shown.unchanged = applied.unchanged;
    shown.warnings = applied.warnings;
    Ok(json(&shown))
}

fn explain_policy(parts: &Parts, mut question: Question) -> Result<ControlResponse, ControlError> {
    let active = parts.roster.active.load_full().ok_or_else(no_bundle)?;
    let now = || Timestamp::now().to_string();
    let asked = &mut question.context;
    asked.time.time.get_or_insert_with(now);
    asked
        .network
        .trusted_network
        .get_or_insert_with(|| parts.host.network.is_trusted());
    asked
        .host
        .host_labels
        .extend(parts.host.config.host.labels.iter().cloned());
    let agent = active.ids.get(&question.agent);
    let presence = agent.and_then(|agent| lock(&parts.census.lineage).presences.of(*agent));
    if let Some(presence) = presence {
        let uptime_s = presence.uptime_s(boottime_ns());
        asked.agent.uptime_s.get_or_insert(uptime_s);
        asked.agent.attended.get_or_insert(presence.attended);
    }
    let explained = active.policy.explain(&question);
    explained
        .map(|explanation| json(&explanation))
        .map_err(|error| ControlError::new(ErrorCode::BadRequest, error))
}

async fn run(
    parts: &Parts,
    peer: &Arc<Peer>,
    request: Run,
) -> Result<ControlResponse, ControlError> {
    let (enrolling, caller, tgid) = (parts.clone(), peer.clone(), request.pid);
    let task = request.task.clone().map(|intent| TaskStart {
        agent: request.agent.clone(),
        intent,
        allow: Vec::new(),
        scope: Default::default(),
        for_s: Some(RUN_TASK),
    });
    let running = tokio::task::spawn_blocking(move || {
        let Parts {
            host,
            roster,
            census,
            enforce,
            ..
        } = &enrolling;
        enrol::run(host, roster, census, enforce, &request, &caller)
    });
    match running.await.map_err(ControlError::internal)? {
        Ok((agent, mut started)) => {
            let mut opened = None;
            if let Some(task) = task {
                let opening = parts.supervision().start_for(peer.clone(), task, tgid);
                let opening = tokio::spawn(opening).await;
                let unheard = opening
                    .map_err(ControlError::internal)?
                    .map_err(task_error)?;
                started.task = Some(unheard.id);
                opened = Some(unheard);
            }
            // Before its first instruction: no connect of it comes too early.
            parts.census.namespaces.settle(tgid).await;
            attendance::started(&parts.census, &parts.forwarder, agent, peer).await;
            if let Some(opened) = opened {
                opened.mark_told();
            }
            Ok(json(&started))
        }
        Err(error @ RunError::NotFound(_)) => Err(ControlError::new(ErrorCode::NotFound, error)),
        Err(error @ RunError::Forbidden(_)) => Err(ControlError::new(ErrorCode::Forbidden, error)),
        Err(error @ RunError::Conflict(_)) => Err(ControlError::new(ErrorCode::Conflict, error)),
        Err(error @ RunError::Failed(_)) => Err(ControlError::internal(error)),
    }
}

async fn start_task(
    parts: &Parts,
    peer: &Arc<Peer>,
    start: TaskStart,
) -> Result<ControlResponse, ControlError> {
    let (supervision, peer) = (parts.supervision(), peer.clone());
    // Once begun it is finished, whether the caller waits or not.
    let opening = tokio::spawn(async move { supervision.start(&peer, start).await });
    let opened = opening
        .await
        .map_err(ControlError::internal)?
        .map_err(task_error)?;
    Ok(json(&opened))
}

async fn end_task(
    parts: &Parts,
    peer: &Arc<Peer>,
    end: TaskEnd,
) -> Result<ControlResponse, ControlError> {
    let (supervision, peer) = (parts.supervision(), peer.clone());
    let ending = tokio::spawn(async move { supervision.end(&peer, end.id).await });
    let ended = ending
        .await
        .map_err(ControlError::internal)?
        .map_err(task_error)?;
    Ok(json(&ended))
}

fn task_error(error: TaskError) -> ControlError {
    let code = match &error {
        TaskError::Usage(_) => ErrorCode::BadRequest,
        TaskError::NotFound(_) => ErrorCode::NotFound,
        TaskError::Forbidden(_) => ErrorCode::Forbidden,
        TaskError::Refused(_) => ErrorCode::Conflict,
        TaskError::Failed(_) => ErrorCode::Internal,
    };
    ControlError::new(code, error)
}

async fn kill_agents(
    parts: &Parts,
    peer: &Arc<Peer>,
    target: Target,
) -> Result<ControlResponse, ControlError> {
    check_target(&target)?;
    let (kill, by) = (parts.kill_switch(), actor(peer.clone()));
    // A kill once begun is finished, whether the caller waits or not.
    let killing = tokio::spawn(async move { kill.kill(&target, target.reason.clone(), by).await });
    let cuts = killing
        .await
        .map_err(ControlError::internal)?
        .map_err(kill_error)?;
    Ok(json(&serde_json::json!({ "killed": cuts })))
}

async fn revive_agents(
    parts: &Parts,
    peer: &Arc<Peer>,
    target: Target,
) -> Result<ControlResponse, ControlError> {
    check_target(&target)?;
    let (kill, by) = (parts.kill_switch(), actor(peer.clone()));
    let reviving =
        tokio::spawn(async move { kill.revive(&target, target.reason.clone(), &by.await).await });
    let revived = reviving
        .await
        .map_err(ControlError::internal)?
        .map_err(kill_error)?;
    Ok(json(&serde_json::json!({ "revived": revived })))
}

async fn register(
    parts: &Parts,
    peer: &Arc<Peer>,
    verb: registration::Verb,
    change: Change,
) -> Result<ControlResponse, ControlError> {
    let (registrar, by) = (parts.registrar(), actor(peer.clone()));
    let changing = tokio::spawn(async move { registrar.change(verb, &change, &by.await).await });
    let changed = changing
        .await
        .map_err(ControlError::internal)?
        .map_err(|error| match error {
            ChangeError::Usage(_) => ControlError::new(ErrorCode::BadRequest, error),
            ChangeError::Refused(_) => ControlError::new(ErrorCode::Conflict, error),
            ChangeError::Kill(error) => kill_error(error),
        })?;
    Ok(json(&changed))
}

/// Ends the daemon, which then takes its programs out of the kernel.
fn unload(parts: &Parts) -> ControlResponse {
    parts.ending.unload();
    json(&serde_json::json!({ "unloading": true }))
}

fn check_target(target: &Target) -> Result<(), ControlError> {
    if target.all == target.agents.is_empty() {
        return Ok(());
    }
    let hint = "name agents, or say `all`, not both";
    Err(ControlError::new(ErrorCode::BadRequest, hint))
}

fn kill_error(error: KillError) -> ControlError {
    match error {
        KillError::Unknown { .. } => ControlError::new(ErrorCode::NotFound, error),
        KillError::Failed(_) => ControlError::internal(error),
    }
}
