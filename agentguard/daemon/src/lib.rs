//! Wiring only: starts what the daemon is made of, in order, and hands each part the others it needs.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::wildcard_enum_match_arm))]

mod books;
mod census;
mod enforce;
mod forwarder;
pub mod guarantee;
mod host;
mod link;
mod roster;
pub mod serve;
mod state;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use agentguard_audit::Log;
use agentguard_bundle::history::History;
use agentguard_common::abi::AgentId;
use agentguard_kernel::Kernel;
use agentguard_link::frame::Start;
use agentguard_link::state::State;
use agentguard_record::Operation;
use agentguard_sys as sys;
use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::books::limits::Ledger;
use crate::books::{events, records};
use crate::census::lineage::Lineage;
use crate::census::{adoption, attendance as presence, namespaces};
pub use crate::enforce::canary::process as canary_process;
pub use crate::enforce::kill::suggest;
use crate::enforce::{apply, canary, expiry, stop};
use crate::guarantee::Facts;
use crate::host::config::Config;
use crate::host::network;
use crate::host::startup as start;
pub use crate::host::startup::StartError;
use crate::host::tls::ca::Authority;
pub use crate::host::{config, tls, upstream};
use crate::roster::book::Book;
pub use crate::roster::registry;
use crate::roster::registry::Registry;
use crate::roster::stops::stops;
use crate::roster::tasks;
use crate::serve as control;
use crate::state::{Active, Shared};

/// How long the forwarder may take at start and at stop.
const FORWARDER_LIMIT: Duration = Duration::from_secs(25);

pub fn audit_dir(state: &Path) -> PathBuf {
    state.join("audit")
}

/// The trust anchors agents are given: the system's and this host's CA, PEM.
pub fn trust_bundle(runtime: &Path) -> PathBuf {
    runtime.join("ca-bundle.pem")
}

/// What makes wget use them.
pub fn wgetrc(runtime: &Path) -> PathBuf {
    runtime.join("wgetrc")
}

