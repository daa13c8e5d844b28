//! One forwarder process from its start to its end: frames out, frames in, answers to who waits for them.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

use agentguard_common::abi::{AgentId, Forwarder};
use agentguard_link::calls::Token;
use agentguard_link::calls::to_daemon::{DaemonAnswer, DaemonCall, TaskChange, TaskFault};
use agentguard_link::calls::to_forwarder::ForwarderCall;
use agentguard_link::channel::{self, Receiver};
use agentguard_link::frame::{Start, ToDaemon, ToForwarder};
use agentguard_link::listen::{BoundSockets, listen};
use agentguard_link::spool::{CleanSegment, SpoolEnd};
use agentguard_link::state::State;
use agentguard_policy::{Charge, Room};
use agentguard_record::Draft;
use agentguard_sys as sys;
use futures_util::future::OptionFuture;
use jiff::Timestamp;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::spool::{Spool, TakeUpError};
use super::{ForwarderLink, Order, Reply, Status, SupervisorParts};
use crate::books::limits;
use crate::census::namespaces::NewNamespace;
use crate::lock::lock;
use crate::roster::tasks;

/// How long a new forwarder may take until it can be given listeners.
const START_LIMIT: Duration = Duration::from_secs(20);
/// What may wait for the forwarder to take it.
const QUEUE: usize = 65_536;
/// How long it may take until an earlier forwarder has left the spool, and then until what it has left is in the log.
const RECOVER_LIMIT: Duration = Duration::from_secs(5);
/// How often a spool that is still in use is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long one that was told to stop may take.
const STOP_LIMIT: Duration = Duration::from_secs(3);

/// How a session with a forwarder ended.
pub(super) enum SessionEnd {
    Stopped(Reply),
    Failed(String),
}

/// Takes frames, and descriptors that go with them.
#[derive(Clone)]
struct OutQueue {
    queue: mpsc::Sender<(ToForwarder, Vec<OwnedFd>)>,
    /// It does not take them.
    stuck: CancellationToken,
}

impl OutQueue {
    fn send(&self, frame: ToForwarder) {
        self.send_with(frame, Vec::new());
    }

    fn send_with(&self, frame: ToForwarder, descriptors: Vec<OwnedFd>) {
        // Without the task the link is closed, which ends the session.
        if let Err(TrySendError::Full(_)) = self.queue.try_send((frame, descriptors)) {
            self.stuck.cancel();
        }
    }
}

/// A forwarder's call until it is answered. The answer to a forwarder that is gone goes nowhere.
pub struct PendingCall {
    token: Token,
    out: OutQueue,
}

impl PendingCall {
    fn answer(self, answer: DaemonAnswer) {
        let token = self.token;
        self.out.send(ToForwarder::Answer { token, answer });
    }
}

pub(super) struct Session<'s> {
    child: ChildGuard,
    spool: &'s mut Spool,
    /// How far the forwarder has written it.
    spooled: SpoolEnd,
    /// Whether the log can be written: while it cannot, records stay in the spool.
    writable: watch::Receiver<bool>,
    /// Segments that can be written to again once everything taken up from them is in the log.
    left: Vec<u8>,
    logged: Option<JoinHandle<()>>,
    out: OutQueue,
    frames: Receiver<ToDaemon>,
    asked: Asked,
    ledger: limits::Session,
}

/// The daemon's calls that this forwarder has been asked and has not answered.
struct Asked {
    tokens: BTreeSet<Token>,
    link: ForwarderLink,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.tokens.iter().for_each(|it| self.link.unanswered(*it));
    }
}

/// Ends the process if it still runs, and waits for it: no forwarder is left that the kernel does not know of.
struct ChildGuard(Child);

