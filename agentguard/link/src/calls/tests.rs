//! Calls are answered, or end by themselves; what they were given and nobody heard is given back.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use agentguard_policy::Room;
use tokio::sync::mpsc;

use super::to_daemon::{DaemonAnswer, DaemonCall, IssueLeaf, Leaf, TakeRoom};
use super::*;

const A: AgentId = AgentId(2);
const B: AgentId = AgentId(3);

struct Side {
    calls: Arc<Calls<DaemonAnswer>>,
    out: mpsc::UnboundedSender<(Token, DaemonCall)>,
    asked: mpsc::UnboundedReceiver<(Token, DaemonCall)>,
    unheard: Arc<Mutex<Vec<Token>>>,
}

impl Side {
    fn new() -> Self {
        let unheard = Arc::new(Mutex::new(Vec::new()));
        let (out, asked) = mpsc::unbounded_channel();
        let tell = unheard.clone();
        Self {
            calls: Calls::new(move |token, _| tell.lock().unwrap().push(token)),
            out,
            asked,
            unheard,
        }
    }

    fn call<C>(&self, call: C) -> impl Future<Output = Result<C::Answer, Silent>> + use<C>
    where
        C: Call<Question = DaemonCall, Reply = DaemonAnswer>,
    {
        let (calls, out) = (self.calls.clone(), self.out.clone());
        async move {
            let send = |token, question| async move {
                out.send((token, question)).map_err(|_| Silent::Gone)
            };
            calls.call(call, send).await
        }
    }

    fn waiting(&self) -> (usize, usize) {
        let waiting = self.calls.lock();
        (waiting.calls.len(), waiting.shares.values().sum())
    }

    fn unheard(&self) -> Vec<Token> {
        std::mem::take(&mut self.unheard.lock().unwrap())
    }
}

fn charge(agent: AgentId) -> TakeRoom {
    TakeRoom {
        agent,
        charges: Vec::new(),
    }
}

/// [`TakeRoom`] by somebody who cannot wait long.
struct Soon;

impl Call for Soon {
    type Question = DaemonCall;
    type Reply = DaemonAnswer;
    type Answer = (Token, Room);
    const NAME: &'static str = "soon";
    const LIMIT: Duration = Duration::from_millis(10);

    fn question(self) -> DaemonCall {
        DaemonCall::Charge(Vec::new())
    }

    fn answer(token: Token, reply: DaemonAnswer) -> Result<Self::Answer, DaemonAnswer> {
        TakeRoom::answer(token, reply)
    }
}

fn taken() -> DaemonAnswer {
    DaemonAnswer::Charge(Room::Taken(vec![1]))
}

#[tokio::test]
async fn answers_come_to_who_asked_in_whatever_order() {
    let mut side = Side::new();
    let leaf = tokio::spawn(side.call(IssueLeaf("origin.test".into())));
    let room = tokio::spawn(side.call(charge(A)));
    for _ in 0..2 {
        let (token, call) = side.asked.recv().await.unwrap();
        match call {
            DaemonCall::Leaf(name) => {
                let refused = Err(format!("no leaf for {name}"));
                side.calls.answered(token, DaemonAnswer::Leaf(refused));
            }
            DaemonCall::Charge(_) => side.calls.answered(token, taken()),
            DaemonCall::Task { .. } => panic!("nobody asks"),
        }
    }
    let leaf: Result<Leaf, String> = leaf.await.unwrap().unwrap();
    assert_eq!(leaf.unwrap_err(), "no leaf for origin.test");
    let (token, room) = room.await.unwrap().unwrap();
    assert_eq!((token, room), (2, Room::Taken(vec![1])));
    assert_eq!((side.waiting(), side.unheard()), ((0, 0), Vec::new()));
}

#[tokio::test]
async fn a_call_that_is_not_answered_ends_in_time_and_what_comes_later_is_given_back() {
    let mut side = Side::new();
    let error = side.call(Soon).await.unwrap_err();
    assert_eq!(error, Silent::Late("soon", Soon::LIMIT));
    assert_eq!(side.waiting(), (0, 0));
    let (token, _) = side.asked.recv().await.unwrap();
    side.calls.answered(token, taken());
    assert_eq!(side.unheard(), [token]);
}

