//! An agent's life in the forwarder, from its first connection until it is stopped: everything opened for it hangs on it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use agentguard_common::abi::AgentId;
use agentguard_record::DenyReason;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::order::Order;
use super::seat::{Seat, Seats};
use super::shares::Shares;

/// Connections whose memory is worth giving back.
const MANY: u32 = 64;

type StopHook = Box<dyn FnOnce() + Send>;

/// One agent, until it is killed or stopped otherwise. What comes when it may go on is another life.
pub(crate) struct Life {
    pub agent: AgentId,
    /// Why it was stopped, once it was.
    killed: OnceLock<DenyReason>,
    cut: CancellationToken,
    tasks: TaskTracker,
    connections: AtomicU32,
    /// One change of its tasks at a time.
    pub changing: tokio::sync::Mutex<()>,
    /// What is to be done when it ends; `None` once it has.
    on_end: Mutex<Option<Vec<StopHook>>>,
    pub shares: Shares,
    pub seats: Seats,
    pub order: Order,
}

impl Life {
    /// Client connections that are open now.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed) as usize
    }

    fn new(agent: AgentId) -> Self {
        Self {
            agent,
            killed: OnceLock::new(),
            cut: CancellationToken::new(),
            tasks: TaskTracker::new(),
            connections: AtomicU32::new(0),
            changing: tokio::sync::Mutex::default(),
            on_end: Mutex::new(Some(Vec::new())),
            shares: Shares::default(),
            seats: Seats::default(),
            order: Order::default(),
        }
    }

    /// The forwarder's, for what it does as itself.
    pub(crate) fn own() -> Arc<Self> {
        Arc::new(Self::new(AgentId::NONE))
    }

    pub(crate) fn killed(&self) -> bool {
        self.killed.get().is_some()
    }

    /// Why it was stopped, if it was.
    pub(crate) fn why(&self) -> Option<DenyReason> {
        self.killed.get().copied()
    }

    /// Whether nothing of it goes on: it was stopped, or the forwarder ends.
    pub(crate) fn is_over(&self) -> bool {
        self.cut.is_cancelled()
    }

    /// What a kill waits for: held longer than what is to be gone by then.
    pub(crate) fn tracked(&self) -> TaskTrackerToken {
        self.tasks.token()
    }

    /// Runs `task` until it ends or the agent is killed, whichever is first. It is pinned by its caller, as the future of
    /// this would have it twice, and goes with a [`Self::tracked`] of its caller's.
    pub(crate) async fn hold<T>(&self, task: Pin<&mut impl Future<Output = T>>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.cut.cancelled() => None,
            value = task => Some(value),
        }
    }

    /// [`Self::hold`] on a task of its own.
    pub(crate) fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let life = self.clone();
        let task = Box::pin(task);
        tokio::spawn(async move {
            let _tracked = life.tracked();
            let mut task = task;
            life.hold(task.as_mut()).await
        });
    }

    /// Calls `hook` when it ends, which it may have already: what is kept for the agent beside its tasks is dropped with
    /// it.
    pub(crate) fn on_end(&self, hook: impl FnOnce() + Send + 'static) {
        let mut hooks = self.on_end.lock().expect(UNPOISONED);
        match &mut *hooks {
            Some(hooks) => hooks.push(Box::new(hook)),
            None => {
                drop(hooks);
                hook();
            }
        }
    }

    fn kill(&self, why: DenyReason) {
        // Of several reasons the first has ended what there was.
        let _ = self.killed.set(why);
        self.end();
    }

    fn end(&self) {
        self.cut.cancel();
        let hooks = self.on_end.lock().expect(UNPOISONED).take();
        hooks.into_iter().flatten().for_each(|hook| hook());
        self.tasks.close();
    }
}

/// Counts one client connection of an agent for as long as it is held.
pub(crate) struct CountedConnection {
    life: Arc<Life>,
    lives: Arc<Lives>,
    pub seat: Arc<Seat>,
}

impl Drop for CountedConnection {
    fn drop(&mut self) {
        self.life.seats.leave(&self.seat);
        self.life.connections.fetch_sub(1, Ordering::Relaxed);
        self.lives.open.fetch_sub(1, Ordering::Relaxed);
        self.lives.changed.notify_one();
    }
}

/// Every agent that has been seen.
#[derive(Default)]
pub(crate) struct Lives {
    by_agent: RwLock<HashMap<AgentId, Arc<Life>>>,
    /// Client connections of all agents, and how many there have been at once since many had gone.
    open: AtomicU32,
    most: AtomicU32,
    /// Woken when a number of connections changes.
    pub changed: Notify,
}

impl Lives {
    pub(crate) fn of(&self, agent: AgentId) -> Arc<Life> {
        if let Some(life) = self.by_agent.read().expect(UNPOISONED).get(&agent) {
            return life.clone();
        }
        let mut lives = self.by_agent.write().expect(UNPOISONED);
        lives
            .entry(agent)
            .or_insert_with(|| Arc::new(Life::new(agent)))
            .clone()
    }

    pub(crate) fn count(self: &Arc<Self>, life: &Arc<Life>) -> CountedConnection {
        life.connections.fetch_add(1, Ordering::Relaxed);
        let all = self.open.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(all, Ordering::Relaxed);
        self.changed.notify_one();
        CountedConnection {
            seat: life.seats.take(),
            life: life.clone(),
            lives: self.clone(),
        }
    }

    /// Cuts everything of the agents at once. The future resolves when it is gone.
    pub(crate) fn kill(
        &self,
        agents: &BTreeMap<AgentId, DenyReason>,
    ) -> impl Future<Output = ()> + use<> {
        let kill = |(agent, why): (&AgentId, &DenyReason)| {
            let life = self.of(*agent);
            life.kill(*why);
            life
        };
        gone(agents.iter().map(kill).collect())
    }

    /// Cuts everything there is, which is no kill.
    pub(crate) fn end(&self) -> impl Future<Output = ()> + use<> {
        let lives: Vec<_> = self
            .by_agent
            .read()
            .expect(UNPOISONED)
            .values()
            .cloned()
            .collect();
        for life in &lives {
            life.end();
        }
        gone(lives)
    }

    pub(crate) fn revive(&self, agents: &BTreeSet<AgentId>) {
        let mut lives = self.by_agent.write().expect(UNPOISONED);
        for agent in agents {
            if lives.get(agent).is_some_and(|life| life.killed()) {
                lives.remove(agent);
            }
        }
    }

    /// Whether more than half of the connections that there were at once are gone, and they were many. Once.
    pub(crate) fn have_shrunk(&self) -> bool {
        let now = self.open.load(Ordering::Relaxed);
        let most = self.most.load(Ordering::Relaxed);
        let have = most >= MANY && now < most / 2;
        if have {
            self.most.store(now, Ordering::Relaxed);
        }
        have
    }

    /// Live client connections, of agents that have any.
    pub(crate) fn connections(&self) -> BTreeMap<AgentId, u32> {
        let lives = self.by_agent.read().expect(UNPOISONED);
        lives
            .values()
            .map(|life| (life.agent, life.connections.load(Ordering::Relaxed)))
            .filter(|(_, connections)| *connections != 0)
            .collect()
    }
}

async fn gone(lives: Vec<Arc<Life>>) {
    for life in lives {
        life.tasks.wait().await;
    }
}

const UNPOISONED: &str = "nothing panics with the lock held";
