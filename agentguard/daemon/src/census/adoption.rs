//! Enrols what already runs, and takes the connections it made before anyone judged them.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentguard_common::abi::AgentId;
use agentguard_sys::process::Snapshot;
use agentguard_sys::{diag, process};
use tokio::sync::Notify;

use crate::census::adopt;
use crate::census::identify::Blocks;
use crate::enforce::stop::everywhere;
use crate::lock;
use crate::state::Shared;

/// Looks at every running process. Blocks of the bundle in force decide; what has a label keeps it.
pub async fn adopt(shared: &Arc<Shared>) -> Result<(), String> {
    let shared = shared.clone();
    let looking = tokio::task::spawn_blocking(move || adopt_now(&shared).map(drop));
    looking.await.map_err(|e| e.to_string())?
}

/// Processes of which the kernel could not tell whose they are; 0 stands for any.
#[derive(Default)]
pub struct Unread {
    tgids: Mutex<BTreeSet<u32>>,
    told: Notify,
}

impl Unread {
    pub fn tell(&self, tgid: u32) {
        lock(&self.tgids).insert(tgid);
        self.told.notify_one();
    }

    async fn next(&self) -> BTreeSet<u32> {
        self.told.notified().await;
        std::mem::take(&mut *lock(&self.tgids))
    }
}

/// Execs and ends of processes that no program may have seen.
#[derive(Default)]
struct Missed {
    known: u64,
}

impl Missed {
    /// Between two looks.
    const EVERY: Duration = Duration::from_secs(1);

    async fn more(&mut self, shared: &Shared) {
        loop {
            let missed = lock(&shared.kernel).missed();
            match missed {
                Ok(Some(now)) if now > self.known => {
                    let more = now - self.known;
                    self.known = now;
                    tracing::error!(
                        more,
                        "the kernel left out programs: an exec or the end of a process may not have been seen"
                    );
                    let message = format!(
                        "up to {now} execs and ends of processes were not seen: the audit log may lack execs"
                    );
                    shared.alarm("missed", Some(message));
                    return;
                }
                Ok(Some(_)) => tokio::time::sleep(Self::EVERY).await,
                Ok(None) => return std::future::pending().await,
                Err(error) => {
                    let message = format!("what the kernel has missed cannot be told: {error}");
                    tracing::error!("{message}");
                    shared.alarm("unread", Some(message));
                    return std::future::pending().await;
                }
            }
        }
    }
}

/// Looks at what the kernel could not read or has missed, until the daemon stops.
pub async fn serve(shared: Arc<Shared>) {
    let mut missed = Missed::default();
    loop {
        let tgids = tokio::select! {
            () = shared.stop.cancelled() => return,
            tgids = shared.unread.next() => tgids,
            () = missed.more(&shared) => BTreeSet::from([0]),
        };
        if let Err(error) = look(&shared, tgids).await {
            let message = format!("processes that the kernel could not read: {error}");
            tracing::error!("{message}");
            shared.alarm("unread", Some(message));
        }
    }
}

async fn look(shared: &Arc<Shared>, tgids: BTreeSet<u32>) -> Result<(), String> {
    // What is in force stays so meanwhile.
    let _one_at_a_time = shared.applying.lock().await;
    let shared = shared.clone();
    let looking = tokio::task::spawn_blocking(move || look_now(&shared, &tgids));
    looking.await.map_err(|e| e.to_string())?
}

fn look_now(shared: &Shared, tgids: &BTreeSet<u32>) -> Result<(), String> {
    let Some(active) = shared.active.load_full() else {
        return Ok(());
    };
    if tgids.contains(&0) {
        // A new cgroup may not have been marked.
        let blocks = active.blocks.to_kernel();
        let marked = lock(&shared.kernel).set_identify(&blocks);
        marked.map_err(|e| e.to_string())?;
    } else if !tgids
        .iter()
        .any(|tgid| Snapshot::of(*tgid).is_some_and(|seen| active.blocks.claim(&seen).is_some()))
    {
        return Ok(());
    }
    let adopted = adopt_now(shared)?;
    if let Some((seen, agent)) = adopted.first() {
        let message = format!(
            "the kernel could not tell whose {} processes are, `{}` of agent {} among them, and nobody held them until \
             they had been looked at; see `read_failed` in `status`",
            adopted.len(),
            seen.exe,
            name(shared, *agent),
        );
        tracing::error!("{message}");
        shared.alarm("unread", Some(message));
    }
    Ok(())
}

/// Answers what is labelled now and was not.
fn adopt_now(shared: &Shared) -> Result<Vec<(Snapshot, AgentId)>, String> {
    let mut exempt = vec![std::process::id()];
    exempt.extend(shared.forwarder.tgid());
    let active = shared.active.load_full();
    let none = Blocks::default();
    let blocks = active.as_ref().map_or(&none, |active| &active.blocks);
    let adopted =
        adopt::adopt(&mut &*shared, blocks, &exempt, adopt::scan).map_err(|e| e.to_string())?;
    let mut inodes = HashSet::new();
    for (seen, agent) in &adopted {
        tracing::info!(
            pid = seen.tgid,
            exe = seen.exe,
            agent = name(shared, *agent),
            "a running process is an agent's"
        );
        inodes.extend(process::socket_inodes(seen.tgid));
    }
    // Their sockets carry no mark, so no hook would judge what goes through them.
    let tgids: Vec<u32> = adopted.iter().map(|(seen, _)| seen.tgid).collect();
    let mut cut = diag::Cut::default();
    everywhere(&shared.namespaces.all_of(&tgids), || {
        let here = diag::destroy(&inodes, diag::Which::All).map_err(|e| e.to_string())?;
        cut.destroyed += here.destroyed;
        cut.failed += here.failed;
        Ok(())
    })?;
    if cut.destroyed > 0 || cut.failed > 0 {
        tracing::warn!(
            closed = cut.destroyed,
            left = cut.failed,
            "sockets opened before their process was an agent's"
        );
    }
    if cut.failed > 0 {
        return Err(format!(
            "{} sockets opened before could not be closed",
            cut.failed
        ));
    }
    refresh(shared)?;
    Ok(adopted)
}

/// Everything labelled now is in the lineage, and nothing that has ended: after a restart the labels are older than this
/// daemon, and events can be lost.
fn refresh(shared: &Shared) -> Result<(), String> {
    for seen in adopt::scan() {
        let label = lock(&shared.kernel).label(seen.tgid);
        let agent = label.map_err(|e| e.to_string())?.agent;
        if agent != AgentId::NONE && !agent.is_canary() {
            lock(&shared.lineage).adopted(&seen, agent);
        }
    }
    lock(&shared.lineage).look_for_ended(process::boottime_ns());
    shared.presence.changed();
    Ok(())
}

fn name(shared: &Shared, agent: AgentId) -> String {
    let registry = lock(&shared.registry);
    registry
        .name(agent)
        .map_or_else(|| crate::books::records::unnamed(agent), str::to_owned)
}