#[tokio::test]
async fn the_limit_counts_while_the_question_cannot_go_out() {
    let side = Side::new();
    let stuck = |_, _| std::future::pending();
    let error = side.calls.call(Soon, stuck).await.unwrap_err();
    assert_eq!(error, Silent::Late("soon", Soon::LIMIT));
    assert_eq!(side.waiting(), (0, 0));
}

#[tokio::test]
async fn whoever_goes_before_the_answer_leaves_nothing_behind() {
    let mut side = Side::new();
    let asking = tokio::spawn(side.call(charge(A)));
    let (token, _) = side.asked.recv().await.unwrap();
    asking.abort();
    assert!(asking.await.unwrap_err().is_cancelled());
    assert_eq!(side.waiting(), (0, 0));
    side.calls.answered(token, taken());
    assert_eq!(side.unheard(), [token], "gone before the answer");

    let (waited, answered) = side.calls.begin::<TakeRoom>(Some(A)).unwrap();
    side.calls.answered(waited, taken());
    assert!(side.unheard().is_empty(), "held until it is heard");
    drop(answered);
    assert_eq!(side.unheard(), [waited], "gone before it is heard");
}

#[tokio::test]
async fn an_answer_without_a_call_is_ignored_and_one_call_takes_one() {
    let mut side = Side::new();
    side.calls.answered(7, taken());
    assert_eq!(side.unheard(), [7]);
    let room = tokio::spawn(side.call(charge(A)));
    let (token, _) = side.asked.recv().await.unwrap();
    side.calls.answered(token + 1, taken());
    assert_eq!((side.waiting(), side.unheard()), ((1, 1), vec![token + 1]));
    side.calls.answered(token, taken());
    side.calls.answered(token, taken());
    assert_eq!(side.unheard(), [token], "the second");
    assert!(room.await.unwrap().is_ok());
    assert!(side.unheard().is_empty());
}

#[tokio::test]
async fn an_answer_to_another_question_is_none() {
    let mut side = Side::new();
    let leaf = tokio::spawn(side.call(IssueLeaf("origin.test".into())));
    let (token, _) = side.asked.recv().await.unwrap();
    side.calls.answered(token, taken());
    let error = leaf.await.unwrap().unwrap_err();
    assert_eq!(error, Silent::Senseless("leaf"));
    assert_eq!(side.unheard(), [token], "what it gave is given back");
}

#[tokio::test]
async fn one_agents_calls_leave_room_for_others_and_all_together_are_bounded() {
    let side = Side::new();
    let begin = |agent| side.calls.begin::<TakeRoom>(Some(agent));
    let mut its: Vec<_> = (0..TakeRoom::SHARE).map(|_| begin(A).unwrap()).collect();
    assert_eq!(begin(A).err(), Some(Silent::TooMany("charge")));
    let leaf = side.calls.begin::<IssueLeaf>(None).unwrap();
    let others = begin(B).unwrap();
    side.calls.forget(its.pop().unwrap().0);
    its.push(begin(A).unwrap());
    let more = (4..).map(AgentId);
    let more = more.flat_map(|agent| std::iter::repeat_n(agent, TakeRoom::SHARE));
    its.extend(more.map_while(|agent| begin(agent).ok()));
    assert_eq!(side.waiting(), (MAX_WAITING, MAX_WAITING));
    let error = side.call(IssueLeaf("origin.test".into())).await;
    assert_eq!(error.unwrap_err(), Silent::TooMany("leaf"));
    its.extend([leaf, others]);
    for (token, _) in its {
        side.calls.forget(token);
    }
    assert_eq!(side.waiting(), (0, 0));
}

#[tokio::test]
async fn without_the_other_side_nobody_waits() {
    let Side {
        calls, out, asked, ..
    } = Side::new();
    let sent = AtomicBool::new(false);
    drop(asked);
    let send = |token, question| {
        sent.store(true, Ordering::Relaxed);
        let out = out.clone();
        async move { out.send((token, question)).map_err(|_| Silent::Gone) }
    };
    let error = calls.call(charge(A), send).await.unwrap_err();
    assert_eq!((error, sent.into_inner()), (Silent::Gone, true));

    let mut side = Side::new();
    let asking = tokio::spawn(side.call(charge(A)));
    let (token, _) = side.asked.recv().await.unwrap();
    side.calls.forget(token);
    assert_eq!(asking.await.unwrap().unwrap_err(), Silent::Gone);
    assert_eq!(side.waiting(), (0, 0));
}
