//! The daemon, as the rest of the forwarder has it: asked by calls, told what it need not answer.

use std::sync::Arc;

use agentguard_link::calls::to_daemon::{DaemonAnswer, DaemonCall, TaskChange};
use agentguard_link::calls::{Call, Calls, Silent, Token};
use agentguard_link::frame::ToDaemon;
use agentguard_policy::{Room, Settlement};
use tokio::sync::mpsc;

pub(crate) struct Daemon {
    calls: Arc<Calls<DaemonAnswer>>,
    out: mpsc::UnboundedSender<ToDaemon>,
}

impl Daemon {
    /// `out`: what goes to the daemon, in order.
    pub(crate) fn new(out: mpsc::UnboundedSender<ToDaemon>) -> Self {
        let back = out.clone();
        let calls = Calls::new(move |token, answer| {
            if let Some(frame) = give_back(token, &answer) {
                // Without the link's task there is no daemon that could take it.
                let _ = back.send(frame);
            }
        });
        Self { calls, out }
    }

    /// Asks, and waits for the answer as long as its kind allows.
    pub(crate) async fn call<C>(&self, call: C) -> Result<C::Answer, Silent>
    where
        C: Call<Question = DaemonCall, Reply = DaemonAnswer>,
    {
        let send = |token, call| {
            let sent = self.out.send(ToDaemon::Call { token, call });
            std::future::ready(sent.map_err(|_| Silent::Gone))
        };
        self.calls.call(call, send).await
    }

    /// The daemon's answer to the call with this token.
    pub(crate) fn answered(&self, token: Token, answer: DaemonAnswer) {
        self.calls.answered(token, answer);
    }

    /// What has become of the request that was charged by the call with this token.
    pub(crate) fn settle(&self, token: Token, settled: Settlement) {
        // Without the link's task there is no daemon, and the forwarder ends.
        let _ = self.out.send(ToDaemon::Settle { token, settled });
    }
}

/// What the daemon must be told if nobody has heard its answer.
fn give_back(token: Token, answer: &DaemonAnswer) -> Option<ToDaemon> {
    match answer {
        DaemonAnswer::Charge(Room::Taken(_)) => Some(ToDaemon::Settle {
            token,
            settled: Settlement::Unsent,
        }),
        DaemonAnswer::Charge(Room::Full { .. } | Room::Reused { .. } | Room::Unavailable(_))
        | DaemonAnswer::Leaf(_)
        | DaemonAnswer::Task(_, Err(_)) => None,
        // Who was not told that it is open would be held to it. To one that has ended nothing happens.
        DaemonAnswer::Task(agent, Ok(task)) => Some(ToDaemon::Call {
            token,
            call: DaemonCall::Task {
                agent: *agent,
                change: TaskChange::End { id: task.id },
            },
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::charges::HeldCharge;
    use agentguard_common::abi::AgentId;
    use agentguard_link::calls::to_daemon::{TakeRoom, TaskFault};
    use agentguard_link::state::OpenTask;
    use agentguard_policy::{OpenedBy, Terms};
    use futures_util::FutureExt as _;
    use uuid::Uuid;

    #[tokio::test]
    async fn a_task_that_nobody_hears_of_is_ended() {
        let (out, mut heard) = mpsc::unbounded_channel();
        let daemon = Daemon::new(out);
        let task = OpenTask {
            id: Uuid::from_u128(7),
            opened_by: OpenedBy::Agent,
            terms: Terms::default(),
            ends: 0,
        };
        daemon.answered(1, DaemonAnswer::Task(AgentId(2), Ok(task.clone())));
        let Ok(ToDaemon::Call { token: 1, call }) = heard.try_recv() else {
            panic!("nothing is given back");
        };
        let DaemonCall::Task { agent, change } = call else {
            panic!("{call:?}");
        };
        assert_eq!(agent, AgentId(2));
        assert!(matches!(change, TaskChange::End { id } if id == task.id));
        daemon.answered(1, DaemonAnswer::Task(AgentId(2), Err(TaskFault::Failed)));
        assert!(heard.try_recv().is_err(), "once");
    }

    #[tokio::test]
    async fn what_nobody_hears_is_given_back_once() {
        let (out, mut heard) = mpsc::unbounded_channel();
        let daemon = Arc::new(Daemon::new(out));
        // Asks, and is there to be answered.
        let call = || {
            let daemon = daemon.clone();
            let charges = Vec::new();
            let agent = AgentId(2);
            let mut call = Box::pin(async move { daemon.call(TakeRoom { agent, charges }).await });
            assert!((&mut call).now_or_never().is_none());
            call
        };
        let mut settled = || match heard.try_recv() {
            Ok(ToDaemon::Call { .. }) => match heard.try_recv() {
                Ok(ToDaemon::Settle { token, settled }) => Some((token, settled)),
                Ok(other) => panic!("{other:?}"),
                Err(_) => None,
            },
            Ok(ToDaemon::Settle { token, settled }) => Some((token, settled)),
            Ok(other) => panic!("{other:?}"),
            Err(_) => None,
        };
        let taken = || DaemonAnswer::Charge(Room::Taken(vec![1]));
        let unsent = |token| Some((token, Settlement::Unsent));
        daemon.answered(9, taken());
        assert_eq!(settled(), unsent(9), "nobody has waited");
        drop(call());
        daemon.answered(1, taken());
        assert_eq!(settled(), unsent(1), "gone before the answer");
        let answered = call();
        daemon.answered(2, taken());
        assert_eq!(settled(), None, "held until it is heard");
        drop(answered);
        assert_eq!(settled(), unsent(2), "gone before it is heard");
        let answered = call();
        daemon.answered(3, DaemonAnswer::Charge(Room::Reused { charge: 0 }));
        drop(answered);
        assert_eq!(settled(), None, "nothing was taken");
        let answered = call();
        daemon.answered(4, taken());
        let (token, room) = answered.await.unwrap();
        assert_eq!(settled(), None, "it is the caller's now");
        let mut held = HeldCharge::of(&daemon, token, &room);
        held.settled = Settlement::Kept;
        drop(held);
        assert_eq!(settled(), Some((4, Settlement::Kept)));
        assert_eq!(settled(), None, "once");
    }
}
