//! What one record is made of: the [`Draft`] that the decider makes, the [`Context`] that the daemon adds, and what
//! operators do. [`line`](agentguard_audit::line) has the JSON.

use std::collections::BTreeMap;

use agentguard_common::abi::AgentId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{ActionName, DecidedBy, DenyReason, Ended, Meta};

/// The fact that has the alert with which a client refused the forwarder's certificate; absent where it sent none.
pub const TLS_ALERT: &str = "tls_alert";

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Allow,
    Deny,
    /// Refused until people approve it.
    ApprovalRequired,
    /// Would have been denied, and was let through: its agent is only observed. `reason`, `policies` and `detail` say why.
    Observed,
    /// Allowed, and cut by the kill switch before it ended.
    Killed,
    /// Allowed, and failed for a reason that is nobody's decision: upstream, the client, a bound.
    Error,
}

/// What the decider knows. Crosses the link in `bincode`, so every field is always there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Draft {
    /// Microseconds since the Unix epoch, when the decision was taken.
    pub time_us: i64,
    /// UUIDv7; the `instance` of the agent's problem document.
    pub decision: Uuid,
    pub agent: AgentId,
    pub tgid: u32,
    pub action: ActionName,
    /// The host id, or `address:port` for what has no name.
    pub resource: String,
    pub request: Option<RequestInfo>,
    pub task: DraftTask,
    /// What rules read, by name.
    pub facts: BTreeMap<String, String>,
    pub outcome: Outcome,
    pub decided_by: DecidedBy,
    pub ended: Ended,
    /// Ids of the policies that decided.
    pub policies: Vec<String>,
    pub reason: Option<DenyReason>,
    /// One sentence for people, without secrets.
    pub detail: Option<String>,
    /// Digest of the bundle that decided; `None` for what no bundle decides.
    pub bundle: Option<String>,
    /// Roles whose approval is needed.
    pub approval: Vec<String>,
    pub upstream: Option<UpstreamInfo>,
    pub bytes_up: u64,
    pub bytes_down: u64,
    /// How many acts it stands for; more than 1 where the kernel has told of refusals by their number.
    pub count: u64,
    pub latency: Latency,
}

impl Draft {
    /// Of something of the agent's that nothing is known of yet.
    pub fn blank(agent: AgentId) -> Self {
        Self {
            time_us: 0,
            decision: Uuid::nil(),
            agent,
            tgid: 0,
            action: ActionName::Connect,
            resource: String::new(),
            request: None,
            task: DraftTask::None,
            facts: BTreeMap::new(),
            outcome: Outcome::Error,
            decided_by: DecidedBy::Undecided,
            ended: Ended::Aborted,
            policies: Vec::new(),
            reason: None,
            detail: None,
            bundle: None,
            approval: Vec::new(),
            upstream: None,
            bytes_up: 0,
            bytes_down: 0,
            count: 1,
            latency: Latency::default(),
        }
    }
}

/// What the decider knows of the task that its decision was on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DraftTask {
    /// The decider does not look at tasks: the task is the one that the process was started for, if it was for one.
    OfProcess,
    /// The decider looks at tasks, and the act was on none.
    None,
    On(TaskInfo),
}

/// A task as records name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskInfo {
    pub id: Uuid,
    pub intent: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RequestInfo {
    pub scheme: String,
    pub host: String,
    pub port: u16,
    pub method: String,
    /// Canonical, without the query.
    pub path: String,
    /// Of the answer the agent got; 0 where there was none.
    pub status: u16,
}

/// Whose approval a refused request needs, in records and in what agents are told.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ApprovalInfo<'a> {
    /// The first of the roles.
    pub role: &'a str,
    /// Every role that is needed.
    pub roles: &'a [String],
}

impl<'a> ApprovalInfo<'a> {
    /// `None` if nobody's approval is.
    pub fn of(roles: &'a [String]) -> Option<Self> {
        let role = roles.first()?;
        Some(Self { role, roles })
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UpstreamInfo {
    pub addr: String,
    /// `TLSv1.3`, …; empty for plain.
    pub tls: String,
    /// By which proxy, whose address `addr` then is; empty: none.
    pub proxy: String,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Latency {
    /// The policy's own time, µs.
    pub decide: u64,
    /// The wait for what other services know, µs.
    #[serde(default)]
    pub lookup: u64,
    /// From the request's head to the end of the answer, µs.
    pub total: u64,
}

/// The process behind a decision, as the daemon knew it at the time.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Process {
    pub tgid: u32,
    /// `CLOCK_BOOTTIME` of its start, ns: with `tgid`, unique since boot.
    pub start: u64,
    pub exe: String,
    pub uid: u32,
    pub cgroup: String,
    /// `exe[tgid]` of its ancestors, nearest first.
    pub parents: Vec<String>,
    /// In records of `exec` alone, as the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// The first 4095 bytes of them; absent where the agent's are private or could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Vec<String>>,
    /// Of all of them, each with the NUL that ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments_bytes: Option<u32>,
}

/// What the daemon knows besides, at the time of the decision.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context<'a> {
    /// The agent's name.
    pub agent: &'a str,
    pub owner: Option<&'a str>,
    pub task: Option<&'a TaskInfo>,
    pub process: Option<&'a Process>,
    /// The bundle whose digest is in the draft.
    pub bundle: Option<&'a Meta>,
}

/// What someone did to the guard itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    Kill,
    Revive,
    /// Of an agent, or of an owner and with it all agents of theirs.
    Suspend,
    Activate,
    Retire,
    Reassign,
    /// A supervisor has opened a task; one has been ended, or its time was over.
    TaskStart,
    TaskEnd,
    PolicyApply,
    PolicyRollback,
    /// A bundle's time was over, or by a clock that was set is not.
    PolicyExpire,
    Start,
    Stop,
    /// The log had a torn tail, could not be written for a while, or kernel events were lost.
    AuditRecover,
    Unload,
    /// The daemon's own attempts at what must be refused went otherwise, or go right again.
    Canary,
}

/// One operator action, allowed or refused.
#[derive(Clone, Copy, Debug)]
pub struct Operator<'a> {
    /// The caller's uid, by its peer credentials.
    pub uid: u32,
    /// The caller's name, if it has one.
    pub user: Option<&'a str>,
    pub operation: Operation,
    /// The agent, if it is about one.
    pub agent: Option<&'a str>,
    /// What it was done to: an agent, a bundle, a file.
    pub resource: &'a str,
    pub outcome: Outcome,
    /// For people: the reason the operator gave, or why it was refused.
    pub detail: &'a str,
    /// The bundle in force afterwards.
    pub bundle: Option<&'a Meta>,
}

/// One record, before it is a line.
#[derive(Clone, Copy, Debug)]
pub enum Record<'a> {
    Decision(&'a Draft, &'a Context<'a>),
    Operator(&'a Operator<'a>),
}
