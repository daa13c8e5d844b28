//! From a request to what the daemon does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use agentguard_bundle::history::Entry;
use agentguard_control::api::{Bundle, Change, Past, Rollback, Run, Target, TaskEnd, TaskStart};
use agentguard_policy::Sources;
use agentguard_policy::explain::Question;
use agentguard_sys::peer::Peer;
use agentguard_sys::process::boottime_ns;
use agentguard_sys::user;
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use serde::de::DeserializeOwned;

use super::access::{self, Verb};
use super::answer::{Answer, Refusal, json};
use super::records;
use crate::apply;
use crate::apply::{ApplyError, Wanted};
use crate::enrol;
use crate::enrol::RunError;
use crate::kill;
use crate::kill::KillError;
use crate::registration;
use crate::registration::ChangeError;
use crate::state::Shared;
use crate::tasks;
use crate::tasks::TaskError;
use crate::{lock, presence, supervise, view};

/// Bytes of a request's body; a bundle's apart.
const BODY: usize = 64 * 1024;
/// A bundle as JSON.
const BUNDLE_BODY: usize = 64 * 1024 * 1024;

/// Bundles that have been in force.
const HISTORY: &str = "/v1/policy/history";
/// Digits of a digest that name a bundle at least.
const DIGEST_START: usize = 8;

/// How long the task of a command is open that has not ended before, seconds.
const RUN_TASK: u64 = 86_400;

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
        (&Method::GET, path) if path.starts_with(HISTORY) => Verb::Look,
        (&Method::POST, "/v1/policy/explain") => Verb::Look,
        (&Method::POST, "/v1/run") => Verb::Run,
        (&Method::GET | &Method::POST, "/v1/tasks") | (&Method::POST, "/v1/tasks/end") => {
            Verb::Task
        }
        (&Method::POST, "/v1/kill" | "/v1/revive") => Verb::Kill,
        (&Method::POST, path) if registration::Verb::of(path).is_some() => Verb::Register,
        (&Method::POST, "/v1/policy" | "/v1/policy/rollback") => Verb::Apply,
        (&Method::POST, "/v1/unload") => Verb::Unload,
        (method, path) => {
            let unknown = format!("there is no {method} {path}");
            return Err(Refusal::new(StatusCode::NOT_FOUND, unknown));
        }
    };
    let label = |tgid| lock(&shared.kernel).label(tgid);
    access::check(peer, verb, &shared.config.roles, label)
        .map_err(|refused| Refusal::new(StatusCode::FORBIDDEN, refused))?;
    if let Some(verb) = registration::Verb::of(&path) {
        return register(shared, peer, verb, body(request, BODY).await?).await;
    }
    match (request.method(), path.as_str()) {
        (_, "/v1/status") => Ok(json(&view::status(shared))),
        (_, "/v1/agents") => Ok(json(&view::agents(shared))),
        (_, "/v1/ca") => Ok(json(shared.authority.info())),
        (_, "/v1/audit") => records::answer(shared, request.uri().query().unwrap_or("")).await,
        (&Method::GET, "/v1/policy") => show_policy(shared),
        (_, "/v1/policy") => apply_policy(shared, peer, body(request, BUNDLE_BODY).await?).await,
        (&Method::GET, path) if path.starts_with(HISTORY) => {
            history(shared, &path[HISTORY.len()..])
        }
        (_, "/v1/policy/rollback") => {
            let Rollback { serial } = body(request, BODY).await?;
            put_in_force(shared, peer, Wanted::Earlier(serial)).await
        }
        (_, "/v1/policy/explain") => explain_policy(shared, body(request, BODY).await?),
        (&Method::GET, "/v1/tasks") => {
            let seen = supervise::seen(shared, peer).await.map_err(task_refusal)?;
            Ok(json(&seen))
        }
        (_, "/v1/tasks") => start_task(shared, peer, body(request, BODY).await?).await,
        (_, "/v1/tasks/end") => end_task(shared, peer, body(request, BODY).await?).await,
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

/// All, newest first, or with its files the newest that `wanted` names: a serial, or the beginning of a digest.
fn history(shared: &Shared, wanted: &str) -> Result<Answer, Refusal> {
    let active = shared.active.load_full();
    let history = lock(&shared.history);
    let past = |entry: &Entry| Past {
        user: user::name(entry.uid),
        in_force: active
            .as_ref()
            .is_some_and(|now| now.entry.seq == entry.seq),
        entry: entry.clone(),
        files: BTreeMap::new(),
    };
    let newest = history.entries().iter().rev();
    let Some(wanted) = wanted.strip_prefix('/') else {
        return Ok(json(&newest.map(past).collect::<Vec<_>>()));
    };
    let is_wanted = |entry: &&Entry| match wanted.parse::<u64>() {
        Ok(serial) if entry.meta.serial == serial => true,
        _ => wanted.len() >= DIGEST_START && entry.meta.digest.starts_with(wanted),
    };
    let Some(entry) = newest.clone().find(is_wanted) else {
        let unknown = format!(
            "the history has no bundle `{wanted}`; name a serial or {DIGEST_START} digits of a digest that `agentguard policy history` lists"
        );
        return Err(Refusal::new(StatusCode::NOT_FOUND, unknown));
    };
    let sources = history.sources(entry).map_err(internal)?;
    Ok(json(&Past {
        files: sources.files,
        ..past(entry)
    }))
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
    let wanted = match bundle.packed {
        Some(packed) if bundle.files.is_empty() => Wanted::Packed(packed),
        Some(_) => {
            let hint = "say `files` or `packed`, not both";
            return Err(Refusal::new(StatusCode::BAD_REQUEST, hint));
        }
        None => Wanted::Files(Sources {
            files: bundle.files,
        }),
    };
    put_in_force(shared, peer, wanted).await
}

async fn put_in_force(
    shared: &Arc<Shared>,
    peer: &Peer,
    wanted: Wanted,
) -> Result<Answer, Refusal> {
    // Not to be cut half-way by a caller that hangs up.
    let (shared, uid) = (shared.clone(), peer.uid);
    let applying = tokio::spawn(async move { apply::apply(&shared, wanted, uid).await });
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

fn explain_policy(shared: &Shared, mut question: Question) -> Result<Answer, Refusal> {
    let active = shared.active.load_full().ok_or_else(no_bundle)?;
    let now = || Timestamp::now().to_string();
    question.time.get_or_insert_with(now);
    question
        .trusted_network
        .get_or_insert_with(|| shared.network.is_trusted());
    question
        .host_labels
        .extend(shared.config.host.labels.iter().cloned());
    let agent = active.ids.get(&question.agent);
    let presence = agent.and_then(|agent| lock(&shared.lineage).presences.of(*agent));
    if let Some(presence) = presence {
        let uptime_s = presence.uptime_s(boottime_ns());
        question.uptime_s.get_or_insert(uptime_s);
        question.attended.get_or_insert(presence.attended);
    }
    let explained = active.policy.explain(&question);
    explained
        .map(|explanation| json(&explanation))
        .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, error))
}

