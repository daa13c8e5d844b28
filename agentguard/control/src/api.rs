//! What goes over the control socket, as JSON: the daemon's and the command line's one definition.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use agentguard_bundle::history::HistoryEntry;
use agentguard_bundle::pack::Signer;
use agentguard_policy::{Diagnostic, OpenedBy};
use agentguard_record::Meta;
use agentguard_record::guarantee::Guarantee;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A header of `GET /v1/audit`'s answer: older records match, too, and are not in it.
pub const CUT: &str = "agentguard-cut";

/// Every answer with a status of 400 or above.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub error: String,
    /// `bad-request`, `forbidden`, `not-found`, `method-not-allowed`, `conflict`, `invalid`, `busy`, `internal`.
    pub code: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub diagnostics: Vec<Diagnostic>,
}

/// `POST /v1/run`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    pub agent: String,
    /// A child of the caller's that waits to be labelled.
    pub pid: u32,
    /// The intent of a task that is to be opened for it.
    #[serde(default)]
    pub task: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Enrolment {
    pub agent: String,
    /// The agent's file says `privileges = "keep"`.
    pub keep_privileges: bool,
    /// The system's trust anchors and this host's CA, PEM.
    pub trust: PathBuf,
    /// For wget, which reads nothing else.
    pub wgetrc: PathBuf,
    /// Folders that it must not see: the daemon's files and the pins of the hooks, which root may read and unlink
    /// without any capability.
    pub hidden: Vec<PathBuf>,
    /// Files and folders of the daemon's that it must not change as root.
    #[serde(default)]
    pub kept: Vec<PathBuf>,
    /// The task that was opened for it.
    #[serde(default)]
    pub task: Option<Uuid>,
}

/// `POST /v1/tasks`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskStart {
    pub agent: String,
    /// As in [`Terms`], like the next two.
    pub intent: String,
    #[serde(default)]
    pub allow: Vec<String>,
    #[serde(default)]
    pub scope: BTreeSet<String>,
    /// How long, seconds: 1 to 2,592,000, an hour if nothing is said.
    #[serde(default)]
    pub for_s: Option<u64>,
}

/// `POST /v1/tasks/end`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskEnd {
    pub id: Uuid,
}

/// An open task: one line of `GET /v1/tasks`, and the answer to [`TaskStart`] and [`TaskEnd`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskLine {
    pub id: Uuid,
    pub agent: String,
    pub intent: String,
    pub allow: Vec<String>,
    pub scope: BTreeSet<String>,
    pub opened_by: OpenedBy,
    /// The supervisor.
    pub by: Option<String>,
    pub started_at: Timestamp,
    pub ends_at: Timestamp,
}

/// `POST /v1/kill` and `/v1/revive`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    #[serde(default)]
    pub agents: Vec<String>,
    #[serde(default)]
    pub all: bool,
    #[serde(default)]
    pub reason: Option<String>,
}

/// `POST /v1/agents/suspend`, `/v1/agents/activate`, `/v1/agents/retire` and `/v1/agents/reassign`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    #[serde(default)]
    pub agents: Vec<String>,
    /// Of `reassign`, the new one. Of `suspend` and `activate` whose status changes, in place of agents.
    #[serde(default)]
    pub owner: Option<String>,
    #[serde(default)]
    pub reason: Option<String>,
}

/// The answer to a [`Change`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeAnswer {
    /// The agents that were named, or the owner's, with their states afterwards.
    pub agents: Vec<AgentState>,
    /// Everyone who is stopped by it, those that act for them among them.
    pub stopped: Vec<Cut>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentState {
    pub agent: String,
    /// As in [`AgentLine`].
    pub state: String,
    pub owner: Option<String>,
    /// There was nothing to do.
    pub already: bool,
}

/// What a kill or another stop cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    pub agent: String,
    /// What it is now: `killed`, `suspended`, `retired`, `orphaned`, or `held` for one that acts for such an agent.
    pub state: String,
    /// It was so before.
    pub already: bool,
    pub processes: u32,
    /// Of its processes, reset.
    pub sockets: u32,
    /// In the forwarder, dropped on both sides.
    pub connections: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedAgent {
    pub agent: String,
    /// There was nothing to do.
    pub already: bool,
    /// Why it does not go on all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
}

/// `POST /v1/policy`: one of the two.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// Path below the bundle's folder → content.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
    /// A packed bundle's text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packed: Option<String>,
}

