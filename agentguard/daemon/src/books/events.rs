//! Kernel events: processes into the lineage, verdicts into the audit log. An event keeps its place in the kernel's ring until
//! its record is written, and a permit that finds no place there is refused by the kernel: whatever this process does or
//! however it ends, nothing that is permitted goes without a record.

mod draft;

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use agentguard_common::abi::{AgentId, Event, EventKind};
use agentguard_common::counter::Counter;
use agentguard_common::verdict::Refusal;
use agentguard_kernel::{Batch, Counted, Events, JudgedExec, KernelError, RingEvent};
use agentguard_record::secret::without_tokens;
use agentguard_record::{Actor, DenyReason, Draft, Operation, Outcome, Process};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use self::draft::{draft, of_many, path};
use super::Books;
use super::alarms::{Alarm, Concern};
use super::complete::Clock;
use super::records::OperatorEntry;
use crate::census::Census;
use crate::census::lineage::Exec;
use crate::enforce::Enforce;
use crate::host::Host;
use crate::lock::lock;
use crate::roster::Roster;

/// Lost events are recorded together, at most this often.
const LOST_EVERY: Duration = Duration::from_secs(1);

/// How often refusals that the kernel has only counted are looked for.
const COUNTED_EVERY: Duration = Duration::from_secs(1);

/// How long the end of the daemon waits for what it has read to be written.
const LAST_RECORDS: Duration = Duration::from_secs(2);

/// Reads what the kernel tells.
pub(crate) struct EventReader {
    pub host: Arc<Host>,
    pub roster: Arc<Roster>,
    pub census: Arc<Census>,
    pub enforce: Arc<Enforce>,
    pub books: Arc<Books>,
    pub stop: CancellationToken,
}

/// What was read together and is being written; the log answers once it is.
struct Unwritten {
    batch: Batch,
    counted: Vec<Counted>,
    written: oneshot::Receiver<()>,
}

enum Next {
    Readable,
    Asked(oneshot::Sender<()>),
    /// The first of what is being written is.
    Written,
    Lost,
    Look,
}

impl EventReader {
    /// Until the daemon stops; on each of `asks`, what is in the ring now, first.
    pub(crate) async fn serve(
        self,
        mut events: Events,
        mut asks: mpsc::Receiver<oneshot::Sender<()>>,
    ) {
        let mut lost = Lost::before(&self.enforce);
        // Of those that were counted before, it is not known here whether they are recorded.
        let mut counted = 0;
        let mut unwritten = VecDeque::new();
        let mut looks = tokio::time::interval(COUNTED_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = lost.due;
            let next = tokio::select! {
                ready = events.readable() => ready.map(|()| Next::Readable),
                Some(ask) = asks.recv() => Ok(Next::Asked(ask)),
                () = written(&mut unwritten), if !unwritten.is_empty() => Ok(Next::Written),
                () = async { tokio::time::sleep_until(due.expect("checked")).await },
                    if due.is_some() => Ok(Next::Lost),
                _ = looks.tick() => Ok(Next::Look),
                () = self.stop.cancelled() => break,
            };
            let done = match next {
                Err(error) => Err(error.to_string()),
                Ok(Next::Lost) => {
                    self.books.operated(lost.record());
                    continue;
                }
                // What is read and not handed in by then is read again by the next daemon.
                Ok(next) => tokio::select! {
                    done = self.advance(next, &mut events, &mut unwritten, &mut lost, &mut counted) => {
                        done.map_err(|error| error.to_string())
                    }
                    () = self.stop.cancelled() => break,
                },
            };
            if let Err(error) = done {
                let alarm = Alarm::EventsUnreadable(error);
                tracing::error!("{alarm}");
                self.books.alarms.raise(Concern::Events, alarm);
                return;
            }
        }
        while !unwritten.is_empty() {
            let written = tokio::time::timeout(LAST_RECORDS, written(&mut unwritten));
            if written.await.is_err() || release(&mut events, &mut unwritten).is_err() {
                return;
            }
        }
    }

