//! What the daemon says is taken up in its order, answered where it asks, and over when the daemon is gone.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use agentguard_common::abi::{FlowKey, Origin};
use agentguard_common::share::QuestionMark;
use agentguard_link::calls::to_forwarder::{DroppedConnections, ForwarderAnswer, ForwarderCall};
use agentguard_link::channel::{self, Receiver};
use agentguard_link::frame::{CanaryOrigin, Sandbox, Start, ToDaemon, ToForwarder, Upstream};
use agentguard_link::state::{Delta, State};
use agentguard_record::DenyReason;
use tokio::time::timeout;

use super::origin::TestOrigin;
use super::rig::{AGENT, ReadSpool, Setup};
use crate::InheritedHandles;
use crate::orders::{FirstWord, follow};
use crate::origin::OriginSource;

/// Nobody connects.
struct Nobody;

impl OriginSource for Nobody {
    fn accepted(&self, _: u64) -> io::Result<Option<Origin>> {
        Ok(None)
    }

    fn question(&self, _: QuestionMark, _: &FlowKey) -> io::Result<Option<Origin>> {
        Ok(None)
    }
}

async fn next(heard: &mut Receiver<ToDaemon>) -> Option<ToDaemon> {
    let frame = timeout(Duration::from_secs(20), heard.receive()).await;
    frame.expect("a frame").unwrap()
}

#[tokio::test]
async fn calls_are_answered_and_a_daemon_that_is_gone_ends_it() {
    let origin = TestOrigin::start(false).await;
    let start = Start {
        limits: Setup::default().limits,
        upstream: Upstream {
            roots: vec![origin.root.clone()],
            allow_addresses: Vec::new(),
            ways: agentguard_link::ways::Ways::default(),
        },
        canary: CanaryOrigin {
            port: origin.port,
            certificate: origin.root.clone(),
        },
        spool: ReadSpool::clean(),
        strict: false,
        tells_refused_names: false,
        state: State::default(),
    };
    let (near, far) = channel::pair().unwrap();
    let (mut daemon, mut heard) = channel::open::<ToForwarder, ToDaemon>(far).unwrap();
    let inherited = InheritedHandles {
        link: near,
        origins: Arc::new(Nobody),
    };
    let sandbox = Sandbox { landlock_abi: 0 };
    let (spool, _records) = ReadSpool::new();
    let first = FirstWord { start, spool };
    let following = tokio::spawn(follow(inherited, first, sandbox));
    let ready = next(&mut heard).await;
    assert!(matches!(ready, Some(ToDaemon::Ready { .. })), "{ready:?}");
    let take = |token, delta| ToForwarder::Call {
        token,
        call: ForwarderCall::Take(delta),
    };
    let killed = [(AGENT, DenyReason::AgentKilled)];
    for frame in [
        ToForwarder::Delta(Delta::AuditWritable(true)),
        take(1, Delta::Policy(Box::default())),
        take(2, Delta::Stopped(killed.into())),
        take(3, Delta::Policy(Box::default())),
        take(4, Delta::Freed([AGENT].into())),
        ToForwarder::Call {
            token: 5,
            call: ForwarderCall::Flush,
        },
    ] {
        daemon.send(&frame).await.unwrap();
    }
    let mut answers = BTreeMap::new();
    while answers.len() < 5 {
        match next(&mut heard).await {
            Some(ToDaemon::Answer { token, answer }) => {
                assert!(answers.insert(token, answer).is_none(), "{token} twice");
            }
            other => panic!("{other:?}"),
        }
    }
    let dropped = ForwarderAnswer::Dropped(DroppedConnections::from([(AGENT, 0)]));
    assert_eq!(answers.remove(&2), Some(dropped));
    assert!(answers.values().all(|it| *it == ForwarderAnswer::Done));
    drop((daemon, heard));
    let ended = timeout(Duration::from_secs(20), following).await;
    ended.expect("an end").unwrap().unwrap();
}
