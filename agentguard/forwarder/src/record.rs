//! The record of one decision: begun in the spool before anything of what is permitted leaves, ended there before the last
//! byte of its answer does. [`Recorded`] is what upstream takes, and there is no other way to one.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agentguard_common::abi::{AgentId, Origin};
use agentguard_link::spool::{CleanSegment, SpoolError, UnsealedFrame};
use agentguard_policy::{Context, Permit, TaskSituation};
use agentguard_record::{DecidedBy, DenyReason, Draft, DraftTask, Ended, Outcome, TaskInfo};
use uuid::Uuid;

use super::life::Life;
use super::refusal::{Cause, NO_ROOM, NO_ROOM_OF_ITS_OWN, Refusal};
use super::spool::{Begun, Spool};

/// Where entries are opened.
pub(crate) struct RecordSender {
    spool: Arc<Spool>,
    available: AtomicBool,
    /// Refusals that had no room for a record each, by agent.
    crowded_out: Mutex<BTreeMap<AgentId, CrowdedOut>>,
}

/// Refusals that share one record.
struct CrowdedOut {
    count: u64,
    first_us: i64,
    last_us: i64,
}

/// A permit whose act is in the spool.
#[derive(Debug)]
#[must_use = "a permit is spent by sending what it permits"]
pub(crate) struct Recorded(Permit);

/// Bytes of bodies or tunnels that have passed, while they pass.
#[derive(Debug, Default)]
pub(crate) struct PassedBytes {
    pub up: AtomicU64,
    pub down: AtomicU64,
}

/// An open record. Completing it sends it; dropping it sends it as aborted, so no early return loses it.
pub(crate) struct RecordEntry {
    records: Arc<RecordSender>,
    /// With the room for its end, from when its beginning is written: also while that is not on disk yet.
    begun: Option<Begun>,
    draft: Option<Box<Draft>>,
    pub passed: Arc<PassedBytes>,
    observed: bool,
    started: Instant,
    life: Arc<Life>,
}

/// The entry of a connection is complete, or there was no place for one: nothing is left to be done for it.
#[derive(Debug)]
pub(crate) struct ConnectionOver;

impl RecordSender {
    pub(crate) fn new(spool: Arc<Spool>) -> Self {
        Self {
            spool,
            available: AtomicBool::new(true),
            crowded_out: Mutex::default(),
        }
    }

    /// What the daemon says of its log.
    pub(crate) fn set_available(&self, available: bool) {
        self.available.store(available, Ordering::Relaxed);
    }

    /// Whether a decision can be recorded now.
    pub(crate) fn available(&self) -> bool {
        self.available.load(Ordering::Relaxed) && !self.spool.is_broken()
    }

    /// Resolves when nothing can be recorded any more.
    pub(crate) async fn breaks(&self) {
        self.spool.breaks().await;
    }

    /// Opens the record of something `origin` is about to do. `None`: there is no room for it, refuse.
    pub(crate) fn open(self: &Arc<Self>, life: &Arc<Life>, origin: &Origin) -> Option<RecordEntry> {
        let now = now();
        let time_us = micros_of(now);
        if !self.spool.has_room() {
            self.crowd_out(origin.agent, time_us);
            return None;
        }
        let draft = Draft {
            time_us,
            decision: decision_id(u64::try_from(now.as_millis()).unwrap_or(u64::MAX)),
            tgid: origin.tgid,
            // Unless it is completed.
            ended: Ended::Aborted,
            ..Draft::blank(origin.agent)
        };
        Some(RecordEntry {
            records: self.clone(),
            begun: None,
            draft: Some(Box::new(draft)),
            passed: Arc::default(),
            observed: false,
            started: Instant::now(),
            life: life.clone(),
        })
    }

    /// Keeps the record of something that is done or refused at once, after this. False: there is no room for it, refuse.
    pub(crate) async fn keep(&self, draft: &Draft) -> bool {
        let kept = match is_done(draft) {
            true => self.spool.note_done(draft).await,
            false => self.spool.note(draft),
        };
        self.took(draft, kept)
    }

