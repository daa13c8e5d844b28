//! The agents' DNS. Answers for names that a reach entry covers, their services' among them, and nothing else, so that a
//! query's name is no way out; upstream is asked only after the policy was. Other names lead to the forwarder itself, which refuses in words.

mod serve;
mod service;
mod verdict;
mod wire;

use std::net::IpAddr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use agentguard_common::abi::{AgentId, Origin};
use agentguard_policy::{HostName, KernelRule, Policy, is_reserved};
use agentguard_record::{
    ActionName, DecidedBy, DenyReason, Draft, DraftTask, Ended, Outcome, RequestInfo,
};
use hickory_proto::op::Query;
use hickory_proto::rr::RecordType;
use jiff::Timestamp;
use uuid::Uuid;

use self::verdict::{OWN, QueryVerdict};
use self::wire::{encode, parse};
use super::resolve::{Family, FoundRecords, NameResolver};

pub use serve::{Gate, Keep, Server};

/// How a query came, which bounds its answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    Udp,
    Tcp,
}

/// What goes back, and what is recorded. The record is sent first.
#[derive(Debug)]
pub struct DnsAnswer {
    /// `None` where an answer would be wrong: to what is no query.
    pub bytes: Option<Vec<u8>>,
    pub record: Draft,
}

/// Whether a name may be resolved.
#[derive(Clone, Copy, PartialEq, Eq)]
enum NameReach {
    /// It is AgentGuard's own.
    Own,
    Yes,
    /// It is not, and leads to AgentGuard's own address, where a request is told so.
    Told,
    No,
    /// It would not be, and its agent is only observed.
    Observed,
}

/// Decides `query` and answers it. `refused`: the agent may do nothing at all now (killed, no audit), and why. `tells`: names
/// that are refused lead to AgentGuard's own address.
pub async fn answer(
    query: &[u8],
    transport: Transport,
    origin: &Origin,
    refused: Option<(DecidedBy, DenyReason)>,
    policy: &Policy,
    resolver: &NameResolver,
    tells: bool,
) -> DnsAnswer {
    let stale = || {
        policy
            .is_expired(Timestamp::now())
            .then_some((DecidedBy::Expiry, DenyReason::PolicyStale))
    };
    let refused = refused.or_else(stale);
    let observes = policy.observes(origin.agent);
    let covers = |name: &HostName| match policy.may_resolve(origin.agent, name) {
        _ if is_reserved(name) => NameReach::Own,
        true => NameReach::Yes,
        false if observes => NameReach::Observed,
        false if tells && may_be_told(policy, origin.agent, name) => NameReach::Told,
        false => NameReach::No,
    };
    let mut answer = respond(query, transport, origin, refused, covers, resolver).await;
    answer.record.bundle = Some(policy.meta().digest.clone());
    answer
}

/// Whether who asks for a refused name is told so by its requests. Not where they would not come here, nor of what a search
/// list has made of a name that is covered: the next that is tried is then the name itself (resolv.conf(5)).
fn may_be_told(policy: &Policy, agent: AgentId, name: &HostName) -> bool {
    let comes_here = policy.agent(agent).is_some_and(|agent| {
        let passes = |rule: &KernelRule| matches!(rule, KernelRule::Reach { net, .. } if net.contains(&IpAddr::V4(OWN)));
        agent.has_hosts && !agent.kernel.iter().any(passes)
    });
    let name = name.as_str();
    let mut beginnings = name.match_indices('.').map(|(at, _)| &name[..at]);
    let is_searched = beginnings.any(|beginning| {
        HostName::parse(beginning).is_ok_and(|covered| policy.may_resolve(agent, &covered))
    });
    comes_here && !is_searched && name.contains('.')
}

