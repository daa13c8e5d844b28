//! Keeps one forwarder process running and talks to it. While none runs, agents' connects are refused in the kernel.

mod session;
mod spool;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentguard_common::abi::AgentId;
use agentguard_link::calls::to_daemon::DaemonAnswer;
use agentguard_link::calls::to_forwarder::{
    Flush, ForwarderAnswer, ForwarderCall, FreeAgents, PutInForce, StopAgents,
};
use agentguard_link::calls::{Call, Calls, Silent, Token};
use agentguard_link::frame::{Sandbox, Start};
use agentguard_link::state::{Delta, PolicyUpdate};
use agentguard_record::DenyReason;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};

pub(crate) use agentguard_link::calls::to_forwarder::DroppedConnections;

use self::session::{PendingCall, Session, SessionEnd};
pub(crate) use self::spool::Spool;
use crate::books::Books;
use crate::census::Census;
use crate::census::namespaces::NewNamespace;
use crate::enforce::Enforce;
use crate::host::Host;
use crate::host::tls::ca::Authority;
use crate::lock::lock;
use crate::roster::Roster;

/// Restart delays grow from the first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// A forwarder that lived this long was well: the next delay is the shortest again.
const WELL: Duration = Duration::from_secs(30);

/// What the supervisor does for the rest of the daemon, in order.
pub enum Order {
    /// Changes the state that forwarders hold.
    Tell(Delta),
    /// Asks the forwarder, if one runs.
    Call(Token, ForwarderCall),
    /// Answers a call of a forwarder's, after what it was told before.
    Answer(PendingCall, DaemonAnswer),
    /// Serve another network namespace. An error if no forwarder runs or the kernel does not take it.
    Enter(NewNamespace, Reply),
    /// Serve the one with this cookie no longer.
    Leave(u64, Reply),
    /// End this process and start another: it did not answer, so what it holds is unknown.
    Restart(&'static str),
    Stop(Reply),
}

pub(crate) type Reply = oneshot::Sender<Result<(), String>>;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Status {
    Starting,
    Up {
        pid: u32,
        port: u16,
        since: Timestamp,
        sandbox: Sandbox,
    },
    Down {
        error: String,
    },
}

/// The forwarder, as the rest of the daemon has it: whichever process is one now. Cheap to clone.
#[derive(Clone)]
pub struct ForwarderLink {
    orders: mpsc::Sender<Order>,
    calls: Arc<Calls<ForwarderAnswer>>,
    status: Arc<Mutex<(Status, u64)>>,
    /// How many forwarders have come up.
    sessions: Arc<watch::Sender<u64>>,
}

impl ForwarderLink {
    pub fn new() -> (Self, mpsc::Receiver<Order>) {
        let (orders, ordered) = mpsc::channel(64);
        let status = Arc::new(Mutex::new((Status::Starting, 0)));
        let sessions = Arc::new(watch::Sender::new(0));
        let link = Self {
            orders,
            // None of its answers gives anything that would have to be given back.
            calls: Calls::new(|_, _| {}),
            status,
            sessions,
        };
        (link, ordered)
    }

    /// Told when another forwarder has come up.
    pub fn sessions(&self) -> watch::Receiver<u64> {
        self.sessions.subscribe()
    }

    /// The state, and how often it has been started again.
    pub fn status(&self) -> (Status, u64) {
        lock(&self.status).clone()
    }

    /// The forwarder's process, if one runs.
    pub fn tgid(&self) -> Option<u32> {
        match self.status().0 {
            Status::Up { pid, .. } => Some(pid),
            Status::Starting | Status::Down { .. } => None,
        }
    }

    pub fn set_status(&self, status: Status) {
        let is_up = matches!(status, Status::Up { .. });
        lock(&self.status).0 = status;
        if is_up {
            self.sessions.send_modify(|sessions| *sessions += 1);
        }
    }

    /// Changes the state that the forwarder holds, and the next one starts with.
    pub async fn tell(&self, delta: Delta) {
        self.order(Order::Tell(delta)).await;
    }

