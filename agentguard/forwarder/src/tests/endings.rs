//! What records say of what a decision came from and of how the exchange ended, where the two are not one.

use agentguard_common::abi::AgentId;
use agentguard_link::state::{Delta, OpenTask};
use agentguard_policy::{OpenedBy, Terms};
use agentguard_record::{DecidedBy, DenyReason, Draft, Ended, Outcome};
use jiff::Timestamp;
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

use super::rig::{AGENT, Rig, ask, reply};

fn told(record: &Draft) -> (DecidedBy, Ended, Outcome, Option<DenyReason>) {
    let Draft {
        decided_by,
        ended,
        outcome,
        reason,
        ..
    } = record;
    (*decided_by, *ended, *outcome, *reason)
}

#[tokio::test]
async fn a_body_that_is_malformed_after_the_permit_is_the_protocols_refusal() {
    let rig = Rig::new().await;
    let host = rig.authority();
    let mut client = rig.tls(&["http/1.1"]).await;
    let head = format!(
        "POST /ok/never HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
    );
    client.write_all(head.as_bytes()).await.unwrap();
    rig.origin.seen.waiting.notified().await;
    let refused = ask(&mut client, "not a length\r\n").await;
    let said = (refused.status, refused.slug());
    assert_eq!(said, (403, "protocol-refused".to_owned()));
    let record = rig.record().await;
    let refusal = Some(DenyReason::ProtocolRefused);
    let expected = (DecidedBy::Protocol, Ended::Refused, Outcome::Deny, refusal);
    assert_eq!(told(&record), expected);
    assert_eq!(record.bytes_up, 5);
}

fn opened(agent: AgentId, ids: &[u128]) -> Delta {
    let open = ids.iter().map(|id| OpenTask {
        id: Uuid::from_u128(*id),
        opened_by: OpenedBy::Supervisor,
        terms: Terms {
            intent: "wait".into(),
            ..Terms::default()
        },
        ends: Timestamp::now().as_second() + 60,
    });
    let open = open.collect();
    Delta::Tasks { agent, open }
}

#[tokio::test]
async fn a_task_that_ends_before_the_answer_ends_the_request_that_its_rules_permitted() {
    let rig = Rig::new().await;
    let host = rig.authority();
    rig.forwarder.situation.apply(opened(AGENT, &[1])).unwrap();
    let mut client = rig.tls(&["http/1.1"]).await;
    let get = format!("GET /ok/never HTTP/1.1\r\nHost: {host}\r\n\r\n");
    client.write_all(get.as_bytes()).await.unwrap();
    rig.origin.seen.waiting.notified().await;
    rig.forwarder.situation.apply(opened(AGENT, &[])).unwrap();
    let refused = reply(&mut client).await;
    assert_eq!(refused.slug(), "outside-task");
    let outside = Some(DenyReason::OutsideTask);
    let expected = (DecidedBy::Rules, Ended::TaskOver, Outcome::Deny, outside);
    assert_eq!(told(&rig.record().await), expected);
}

#[tokio::test]
async fn what_is_asked_of_agentguard_itself_is_decided_by_its_own_name() {
    let rig = Rig::new().await;
    let client = rig.tls_to("agentguard.internal", 443, &["http/1.1"]);
    let mut client = client.await.unwrap();
    let get = "GET /v1/permissions HTTP/1.1\r\nHost: agentguard.internal\r\n\r\n";
    assert_eq!(ask(&mut client, get).await.status, 200);
    let allowed = (DecidedBy::OwnName, Ended::Whole, Outcome::Allow, None);
    assert_eq!(told(&rig.record().await), allowed);
    let nothing = "GET /v1/nothing HTTP/1.1\r\nHost: agentguard.internal\r\n\r\n";
    assert_eq!(ask(&mut client, nothing).await.status, 404);
    let record = rig.record().await;
    assert_eq!(
        (record.decided_by, record.ended),
        (DecidedBy::OwnName, Ended::Refused)
    );
}
