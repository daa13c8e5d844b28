//! Wiring only: starts what the daemon is made of, in order, and hands each part the others it needs.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::wildcard_enum_match_arm))]

mod books;
mod census;
mod enforce;
mod forwarder;
pub mod guarantee;
mod host;
mod lock;
mod parts;
mod roster;
pub mod serve;
mod services;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agentguard_audit::Durability;
use agentguard_kernel::Kernel;
use agentguard_link::frame::{Start, Upstream};
use agentguard_link::state::State;
use agentguard_record::guarantee::GuaranteeId;
use agentguard_record::{Actor, Operation, Outcome};
use agentguard_sys as sys;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::parts::{Ending, Parts};
use self::services::{Inboxes, Services};
use crate::books::Books;
pub use crate::books::alarms;
use crate::books::alarms::{Alarm, Concern};
use crate::books::records::OperatorEntry;
use crate::census::{Census, adoption};
use crate::enforce::Enforce;
use crate::enforce::apply::{self, Installation};
use crate::enforce::canary::Canary;
pub use crate::enforce::canary::process as canary_process;
pub use crate::enforce::kill::{KillError, suggest};
pub use crate::enforce::orders::KillOrder;
use crate::enforce::stop;
use crate::forwarder::{ForwarderLink, Spool};
use crate::host::Host;
use crate::host::config::{Config, RefusedNames};
use crate::host::manifest::{self, LostState};
use crate::host::startup as start;
pub use crate::host::startup::StartError;
use crate::host::tls::ca::Authority;
pub use crate::host::{config, tls, upstream};
use crate::lock::lock;
use crate::roster::Roster;
use crate::roster::active::{Active, no_bundle};
use crate::roster::change::Changes;
pub use crate::roster::registry;

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

/// Runs until it is told to stop.
pub fn run(config: Config) -> Result<(), StartError> {
    start::check_privileges()?;
    // A terminal that is gone ends nobody's protection: the forwarder's process inherits it.
    sys::signal::ignore_hangup().map_err(|e| StartError::Failed(e.to_string()))?;
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
    let signals = Signals::listen()?;
    let account = start::forwarder_account(&config)?;
    let system_roots = upstream::system_roots();
    let upstream = upstream::gather(&config.upstream, &system_roots)
        .map_err(|e| StartError::Config(e.to_string()))?;
    start::make_folders(&config)?;
    // The pins' own lock is the kernel side's; said here already, before anything has been written.
    start::check_free(&config.paths.pins)?;
    let _only_daemon = start::take(&config.paths.state)?;

    let authority = Authority::open_or_create(&config.paths.state.join("ca"))
        .map_err(|e| StartError::Failed(e.to_string()))?;
    write_trust(&config.paths.runtime, &system_roots, &authority)
        .map_err(|e| StartError::Failed(format!("cannot write the trust bundle: {e}")))?;
    let lost = manifest::lost(&config.paths)
        .map_err(|e| StartError::Failed(format!("cannot write what the state has lost: {e}")))?;
    let (books, drains) = Books::open(&config)?;
    let (roster, first, unusable) = Roster::open(&config)?;
    let cgroup_root = start::cgroup_root(&config)?;
    let (enforce, events) = Enforce::open(&config, &cgroup_root)?;
    let (host, network) = Host::open(config, account, &cgroup_root)?;
    let (census, looks) = Census::open()?;
    let (forwarder, orders) = ForwarderLink::new();
    let spool = open_spool(&host.config)?;
    let parts = Parts {
        host: Arc::new(host),
        roster: Arc::new(roster),
        changes: Arc::new(Changes::default()),
        census: Arc::new(census),
        enforce: Arc::new(enforce),
        books: Arc::new(books),
        forwarder,
        authority: Arc::new(authority),
        searches: Arc::default(),
        ending: Ending::default(),
    };
    if let Some(alarm) = unusable {
        parts.books.alarms.raise(Concern::Bundle, alarm);
    }
    start::warn_of_unknown_groups(&parts.host.config);
    let lost = take_loss(&parts, lost, first.as_ref())?;
    // Who is stopped is so before anything is enrolled.
    let policy = first.as_ref().map(|first| &first.policy);
    parts
        .enforce
        .hold_stopped(&parts.roster, policy)
        .map_err(|e| StartError::Failed(format!("cannot hold the stopped agents: {e}")))?;
    // Before any rule lets anything through. What it tries at the forwarder follows when there is one.
    let canary = services::canary(&parts)?;
    canary.check().await;
    let accepted = install_first(&parts, first).await?;
    let start = forwarder_start(&parts, upstream, &canary);
    let inboxes = Inboxes {
        events,
        drains,
        looks,
        network,
        orders,
        spool,
    };
    let services = Services::spawn(&parts, inboxes, start);
    // Answered when it listens or has failed: the daemon serves either way, agents stay closed until it does.
    if let Err(error) = parts.forwarder.flush(FORWARDER_LIMIT).await {
        tracing::warn!(%error, "the forwarder is not ready");
    }
    canary.check().await;
    tokio::spawn(canary.serve());
    adopt(&parts).await;
    parts.census.namespaces.settle_all().await;
    let socket = parts.host.config.paths.control_socket();
    let listener = serve::listen(&socket).map_err(|e| StartError::Failed(e.to_string()))?;
    let controlling = tokio::spawn(serve::serve(parts.clone(), listener));
    let started = format!("started{}{lost}", apply::gaps(&accepted));
    note(&parts.books, Operation::Start, &started).await;
    // What only the start needed.
    sys::memory::give_back();
    notify(&[NotifyState::Ready]);
    tracing::info!(socket = %socket.display(), "ready");

    wait_for_the_end(signals, &parts.ending).await;

    notify(&[NotifyState::Stopping]);
    parts.ending.stop.cancel();
    let _ = controlling.await;
    let _ = std::fs::remove_file(socket);
    parts.enforce.forwarder_is_down(&parts.census);
    if let Err(error) = parts.forwarder.stop(FORWARDER_LIMIT).await {
        tracing::warn!(%error, "the forwarder was not stopped in order");
        services.supervisor.abort();
    }
    services.ended().await;
    finish(&parts).await
}

