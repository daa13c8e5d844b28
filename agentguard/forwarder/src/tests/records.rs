//! Records on their way: none is lost, none is taken that has no place, all are sent in order and in batches.

use std::sync::Arc;
use std::time::Duration;

use agentguard_common::abi::{AgentId, Origin};
use agentguard_link::calls::to_daemon::DaemonCall;
use agentguard_link::calls::to_forwarder::ForwarderAnswer;
use agentguard_link::channel;
use agentguard_link::frame::{ToDaemon, ToForwarder};
use agentguard_link::spool::{CleanSegment, SpoolEnd};
use agentguard_record::{ActionName, DecidedBy, DenyReason, Ended, Outcome};
use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::rig::{AGENT, ReadSpool, Rig, ask};
use crate::forwarder::Inbox;
use crate::life::Lives;
use crate::outbox::Outbox;
use crate::record::RecordSender;
use crate::spool::Spool;

fn book(strict: bool) -> (Arc<RecordSender>, Arc<Spool>, Arc<Lives>, ReadSpool) {
    let (files, read) = ReadSpool::new();
    let spool = Spool::start(files, ReadSpool::clean(), strict).unwrap();
    let records = Arc::new(RecordSender::new(spool.clone()));
    (records, spool, Arc::default(), read)
}

#[tokio::test]
async fn an_entry_that_is_dropped_is_recorded_as_aborted_or_killed() {
    let (records, _spool, lives, mut drafts) = book(false);
    let life = lives.of(AGENT);
    drop(records.open(&life, &Origin::default()));
    let draft = drafts.next().unwrap();
    assert_eq!(
        (draft.outcome, draft.detail.as_deref()),
        (Outcome::Error, Some("aborted"))
    );
    assert_eq!(
        (draft.decided_by, draft.ended),
        (DecidedBy::Undecided, Ended::Aborted)
    );
    let entry = records.open(&life, &Origin::default());
    lives
        .kill(&[(AGENT, DenyReason::AgentOrphaned)].into())
        .await;
    drop(entry);
    let draft = drafts.next().unwrap();
    assert_eq!(
        (draft.outcome, draft.reason),
        (Outcome::Killed, Some(DenyReason::AgentOrphaned))
    );
    assert_eq!(draft.ended, Ended::Stopped);
}

#[tokio::test]
async fn what_begins_is_in_the_spool_before_it_does_and_has_one_end() {
    for strict in [false, true] {
        let (records, _spool, lives, mut drafts) = book(strict);
        let mut entry = records.open(&lives.of(AGENT), &Origin::default()).unwrap();
        let decision = entry.decision;
        entry.begin().await.unwrap();
        assert!(drafts.next().is_none(), "it is not over");
        let begun = &drafts.begun[&decision];
        assert_eq!(
            (begun.outcome, begun.ended),
            (Outcome::Allow, Ended::Unfinished)
        );
        assert!(!entry.begin().await.unwrap(), "once");
        entry.complete(Outcome::Allow, Ended::Whole);
        let over = drafts.next().unwrap();
        assert_eq!((over.decision, over.ended), (decision, Ended::Whole));
        assert!(drafts.begun.is_empty() && drafts.next().is_none());
    }
}

#[tokio::test]
async fn nothing_begins_in_a_full_spool_and_refusals_are_counted() {
    let (records, _spool, lives, mut drafts) = book(false);
    let mut begun = Vec::new();
    let mut refused = Vec::new();
    let agents = (1..).flat_map(|agent| [AgentId(agent); 20]);
    for agent in agents {
        let origin = Origin {
            agent,
            ..Origin::default()
        };
        let mut entry = records.open(&lives.of(agent), &origin).unwrap();
        entry.resource = "x".repeat(30_000);
        match entry.begin().await {
            Ok(_) => begun.push(entry),
            Err(refusal) => {
                assert_eq!(refusal.reason, DenyReason::AuditUnavailable);
                entry.refuse(refusal);
                refused.push(agent);
                break;
            }
        }
    }
    assert!(begun.len() > 100, "{}", begun.len());
    let count = begun.len();
    for entry in begun {
        entry.complete(Outcome::Allow, Ended::Whole);
    }
    let ends = drafts.by_ref().filter(|draft| draft.ended == Ended::Whole);
    assert_eq!(ends.count(), count, "each has its end");
    records.cleaned(CleanSegment {
        index: 0,
        generation: 3,
    });
    let told = drafts.next().expect("a record for what had no room");
    assert_eq!((told.agent, told.outcome), (refused[0], Outcome::Deny));
    assert_eq!(told.facts.get("count").map(String::as_str), Some("1"));
}

#[tokio::test]
async fn what_is_given_up_while_it_waits_for_the_disk_keeps_no_room() {
    let (records, _spool, lives, mut drafts) = book(true);
    let life = lives.of(AGENT);
    let open = || {
        let mut entry = records.open(&life, &Origin::default()).unwrap();
        entry.resource = "x".repeat(100_000);
        entry
    };
    for _ in 0..55 {
        let mut entry = open();
        assert!(entry.begin().now_or_never().is_none(), "it is on disk");
        drop(entry);
    }
    open().begin().await.unwrap();
    assert_eq!(drafts.by_ref().count(), 56, "each has its end");
    assert!(drafts.begun.is_empty());
}