/// `GET /v1/policy`, and the answer to an apply.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InForce {
    #[serde(flatten)]
    pub meta: Meta,
    pub generation: u64,
    pub applied_at: Timestamp,
    #[serde(default)]
    pub expires: Option<Timestamp>,
    pub agents: Vec<String>,
    /// Whose signature a packed bundle was accepted for.
    #[serde(default)]
    pub signer: Option<Signer>,
    /// Apply only: this very bundle was in force before.
    #[serde(default)]
    pub unchanged: bool,
    #[serde(default)]
    pub warnings: Vec<String>,
    /// `GET /v1/policy` only.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
}

/// `POST /v1/policy/rollback`.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rollback {
    /// The newest bundle of this serial; without, the one before the one in force.
    #[serde(default)]
    pub serial: Option<u64>,
}

/// One line of `GET /v1/policy/history`, newest first; with its files from `GET /v1/policy/history/SERIAL-OR-DIGEST`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Past {
    #[serde(flatten)]
    pub entry: HistoryEntry,
    /// The name of `uid`.
    pub user: String,
    pub in_force: bool,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
}

/// One line of `GET /v1/agents`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentLine {
    pub name: String,
    pub id: u32,
    /// `active`, `killed`, `suspended`, `retired`, `orphaned` (its owner is not active), `held` (an agent that it acts for
    /// is one of these), or `unlisted` for one the bundle does not have (everything denied).
    pub state: String,
    pub owner: Option<String>,
    /// The owner in the agent's file, where it has been given another.
    #[serde(default)]
    pub owner_in_bundle: Option<String>,
    /// The agent it acts for.
    #[serde(default)]
    pub parent: Option<String>,
    pub risk: Option<String>,
    pub processes: Vec<u32>,
    pub connections: u32,
    /// Since the daemon started.
    pub allowed: u64,
    pub denied: u64,
    pub last_seen: Option<Timestamp>,
    pub killed: Option<DoneView>,
    /// Who has suspended or retired it.
    #[serde(default)]
    pub out: Option<DoneView>,
    /// Who has made its owner inactive.
    #[serde(default)]
    pub owner_inactive: Option<DoneView>,
    /// What it has used of its limits, where it has.
    #[serde(default)]
    pub limits: Vec<LimitView>,
}

/// What is used of a limit now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitView {
    pub rule: String,
    /// As the rule has it.
    pub limit: String,
    /// Requests, or what the field adds up to.
    pub used: String,
    /// Where it is counted per host.
    pub host: Option<String>,
    /// Where it is counted per task: its id, or nothing for what is on none.
    pub task: Option<String>,
    /// It is counted for all agents together.
    pub shared: bool,
    /// When the first of it stops to count.
    pub next: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoneView {
    pub reason: Option<String>,
    pub by: String,
    pub at: Timestamp,
}

/// `GET /v1/status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    pub started_at: Timestamp,
    pub forwarder: ForwarderView,
    pub bundle: Option<InForce>,
    pub agents: AgentCounts,
    pub hooks: Vec<HookView>,
    /// What holds on this host, and what does not.
    pub guarantees: Vec<Guarantee>,
    /// What went wrong in the kernel, by counter.
    pub drops: BTreeMap<String, u64>,
    pub audit: AuditView,
    /// Clients that did not accept the forwarder's certificate.
    #[serde(default)]
    pub distrust: Vec<DistrustView>,
    /// What an operator must look at; empty when all is well.
    pub alarms: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ForwarderView {
    /// `up`, `starting`, `down`.
    pub state: String,
    pub pid: Option<u32>,
    pub port: Option<u16>,
    /// Network namespaces besides the host's that it serves.
    #[serde(default)]
    pub namespaces: usize,
    pub restarts: u64,
    /// How much of Landlock holds it: 0 for a kernel without.
    #[serde(default)]
    pub landlock_abi: Option<u32>,
    pub error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentCounts {
    pub known: usize,
    pub killed: usize,
    /// Suspended, retired, orphaned, or acting for an agent that is stopped.
    #[serde(default)]
    pub stopped: usize,
    pub processes: usize,
    pub connections: u32,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HookView {
    pub name: String,
    pub attached: bool,
}

/// Of one agent's program and one host since the daemon started; of all the others together that there was no room for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DistrustView {
    pub agent: String,
    /// The file that it executes.
    pub program: Option<String>,
    /// With the port.
    pub host: Option<String>,
    pub count: u64,
    /// The latest that it sent, by its name in TLS.
    pub alert: Option<String>,
    pub last: Option<Timestamp>,
    pub remedy: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AuditView {
    pub path: PathBuf,
    pub available: bool,
    /// Of the last record.
    pub seq: u64,
    pub error: Option<String>,
}