impl Drop for ChildGuard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl<'s> Session<'s> {
    /// Starts a process, waits until it is ready, and gives it the host's listeners.
    pub(super) async fn start(
        parts: &Arc<SupervisorParts>,
        mut start: Start,
        spool: &'s mut Spool,
    ) -> Result<Self, String> {
        let (spool_files, clean) = recover(parts, spool).await.map_err(|e| e.to_string())?;
        start.spool = clean;
        let (ours, theirs) = channel::pair().map_err(|e| e.to_string())?;
        let maps = lock(&parts.enforce.kernel)
            .forwarder_maps()
            .map_err(|e| e.to_string())?;
        let descriptors = vec![theirs, maps.accepted, maps.questions];
        let mut child = sys::spawn::unprivileged(&parts.host.account, &["forwarder"], descriptors)
            .map(ChildGuard)
            .map_err(|e| e.to_string())?;
        log_errors_of(&mut child.0);
        let (mut sender, mut frames) =
            channel::open::<ToForwarder, ToDaemon>(ours).map_err(|e| e.to_string())?;
        // A task of its own: two sides that wait for room in each other's socket would wait for ever.
        let (out, mut queued) = mpsc::channel::<(ToForwarder, Vec<OwnedFd>)>(QUEUE);
        let out = OutQueue {
            queue: out,
            stuck: CancellationToken::new(),
        };
        tokio::spawn(async move {
            while let Some((frame, descriptors)) = queued.recv().await {
                if sender.send_with(&frame, &descriptors).await.is_err() {
                    break;
                }
            }
        });
        out.send_with(ToForwarder::Start(Box::new(start)), spool_files);
        let ready = tokio::time::timeout(START_LIMIT, frames.receive());
        let ready = match ready.await {
            Ok(Ok(Some(ready))) => ready,
            Ok(Ok(None)) => return Err("the forwarder ended while it started".into()),
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => {
                return Err(format!(
                    "the forwarder was not ready within {START_LIMIT:?}"
                ));
            }
        };
        let ToDaemon::Ready { sandbox } = ready else {
            return Err("the forwarder's first frame was not `Ready`".into());
        };
        let tgid = child.0.id();
        let port = parts.host.config.forwarder.port;
        let bound = listen(port)
            .map_err(|error| format!("listening on port {port} of 127.0.0.1 and ::1: {error}"))?;
        let port = bound.port;
        let listeners = listeners(tgid, &bound).map_err(|e| e.to_string())?;
        let set = parts.enforce.set_forwarder(listeners);
        set.map_err(|e| e.to_string())?;
        let netns = parts.enforce.netns_cookie;
        out.send_with(ToForwarder::Enter { netns }, bound.into_descriptors());
        let since = Timestamp::now();
        let status = Status::Up {
            pid: tgid,
            port,
            since,
            sandbox,
        };
        parts.forwarder.set_status(status);
        tracing::info!(
            pid = tgid,
            port,
            landlock_abi = sandbox.landlock_abi,
            "the forwarder listens"
        );
        Ok(Self {
            child,
            spool,
            spooled: SpoolEnd::default(),
            writable: parts.books.records.available(),
            left: Vec::new(),
            logged: None,
            out,
            frames,
            asked: Asked {
                tokens: BTreeSet::new(),
                link: parts.forwarder.clone(),
            },
            ledger: parts.books.ledger.session().await,
        })
    }

    /// Serves until the process ends or is told to.
    pub(super) async fn serve(
        mut self,
        parts: &Arc<SupervisorParts>,
        orders: &mut mpsc::Receiver<Order>,
        state: &mut State,
    ) -> SessionEnd {
        loop {
            tokio::select! {
                frame = self.frames.receive() => match frame {
                    Ok(Some(ToDaemon::Lost { netns })) if netns == parts.enforce.netns_cookie => {
                        return SessionEnd::Failed("its listener was destroyed".into());
                    }
                    Ok(Some(frame)) => if let Err(error) = self.received(parts, frame).await {
                        return SessionEnd::Failed(error.to_string());
                    },
                    Ok(None) => return SessionEnd::Failed(self.how_it_ended()),
                    Err(error) => return SessionEnd::Failed(error.to_string()),
                },
                Ok(()) = self.writable.changed() => if let Err(error) = self.take_up(parts).await {
                    return SessionEnd::Failed(error.to_string());
                },
                Some(_) = OptionFuture::from(self.logged.as_mut()) => {
                    self.logged = None;
                    if let Err(error) = self.clean(parts) {
                        return SessionEnd::Failed(error.to_string());
                    }
                }
                () = self.out.stuck.cancelled() => {
                    return SessionEnd::Failed("it does not take what it is told".into());
                }
                Some(order) = orders.recv() => match order {
                    Order::Tell(delta) => {
                        state.apply(delta.clone());
                        self.out.send(ToForwarder::Delta(delta));
                    }
                    Order::Call(token, call) => {
                        match &call {
                            ForwarderCall::Take(delta) => state.apply(delta.clone()),
                            ForwarderCall::Flush => {}
                        }
                        self.asked.tokens.insert(token);
                        self.out.send(ToForwarder::Call { token, call });
                    }
                    Order::Answer(call, answer) => call.answer(answer),
                    Order::Enter(entering, reply) => {
                        let _ = reply.send(self.enter(parts, entering));
                    }
                    Order::Leave(netns, reply) => {
                        let left = lock(&parts.enforce.kernel).remove_namespace(netns);
                        self.out.send(ToForwarder::Leave { netns });
                        let _ = reply.send(left.map_err(|e| e.to_string()));
                    }
                    Order::Restart(why) => return SessionEnd::Failed(why.into()),
                    Order::Stop(reply) => {
                        self.out.send(ToForwarder::Stop);
                        self.finish(parts).await;
                        return SessionEnd::Stopped(reply);
                    }
                }
            }
        }
    }

