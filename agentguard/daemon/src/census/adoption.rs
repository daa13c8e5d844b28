//! Enrols what already runs, and takes the connections it made before anyone judged them.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentguard_common::abi::AgentId;
use agentguard_sys::process::Snapshot;
use agentguard_sys::{diag, process};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Census;
use super::adopt;
use super::identify::Blocks;
use crate::books::Books;
use crate::books::alarms::{Alarm, Alarms, Concern};
use crate::enforce::Enforce;
use crate::enforce::stop::everywhere;
use crate::forwarder::ForwarderLink;
use crate::lock::lock;
use crate::roster::Roster;
use crate::roster::change::Changes;

/// Looks at every running process. Blocks of the bundle in force decide; what has a label keeps it. `forwarder`: its tgid.
pub(crate) async fn adopt(
    roster: &Arc<Roster>,
    census: &Arc<Census>,
    enforce: &Arc<Enforce>,
    forwarder: Option<u32>,
) -> Result<(), String> {
    let (roster, census, enforce) = (roster.clone(), census.clone(), enforce.clone());
    let looking = tokio::task::spawn_blocking(move || {
        adopt_now(&roster, &census, &enforce, forwarder).map(drop)
    });
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

    async fn more(&mut self, enforce: &Enforce, alarms: &Alarms) {
        loop {
            let missed = lock(&enforce.kernel).missed();
            match missed {
                Ok(Some(now)) if now > self.known => {
                    let more = now - self.known;
                    self.known = now;
                    tracing::error!(
                        more,
                        "the kernel left out programs: an exec or the end of a process may not have been seen"
                    );
                    alarms.raise(Concern::Missed, Alarm::ExecsMissed(now));
                    return;
                }
                Ok(Some(_)) => tokio::time::sleep(Self::EVERY).await,
                Ok(None) => return std::future::pending().await,
                Err(error) => {
                    let alarm = Alarm::MissedUncounted(error.to_string());
                    tracing::error!("{alarm}");
                    alarms.raise(Concern::Unread, alarm);
                    return std::future::pending().await;
                }
            }
        }
    }
}

/// Looks at what the kernel could not read or has missed.
pub(crate) struct Adoption {
    pub roster: Arc<Roster>,
    pub changes: Arc<Changes>,
    pub census: Arc<Census>,
    pub enforce: Arc<Enforce>,
    pub books: Arc<Books>,
    pub forwarder: ForwarderLink,
    pub stop: CancellationToken,
}

impl Adoption {
    /// Until the daemon stops.
    pub(crate) async fn serve(self) {
        let mut missed = Missed::default();
        loop {
            let tgids = tokio::select! {
                () = self.stop.cancelled() => return,
                tgids = self.census.unread.next() => tgids,
                () = missed.more(&self.enforce, &self.books.alarms) => BTreeSet::from([0]),
            };
            let alarm = match self.look(tgids).await {
                Ok(None) => continue,
                Ok(Some(alarm)) => alarm,
                Err(error) => Alarm::ProcessesUnread(error),
            };
            tracing::error!("{alarm}");
            self.books.alarms.raise(Concern::Unread, alarm);
        }
    }

    async fn look(&self, tgids: BTreeSet<u32>) -> Result<Option<Alarm>, String> {
        // What is in force stays so meanwhile.
        let _change = self.changes.bundle().await;
        let (roster, census, enforce) = (
            self.roster.clone(),
            self.census.clone(),
            self.enforce.clone(),
        );
        let forwarder = self.forwarder.tgid();
        let looking = tokio::task::spawn_blocking(move || {
            look_now(&roster, &census, &enforce, forwarder, &tgids)
        });
        looking.await.map_err(|e| e.to_string())?
    }
}

fn look_now(
    roster: &Roster,
    census: &Census,
    enforce: &Enforce,
    forwarder: Option<u32>,
    tgids: &BTreeSet<u32>,
) -> Result<Option<Alarm>, String> {
    let Some(active) = roster.active.load_full() else {
        return Ok(None);
    };
    if tgids.contains(&0) {
        // A new cgroup may not have been marked.
        let blocks = active.blocks.to_kernel();
        let marked = lock(&enforce.kernel).set_identify(&blocks);
        marked.map_err(|e| e.to_string())?;
    } else if !tgids
        .iter()
        .any(|tgid| Snapshot::of(*tgid).is_some_and(|seen| active.blocks.claim(&seen).is_some()))
    {
        return Ok(None);
    }
    let adopted = adopt_now(roster, census, enforce, forwarder)?;
    Ok(adopted.first().map(|(seen, agent)| Alarm::ProcessesUnheld {
        count: adopted.len(),
        exe: seen.exe.clone(),
        agent: roster.name(*agent),
    }))
}

/// Answers what is labelled now and was not.
fn adopt_now(
    roster: &Roster,
    census: &Census,
    enforce: &Enforce,
    forwarder: Option<u32>,
) -> Result<Vec<(Snapshot, AgentId)>, String> {
    let mut exempt = vec![std::process::id()];
    exempt.extend(forwarder);
    let active = roster.active.load_full();
    let none = Blocks::default();
    let blocks = active.as_ref().map_or(&none, |active| &active.blocks);
    let adopted =
        adopt::adopt(&mut &*enforce, blocks, &exempt, adopt::scan).map_err(|e| e.to_string())?;
    let mut inodes = HashSet::new();
    for (seen, agent) in &adopted {
        tracing::info!(
            pid = seen.tgid,
            exe = seen.exe,
            agent = roster.name(*agent),
            "a running process is an agent's"
        );
        inodes.extend(process::socket_inodes(seen.tgid));
    }
    // Their sockets carry no mark, so no hook would judge what goes through them.
    let tgids: Vec<u32> = adopted.iter().map(|(seen, _)| seen.tgid).collect();
    let mut cut = diag::CutSockets::default();
    everywhere(&census.namespaces.all_of(&tgids), || {
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
    refresh(census, enforce)?;
    Ok(adopted)
}

/// Everything labelled now is in the lineage, and nothing that has ended: after a restart the labels are older than this
/// daemon, and events can be lost.
fn refresh(census: &Census, enforce: &Enforce) -> Result<(), String> {
    for seen in adopt::scan() {
        let label = lock(&enforce.kernel).label(seen.tgid);
        let agent = label.map_err(|e| e.to_string())?.agent;
        if agent != AgentId::NONE && !agent.is_canary() {
            lock(&census.lineage).adopted(&seen, agent);
        }
    }
    lock(&census.lineage).look_for_ended(process::boottime_ns());
    census.attendance.changed();
    Ok(())
}