    /// Gives back what is written, and reads what is new.
    async fn advance(
        &self,
        next: Next,
        events: &mut Events,
        unwritten: &mut VecDeque<Unwritten>,
        lost: &mut Lost,
        known: &mut u64,
    ) -> Result<(), KernelError> {
        if matches!(next, Next::Written) {
            release(events, unwritten)?;
        }
        let mut taken = Vec::new();
        let batch = events.read(|seen| taken.push(seen));
        let looks = matches!(next, Next::Look | Next::Asked(_));
        if looks && let Some(alarm) = lost.look(&self.enforce) {
            self.books.alarms.raise(Concern::LostEvents, alarm);
            // One of the lost may have told of a process that nobody has labelled.
            self.census.unread.tell(0);
        }
        if !taken.is_empty() {
            self.take(&taken).await;
        }
        // One look at a time: until its records are written, the next would find the same. Who asks is told of more.
        if matches!(next, Next::Asked(_)) {
            self.finish_counted(events, unwritten).await?;
        }
        let counted = match looks && unwritten.iter().all(|some| some.counted.is_empty()) {
            true => self.count(events, known).await?,
            false => Vec::new(),
        };
        if matches!(next, Next::Look) && counted.is_empty() {
            self.books.alarms.clear(Concern::Refusals);
        }
        if !batch.is_empty() || !counted.is_empty() {
            let written = self.books.records.when_written().await;
            unwritten.push_back(Unwritten {
                batch,
                counted,
                written,
            });
        }
        if let Next::Asked(ask) = next {
            let _ = ask.send(());
        }
        Ok(())
    }

    /// Until what was counted is recorded and noted, or the log cannot be written.
    async fn finish_counted(
        &self,
        events: &mut Events,
        unwritten: &mut VecDeque<Unwritten>,
    ) -> Result<(), KernelError> {
        let mut available = self.books.records.available();
        while unwritten.iter().any(|some| !some.counted.is_empty()) {
            tokio::select! {
                () = written(unwritten) => release(events, unwritten)?,
                _ = available.wait_for(|available| !available) => break,
            }
        }
        Ok(())
    }

    /// Hands in the records of refusals that the kernel has told by their number and that are not noted as recorded.
    async fn count(&self, events: &Events, known: &mut u64) -> Result<Vec<Counted>, KernelError> {
        let now = count(&self.enforce, Counter::RefusalsCounted);
        if now == *known {
            return Ok(Vec::new());
        }
        *known = now;
        let ids: Vec<AgentId> = {
            let registry = lock(&self.roster.registry);
            let known = registry.agents().values().map(|agent| agent.id);
            std::iter::once(AgentId::AMBIGUOUS).chain(known).collect()
        };
        let found = events.counted(ids.into_iter())?;
        let Some(most) = found.iter().max_by_key(|found| found.count) else {
            return Ok(found);
        };
        let agent = lock(&self.roster.registry)
            .name(most.agent)
            .map(str::to_owned);
        let alarm = Alarm::RefusalStorm {
            agent: agent.unwrap_or_else(|| super::records::unnamed(most.agent)),
            count: most.count,
        };
        if self.books.alarms.raise(Concern::Refusals, alarm.clone()) {
            tracing::warn!("{alarm}");
        }
        let drafts = found
            .iter()
            .map(|found| (stopped(&self.roster, of_many(found)), None));
        self.books
            .record(&self.roster, &self.census, drafts.collect())
            .await;
        Ok(found)
    }

    async fn take(&self, seen: &[RingEvent]) {
        let Self {
            host,
            roster,
            census,
            books,
            ..
        } = self;
        let clock = Clock::now();
        let mut drafts = Vec::new();
        let seen = seen.iter().filter(|seen| !seen.event.agent.is_canary());
        for RingEvent { event, exec } in seen {
            let kind = match EventKind::try_from(event.kind) {
                Ok(kind) => kind,
                Err(kind) => {
                    tracing::warn!(kind, "a kernel event of an unknown kind");
                    continue;
                }
            };
            match kind {
                EventKind::Fork | EventKind::Exec | EventKind::Enrol => {
                    census.namespaces.begun(event.tgid);
                    // Of a process whose exec went through another event tells; else it runs what it ran.
                    if !exec.as_ref().is_some_and(|exec| exec.before) {
                        match kind == EventKind::Fork {
                            true => forked(census, event),
                            false => executed(host, census, event),
                        }
                    }
                }
                EventKind::Exit => lock(&census.lineage).exited(event.tgid, event.time_ns),
                EventKind::Unread => {
                    census.unread.tell(event.tgid);
                    continue;
                }
                EventKind::ForwarderDown => {
                    tracing::warn!(
                        "the forwarder's listener is gone: agents' connects are refused"
                    );
                    continue;
                }
                EventKind::Connect
                | EventKind::Send
                | EventKind::Bind
                | EventKind::Socket
                | EventKind::Packet
                | EventKind::Unix
                | EventKind::Tamper
                | EventKind::HandedOver => {
                    if event.reason == Refusal::Namespace as u32 {
                        census.namespaces.refused(event.tgid);
                    }
                }
            }
            if let Some(draft) = draft(event, kind, exec.is_some(), &clock) {
                drafts.push((stopped(roster, draft), caller(census, event, exec.as_ref())));
            }
        }
        census.attendance.changed();
        if !drafts.is_empty() {
            books.record(roster, census, drafts).await;
        }
    }
}

