//! Alarms: what an operator must know now. Each has its text here and nowhere else; [`kind`] has their meaning and remedy.

mod kind;

use std::collections::BTreeMap;
use std::sync::Mutex;

use agentguard_record::DenyReason;
use jiff::Timestamp;

pub use self::kind::AlarmKind;
use crate::lock::lock;

/// One alarm, as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Alarm {
    #[error("no forwarder, agents' connects are refused: {0}")]
    NoForwarder(String),
    #[error("no audit records, agents' requests are refused: {0}")]
    NoRecords(String),
    #[error("nothing is counted, requests that have limits are refused: {0}")]
    NothingCounted(String),
    #[error("hook `{0}` is not attached")]
    HookDetached(&'static str),
    #[error(
        "the bundle expires at {0}, and every agent is denied everything from then on; apply a newer one"
    )]
    BundleExpires(Timestamp),
    #[error("the bundle has expired at {0}: every agent is denied everything; apply a newer one")]
    BundleExpired(Timestamp),
    /// By the names of the agents.
    #[error("only observed, what policy denies is let through: {}", .0.join(", "))]
    OnlyObserved(Vec<String>),
    #[error("no bundle is in force: every agent is denied everything")]
    NoBundle,
    /// `instead`: name and serial of the bundle that is in force in its place.
    #[error("the bundle applied last cannot be used: {why}{}", last_good(.instead.as_ref()))]
    BundleUnusable {
        why: String,
        instead: Option<(String, u64)>,
    },
    #[error("the bundle {name} {serial} is refused: {why}")]
    BundleRefused {
        name: String,
        serial: u64,
        why: String,
    },
    /// By the names of the files.
    #[error("files of the state are gone, and every agent was killed; revive those that may go on without: {}", .0.join(", "))]
    StateLost(Vec<&'static str>),
    #[error("the audit log that was here is gone: a new one has begun")]
    LogLost,
    #[error("the canary failed, agents are held closed: {0}")]
    CanaryHolds(String),
    #[error("the canary failed, agents go on, as `on_failure` says: {0}")]
    CanaryFailed(String),
    #[error("the canary could not try everything, agents go on: {0}")]
    CanaryHindered(String),
    #[error("agents in another network namespace are refused everything there: {0}")]
    NamespaceClosed(String),
    #[error("kernel events cannot be read: {0}")]
    EventsUnreadable(String),
    #[error("{0} events about processes were lost, and records may lack what a process runs")]
    EventsLost(u64),
    /// Whose most are, and how many in the last second.
    #[error(
        "{count} refusals of agent {agent} and perhaps of others are told by their number, not one by one"
    )]
    RefusalStorm { agent: String, count: u64 },
    #[error("up to {0} execs and ends of processes were not seen: the audit log may lack execs")]
    ExecsMissed(u64),
    #[error("what the kernel has missed cannot be told: {0}")]
    MissedUncounted(String),
    #[error("processes that the kernel could not read: {0}")]
    ProcessesUnread(String),
    /// How many, and the program and the agent of one of them.
    #[error(
        "the kernel could not tell whose {count} processes are, `{exe}` of agent {agent} among them, and nobody held them \
         until they had been looked at; see `read_failed` in `status`"
    )]
    ProcessesUnheld {
        count: usize,
        exe: String,
        agent: String,
    },
    #[error("running processes could not all be looked at: {0}")]
    ProcessesUnlabelled(String),
    #[error(
        "a program does not accept the certificate that it is given: `{program}` of agent {agent} for {host}{}; {}",
        said(.alert.as_deref()),
        DenyReason::ClientTls.turn()
    )]
    ClientTls {
        agent: String,
        program: String,
        host: String,
        alert: Option<String>,
    },
}

fn said(alert: Option<&str>) -> String {
    alert.map_or_else(String::new, |alert| format!(" (`{alert}`)"))
}

fn last_good(instead: Option<&(String, u64)>) -> String {
    instead.map_or_else(String::new, |(name, serial)| {
        format!("; in force is the last good one, {name} serial {serial}: apply one to go on")
    })
}

/// What an alarm that has been raised is about: at most one alarm at a time, the latest. `status` shows them in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Concern {
    Adoption,
    Bundle,
    Canary,
    Events,
    Log,
    LostEvents,
    Missed,
    Namespaces,
    Refusals,
    State,
    Unread,
}

/// The alarms that have been raised and not been taken back. Others are judged when somebody asks.
#[derive(Default)]
pub struct Alarms(Mutex<BTreeMap<Concern, Alarm>>);

impl Alarms {
    /// Answers whether it says something new.
    pub fn raise(&self, concern: Concern, alarm: Alarm) -> bool {
        let before = lock(&self.0).insert(concern, alarm.clone());
        before.as_ref() != Some(&alarm)
    }

    pub fn clear(&self, concern: Concern) {
        lock(&self.0).remove(&concern);
    }

    pub fn raised(&self) -> Vec<Alarm> {
        lock(&self.0).values().cloned().collect()
    }
}