async fn respond(
    query: &[u8],
    transport: Transport,
    origin: &Origin,
    refused: Option<(DecidedBy, DenyReason)>,
    covers: impl Fn(&HostName) -> NameReach,
    resolver: &NameResolver,
) -> DnsAnswer {
    let started = Instant::now();
    let mut record = blank(origin);
    let message = match parse(query) {
        Ok(message) => message,
        Err(fault) => {
            let verdict = fault.verdict();
            let bytes = fault.bytes(query);
            finish(&mut record, &verdict, started);
            return DnsAnswer { bytes, record };
        }
    };
    let question = &message.queries[0];
    let shown = shown(question);
    record.resource.clone_from(&shown);
    record.request = Some(RequestInfo {
        scheme: "dns".into(),
        host: shown.clone(),
        port: origin.port,
        method: question.query_type().to_string(),
        path: String::new(),
        status: 0,
    });

    let name = HostName::parse(&shown)
        .ok()
        .filter(|name| name.ip().is_none());
    let kind = question.query_type();
    let covered = name
        .as_ref()
        .map_or(NameReach::No, |name| reach_of(name, kind, &covers));
    record.latency.decide = micros(started);
    let verdict = match (refused, name) {
        (Some((by, reason)), _) => QueryVerdict::stopped(by, reason),
        (None, Some(name)) => match covered {
            NameReach::Own => QueryVerdict::own(kind),
            NameReach::Yes => look_up(&name, kind, resolver, &covers).await,
            NameReach::Observed => look_up(&name, kind, resolver, &covers).await.observed(),
            NameReach::Told => QueryVerdict::told(kind),
            NameReach::No => QueryVerdict::uncovered(),
        },
        (None, None) => QueryVerdict::uncovered(),
    };
    finish(&mut record, &verdict, started);
    let bytes = encode(&message, &verdict, transport);
    DnsAnswer { bytes, record }
}

/// Whether records of this type may be asked for of this name: a host's services are covered as it is.
fn reach_of(
    name: &HostName,
    kind: RecordType,
    covers: &impl Fn(&HostName) -> NameReach,
) -> NameReach {
    let own = covers(name);
    let refused = matches!(own, NameReach::Told | NameReach::No);
    match service::host_of(name) {
        Some(host) if refused && service::is_served(kind) => match covers(&host) {
            NameReach::Yes => NameReach::Yes,
            NameReach::Observed => NameReach::Observed,
            NameReach::Own | NameReach::Told | NameReach::No => own,
        },
        _ => own,
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "types of records that nobody serves here are answered alike, those to come too"
)]
async fn look_up(
    name: &HostName,
    kind: RecordType,
    resolver: &NameResolver,
    covers: &impl Fn(&HostName) -> NameReach,
) -> QueryVerdict {
    let family = match kind {
        RecordType::A => Family::V4,
        RecordType::AAAA => Family::V6,
        kind if service::is_served(kind) && resolver.leaves_to_proxy(name) => {
            return QueryVerdict::records(FoundRecords::none(), |_| true);
        }
        kind if service::is_served(kind) => {
            let may = |target: &HostName| match covers(target) {
                NameReach::Yes | NameReach::Observed => true,
                NameReach::Own | NameReach::Told | NameReach::No => false,
            };
            return match resolver.records(name, kind).await {
                Ok(found) => QueryVerdict::records(found, may),
                Err(error) => QueryVerdict::failed(&error),
            };
        }
        _ => return QueryVerdict::other_type(),
    };
    if resolver.leaves_to_proxy(name) {
        return QueryVerdict::of_proxy(family);
    }
    match resolver.family(name, family).await {
        Ok(resolved) => QueryVerdict::resolved(&resolved),
        Err(error) => QueryVerdict::failed(&error),
    }
}

/// The asked name as it is judged and recorded: lower case, without the trailing dot, odd bytes escaped.
fn shown(question: &Query) -> String {
    let ascii = question.name().to_lowercase().to_ascii();
    match ascii.strip_suffix('.') {
        Some("") | None => ascii,
        Some(name) => name.to_owned(),
    }
}

fn blank(origin: &Origin) -> Draft {
    Draft {
        time_us: now_us(),
        decision: Uuid::now_v7(),
        tgid: origin.tgid,
        action: ActionName::Dns,
        task: DraftTask::OfProcess,
        outcome: Outcome::Deny,
        ended: Ended::Refused,
        ..Draft::blank(origin.agent)
    }
}

fn finish(record: &mut Draft, verdict: &QueryVerdict, started: Instant) {
    if let Some(request) = &mut record.request {
        request.status = u16::from(verdict.code);
    }
    record.outcome = verdict.outcome;
    record.decided_by = verdict.decided_by;
    record.ended = verdict.ended;
    record.reason = verdict.reason;
    record.detail = Some(verdict.detail.clone());
    record.latency.total = micros(started);
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

fn now_us() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
