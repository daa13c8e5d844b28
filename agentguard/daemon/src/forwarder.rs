//! Keeps one forwarder process running and talks to it. While none runs, agents' connects are refused in the kernel.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentguard_common::abi::AgentId;
use agentguard_link::frame::{
    CanaryOrigin, OpenTask, PolicyUpdate, Sandbox, Start, TaskFault, ToForwarder, Upstream,
};
use agentguard_link::presence::{self, Changes, Presence};
use agentguard_record::DenyReason;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use super::link::{Ended, Session};
use super::namespaces::Entering;
use super::state::Shared;

/// Restart delays grow from the first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// A forwarder that lived this long was well: the next delay is the shortest again.
const WELL: Duration = Duration::from_secs(30);

/// What the rest of the daemon wants of the forwarder. The answer comes when the forwarder has done it, or at once while
/// none runs: it starts with what holds then.
pub enum Ask {
    /// With the bundle's digest, by which the forwarder answers.
    Policy(Arc<PolicyUpdate>, String, Reply),
    /// Answered by how many client connections of each agent were dropped.
    Kill(BTreeMap<AgentId, DenyReason>, Reply<Dropped>),
    Revive(Vec<AgentId>, Reply),
    /// Whether the host's network is trusted now.
    Network(bool),
    /// The agent's open tasks, in the place of those before.
    Tasks(AgentId, Vec<OpenTask>),
    /// What has become of the change with this token that an agent has asked for.
    Changed(Uuid, Result<OpenTask, TaskFault>),
    /// How agents are up now.
    Presence(Changes),
    Flush(Reply),
    /// Serve another network namespace. An error if no forwarder runs or the kernel does not take it.
    Enter(Entering, Reply),
    /// Serve the one with this cookie no longer.
    Leave(u64, Reply),
    /// End this process and start another: it did not answer, so what it holds is unknown.
    Restart(&'static str),
    Stop(Reply),
}

/// Client connections by agent.
pub type Dropped = BTreeMap<AgentId, u32>;
pub type Reply<T = ()> = oneshot::Sender<Result<T, String>>;

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

/// The daemon's side of it; cheap to clone.
#[derive(Clone)]
pub struct Handle {
    asks: mpsc::Sender<Ask>,
    status: Arc<Mutex<(Status, u64)>>,
    /// How many forwarders have come up.
    sessions: Arc<watch::Sender<u64>>,
}

impl Handle {
    pub fn new() -> (Self, mpsc::Receiver<Ask>) {
        let (asks, taken) = mpsc::channel(64);
        let status = Arc::new(Mutex::new((Status::Starting, 0)));
        let sessions = Arc::new(watch::Sender::new(0));
        let handle = Self {
            asks,
            status,
            sessions,
        };
        (handle, taken)
    }

    /// Told when another forwarder has come up.
    pub fn sessions(&self) -> watch::Receiver<u64> {
        self.sessions.subscribe()
    }

    /// The state, and how often it has been started again.
    pub fn status(&self) -> (Status, u64) {
        super::lock(&self.status).clone()
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
        super::lock(&self.status).0 = status;
        if is_up {
            self.sessions.send_modify(|sessions| *sessions += 1);
        }
    }

    /// Asks, and waits at most `limit`.
    pub async fn ask<T>(
        &self,
        limit: Duration,
        ask: impl FnOnce(Reply<T>) -> Ask,
    ) -> Result<T, String> {
        let (reply, answer) = oneshot::channel();
        let asked = async {
            let gone = || "the forwarder's supervisor has ended".to_owned();
            self.asks.send(ask(reply)).await.map_err(|_| gone())?;
            answer.await.unwrap_or_else(|_| Err(gone()))
        };
        tokio::time::timeout(limit, asked)
            .await
            .unwrap_or_else(|_| Err(format!("the forwarder did not answer within {limit:?}")))
    }