/// Closes what was held by files of the state that are gone; answers what the start's record says of it.
fn take_loss(parts: &Parts, lost: LostState, first: Option<&Active>) -> Result<String, StartError> {
    let Parts {
        host,
        roster,
        books,
        ..
    } = parts;
    let mut told = String::new();
    if !lost.holding.is_empty() {
        let alarm = Alarm::StateLost(lost.holding);
        let killed = roster.kill_all(first, &alarm.to_string());
        killed.map_err(|e| StartError::Failed(e.to_string()))?;
        told = format!("; {alarm}");
        books.alarms.raise(Concern::State, alarm);
    }
    if lost.audit {
        told = format!("{told}; {}", Alarm::LogLost);
        books.alarms.raise(Concern::Log, Alarm::LogLost);
    }
    if !told.is_empty() {
        tracing::error!("{}", told.trim_start_matches("; "));
    }
    let kept = manifest::keep(&host.config.paths.state);
    kept.map_err(|e| StartError::Failed(format!("cannot write what the state holds: {e}")))?;
    Ok(told)
}

/// The first bundle, unless it requires what this host lacks. Answers which gaps count and are accepted.
async fn install_first(
    parts: &Parts,
    first: Option<Active>,
) -> Result<Vec<GuaranteeId>, StartError> {
    let Parts {
        host,
        roster,
        census,
        enforce,
        books,
        forwarder,
        ..
    } = parts;
    let (first, accepted) =
        match start::hold_to_requirements(host, census, enforce, forwarder, first) {
            Ok(held) => held,
            Err(alarm) => {
                tracing::error!("{alarm}");
                books.alarms.raise(Concern::Bundle, alarm);
                (None, Vec::new())
            }
        };
    let first = first.map(Arc::new);
    let change = parts.changes.bundle().await;
    let installation = Installation::First(first.clone());
    parts
        .installer()
        .install(&change, installation)
        .await
        .map_err(StartError::Failed)?;
    let Some(first) = first else {
        tracing::warn!("no bundle: every agent is denied everything");
        return Ok(accepted);
    };
    for warning in &first.blocks.warnings {
        tracing::warn!("{warning}");
    }
    tracing::info!(
        bundle = first.meta.name,
        serial = first.meta.serial,
        digest = first.meta.digest,
        "bundle in force"
    );
    // What cannot be kept has been told, and the bundle is in force all the same.
    let _ = apply::keep(roster, &first);
    Ok(accepted)
}