async fn run(shared: &Arc<Shared>, peer: &Arc<Peer>, request: Run) -> Result<Answer, Refusal> {
    let (enrolling, caller, tgid) = (shared.clone(), peer.clone(), request.pid);
    let task = request.task.clone().map(|intent| TaskStart {
        agent: request.agent.clone(),
        intent,
        allow: Vec::new(),
        scope: Default::default(),
        for_s: Some(RUN_TASK),
    });
    let running = tokio::task::spawn_blocking(move || enrol::run(&enrolling, &request, &caller));
    match running.await.map_err(internal)? {
        Ok((agent, mut started)) => {
            let mut opened = None;
            if let Some(task) = task {
                let opening = tasks::start_for(shared.clone(), peer.clone(), task, tgid);
                let opening = tokio::spawn(opening).await;
                let unheard = opening.map_err(internal)?.map_err(task_refusal)?;
                started.task = Some(unheard.id);
                opened = Some(unheard);
            }
            // Before its first instruction: no connect of it comes too early.
            shared.namespaces.settle(tgid).await;
            presence::started(shared, agent, peer).await;
            if let Some(opened) = opened {
                opened.is_told();
            }
            Ok(json(&started))
        }
        Err(error @ RunError::NotFound(_)) => Err(Refusal::new(StatusCode::NOT_FOUND, error)),
        Err(error @ RunError::Forbidden(_)) => Err(Refusal::new(StatusCode::FORBIDDEN, error)),
        Err(error @ RunError::Conflict(_)) => Err(Refusal::new(StatusCode::CONFLICT, error)),
        Err(error @ RunError::Failed(_)) => Err(internal(error)),
    }
}

async fn start_task(
    shared: &Arc<Shared>,
    peer: &Arc<Peer>,
    start: TaskStart,
) -> Result<Answer, Refusal> {
    let (shared, peer) = (shared.clone(), peer.clone());
    // Once begun it is finished, whether the caller waits or not.
    let opening = tokio::spawn(async move { tasks::start(&shared, &peer, start).await });
    let opened = opening.await.map_err(internal)?.map_err(task_refusal)?;
    Ok(json(&opened))
}

async fn end_task(shared: &Arc<Shared>, peer: &Arc<Peer>, end: TaskEnd) -> Result<Answer, Refusal> {
    let (shared, peer) = (shared.clone(), peer.clone());
    let ending = tokio::spawn(async move { tasks::end(&shared, &peer, end.id).await });
    let ended = ending.await.map_err(internal)?.map_err(task_refusal)?;
    Ok(json(&ended))
}

fn task_refusal(error: TaskError) -> Refusal {
    let status = match &error {
        TaskError::Usage(_) => StatusCode::BAD_REQUEST,
        TaskError::NotFound(_) => StatusCode::NOT_FOUND,
        TaskError::Forbidden(_) => StatusCode::FORBIDDEN,
        TaskError::Refused(_) => StatusCode::CONFLICT,
        TaskError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Refusal::new(status, error)
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

async fn register(
    shared: &Arc<Shared>,
    peer: &Peer,
    verb: registration::Verb,
    change: Change,
) -> Result<Answer, Refusal> {
    let (shared, uid) = (shared.clone(), peer.uid);
    let changing =
        tokio::spawn(async move { registration::change(&shared, verb, &change, uid).await });
    let changed = changing
        .await
        .map_err(internal)?
        .map_err(|error| match error {
            ChangeError::Usage(_) => Refusal::new(StatusCode::BAD_REQUEST, error),
            ChangeError::Refused(_) => Refusal::new(StatusCode::CONFLICT, error),
            ChangeError::Kill(error) => kill_refusal(error),
        })?;
    Ok(json(&changed))
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
