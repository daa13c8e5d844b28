//! The record of one decision on its way to the daemon: a place in the queue is taken before the decision, so that no
//! decision is taken that cannot be recorded, and none is forgotten.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agentguard_common::abi::Origin;
use agentguard_policy::{Context, Permit, TaskSituation};
use agentguard_record::{
    ActionName, DecidedBy, DenyReason, Draft, DraftTask, Ended, Latency, Outcome, TaskInfo,
};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::life::Life;
use super::refusal::{Cause, Refusal};

/// Decisions that may be open or waiting to be sent at once; over it agents are refused with `audit-unavailable`.
pub(crate) const QUEUE: usize = 65_536;

/// Where entries are opened.
pub(crate) struct RecordSender {
    queue: mpsc::Sender<Draft>,
    available: AtomicBool,
    /// Refusals that could not be recorded because nothing could.
    pub unrecorded: AtomicU64,
}

/// Bytes of bodies or tunnels that have passed, while they pass.
#[derive(Debug, Default)]
pub(crate) struct PassedBytes {
    pub up: AtomicU64,
    pub down: AtomicU64,
}

/// An open record. Completing it sends it; dropping it sends it as aborted, so no early return loses it.
pub(crate) struct RecordEntry {
    place: Option<mpsc::OwnedPermit<Draft>>,
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
    pub(crate) fn new(queue: mpsc::Sender<Draft>) -> Self {
        Self {
            queue,
            available: AtomicBool::new(true),
            unrecorded: AtomicU64::new(0),
        }
    }

    /// What the daemon says of its log.
    pub(crate) fn set_available(&self, available: bool) {
        self.available.store(available, Ordering::Relaxed);
    }

    /// Whether a decision can be recorded now.
    pub(crate) fn available(&self) -> bool {
        self.available.load(Ordering::Relaxed)
    }

    /// Opens the record of something `origin` is about to do. `None`: there is no place for it, refuse.
    pub(crate) fn open(&self, life: &Arc<Life>, origin: &Origin) -> Option<RecordEntry> {
        let Ok(place) = self.queue.clone().try_reserve_owned() else {
            self.unrecorded.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        let now = now();
        let draft = Draft {
            time_us: i64::try_from(now.as_micros()).unwrap_or(i64::MAX),
            decision: decision_id(u64::try_from(now.as_millis()).unwrap_or(u64::MAX)),
            agent: origin.agent,
            tgid: origin.tgid,
            action: ActionName::Connect,
            resource: String::new(),
            request: None,
            task: DraftTask::None,
            facts: BTreeMap::new(),
            outcome: Outcome::Error,
            decided_by: DecidedBy::Undecided,
            // Unless it is completed.
            ended: Ended::Aborted,
            policies: Vec::new(),
            reason: None,
            detail: None,
            bundle: None,
            approval: Vec::new(),
            upstream: None,
            bytes_up: 0,
            bytes_down: 0,
            latency: Latency::default(),
        };
        Some(RecordEntry {
            place: Some(place),
            draft: Some(Box::new(draft)),
            passed: Arc::default(),
            observed: false,
            started: Instant::now(),
            life: life.clone(),
        })
    }
}

impl RecordEntry {
    /// Begins its clock anew: the wait for a request's head is not part of the request.
    pub(crate) fn restart(&mut self) {
        self.started = Instant::now();
        self.time_us = i64::try_from(now().as_micros()).unwrap_or(i64::MAX);
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
        self.place = None;
        ConnectionOver
    }

    fn send(&mut self, outcome: Outcome, ended: Ended) {
        let (Some(place), Some(mut draft)) = (self.place.take(), self.draft.take()) else {
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
        place.send(*draft);
    }
}

impl Drop for RecordEntry {
    fn drop(&mut self) {
        if self.place.is_none() {
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