/// Where the forwarder's records are until they are in the log.
fn open_spool(config: &Config) -> Result<Spool, StartError> {
    let state = &config.paths.state;
    Spool::open(
        &state.join("spool"),
        &audit_dir(state),
        config.audit.durability,
    )
    .map_err(|error| StartError::Failed(format!("the spool of records: {error}")))
}

/// What the forwarder starts with.
fn forwarder_start(parts: &Parts, upstream: Upstream, canary: &Canary) -> Start {
    let active = parts.roster.active.load();
    let policy = active
        .as_ref()
        .map_or_else(no_bundle, |active| active.update());
    let config = &parts.host.config;
    Start {
        limits: config.forwarder.limits(),
        upstream,
        tells_refused_names: config.forwarder.refused_names == RefusedNames::Guard,
        // Each forwarder is told anew.
        spool: Vec::new(),
        strict: config.audit.durability == Durability::Strict,
        canary: canary.origin(),
        state: State {
            policy: Box::new(policy),
            stopped: stop::reasons(&parts.roster.stops()),
            audit_writable: *parts.books.records.available().borrow(),
            trusted_network: parts.host.network.is_trusted(),
            names: upstream::names(&config.upstream),
            host_labels: config.host.labels.iter().cloned().collect(),
            tasks: parts.roster.tasks.open(&lock(&parts.roster.registry)),
            presences: BTreeMap::new(),
        },
    }
}

/// What runs already.
async fn adopt(parts: &Parts) {
    let Parts {
        roster,
        census,
        enforce,
        books,
        forwarder,
        ..
    } = parts;
    let adopted = adoption::adopt(roster, census, enforce, forwarder.tgid());
    if let Err(error) = adopted.await {
        let alarm = Alarm::ProcessesUnlabelled(error);
        tracing::error!("{alarm}");
        books.alarms.raise(Concern::Adoption, alarm);
    }
}

/// Takes the programs away if that was asked, and has the last record written.
async fn finish(parts: &Parts) -> Result<(), StartError> {
    let books = &parts.books;
    let mut result = Ok(());
    if parts.ending.is_unload() {
        match Kernel::unload(&parts.host.config.paths.pins) {
            Ok(()) => note(books, Operation::Unload, "agents are no longer held").await,
            Err(error) => result = Err(StartError::Failed(error.to_string())),
        }
    }
    let stopped = "stopped; what is loaded keeps holding the agents";
    note(books, Operation::Stop, stopped).await;
    books.records.settled().await;
    tracing::info!("stopped");
    result
}

/// Who asks for the end while the daemon starts is heard when it has started: never a daemon that just dies.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Self, StartError> {
        let listen = |kind| {
            signal(kind).map_err(|e| StartError::Failed(format!("cannot wait for signals: {e}")))
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }
}

async fn wait_for_the_end(mut signals: Signals, ending: &Ending) {
    let watchdog = sd_notify::watchdog_enabled().map(|limit| limit / 2);
    let period = watchdog.unwrap_or(Duration::from_secs(3600));
    let mut alive = tokio::time::interval(period.max(Duration::from_millis(1)));
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return,
            _ = signals.interrupt.recv() => return,
            () = ending.stop.cancelled() => return,
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

async fn note(books: &Books, operation: Operation, detail: &str) {
    let done = OperatorEntry {
        by: Actor::Daemon,
        operation,
        agent: None,
        resource: "agentguard".to_owned(),
        outcome: Outcome::Allow,
        detail: detail.to_owned(),
        bundle: None,
    };
    books.operated(done);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