    /// A segment may be written to again: what had no room is recorded first.
    pub(crate) fn cleaned(&self, segment: CleanSegment) {
        let crowded_out = std::mem::take(&mut *self.crowded_out.lock().expect(UNPOISONED));
        self.spool.clean(segment);
        for (
            agent,
            CrowdedOut {
                count,
                first_us,
                last_us,
            },
        ) in crowded_out
        {
            let draft = Draft {
                time_us: last_us,
                decision: decision_id(u64::try_from(last_us / 1000).unwrap_or(0)),
                outcome: Outcome::Deny,
                decided_by: DecidedBy::Host,
                ended: Ended::Refused,
                reason: Some(DenyReason::AuditUnavailable),
                detail: Some(format!(
                    "{count} refusals within {} ms that had no room for a record each",
                    (last_us - first_us) / 1000
                )),
                facts: BTreeMap::from([("count".to_owned(), count.to_string())]),
                ..Draft::blank(agent)
            };
            if let Err(error) = self.spool.note(&draft) {
                tracing::error!(%error, count, agent = agent.0, "refusals without a record");
            }
        }
    }

    fn took(&self, draft: &Draft, kept: Result<(), SpoolError>) -> bool {
        match kept {
            Ok(()) => return true,
            Err(SpoolError::Full) if !is_done(draft) => {
                self.crowd_out(draft.agent, draft.time_us);
            }
            Err(error) => tracing::error!(%error, decision = %draft.decision, "no record"),
        }
        false
    }

    fn crowd_out(&self, agent: AgentId, time_us: i64) {
        let mut all = self.crowded_out.lock().expect(UNPOISONED);
        let those = all.entry(agent).or_insert(CrowdedOut {
            count: 0,
            first_us: time_us,
            last_us: time_us,
        });
        those.count += 1;
        those.last_us = time_us;
    }
}

impl Recorded {
    pub(crate) fn permit(&self) -> &Permit {
        &self.0
    }
}

impl RecordEntry {
    /// Begins its clock anew: the wait for a request's head is not part of the request.
    pub(crate) fn restart(&mut self) {
        self.started = Instant::now();
        self.time_us = micros_of(now());
    }

    /// Keeps what is about to be done: from here on it has its record, whoever dies. Whether this had to wait.
    ///
    /// # Errors
    /// It cannot be recorded, and must not be done.
    pub(crate) async fn begin(&mut self) -> Result<bool, Refusal> {
        let refused = |error: SpoolError| {
            tracing::warn!(%error, "a permitted act is refused");
            Refusal::unrecorded(match error {
                SpoolError::OwnShare => NO_ROOM_OF_ITS_OWN,
                SpoolError::Full
                | SpoolError::TooLarge(_)
                | SpoolError::Io(_)
                | SpoolError::Encode(_)
                | SpoolError::Decode(_) => NO_ROOM,
            })
        };
        let mut waited = false;
        if self.begun.is_none() {
            let begun = self.write_beginning().await.map_err(refused)?;
            waited = begun.waited;
            self.begun = Some(begun);
        }
        if let Some(begun) = &self.begun {
            waited |= self.records.spool.kept(begun).await.map_err(refused)?;
        }
        Ok(waited)
    }

    async fn write_beginning(&mut self) -> Result<Begun, SpoolError> {
        let (outcome, ended) = (self.outcome, self.ended);
        // As it stands if nobody sees its end.
        self.outcome = match self.observed {
            true => Outcome::Observed,
            false => Outcome::Allow,
        };
        self.ended = Ended::Unfinished;
        let beginning = UnsealedFrame::begun(self);
        (self.outcome, self.ended) = (outcome, ended);
        self.records.spool.begin(beginning?).await
    }

    /// What it permits can be done: it is recorded.
    pub(crate) fn recorded(&self, permit: Permit) -> Result<Recorded, Refusal> {
        match &self.begun {
            Some(begun) if self.records.spool.is_kept(begun) => Ok(Recorded(permit)),
            Some(_) | None => Err(Refusal::unrecorded(NO_ROOM)),
        }
    }

    /// The task that a decision is taken on.
    pub(crate) fn on_task(&mut self, gathered: &Context) {
        let task = gathered.tasks.as_ref().and_then(TaskSituation::task);
        self.task = task.map_or(DraftTask::None, |task| {
            DraftTask::On(TaskInfo {
                id: task.id,
                intent: task.intent.clone(),
            })
        });
    }

    /// What `permit` says of the decision.
    pub(crate) fn permitted(&mut self, permit: &Permit) {
        self.policies = permit.policies().to_vec();
        self.facts = permit.facts().clone();
        self.decided_by = DecidedBy::Rules;
        if let Some(denial) = permit.would_deny() {
            self.observed = true;
            self.decided_by = denial.decided_by;
            self.reason = Some(denial.reason);
            self.detail = Some(denial.detail.clone());
        }
    }

