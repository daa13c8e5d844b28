//! One record as a line of JSON. Every field is always there, null where it does not apply, in one order.
//!
//! A decision has `operator: null`. What an operator did to the guard has `operator: {uid, user}`, the operation as
//! `action` (`kill`, `revive`, `suspend`, `activate`, `retire`, `reassign`, `task-start`, `task-end`, `policy-apply`, `policy-rollback`,
//! `policy-expire`, `start`, `stop`, `audit-recover`, `unload`), what it was done to as
//! `resource`, the reason given in `detail`, and null for what only a decision has.
//!
//! `prev` is the SHA-256 of the line before without its newline, lower-case hex; 64 zeros in the first record.

use std::borrow::Cow;
use std::collections::BTreeMap;

use agentguard_record::DenyReason;
use agentguard_record::Meta;
use agentguard_record::{
    ApprovalInfo, Context, Draft, Entry, Latency, Operation, Operator, Outcome, Process,
    RequestInfo,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// SHA-256 as lower-case hex.
pub type Hash = [u8; 64];

/// `prev` of the first record.
pub const FIRST_PREV: Hash = [b'0'; 64];

/// Where a record stands in the chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place<'a> {
    pub seq: u64,
    pub prev: &'a Hash,
}

/// Appends the line of `entry`, without a newline, to `out`.
///
/// # Errors
/// What `serde_json` says; `out` may then have a part of the line.
pub fn write(out: &mut Vec<u8>, place: Place<'_>, entry: Entry<'_>) -> serde_json::Result<()> {
    match entry {
        Entry::Decision(draft, context) => {
            serde_json::to_writer(out, &decision(place, draft, context))
        }
        Entry::Operator(operator) => serde_json::to_writer(out, &operation(place, operator)),
    }
}

/// The hash that the next record's `prev` has to be. `line` is without its newline.
pub fn hash(line: &[u8]) -> Hash {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut hex = FIRST_PREV;
    for (pair, byte) in hex.chunks_exact_mut(2).zip(Sha256::digest(line)) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 0xf)];
    }
    hex
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(serialize_with = "rfc3339")]
    time: i64,
    seq: u64,
    #[serde(serialize_with = "ascii")]
    prev: &'a Hash,
    decision: Uuid,
    agent: Option<&'a str>,
    owner: Option<&'a str>,
    task: Option<Uuid>,
    intent: Option<&'a str>,
    process: Option<ProcessLine<'a>>,
    operator: Option<OperatorLine<'a>>,
    action: Action<'a>,
    resource: &'a str,
    request: Option<&'a RequestInfo>,
    facts: Option<&'a BTreeMap<String, String>>,
    outcome: Outcome,
    policies: &'a [String],
    reason: Option<DenyReason>,
    detail: Option<&'a str>,
    bundle: Option<BundleLine<'a>>,
    /// Credentials come with their issue; the field is here so that readers can rely on it.
    credential: Option<()>,
    approval: Option<ApprovalInfo<'a>>,
    upstream: Option<UpstreamLine<'a>>,
    bytes_up: u64,
    bytes_down: u64,
    latency_us: Option<Latency>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum ProcessLine<'a> {
    Known(&'a Process),
    /// It was gone before the daemon knew it.
    Unknown {
        tgid: u32,
    },
}

#[derive(Serialize)]
struct OperatorLine<'a> {
    uid: u32,
    user: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Action<'a> {
    Decision(&'a str),
    Operator(Operation),
}

#[derive(Serialize)]
struct BundleLine<'a> {
    name: Option<&'a str>,
    serial: Option<u64>,
    digest: &'a str,
}

#[derive(Serialize)]
struct UpstreamLine<'a> {
    addr: &'a str,
    tls: Option<&'a str>,
}