    /// Waits at most `limit` until every record completed so far has come, and everything told so far is taken up.
    pub async fn flush(&self, limit: Duration) -> Result<(), String> {
        let flushed = tokio::time::timeout(limit, self.call(Flush));
        let late = |_| Err(Silent::Late(Flush::NAME, limit));
        held_by_none((), flushed.await.unwrap_or_else(late))
    }

    /// Has the forwarder hold agents to this bundle. If none runs, the next one does.
    pub async fn put_in_force(&self, update: PolicyUpdate) -> Result<(), String> {
        let asked = self.call(PutInForce(Box::new(update))).await;
        asked.map_err(|silent| match silent {
            Silent::Gone => "the forwarder ended while it took the bundle".into(),
            Silent::TooMany(_) | Silent::Late(..) | Silent::Senseless(_) => said(silent),
        })
    }

    /// Drops what stopped agents have open, and says how much it was.
    pub async fn stop_agents(
        &self,
        agents: BTreeMap<AgentId, DenyReason>,
    ) -> Result<DroppedConnections, String> {
        held_by_none(
            DroppedConnections::new(),
            self.call(StopAgents(agents)).await,
        )
    }

    /// Has what comes of these agents judged again. A forwarder that does not answer has been told, and serves nobody until it
    /// goes on.
    pub async fn free_agents(&self, agents: BTreeSet<AgentId>) -> Result<(), String> {
        match self.call(FreeAgents(agents)).await {
            Err(silent @ Silent::Late(..)) => {
                tracing::warn!(why = said(silent), "agents that may go on");
                Ok(())
            }
            answer => held_by_none((), answer),
        }
    }

    /// Has the forwarder serve another network namespace.
    pub async fn enter(&self, entering: NewNamespace, limit: Duration) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        self.ask(limit, Order::Enter(entering, reply), answer).await
    }

    /// Has it serve the namespace with this cookie no longer.
    pub async fn leave(&self, netns: u64, limit: Duration) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        self.ask(limit, Order::Leave(netns, reply), answer).await
    }

    /// Ends the process and starts another.
    pub async fn restart(&self, why: &'static str) {
        self.order(Order::Restart(why)).await;
    }

    /// Ends the process in order, and the supervisor.
    pub async fn stop(&self, limit: Duration) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        self.ask(limit, Order::Stop(reply), answer).await
    }

    /// Answers a call of a forwarder's, after what has been told until now.
    pub async fn answer(&self, call: PendingCall, answer: DaemonAnswer) {
        self.order(Order::Answer(call, answer)).await;
    }

    /// The forwarder's answer to the call with this token.
    pub fn answered(&self, token: Token, answer: ForwarderAnswer) {
        self.calls.answered(token, answer);
    }

    /// The forwarder that was asked is gone.
    pub fn unanswered(&self, token: Token) {
        self.calls.forget(token);
    }

    async fn call<C>(&self, call: C) -> Result<C::Answer, Silent>
    where
        C: Call<Question = ForwarderCall, Reply = ForwarderAnswer>,
    {
        let send = |token, call| async move {
            let sent = self.orders.send(Order::Call(token, call)).await;
            sent.map_err(|_| Silent::Gone)
        };
        self.calls.call(call, send).await
    }

    async fn ask(
        &self,
        limit: Duration,
        order: Order,
        answer: oneshot::Receiver<Result<(), String>>,
    ) -> Result<(), String> {
        let asked = async {
            let gone = || "the forwarder's supervisor has ended".to_owned();
            self.orders.send(order).await.map_err(|_| gone())?;
            answer.await.unwrap_or_else(|_| Err(gone()))
        };
        tokio::time::timeout(limit, asked)
            .await
            .unwrap_or_else(|_| Err(format!("the forwarder did not answer within {limit:?}")))
    }

    async fn order(&self, order: Order) {
        // The supervisor ends only when the daemon does.
        let _ = self.orders.send(order).await;
    }
}