    pub async fn tell(&self, ask: Ask) {
        // The supervisor ends only when the daemon does.
        let _ = self.asks.send(ask).await;
    }
}

/// What a new forwarder starts with. Changes before a forwarder is told, so that one that dies in between loses nothing.
pub struct Desired {
    pub policy: Arc<PolicyUpdate>,
    pub killed: BTreeMap<AgentId, DenyReason>,
    /// Whether records can be written.
    pub audit: watch::Receiver<bool>,
    pub upstream: Upstream,
    pub canary: CanaryOrigin,
    pub trusted_network: bool,
    pub tasks: BTreeMap<AgentId, Vec<OpenTask>>,
    pub presences: BTreeMap<AgentId, Presence>,
}

impl Desired {
    fn start(&self, shared: &Shared) -> ToForwarder {
        ToForwarder::Start(Box::new(Start {
            port: shared.config.forwarder.port,
            limits: shared.config.forwarder.limits(),
            upstream: self.upstream.clone(),
            killed: self.killed.clone(),
            policy: PolicyUpdate::clone(&self.policy),
            canary: self.canary.clone(),
            trusted_network: self.trusted_network,
            host_labels: shared.config.host.labels.clone(),
            tasks: self.tasks.clone(),
            presences: self.presences.clone(),
        }))
    }

    /// Takes up an ask, and says what the forwarder must be told of it.
    pub fn take(&mut self, ask: &Ask) -> Option<ToForwarder> {
        match ask {
            Ask::Policy(update, ..) => {
                self.policy = update.clone();
                Some(ToForwarder::Policy(Box::new(PolicyUpdate::clone(update))))
            }
            Ask::Kill(agents, _) => {
                self.killed.extend(agents);
                Some(ToForwarder::Kill {
                    agents: agents.clone(),
                })
            }
            Ask::Revive(agents, _) => {
                self.killed.retain(|agent, _| !agents.contains(agent));
                Some(ToForwarder::Revive {
                    agents: agents.clone(),
                })
            }
            Ask::Network(trusted) => {
                self.trusted_network = *trusted;
                Some(ToForwarder::Network { trusted: *trusted })
            }
            Ask::Tasks(agent, tasks) => {
                self.tasks.insert(*agent, tasks.clone());
                Some(ToForwarder::Tasks {
                    agent: *agent,
                    tasks: tasks.clone(),
                })
            }
            Ask::Changed(token, result) => Some(ToForwarder::TaskChanged {
                token: *token,
                result: result.clone(),
            }),
            Ask::Presence(changes) => {
                presence::follow(&mut self.presences, changes);
                Some(ToForwarder::Presence(changes.clone()))
            }
            Ask::Enter(..) | Ask::Leave(..) | Ask::Flush(_) | Ask::Restart(_) | Ask::Stop(_) => {
                None
            }
        }
    }
}

/// Runs until told to stop.
pub async fn supervise(shared: Arc<Shared>, mut asks: mpsc::Receiver<Ask>, mut desired: Desired) {
    let mut delay = BACKOFF.0;
    loop {
        let begun = tokio::time::Instant::now();
        let start = desired.start(&shared);
        let ended = match Session::start(&shared, start).await {
            Ok(session) => session.serve(&shared, &mut asks, &mut desired).await,
            Err(error) => Ended::Failed(error),
        };
        shared.forwarder_is_down();
        let error = match ended {
            Ended::Stopped(reply) => {
                let _ = reply.send(Ok(()));
                return;
            }
            Ended::Failed(error) => error,
        };
        if begun.elapsed() > WELL {
            delay = BACKOFF.0;
        }
        tracing::error!(%error, retry_in = ?delay, "no forwarder: agents' connections are refused");
        super::lock(&shared.forwarder.status).1 += 1;
        shared.forwarder.set_status(Status::Down { error });
        let again = tokio::time::sleep(delay);
        tokio::pin!(again);
        loop {
            tokio::select! {
                () = &mut again => break,
                Some(ask) = asks.recv() => {
                    desired.take(&ask);
                    match ask {
                        Ask::Policy(_, _, reply) | Ask::Revive(_, reply) | Ask::Flush(reply) => {
                            let _ = reply.send(Ok(()));
                        }
                        Ask::Kill(_, reply) => { let _ = reply.send(Ok(Dropped::new())); }
                        // None is served, and they are looked for again when a forwarder is up.
                        Ask::Enter(_, reply) => { let _ = reply.send(Err("no forwarder runs".into())); }
                        Ask::Leave(_, reply) => { let _ = reply.send(Ok(())); }
                        Ask::Stop(reply) => {
                            let _ = reply.send(Ok(()));
                            return;
                        }
                        Ask::Network(_)
                        | Ask::Tasks(..)
                        | Ask::Changed(..)
                        | Ask::Presence(_)
                        | Ask::Restart(_) => {}
                    }
                }
            }
        }
        delay = (delay * 2).min(BACKOFF.1);
    }
}
