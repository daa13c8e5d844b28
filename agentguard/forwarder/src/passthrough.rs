//! Hosts whose TLS is not ended here: judged by the name in the ClientHello, then passed on byte by byte.

use std::sync::atomic::Ordering;

use agentguard_policy::Action;
use agentguard_record::{Ended, UpstreamInfo};
use tokio::io::AsyncWriteExt;

use super::act::Act;
use super::admit::Arrival;
use super::body::RequestBody;
use super::identity::RequestTarget;
use super::io::{ClientStream, PeekedStream};
use super::judge::{self, Docket, Grant, Subject};
use super::record::{ConnectionOver, RecordEntry};
use super::refusal::{NO_AUDIT, Refusal};
use super::sniff::Hello;
use super::standing::{OngoingAct, Standing};
use super::tasks::NamedTask;
use super::terminate::{Alert, last_words};
use super::tunnel;

/// Judges the connection as `Action::Connect` and carries it.
pub(crate) async fn pass(
    arrival: &Arrival,
    target: RequestTarget,
    hello: &Hello,
    stream: PeekedStream<ClientStream>,
    mut entry: RecordEntry,
) -> ConnectionOver {
    entry.resource = target.id();
    let _occupied = arrival.counted.seat.occupy();
    let forwarder = &arrival.forwarder;
    let mut docket = Docket::new(forwarder, entry);
    let judged = judge(arrival, &target, hello, &mut docket).await;
    let Docket { policy, mut entry } = docket;
    let (head, mut client) = stream.into_parts();
    let Grant {
        permit,
        mut claim,
        gathered,
    } = match judged {
        Ok(grant) => grant,
        Err(refusal) => {
            let over = entry.refuse(refusal);
            last_words(&mut client, &Alert::AccessDenied.bytes()).await;
            return over;
        }
    };
    let tasks = forwarder.situation.tasks.ends_of(permit.permit().covered());
    claim.goes_out();
    let dialled = forwarder.upstreams.connect(&arrival.life, permit).await;
    let reached = match dialled {
        Ok(dialled) => dialled,
        Err(fault) => {
            claim.was_not_sent();
            let detail = format!("{}: {}", entry.resource, fault.detail);
            let over = entry.fail(Ended::UpstreamFailed, Some(fault.reason), detail);
            last_words(&mut client, &Alert::InternalError.bytes()).await;
            return over;
        }
    };
    drop(claim);
    entry.upstream = Some(UpstreamInfo {
        addr: reached.addr.to_string(),
        tls: "passthrough".into(),
        proxy: reached.proxy.clone(),
    });
    let mut upstream = reached.hop;
    let passed = entry.passed.clone();
    let carried = async {
        upstream.write_all(&head).await?;
        passed.up.fetch_add(head.len() as u64, Ordering::Relaxed);
        drop(head);
        tunnel::splice(client, upstream, &passed).await
    };
    let standing = Standing::new(
        forwarder.clone(),
        policy,
        arrival.life.clone(),
        target,
        OngoingAct::Connect,
        gathered,
        tasks,
    );
    tunnel::carry(carried, entry, standing).await
}

async fn judge(
    arrival: &Arrival,
    target: &RequestTarget,
    hello: &Hello,
    docket: &mut Docket,
) -> Result<Grant, Refusal> {
    let forwarder = &arrival.forwarder;
    if !forwarder.records.available() {
        return Err(Refusal::unrecorded(NO_AUDIT));
    }
    if hello.encrypted {
        let detail = "the ClientHello may hide another name (encrypted_client_hello)";
        return Err(Refusal::protocol(detail));
    }
    let subject = Subject {
        forwarder,
        life: &arrival.life,
        task: &NamedTask::Nothing,
    };
    let act = Act {
        target,
        action: Action::Connect,
    };
    // There is no body that a rule could read.
    judge::judge(subject, &[act], &mut RequestBody::Spent, docket).await
}