/// A poisoned lock means that a thread panicked between two consistent states of a table: going on denies no more and
/// allows no more than before.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Runs until it is told to stop.
pub fn run(config: Config) -> Result<(), StartError> {
    start::check_privileges()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| StartError::Failed(format!("cannot start the runtime: {e}")))?;
    let result = runtime.block_on(serve(config));
    // The audit log's own thread ends with its queue; nothing else is worth waiting for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn serve(config: Config) -> Result<(), StartError> {
    let account = start::forwarder_account(&config)?;
    let system_roots = upstream::system_roots();
    let upstream = upstream::gather(&config.upstream, &system_roots)
        .map_err(|e| StartError::Config(e.to_string()))?;
    start::make_folders(&config)?;
    let pins = &config.paths.pins;
    // The pins' own lock is the kernel side's; said here already, before anything has been written.
    start::check_free(pins)?;
    let _only_daemon = start::take(&config.paths.state)?;

    let state = config.paths.state.clone();
    let authority = Authority::open_or_create(&state.join("ca"))
        .map_err(|e| StartError::Failed(e.to_string()))?;
    write_trust(&config.paths.runtime, &system_roots, &authority)
        .map_err(|e| StartError::Failed(format!("cannot write the trust bundle: {e}")))?;
    let log = Log::open(&audit_dir(&state), config.audit.durability)
        .map_err(|e| StartError::Failed(e.to_string()))?;
    let registry = Registry::open(&state.join("agents.json"))
        .map_err(|e| StartError::Failed(e.to_string()))?;
    let tasks =
        Book::open(&state.join("tasks.json")).map_err(|e| StartError::Failed(e.to_string()))?;
    let (history, lost) = History::open(&state).map_err(|e| StartError::Failed(e.to_string()))?;
    for error in lost {
        tracing::error!(%error, "an earlier bundle cannot be used");
    }
    let (active, bundle_trouble) = start::first_bundle(&config, &registry, &history)?;

    let cgroup_root = start::cgroup_root(&config)?;
    let mut kernel = Kernel::load(pins, &cgroup_root).map_err(|e| start::kernel_error(e, pins))?;
    let events = kernel
        .take_events()
        .map_err(|e| StartError::Failed(e.to_string()))?;
    let cgroups = sys::cgroup::CgroupNames::open(&cgroup_root)
        .map_err(|e| StartError::Failed(format!("`{}`: {e}", cgroup_root.display())))?;
    let netns_cookie =
        sys::socket::netns_cookie().map_err(|e| StartError::Failed(e.to_string()))?;
    let mut host = Facts::of_host(&config);
    if let Err(error) = kernel.protect(&start::own_files(&config)) {
        tracing::error!(%error, "the daemon's files are not protected from agents that are root");
        host.unprotected = Some(error.to_string());
    }
    let (forwarder, orders) = forwarder::ForwarderLink::new();
    let (namespaces, looks) =
        namespaces::Handle::new().map_err(|e| StartError::Failed(e.to_string()))?;
    let (event_asks, event_asked) = mpsc::channel(16);
    let records = records::Handle::start(log)
        .map_err(|e| StartError::Failed(format!("cannot start the audit log's thread: {e}")))?;
    let ledger = Ledger::start(&state.join("limits.log"))
        .map_err(|e| StartError::Failed(format!("cannot start the thread that counts: {e}")))?;
    let (network, watch) = network::Handle::start(&config.network.trusted)
        .map_err(|e| StartError::Failed(format!("cannot watch the host's network: {e}")))?;
    let shared = Arc::new(Shared {
        config,
        started: Timestamp::now(),
        kernel: Mutex::new(kernel),
        history: Mutex::new(history),
        registry: Mutex::new(registry),
        lineage: Mutex::new(Lineage::default()),
        activity: Mutex::default(),
        active: ArcSwapOption::empty(),
        metas: Mutex::default(),
        authority,
        forwarder,
        forwarder_account: account,
        records,
        ledger,
        events: event_asks,
        cgroups,
        netns_cookie,
        namespaces,
        unread: adoption::Unread::default(),
        network,
        tasks: tasks::Handle::new(tasks),
        presence: presence::Handle::default(),
        killing: tokio::sync::Mutex::new(()),
        applying: tokio::sync::Mutex::new(()),
        applied: tokio::sync::Notify::new(),
        closed: AtomicBool::new(false),
        alarms: Mutex::default(),
        canary: Mutex::new(guarantee::Canary::Pending),
        held: AtomicBool::new(false),
        host,
        stop: tokio_util::sync::CancellationToken::new(),
        unload: AtomicBool::new(false),
    });
    shared.alarm("bundle", bundle_trouble);
    start::warn_of_unknown_groups(&shared.config);
    // Who is stopped is so before anything is enrolled.
    hold_stopped(&shared, active.as_ref())?;
    // Before any rule lets anything through. What it tries at the forwarder follows when there is one.
    let canary = canary::Canary::open(&shared)?;
    canary.check(&shared).await;
    let (active, accepted_gaps) = start::hold_to_requirements(&shared, active);
    put_in_force(&shared, active).await?;
    let serving = tokio::spawn(events::serve(shared.clone(), events, event_asked));

    tokio::spawn(expiry::serve(shared.clone()));
    let entering = tokio::spawn(namespaces::serve(shared.clone(), looks));
    let looking = tokio::spawn(adoption::serve(shared.clone()));

    let active = shared.active.load();
    let update = active.as_ref().map(|active| active.update());
    let start = Start {
        port: shared.config.forwarder.port,
        limits: shared.config.forwarder.limits(),
        upstream,
        canary: canary.origin(),
        state: State {
            policy: Box::new(update.unwrap_or_else(apply::no_bundle)),
            stopped: stop::reasons(&shared.stops()),
            audit_writable: *shared.records.available().borrow(),
            trusted_network: shared.network.is_trusted(),
            host_labels: shared.config.host.labels.iter().cloned().collect(),
            tasks: shared.tasks.open(&lock(&shared.registry)),
            presences: BTreeMap::new(),
        },
    };
    drop(active);
    tokio::spawn(network::serve(shared.clone(), watch));
    tokio::spawn(tasks::serve(shared.clone()));
    tokio::spawn(presence::serve(shared.clone()));
    let supervising = tokio::spawn(forwarder::supervise(shared.clone(), orders, start));
    // Answered when it listens or has failed: the daemon serves either way, agents stay closed until it does.
    if let Err(error) = shared.forwarder.flush(FORWARDER_LIMIT).await {
        tracing::warn!(%error, "the forwarder is not ready");
    }
    canary.check(&shared).await;
    tokio::spawn(canary.serve(shared.clone()));
    if let Err(error) = adoption::adopt(&shared).await {
        tracing::error!(%error, "running processes could not all be looked at");
        shared.alarm(
            "adoption",
            Some(format!(
                "running processes could not all be looked at: {error}"
            )),
        );
    }
    shared.namespaces.settle_all().await;
    let listener = control::listen(&shared.config.paths.control_socket())
        .map_err(|e| StartError::Failed(e.to_string()))?;
    let controlling = tokio::spawn(control::serve(shared.clone(), listener));
    let started = format!("started{}", apply::gaps(&accepted_gaps));
    note(&shared, Operation::Start, &started).await;
    notify(&[NotifyState::Ready]);
    tracing::info!(socket = %shared.config.paths.control_socket().display(), "ready");

    wait_for_the_end(&shared).await?;

    notify(&[NotifyState::Stopping]);
    shared.stop.cancel();
    let _ = controlling.await;
    let _ = std::fs::remove_file(shared.config.paths.control_socket());
    shared.forwarder_is_down();
    let stopped = shared.forwarder.stop(FORWARDER_LIMIT).await;
    if let Err(error) = stopped {
        tracing::warn!(%error, "the forwarder was not stopped in order");
        supervising.abort();
    }
    let _ = supervising.await;
    let _ = serving.await;
    let _ = entering.await;
    let _ = looking.await;
    finish(&shared).await
}