    /// Ends it as refused, with everything that the refusal knows: the one way in which refusals are recorded.
    pub(crate) fn refuse(mut self, refusal: Refusal) -> ConnectionOver {
        self.approval = refusal.approval;
        self.reason = Some(refusal.reason);
        self.detail = Some(refusal.detail);
        if !refusal.policies.is_empty() {
            self.policies = refusal.policies;
        }
        if !refusal.facts.is_empty() {
            self.facts = refusal.facts;
        }
        let ended = match refusal.cause {
            Cause::Decided(by) => {
                self.decided_by = by;
                Ended::Refused
            }
            Cause::Ended(ended) => ended,
        };
        self.complete(refusal.outcome, ended)
    }

    /// Ends it as something that failed and was nobody's decision.
    pub(crate) fn fail(
        mut self,
        ended: Ended,
        reason: Option<DenyReason>,
        detail: impl Into<String>,
    ) -> ConnectionOver {
        self.reason = reason;
        self.detail = Some(detail.into());
        self.complete(Outcome::Error, ended)
    }

    pub(crate) fn complete(mut self, outcome: Outcome, ended: Ended) -> ConnectionOver {
        self.send(outcome, ended);
        ConnectionOver
    }

    /// Another will record what there is to record. The only way out without a record.
    pub(crate) fn hand_over(mut self) -> ConnectionOver {
        self.draft = None;
        ConnectionOver
    }

    fn send(&mut self, outcome: Outcome, ended: Ended) {
        let Some(mut draft) = self.draft.take() else {
            return;
        };
        (draft.outcome, draft.ended) = match outcome {
            Outcome::Error | Outcome::Allow if self.life.killed() => {
                (Outcome::Killed, Ended::Stopped)
            }
            Outcome::Allow if self.observed => (Outcome::Observed, ended),
            Outcome::Allow
            | Outcome::Deny
            | Outcome::ApprovalRequired
            | Outcome::Observed
            | Outcome::Killed
            | Outcome::Error => (outcome, ended),
        };
        draft.bytes_up = self.passed.up.load(Ordering::Relaxed);
        draft.bytes_down = self.passed.down.load(Ordering::Relaxed);
        draft.latency.total = micros(self.started);
        let spool = &self.records.spool;
        let kept = match self.begun.take() {
            Some(begun) => spool.end_of(begun, &draft),
            None => spool.note(&draft),
        };
        self.records.took(&draft, kept);
    }
}

impl Drop for RecordEntry {
    fn drop(&mut self) {
        if self.draft.is_none() {
            return;
        }
        if let Some(why) = self.life.why() {
            self.reason = Some(why);
            self.detail = Some("cut when the agent was stopped".into());
            self.send(Outcome::Error, Ended::Aborted);
            return;
        }
        // A request is dropped by its client, where not by the forwarder's own end, or a fault in it.
        let ended = match self.life.is_over() || std::thread::panicking() {
            true => Ended::Aborted,
            false => self.ended,
        };
        let detail = match ended == Ended::ClientGone {
            true => "the client went before the end of its answer",
            false => "aborted",
        };
        self.detail.get_or_insert_with(|| detail.into());
        self.send(Outcome::Error, ended);
    }
}

impl Deref for RecordEntry {
    type Target = Draft;

    fn deref(&self) -> &Draft {
        self.draft.as_ref().expect("there until it is sent")
    }
}

impl DerefMut for RecordEntry {
    fn deref_mut(&mut self) -> &mut Draft {
        self.draft.as_mut().expect("there until it is sent")
    }
}

/// Whether it lets something through.
fn is_done(draft: &Draft) -> bool {
    match draft.outcome {
        Outcome::Allow | Outcome::Observed | Outcome::Killed => true,
        Outcome::Deny | Outcome::ApprovalRequired | Outcome::Error => false,
    }
}

fn micros_of(since_epoch: Duration) -> i64 {
    i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX)
}

fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Whole microseconds since `start`.
pub(crate) fn micros(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// A UUIDv7. Its random part is a keyed hash of a counter: unique, not secret, and no system call.
fn decision_id(unix_ms: u64) -> Uuid {
    thread_local! {
        static KEYS: (RandomState, RandomState) = (RandomState::new(), RandomState::new());
        static COUNT: Cell<u64> = const { Cell::new(0) };
    }
    let count = COUNT.with(|count| count.replace(count.get().wrapping_add(1)));
    let (high, low) = KEYS.with(|(a, b)| (a.hash_one(count), b.hash_one(count)));
    let mut random = [0; 10];
    random[..8].copy_from_slice(&high.to_ne_bytes());
    random[8..].copy_from_slice(&low.to_ne_bytes()[..2]);
    uuid::Builder::from_unix_timestamp_millis(unix_ms, &random).into_uuid()
}

const UNPOISONED: &str = "nothing panics with the lock held";