    /// Known to the kernel first: a connection waits in the listener's queue until the forwarder has it.
    fn enter(&self, parts: &SupervisorParts, entering: NewNamespace) -> Result<(), String> {
        let NewNamespace { netns, bound } = entering;
        let listeners = listeners(self.child.0.id(), &bound).map_err(|e| e.to_string())?;
        lock(&parts.enforce.kernel)
            .add_namespace(netns, listeners)
            .map_err(|e| e.to_string())?;
        let frame = ToForwarder::Enter { netns };
        self.out.send_with(frame, bound.into_descriptors());
        Ok(())
    }

    async fn received(
        &mut self,
        parts: &Arc<SupervisorParts>,
        frame: ToDaemon,
    ) -> Result<(), TakeUpError> {
        match frame {
            ToDaemon::Spooled(end) => {
                self.spooled = end;
                self.take_up(parts).await?;
            }
            ToDaemon::Call { token, call } => {
                let out = self.out.clone();
                self.called(parts, PendingCall { token, out }, call).await;
            }
            ToDaemon::Answer { token, answer } => {
                if self.asked.tokens.remove(&token) {
                    parts.forwarder.answered(token, answer);
                }
            }
            ToDaemon::Settle { token, settled } => self.ledger.settle(token, settled).await,
            ToDaemon::Connections(connections) => {
                lock(&parts.census.activity).connected(&connections);
            }
            ToDaemon::Lost { netns } => parts.census.namespaces.lost(netns),
            ToDaemon::Ready { .. } => tracing::warn!("the forwarder said `Ready` twice"),
        }
        Ok(())
    }

    /// Has what is in the spool written to the log, while it can be.
    async fn take_up(&mut self, parts: &SupervisorParts) -> Result<(), TakeUpError> {
        if self.spooled == SpoolEnd::default() || !*self.writable.borrow_and_update() {
            return Ok(());
        }
        let taken = self.spool.take_up(self.spooled)?;
        write(parts, taken.drafts).await;
        if !taken.left.is_empty() {
            self.left.extend(taken.left);
            let records = parts.books.records.clone();
            self.logged = Some(tokio::spawn(async move { records.written().await }));
        }
        Ok(())
    }

    /// Gives the forwarder back what it has left of the spool.
    fn clean(&mut self, parts: &SupervisorParts) -> Result<(), TakeUpError> {
        let seq = parts.books.records.head().borrow().seq;
        for index in self.left.drain(..) {
            let clean = self.spool.clean(index, seq)?;
            self.out.send(ToForwarder::Clean(clean));
        }
        Ok(())
    }

    async fn called(&mut self, parts: &Arc<SupervisorParts>, asked: PendingCall, call: DaemonCall) {
        match call {
            DaemonCall::Leaf(name) => {
                let result = parts.authority.issue(&name).map_err(|e| e.to_string());
                asked.answer(DaemonAnswer::Leaf(result));
            }
            DaemonCall::Task { agent, change } => change_task(parts, asked, agent, change),
            DaemonCall::Charge(charges) => self.charge(parts, asked, charges).await,
        }
    }

    async fn charge(&self, parts: &SupervisorParts, asked: PendingCall, charges: Vec<Charge>) {
        let known = {
            let registry = lock(&parts.roster.registry);
            let mut agents = charges.iter().filter_map(|it| it.counter.agent.as_ref());
            agents.all(|agent| registry.id(agent).is_some())
        };
        let token = asked.token;
        let answer = move |room| asked.answer(DaemonAnswer::Charge(room));
        match known {
            true => self.ledger.take(token, charges, answer).await,
            false => answer(Room::Unavailable("an agent is not known here".into())),
        }
    }

