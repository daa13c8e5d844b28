//! A record as its line.

use std::collections::BTreeMap;

use agentguard_record::{
    ApprovalInfo, Context, DecidedBy, DenyReason, Draft, Ended, Latency, Meta, Operation, Operator,
    Outcome, Process, Record, RequestInfo,
};
use jiff::Timestamp;
use serde::{Serialize, Serializer};
use uuid::Uuid;

use super::{ChainPlace, Hash};

/// Appends the line of `record`, without a newline, to `out`.
///
/// # Errors
/// What `serde_json` says; `out` may then have a part of the line.
pub fn write(
    out: &mut Vec<u8>,
    place: ChainPlace<'_>,
    record: Record<'_>,
) -> serde_json::Result<()> {
    match record {
        Record::Decision(draft, context) => {
            serde_json::to_writer(out, &decision(place, draft, context))
        }
        Record::Operator(operator) => serde_json::to_writer(out, &operation(place, operator)),
    }
}

#[derive(Serialize)]
struct Columns<'a> {
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
    action: LineAction<'a>,
    resource: &'a str,
    request: Option<&'a RequestInfo>,
    facts: Option<&'a BTreeMap<String, String>>,
    outcome: Outcome,
    decided_by: Option<DecidedBy>,
    ended: Option<Ended>,
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
    count: u64,
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
enum LineAction<'a> {
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
    proxy: Option<&'a str>,
}

fn decision<'a>(place: ChainPlace<'a>, draft: &'a Draft, context: &'a Context<'a>) -> Columns<'a> {
    let unknown = (draft.tgid != 0).then_some(ProcessLine::Unknown { tgid: draft.tgid });
    let digest = draft.bundle.as_deref();
    Columns {
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
        action: LineAction::Decision(draft.action.as_str()),
        resource: &draft.resource,
        request: draft.request.as_ref(),
        facts: Some(&draft.facts),
        outcome: draft.outcome,
        decided_by: Some(draft.decided_by),
        ended: Some(draft.ended),
        policies: &draft.policies,
        reason: draft.reason,
        detail: draft.detail.as_deref(),
        bundle: digest.map(|digest| bundle(digest, context.bundle)),
        credential: None,
        approval: ApprovalInfo::of(&draft.approval),
        upstream: draft.upstream.as_ref().map(|upstream| UpstreamLine {
            addr: &upstream.addr,
            tls: Some(upstream.tls.as_str()).filter(|tls| !tls.is_empty()),
            proxy: Some(upstream.proxy.as_str()).filter(|proxy| !proxy.is_empty()),
        }),
        bytes_up: draft.bytes_up,
        bytes_down: draft.bytes_down,
        count: draft.count,
        latency_us: Some(draft.latency),
    }
}

fn operation<'a>(place: ChainPlace<'a>, done: &'a Operator<'a>) -> Columns<'a> {
    let of_task = matches!(done.operation, Operation::TaskStart | Operation::TaskEnd);
    Columns {
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
        action: LineAction::Operator(done.operation),
        resource: done.resource,
        request: None,
        facts: None,
        outcome: done.outcome,
        decided_by: None,
        ended: None,
        policies: &[],
        reason: None,
        detail: Some(done.detail),
        bundle: done.bundle.map(|meta| bundle(&meta.digest, Some(meta))),
        credential: None,
        approval: None,
        upstream: None,
        bytes_up: 0,
        bytes_down: 0,
        count: 1,
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
