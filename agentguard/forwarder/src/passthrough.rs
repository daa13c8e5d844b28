//! Hosts whose TLS is not ended here: judged by the name in the ClientHello, then passed on byte by byte.

use std::sync::atomic::Ordering;
use std::time::Instant;

use agentguard_policy::Settled;
use agentguard_policy::{Action, Context, Decision, Input, Permit, Policy};
use agentguard_record::DenyReason;
use agentguard_record::UpstreamInfo;
use jiff::Timestamp;
use tokio::io::AsyncWriteExt;

use super::charges::Held;
use super::identity::Target;
use super::io::{Client, Peeked};
use super::record::{Entry, micros};
use super::sniff::Hello;
use super::standing::{Asked, Standing, still_decided};
use super::tasks::Named;
use super::terminate::{Alert, send_alert};
use super::{Arrival, refuse, tunnel};

/// Judges the connection as `Action::Connect` and carries it.
pub async fn carry(
    arrival: &Arrival,
    target: Target,
    hello: &Hello,
    stream: Peeked<Client>,
    mut entry: Entry,
) {
    entry.resource = target.id();
    let (forwarder, agent) = (arrival.forwarder.clone(), arrival.life.agent);
    let (policy, permit, mut held, gathered) = loop {
        let policy = forwarder.policy.load_full();
        match judge(arrival, &policy, &target, hello, &mut entry).await {
            Ok((permit, held, gathered))
                if held.is_nothing()
                    || still_decided(&forwarder, &policy, agent, &Named::Nothing, &gathered) =>
            {
                break (policy, permit, held, gathered);
            }
            Ok(_) => {}
            Err((reason, detail)) => {
                entry.refuse(reason, detail);
                let (_, mut client) = stream.into_parts();
                return send_alert(&mut client, &Alert::AccessDenied.bytes()).await;
            }
        }
    };
    let tasks = forwarder.situation.tasks.ends_of(permit.covered());
    let (head, mut client) = stream.into_parts();
    let upstreams = &arrival.forwarder.upstreams;
    held.settled = Settled::Kept;
    let dialled = upstreams.connect(&arrival.life, permit).await;
    let (mut upstream, addr) = match dialled {
        Ok(dialled) => dialled,
        Err(fault) => {
            held.settled = Settled::Unsent;
            let detail = format!("{}: {}", entry.resource, fault.detail);
            entry.fail(Some(fault.reason), detail);
            return send_alert(&mut client, &Alert::InternalError.bytes()).await;
        }
    };
    drop(held);
    entry.upstream = Some(UpstreamInfo {
        addr: addr.to_string(),
        tls: "passthrough".into(),
    });
    let passed = entry.passed.clone();
    let carried = async {
        upstream.write_all(&head).await?;
        passed.up.fetch_add(head.len() as u64, Ordering::Relaxed);
        drop(head);
        tunnel::splice(client, upstream, &passed).await
    };
    let standing = Standing::new(
        forwarder,
        policy,
        agent,
        target,
        Asked::Connect,
        gathered,
        tasks,
    );
    tunnel::carry(carried, entry, standing).await;
}

async fn judge(
    arrival: &Arrival,
    policy: &Policy,
    target: &Target,
    hello: &Hello,
    entry: &mut Entry,
) -> Result<(Permit, Held, Context), (DenyReason, String)> {
    let forwarder = &arrival.forwarder;
    if !forwarder.records.available() {
        return Err((DenyReason::AuditUnavailable, refuse::NO_AUDIT.into()));
    }
    if hello.encrypted {
        let detail = "the ClientHello may hide another name (encrypted_client_hello)";
        return Err((DenyReason::ProtocolRefused, detail.into()));
    }
    entry.bundle = Some(policy.meta().digest.clone());
    if policy.is_expired(Timestamp::now()) {
        return Err((DenyReason::PolicyStale, refuse::STALE.into()));
    }
    let started = Instant::now();
    let agent = arrival.life.agent;
    let situation = &forwarder.situation;
    let tasks = situation.tasks.held(policy, agent, &Named::Nothing);
    let known = Context {
        tasks: Some(tasks),
        ..Context::default()
    };
    let input = Input {
        agent,
        host: &target.host,
        port: target.port,
        action: Action::Connect,
        context: &known,
    };
    let mut gathered = known.clone();
    entry.on_task(&known);
    situation.gather(policy, &input, &mut gathered);
    let decision = policy.decide(&Input {
        context: &gathered,
        ..input
    });
    entry.latency.decide = micros(started);
    let taken = match decision {
        Decision::Permit(permit) => Ok((permit, Held::nothing())),
        Decision::Limited(limited) => forwarder.charges.take(*limited).await,
        Decision::Deny(denial) => Err(denial),
    };
    match taken {
        Ok((permit, held)) => {
            entry.permitted(&permit);
            Ok((permit, held, gathered))
        }
        Err(denial) => {
            entry.policies = denial.policies;
            entry.facts = denial.facts;
            Err((denial.reason, denial.detail))
        }
    }
}