#[tokio::test]
async fn an_agent_with_its_share_open_is_told_so_and_others_go_on() {
    let (records, _spool, lives, _drafts) = book(false);
    let open = |agent| {
        let origin = Origin {
            agent,
            ..Origin::default()
        };
        let mut entry = records.open(&lives.of(agent), &origin).unwrap();
        entry.resource = "x".repeat(100_000);
        entry
    };
    let mut begun = Vec::new();
    let refusal = loop {
        let mut entry = open(AGENT);
        match entry.begin().await {
            Ok(_) => begun.push(entry),
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refusal.reason, DenyReason::AuditUnavailable);
    assert!(refusal.detail.contains("this agent"), "{}", refusal.detail);
    open(AgentId(99)).begin().await.unwrap();
    begun.pop();
    open(AGENT).begin().await.unwrap();
}

#[tokio::test]
async fn everything_said_goes_after_the_records_completed_before() {
    let (near, far) = channel::pair().unwrap();
    let (sender, _orders) = channel::open::<ToDaemon, ToForwarder>(near).unwrap();
    let (_daemon, mut heard) = channel::open::<ToForwarder, ToDaemon>(far).unwrap();
    let (records, spool, lives, _drafts) = book(false);
    let (wanted, calls) = mpsc::unbounded_channel();
    let inbox = Inbox {
        spool: spool.clone(),
        calls,
    };
    let outbox = Outbox::start(sender, inbox, lives.clone());
    let life = lives.of(AgentId(9));
    for _ in 0..2_000 {
        let entry = records.open(&life, &Origin::default()).unwrap();
        entry.complete(Outcome::Deny, Ended::Refused);
    }
    let end = spool.end();
    outbox.say(ToDaemon::Answer {
        token: 5,
        answer: ForwarderAnswer::Done,
    });
    let call = DaemonCall::Leaf("origin.test".into());
    wanted.send(ToDaemon::Call { token: 1, call }).unwrap();
    let mut hear = async || {
        let frame = timeout(Duration::from_secs(20), heard.receive()).await;
        frame.unwrap().unwrap().unwrap()
    };
    let (mut told, mut frames, mut flushed) = (SpoolEnd::default(), 0, false);
    let mut asked = false;
    while !(flushed && asked) {
        match hear().await {
            ToDaemon::Spooled(end) => (told, frames) = (end, frames + 1),
            ToDaemon::Answer { token: 5, .. } => {
                assert_eq!(told, end);
                flushed = true;
            }
            ToDaemon::Call {
                call: DaemonCall::Leaf(name),
                ..
            } => asked = name == "origin.test",
            other => panic!("{other:?}"),
        }
    }
    assert!(frames < 100, "{frames} frames for 2,000 records");
    // Without being asked to, soon.
    let entry = records.open(&life, &Origin::default()).unwrap();
    entry.complete(Outcome::Deny, Ended::Refused);
    let frame = hear().await;
    assert!(matches!(frame, ToDaemon::Spooled(end) if end == spool.end()));
    let counted = lives.count(&life);
    let frame = hear().await;
    assert!(matches!(frame, ToDaemon::Connections(it) if it[&AgentId(9)] == 1));
    drop(counted);
    outbox.finish().await;
}

#[tokio::test]
async fn dns_over_tcp_is_answered_and_recorded_per_query() {
    let rig = Rig::new().await;
    let mut client = rig.connect(53).await;
    // A query for origin.test A, and one for a name that nothing covers.
    for (name, rcode) in [("origin", 0), ("secrets", 3)] {
        let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, name.len() as u8];
        query.extend_from_slice(name.as_bytes());
        query.extend_from_slice(b"\x04test\x00\x00\x01\x00\x01");
        client.write_u16(query.len() as u16).await.unwrap();
        client.write_all(&query).await.unwrap();
        let length = client.read_u16().await.unwrap();
        let mut answer = vec![0; length.into()];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer[3] & 15, rcode, "{name}");
    }
    drop(client);
    let actions = [rig.record().await.action, rig.record().await.action];
    assert_eq!(actions, [ActionName::Dns, ActionName::Dns]);
    drop(rig.connect(53).await);
    assert_eq!(
        rig.record().await.detail.unwrap(),
        "the connection ended before a query"
    );
    assert!(rig.records().is_empty());
}

#[tokio::test]
async fn one_leaf_is_asked_for_once_whoever_wants_it() {
    let rig = Rig::new().await;
    let port = rig.origin.port;
    let connecting = (0..20).map(|_| rig.tls_to("origin.test", port, &["http/1.1"]));
    for client in futures_util::future::join_all(connecting).await {
        client.unwrap();
    }
    assert_eq!(rig.leaves_issued(), 1);
    rig.tls_to("other.test", port, &[]).await.unwrap();
    rig.tls_to("origin.test", port, &[]).await.unwrap();
    assert_eq!(rig.leaves_issued(), 2);
}

#[tokio::test]
async fn upstream_connections_are_kept_per_agent_and_swept() {
    let rig = Rig::new().await;
    let get = format!("GET /ok/x HTTP/1.1\r\nHost: {}\r\n\r\n", rig.authority());
    for _ in 0..3 {
        // Each over a connection of the client's own.
        let mut client = rig.tls(&["http/1.1"]).await;
        assert_eq!(ask(&mut client, &get).await.status, 200);
    }
    let opened = || {
        rig.origin
            .seen
            .connections
            .load(std::sync::atomic::Ordering::Relaxed)
    };
    assert_eq!(opened(), 1);
    rig.forwarder.sweep();
    let mut client = rig.tls(&["http/1.1"]).await;
    assert_eq!(ask(&mut client, &get).await.status, 200);
    assert_eq!(opened(), 1, "what is fresh stays");
    let life = rig.forwarder.lives.of(AGENT);
    rig.forwarder.upstreams.pool(&life).clear();
    assert_eq!(ask(&mut client, &get).await.status, 200);
    assert_eq!(opened(), 2);
}