/// What the forwarder's supervisor and its sessions use of the daemon.
pub(crate) struct SupervisorParts {
    pub host: Arc<Host>,
    pub roster: Arc<Roster>,
    pub census: Arc<Census>,
    pub enforce: Arc<Enforce>,
    pub books: Arc<Books>,
    pub authority: Arc<Authority>,
    pub forwarder: ForwarderLink,
}

/// A forwarder that is gone holds no record and no connection, and the next one starts with what holds: it need not answer.
fn held_by_none<T>(none: T, answer: Result<T, Silent>) -> Result<T, String> {
    match answer {
        Ok(answer) => Ok(answer),
        Err(Silent::Gone) => Ok(none),
        Err(silent @ (Silent::TooMany(_) | Silent::Late(..) | Silent::Senseless(_))) => {
            Err(said(silent))
        }
    }
}

fn said(silent: Silent) -> String {
    match silent {
        Silent::Late(_, limit) => format!("the forwarder did not answer within {limit:?}"),
        Silent::Gone => "the forwarder is gone".into(),
        Silent::TooMany(_) | Silent::Senseless(_) => format!("the forwarder: {silent}"),
    }
}

/// Tells forwarders whether their records can be written, for as long as there is a log.
async fn tell_of_audit(link: ForwarderLink, mut writable: watch::Receiver<bool>) {
    loop {
        let is = *writable.borrow_and_update();
        link.tell(Delta::AuditWritable(is)).await;
        if writable.changed().await.is_err() {
            return;
        }
    }
}

/// Runs until told to stop. `start`: what a new forwarder starts with; its state changes before a forwarder is told, so
/// that one that dies in between loses nothing.
pub(crate) async fn supervise(
    parts: Arc<SupervisorParts>,
    mut orders: mpsc::Receiver<Order>,
    mut start: Start,
    mut spool: Spool,
) {
    let link = &parts.forwarder;
    let telling = tokio::spawn(tell_of_audit(link.clone(), parts.books.records.available()));
    let mut delay = BACKOFF.0;
    loop {
        let begun = tokio::time::Instant::now();
        let ended = match Session::start(&parts, start.clone(), &mut spool).await {
            Ok(session) => session.serve(&parts, &mut orders, &mut start.state).await,
            Err(error) => SessionEnd::Failed(error),
        };
        parts.enforce.forwarder_is_down(&parts.census);
        let error = match ended {
            SessionEnd::Stopped(reply) => {
                telling.abort();
                let _ = reply.send(Ok(()));
                return;
            }
            SessionEnd::Failed(error) => error,
        };
        if begun.elapsed() > WELL {
            delay = BACKOFF.0;
        }
        tracing::error!(%error, retry_in = ?delay, "no forwarder: agents' connections are refused");
        lock(&link.status).1 += 1;
        link.set_status(Status::Down { error });
        let again = tokio::time::sleep(delay);
        tokio::pin!(again);
        loop {
            tokio::select! {
                () = &mut again => break,
                Some(order) = orders.recv() => match order {
                    Order::Tell(delta) => start.state.apply(delta),
                    Order::Call(token, call) => {
                        let answer = call.without_forwarder();
                        match call {
                            ForwarderCall::Take(delta) => start.state.apply(delta),
                            ForwarderCall::Flush => {}
                        }
                        link.answered(token, answer);
                    }
                    // None is served, and they are looked for again when a forwarder is up.
                    Order::Enter(_, reply) => { let _ = reply.send(Err("no forwarder runs".into())); }
                    Order::Leave(_, reply) => { let _ = reply.send(Ok(())); }
                    Order::Stop(reply) => {
                        telling.abort();
                        let _ = reply.send(Ok(()));
                        return;
                    }
                    Order::Answer(..) | Order::Restart(_) => {}
                }
            }
        }
        delay = (delay * 2).min(BACKOFF.1);
    }
}