/// Takes the programs away if that was asked, and has the last record written.
async fn finish(shared: &Arc<Shared>) -> Result<(), StartError> {
    let mut result = Ok(());
    if shared.unload.load(Ordering::Acquire) {
        match Kernel::unload(&shared.config.paths.pins) {
            Ok(()) => note(shared, Operation::Unload, "agents are no longer held").await,
            Err(error) => result = Err(StartError::Failed(error.to_string())),
        }
    }
    note(
        shared,
        Operation::Stop,
        "stopped; what is loaded keeps holding the agents",
    )
    .await;
    shared.records.settled().await;
    tracing::info!("stopped");
    result
}

/// By the bundle that is to come: what an earlier daemon has pinned holds until then.
fn hold_stopped(shared: &Shared, active: Option<&Active>) -> Result<(), StartError> {
    let registry = lock(&shared.registry);
    let stops = stops(&registry, active.map(|active| &active.policy));
    let mut kernel = lock(&shared.kernel);
    for known in registry.agents().values() {
        kernel
            .set_killed(known.id, stops.contains_key(&known.id))
            .map_err(|e| StartError::Failed(format!("cannot hold the stopped agents: {e}")))?;
    }
    Ok(())
}

/// The first bundle. Agents that it does not have lose the rules that an earlier daemon left pinned.
async fn put_in_force(shared: &Arc<Shared>, active: Option<Active>) -> Result<(), StartError> {
    let active = active.map(Arc::new);
    if let Some(active) = &active {
        lock(&shared.registry)
            .keep(&active.ids)
            .map_err(|e| StartError::Failed(e.to_string()))?;
        shared.remember(active.meta.clone());
        for warning in &active.blocks.warnings {
            tracing::warn!("{warning}");
        }
    }
    let gone: Vec<AgentId> = {
        let registry = lock(&shared.registry);
        let listed = |name: &String| active.as_ref().is_some_and(|a| a.ids.contains_key(name));
        let unlisted = registry.agents().iter().filter(|(name, _)| !listed(name));
        unlisted.map(|(_, known)| known.id).collect()
    };
    for id in gone {
        lock(&shared.kernel)
            .remove_rules(id)
            .map_err(|e| StartError::Failed(e.to_string()))?;
    }
    apply::switch(shared, None, active.clone())
        .await
        .map_err(|e| {
            StartError::Failed(format!("the kernel did not take the bundle's rules: {e}"))
        })?;
    match &active {
        Some(active) => tracing::info!(
            bundle = active.meta.name,
            serial = active.meta.serial,
            digest = active.meta.digest,
            "bundle in force"
        ),
        None => tracing::warn!("no bundle: every agent is denied everything"),
    }
    if let Some(active) = &active
        && let Err(error) = lock(&shared.history).keep(&active.entry, &active.sources)
    {
        tracing::error!(%error, "the bundle is in force, and not in the history");
    }
    shared.active.store(active);
    Ok(())
}

async fn wait_for_the_end(shared: &Shared) -> Result<(), StartError> {
    let cannot = |e: std::io::Error| StartError::Failed(format!("cannot wait for signals: {e}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    let watchdog = sd_notify::watchdog_enabled().map(|limit| limit / 2);
    let period = watchdog.unwrap_or(Duration::from_secs(3600));
    let mut alive = tokio::time::interval(period.max(Duration::from_millis(1)));
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            () = shared.stop.cancelled() => return Ok(()),
            _ = alive.tick() => if watchdog.is_some() {
                notify(&[NotifyState::Watchdog]);
            },
        }
    }
}

/// The combined bundle that `run` gives clients, in files that everyone may read.
fn write_trust(runtime: &Path, system: &str, authority: &Authority) -> sys::Result<()> {
    let bundle = format!("{}\n{}", system.trim_end(), authority.certificate_pem());
    let trust = trust_bundle(runtime);
    sys::file::write_atomically(&trust, bundle.as_bytes(), 0o644)?;
    let line = format!("ca_certificate={}\n", trust.display());
    sys::file::write_atomically(&wgetrc(runtime), line.as_bytes(), 0o644)
}

async fn note(shared: &Shared, operation: Operation, detail: &str) {
    let item = records::about_daemon(operation, "agentguard", detail.to_owned());
    shared.records.append(vec![item]).await;
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