/// Waits until the first is written. If the writer ends before, it never is.
async fn written(unwritten: &mut VecDeque<Unwritten>) {
    let written = match unwritten.front_mut() {
        Some(first) => (&mut first.written).await.is_ok(),
        None => false,
    };
    if !written {
        std::future::pending().await
    }
}

fn release(events: &mut Events, unwritten: &mut VecDeque<Unwritten>) -> Result<(), KernelError> {
    let Some(first) = unwritten.pop_front() else {
        return Ok(());
    };
    events.release(first.batch)?;
    events.note(&first.counted)
}

/// What the ring has lost, by the kernel's own count.
struct Lost {
    known: u64,
    /// When the log is to say so, and of how many.
    due: Option<Instant>,
    unrecorded: u64,
}

impl Lost {
    fn before(enforce: &Enforce) -> Self {
        Self {
            known: count(enforce, Counter::RingFull),
            due: None,
            unrecorded: 0,
        }
    }

    /// What stands in the log for what is not there.
    fn record(&mut self) -> OperatorEntry {
        self.due = None;
        let lost = std::mem::take(&mut self.unrecorded);
        OperatorEntry {
            by: Actor::Daemon,
            operation: Operation::AuditRecover,
            agent: None,
            resource: "kernel events".to_owned(),
            outcome: Outcome::Error,
            detail: format!(
                "{lost} events about processes were lost in the {} s before, as an agent's share of the kernel's \
                 ring was full: records may lack what a process runs",
                LOST_EVERY.as_secs()
            ),
            bundle: None,
        }
    }

    fn look(&mut self, enforce: &Enforce) -> Option<Alarm> {
        let now = count(enforce, Counter::RingFull);
        if now == self.known {
            return None;
        }
        let lost = now - self.known;
        self.known = now;
        self.unrecorded += lost;
        self.due.get_or_insert_with(|| Instant::now() + LOST_EVERY);
        tracing::error!(
            lost,
            "events about processes were lost: records may lack what a process runs"
        );
        Some(Alarm::EventsLost(now))
    }
}

fn count(enforce: &Enforce, counter: Counter) -> u64 {
    let counters = lock(&enforce.kernel).counters().unwrap_or_default();
    let found = counters.iter().find(|(name, _)| *name == counter.name());
    found.map_or(0, |(_, count)| *count)
}

/// The kernel knows that an agent is stopped, and not why.
fn stopped(roster: &Roster, mut draft: Draft) -> Draft {
    if draft.reason == Some(DenyReason::AgentKilled)
        && let Some(stop) = roster.stops().get(&draft.agent)
    {
        draft.reason = Some(stop.reason());
        draft.detail = Some(stop.detail().to_owned());
    }
    draft
}

/// The process that called, now: by the time its record is made it may run the next program. `None` of a packet, which may be
/// sent in anybody's name.
fn caller(census: &Census, event: &Event, exec: Option<&JudgedExec>) -> Option<Process> {
    if event.cgroup == 0 && exec.is_none() {
        return None;
    }
    let mut lineage = lock(&census.lineage);
    let process = lineage.process_or_look(event.tgid, event.time_ns, event.agent)?;
    let exec = exec.cloned().unwrap_or_default();
    Some(Process {
        // Who it is may have changed since the program that it has was executed.
        uid: event.uid,
        cwd: exec.cwd,
        arguments: exec.arguments.map(|all| {
            let shown = all.iter().map(|argument| without_tokens(argument));
            shown.map(Cow::into_owned).collect()
        }),
        arguments_bytes: exec.arguments_bytes,
        ..process
    })
}

fn forked(census: &Census, event: &Event) {
    let start = match event.start_ns {
        0 => event.time_ns,
        start => start,
    };
    lock(&census.lineage).forked(event.tgid, event.parent_tgid, event.agent, start);
}

fn executed(host: &Host, census: &Census, event: &Event) {
    let mut lineage = lock(&census.lineage);
    let exec = Exec {
        exe: path(event),
        uid: event.uid,
        cgroup: host.cgroups.path(event.cgroup),
        start_ns: event.start_ns,
        at_ns: event.time_ns,
    };
    lineage.executed(event.tgid, event.agent, exec);
}