fn decision<'a>(place: Place<'a>, draft: &'a Draft, context: &'a Context<'a>) -> Line<'a> {
    let unknown = (draft.tgid != 0).then_some(ProcessLine::Unknown { tgid: draft.tgid });
    let digest = draft.bundle.as_deref();
    Line {
        time: draft.time_us,
        seq: place.seq,
        prev: place.prev,
        decision: draft.decision,
        agent: Some(context.agent),
        owner: context.owner,
        task: context.task.map(|task| task.id),
        intent: context.task.map(|task| task.intent.as_str()),
        process: context.process.map(ProcessLine::Known).or(unknown),
        operator: None,
        action: Action::Decision(&draft.action),
        resource: &draft.resource,
        request: draft.request.as_ref(),
        facts: Some(&draft.facts),
        outcome: draft.outcome,
        policies: &draft.policies,
        reason: draft.reason,
        detail: draft.detail.as_deref(),
        bundle: digest.map(|digest| bundle(digest, context.bundle)),
        credential: None,
        approval: ApprovalInfo::of(&draft.approval),
        upstream: draft.upstream.as_ref().map(|upstream| UpstreamLine {
            addr: &upstream.addr,
            tls: Some(upstream.tls.as_str()).filter(|tls| !tls.is_empty()),
        }),
        bytes_up: draft.bytes_up,
        bytes_down: draft.bytes_down,
        latency_us: Some(draft.latency),
    }
}

fn operation<'a>(place: Place<'a>, done: &'a Operator<'a>) -> Line<'a> {
    let of_task = matches!(done.operation, Operation::TaskStart | Operation::TaskEnd);
    Line {
        time: Timestamp::now().as_microsecond(),
        seq: place.seq,
        prev: place.prev,
        decision: Uuid::now_v7(),
        agent: done.agent,
        owner: None,
        task: done.resource.parse().ok().filter(|_| of_task),
        intent: None,
        process: None,
        operator: Some(OperatorLine {
            uid: done.uid,
            user: done.user,
        }),
        action: Action::Operator(done.operation),
        resource: done.resource,
        request: None,
        facts: None,
        outcome: done.outcome,
        policies: &[],
        reason: None,
        detail: Some(done.detail),
        bundle: done.bundle.map(|meta| bundle(&meta.digest, Some(meta))),
        credential: None,
        approval: None,
        upstream: None,
        bytes_up: 0,
        bytes_down: 0,
        latency_us: None,
    }
}

/// The draft's digest is what decided; name and serial only if they are that bundle's.
fn bundle<'a>(digest: &'a str, meta: Option<&'a Meta>) -> BundleLine<'a> {
    let meta = meta.filter(|meta| meta.digest == digest);
    BundleLine {
        name: meta.map(|meta| meta.name.as_str()),
        serial: meta.map(|meta| meta.serial),
        digest,
    }
}

fn rfc3339<S: Serializer>(time_us: &i64, out: S) -> Result<S::Ok, S::Error> {
    let time = Timestamp::from_microsecond(*time_us).unwrap_or_default();
    out.collect_str(&format_args!("{time:.6}"))
}

fn ascii<S: Serializer>(hash: &&Hash, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(str::from_utf8(*hash).map_err(serde::ser::Error::custom)?)
}

/// A line's place in the chain, read back. Requires the whole line to be JSON.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Link<'a> {
    pub seq: u64,
    #[serde(borrow)]
    pub prev: Cow<'a, str>,
}

/// What searches look at and people read.
#[derive(Clone, Debug, Deserialize)]
pub struct View<'a> {
    #[serde(borrow)]
    pub time: Cow<'a, str>,
    pub seq: u64,
    #[serde(borrow)]
    pub decision: Cow<'a, str>,
    #[serde(borrow)]
    pub agent: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub action: Cow<'a, str>,
    #[serde(borrow, default)]
    pub task: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub resource: Cow<'a, str>,
    #[serde(borrow)]
    pub outcome: Cow<'a, str>,
    #[serde(borrow)]
    pub reason: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub detail: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub request: Option<RequestView<'a>>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct RequestView<'a> {
    #[serde(borrow)]
    pub scheme: Cow<'a, str>,
    #[serde(borrow)]
    pub path: Cow<'a, str>,
    pub status: u16,
}

#[cfg(test)]
mod tests;
