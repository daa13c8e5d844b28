//! One forwarder process from its start to its end: frames out, frames in, answers to who waits for them.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;

use agentguard_common::abi::{AgentId, Forwarder};
use agentguard_link::channel::{self, Receiver};
use agentguard_link::frame::{TaskChange, TaskFault, ToDaemon, ToForwarder};
use agentguard_policy::{Charge, Room};
use agentguard_sys as sys;
use jiff::Timestamp;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::forwarder::{Ask, Desired, Dropped, Reply, Status};
use super::namespaces::Entering;
use super::state::Shared;
use super::tasks;
use crate::limits;

/// How long a new forwarder may take until it listens.
const START_LIMIT: Duration = Duration::from_secs(20);
/// What may wait for the forwarder to take it.
const QUEUE: usize = 65_536;
/// How long one that was told to stop may take.
const STOP_LIMIT: Duration = Duration::from_secs(3);

pub enum Ended {
    Stopped(Reply),
    Failed(String),
}

/// Takes frames, and descriptors that go with them.
#[derive(Clone)]
struct Out {
    queue: mpsc::Sender<(ToForwarder, Vec<OwnedFd>)>,
    /// It does not take them.
    stuck: CancellationToken,
}

impl Out {
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

pub struct Session {
    child: ChildGuard,
    out: Out,
    frames: Receiver<ToDaemon>,
    waiting: Waiting,
    ledger: limits::Session,
}

/// Who waits for which answer.
#[derive(Default)]
struct Waiting {
    policy: Vec<(String, Reply)>,
    kills: Vec<(Vec<AgentId>, Reply<Dropped>)>,
    flushes: HashMap<u64, Reply>,
    next_token: u64,
}

/// Ends the process if it still runs, and waits for it: no forwarder is left that the kernel does not know of.
struct ChildGuard(Child);

impl Drop for ChildGuard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Session {
    /// Starts a process and waits until it listens.
    pub async fn start(shared: &Arc<Shared>, start: ToForwarder) -> Result<Self, String> {
        let (ours, theirs) = channel::pair().map_err(|e| e.to_string())?;
        let maps = super::lock(&shared.kernel)
            .forwarder_maps()
            .map_err(|e| e.to_string())?;
        let descriptors = vec![theirs, maps.accepted, maps.flows];
        let mut child =
            sys::spawn::unprivileged(&shared.forwarder_account, &["forwarder"], descriptors)
                .map(ChildGuard)
                .map_err(|e| e.to_string())?;
        log_errors_of(&mut child.0);
        let (mut sender, mut frames) =
            channel::open::<ToForwarder, ToDaemon>(ours).map_err(|e| e.to_string())?;
        // A task of its own: two sides that wait for room in each other's socket would wait for ever.
        let (out, mut queued) = mpsc::channel::<(ToForwarder, Vec<OwnedFd>)>(QUEUE);
        let out = Out {
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
        out.send(start);
        let ready = tokio::time::timeout(START_LIMIT, frames.receive());
        let ready = match ready.await {
            Ok(Ok(Some(ready))) => ready,
            Ok(Ok(None)) => return Err("the forwarder ended while it started".into()),
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => {
                return Err(format!(
                    "the forwarder did not listen within {START_LIMIT:?}"
                ));
            }
        };
        let ToDaemon::Ready {
            port,
            listener4,
            listener6,
            sandbox,
        } = ready
        else {
            return Err("the forwarder's first frame was not `Ready`".into());
        };
        let tgid = child.0.id();
        shared
            .set_forwarder(Forwarder {
                listener4,
                listener6: listener6.unwrap_or(0),
                up: 1,
                port: port.into(),
                tgid,
                has_v6: listener6.is_some().into(),
            })
            .map_err(|e| e.to_string())?;
        let since = Timestamp::now();
        let status = Status::Up {
            pid: tgid,
            port,
            since,
            sandbox,
        };
        shared.forwarder.set_status(status);
        tracing::info!(
            pid = tgid,
            port,
            landlock_abi = sandbox.landlock_abi,
            "the forwarder listens"
        );
        Ok(Self {
            child,
            out,
            frames,
            waiting: Waiting::default(),
            ledger: shared.ledger.session().await,
        })
    }

    /// Serves until the process ends or is told to.
    pub async fn serve(
        mut self,
        shared: &Arc<Shared>,
        asks: &mut mpsc::Receiver<Ask>,
        desired: &mut Desired,
    ) -> Ended {
        if !*desired.audit.borrow_and_update() {
            self.out.send(ToForwarder::AuditAvailable(false));
        }
        loop {
            tokio::select! {
                frame = self.frames.receive() => match frame {
                    Ok(Some(ToDaemon::Lost { netns })) if netns == shared.netns_cookie => {
                        return Ended::Failed("its listener was destroyed".into());
                    }
                    Ok(Some(frame)) => self.received(shared, frame).await,
                    Ok(None) => return Ended::Failed(self.how_it_ended()),
                    Err(error) => return Ended::Failed(error.to_string()),
                },
                () = self.out.stuck.cancelled() => {
                    return Ended::Failed("it does not take what it is told".into());
                }
                Ok(()) = desired.audit.changed() => {
                    let available = *desired.audit.borrow_and_update();
                    self.out.send(ToForwarder::AuditAvailable(available));
                }
                Some(ask) = asks.recv() => {
                    if let Some(frame) = desired.take(&ask) {
                        self.out.send(frame);
                    }
                    match ask {
                        Ask::Policy(_, digest, reply) => self.waiting.policy.push((digest, reply)),
                        Ask::Kill(agents, reply) => {
                            self.waiting.kills.push((agents.into_keys().collect(), reply));
                        }
                        Ask::Revive(_, reply) => { let _ = reply.send(Ok(())); }
                        Ask::Flush(reply) => {
                            let token = self.waiting.next_token;
                            self.waiting.next_token += 1;
                            self.waiting.flushes.insert(token, reply);
                            self.out.send(ToForwarder::Flush { token });
                        }
                        Ask::Enter(entering, reply) => {
                            let _ = reply.send(self.enter(shared, entering));
                        }
                        Ask::Leave(netns, reply) => {
                            let left = super::lock(&shared.kernel).remove_namespace(netns);
                            self.out.send(ToForwarder::Leave { netns });
                            let _ = reply.send(left.map_err(|e| e.to_string()));
                        }
                        Ask::Network(_) | Ask::Tasks(..) | Ask::Changed(..) | Ask::Presence(_) => {}
                        Ask::Restart(why) => return Ended::Failed(why.into()),
                        Ask::Stop(reply) => {
                            self.out.send(ToForwarder::Stop);
                            self.finish(shared).await;
                            return Ended::Stopped(reply);
                        }
                    }
                }
            }
        }
    }

    /// Known to the kernel first: a connection waits in the listener's queue until the forwarder has it.
    fn enter(&self, shared: &Shared, entering: Entering) -> Result<(), String> {
        let Entering { netns, bound } = entering;
        let (listener4, listener6) = bound.cookies().map_err(|e| e.to_string())?;
        let listeners = Forwarder {
            listener4,
            listener6: listener6.unwrap_or(0),
            up: 1,
            port: bound.port.into(),
            tgid: self.child.0.id(),
            has_v6: listener6.is_some().into(),
        };
        super::lock(&shared.kernel)
            .add_namespace(netns, listeners)
            .map_err(|e| e.to_string())?;
        let frame = ToForwarder::Enter { netns };
        self.out.send_with(frame, bound.into_descriptors());
        Ok(())
    }

    async fn received(&mut self, shared: &Arc<Shared>, frame: ToDaemon) {
        match frame {
            ToDaemon::Records(drafts) => shared.record(drafts).await,
            ToDaemon::WantLeaf { name } => {
                let result = shared.authority.issue(&name).map_err(|e| e.to_string());
                self.out.send(ToForwarder::Leaf { name, result });
            }
            ToDaemon::ChangeTask {
                token,
                agent,
                change,
            } => self.change_task(shared, token, agent, change),
            ToDaemon::Flushed { token } => {
                if let Some(reply) = self.waiting.flushes.remove(&token) {
                    let _ = reply.send(Ok(()));
                }
            }
            ToDaemon::Charge { token, charges } => self.charge(shared, token, charges).await,
            ToDaemon::Settle { token, settled } => self.ledger.settle(token, settled).await,
            ToDaemon::Applied { digest } => {
                for (wanted, reply) in std::mem::take(&mut self.waiting.policy) {
                    if wanted == digest {
                        let _ = reply.send(Ok(()));
                    } else {
                        self.waiting.policy.push((wanted, reply));
                    }
                }
            }
            ToDaemon::Killed { dropped } => {
                for (wanted, reply) in std::mem::take(&mut self.waiting.kills) {
                    if wanted.iter().all(|agent| dropped.contains_key(agent)) {
                        let _ = reply.send(Ok(dropped.clone()));
                    } else {
                        self.waiting.kills.push((wanted, reply));
                    }
                }
            }
            ToDaemon::Connections(connections) => {
                super::lock(&shared.activity).connected(&connections);
            }
            ToDaemon::Lost { netns } => shared.namespaces.lost(netns),
            ToDaemon::Ready { .. } => tracing::warn!("the forwarder said `Ready` twice"),
        }
    }

    fn change_task(&self, shared: &Arc<Shared>, token: Uuid, agent: AgentId, change: TaskChange) {
        let Some(place) = shared.tasks.place() else {
            let result = Err(TaskFault::Failed);
            self.out.send(ToForwarder::TaskChanged { token, result });
            return;
        };
        // It tells the forwarder, which this session does: not to be waited for here.
        let shared = shared.clone();
        tokio::spawn(async move {
            let changed = tasks::change_own(&shared, agent, change).await;
            shared.forwarder.tell(Ask::Changed(token, changed)).await;
            drop(place);
        });
    }

    async fn charge(&self, shared: &Shared, token: u64, charges: Vec<Charge>) {
        let out = self.out.clone();
        let known = {
            let registry = super::lock(&shared.registry);
            let agents = charges.iter().filter_map(|it| it.counter.agent.as_ref());
            { agents }.all(|agent| registry.id(agent).is_some())
        };
        let answer = move |room| out.send(ToForwarder::Charged { token, room });
        match known {
            true => self.ledger.take(token, charges, answer).await,
            false => answer(Room::Unavailable("an agent is not known here".into())),
        }
    }

    /// Takes the last records until the forwarder closes the link.
    async fn finish(&mut self, shared: &Arc<Shared>) {
        let rest = async {
            while let Ok(Some(frame)) = self.frames.receive().await {
                self.received(shared, frame).await;
            }
        };
        if tokio::time::timeout(STOP_LIMIT, rest).await.is_err() {
            tracing::warn!("the forwarder did not stop within {STOP_LIMIT:?} and is ended");
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

impl Drop for Waiting {
    /// A dead forwarder holds no connection and no record; but whether it could use a new bundle is not known.
    fn drop(&mut self) {
        for (_, reply) in self.policy.drain(..) {
            let _ = reply.send(Err("the forwarder ended while it took the bundle".into()));
        }
        for (_, reply) in self.kills.drain(..) {
            let _ = reply.send(Ok(Dropped::new()));
        }
        for (_, reply) in self.flushes.drain() {
            let _ = reply.send(Ok(()));
        }
    }
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