    /// Takes the last records until the forwarder closes the link.
    async fn finish(&mut self, parts: &Arc<SupervisorParts>) {
        let rest = async {
            while let Ok(Some(frame)) = self.frames.receive().await {
                self.received(parts, frame).await?;
            }
            if self.spool.is_over() && *self.writable.borrow() {
                parts.books.records.written().await;
                let seq = parts.books.records.head().borrow().seq;
                self.spool.empty(seq)?;
            }
            Ok::<_, TakeUpError>(())
        };
        match tokio::time::timeout(STOP_LIMIT, rest).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the next forwarder's start takes up what is left");
            }
            Err(_) => {
                tracing::warn!("the forwarder did not stop within {STOP_LIMIT:?} and is ended");
            }
        }
    }

    fn how_it_ended(&mut self) -> String {
        // The link closes before the process is gone: wait for it, `kill` in between does no harm to a dead one.
        let _ = self.child.0.kill();
        match self.child.0.wait() {
            Ok(status) => format!("the forwarder ended ({status})"),
            Err(error) => format!("the forwarder ended ({error})"),
        }
    }
}

/// What the programs need to know of the listeners that the forwarder gets.
fn listeners(tgid: u32, bound: &BoundSockets) -> std::io::Result<Forwarder> {
    let (listener4, listener6) = bound.cookies()?;
    Ok(Forwarder {
        listener4,
        listener6: listener6.unwrap_or(0),
        up: 1,
        port: bound.port.into(),
        tgid,
        has_v6: listener6.is_some().into(),
    })
}

/// Has the log written what a forwarder has left, and empties the spool for the next one.
async fn recover(
    parts: &SupervisorParts,
    spool: &mut Spool,
) -> Result<(Vec<OwnedFd>, Vec<CleanSegment>), TakeUpError> {
    let records = &parts.books.records;
    // Nobody else's orders wait for a log that cannot be written.
    if !*records.available().borrow() {
        return Err(TakeUpError::NoLog);
    }
    let left = in_time(async {
        records.written().await;
        loop {
            match spool.leftovers() {
                // It ends when it finds the link closed.
                Err(TakeUpError::InUse(_)) => tokio::time::sleep(LOOK_EVERY).await,
                left => break left,
            }
        }
    });
    // No limit over this: a log that takes longer to read would do so at each start.
    let left = left.await?.unlogged().await?;
    in_time(async {
        if !left.is_empty() {
            tracing::warn!(records = left.len(), "taken up from the spool");
        }
        write(parts, left).await;
        records.written().await;
        let seq = records.head().borrow().seq;
        spool.renew(seq)
    })
    .await
}

async fn in_time<T>(
    recovery: impl Future<Output = Result<T, TakeUpError>>,
) -> Result<T, TakeUpError> {
    let in_time = tokio::time::timeout(RECOVER_LIMIT, recovery).await;
    in_time.unwrap_or(Err(TakeUpError::Late(RECOVER_LIMIT)))
}

async fn write(parts: &SupervisorParts, drafts: Vec<Draft>) {
    let drafts = drafts.into_iter().map(|draft| (draft, None)).collect();
    parts
        .books
        .record(&parts.roster, &parts.census, drafts)
        .await;
}

fn change_task(
    parts: &Arc<SupervisorParts>,
    asked: PendingCall,
    agent: AgentId,
    change: TaskChange,
) {
    let Some(place) = parts.roster.tasks.place() else {
        return asked.answer(DaemonAnswer::Task(agent, Err(TaskFault::Failed)));
    };
    // The change is told by this session: not to be waited for here.
    let parts = parts.clone();
    tokio::spawn(async move {
        let changed = tasks::change_own(&parts.roster, &parts.forwarder, agent, change).await;
        let answer = DaemonAnswer::Task(agent, changed);
        parts.forwarder.answer(asked, answer).await;
        drop(place);
    });
}

/// Passes the forwarder's standard error on to the log, line by line, until it closes.
fn log_errors_of(child: &mut Child) {
    let Some(stderr) = child.stderr.take() else {
        return;
    };
    let named = std::thread::Builder::new().name("forwarder-log".into());
    let reading = named.spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            tracing::info!(target: "forwarder", "{line}");
        }
    });
    if let Err(error) = reading {
        tracing::warn!(%error, "the forwarder's messages are lost");
    }
}
