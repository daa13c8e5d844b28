//! Agents in network namespaces of their own: listeners made inside and handed to the forwarder, for as long as a process
//! of an agent's is there. Where none are, agents' connects are refused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentguard_common::abi::AgentId;
use agentguard_common::share::NAMESPACES;
use agentguard_link::listen::{self, BoundSockets};
use agentguard_sys as sys;
use agentguard_sys::netns::{self, Id, Namespace};
use agentguard_sys::{SysError, process};
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::Census;
use crate::books::Books;
use crate::books::alarms::{Alarm, Concern};
use crate::enforce::Enforce;
use crate::forwarder::{ForwarderLink, Status};
use crate::lock::lock;
use crate::roster::Roster;

/// Namespaces besides the host's that `FORWARDERS` has room for.
const MOST: usize = NAMESPACES as usize - 1;
/// The part of all that one agent's may be: containers of others find their place.
const SHARE: usize = 4;
/// The forwarder has four listeners in each, and as much again is left for connections.
const FILES_EACH: u64 = 8;
/// How often is looked for namespaces that no event told of, and for those that no agent is in any more.
const EVERY: Duration = Duration::from_secs(2);
/// A namespace in which this many looks in a row have found no agent is left.
const IDLE_LOOKS: u8 = 2;
/// How long the forwarder may take to be told.
const FORWARDER_LIMIT: Duration = Duration::from_secs(5);
/// How long somebody may wait for a process's namespaces to be served.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// What there is to look into, and who waits for it.
pub enum Look {
    Process(u32, Option<oneshot::Sender<()>>),
    Everywhere(oneshot::Sender<()>),
    /// A listener of the namespace with this cookie has been destroyed.
    Lost(u64),
}

/// A namespace and its listeners, on their way to the forwarder.
pub struct NewNamespace {
    pub netns: u64,
    pub bound: BoundSockets,
}

struct Served {
    namespace: Arc<Namespace>,
    /// Whose process it was found by.
    agent: AgentId,
    /// By which the kernel and the forwarder know it.
    cookie: u64,
    idle: u8,
}

/// The network namespaces that are served; cheap to clone.
#[derive(Clone)]
pub struct Namespaces {
    home: Id,
    most: usize,
    looks: mpsc::Sender<Look>,
    served: Arc<Mutex<BTreeMap<Id, Served>>>,
}

impl Namespaces {
    pub fn new() -> sys::Result<(Self, mpsc::Receiver<Look>)> {
        let (looks, asked) = mpsc::channel(256);
        let most = process::raise_open_files()? / FILES_EACH;
        let handle = Self {
            home: Namespace::current()?.id(),
            most: usize::try_from(most).map_or(MOST, |most| most.min(MOST)),
            looks,
            served: Arc::default(),
        };
        Ok((handle, asked))
    }

    /// How many are served besides the host's.
    pub fn count(&self) -> usize {
        lock(&self.served).len()
    }

    /// A process of an agent's has begun or has another program: it may be where no listeners are.
    pub fn begun(&self, tgid: u32) {
        if netns::id_of(tgid).is_some_and(|id| self.is_new(id)) {
            self.refused(tgid);
        }
    }

    /// A process of an agent's was refused because there are none where it is.
    pub fn refused(&self, tgid: u32) {
        // A full queue: the next look at everything finds it.
        let _ = self.looks.try_send(Look::Process(tgid, None));
    }

    /// A forwarder's listener in the namespace with this cookie is gone: others are made, if somebody is there.
    pub fn lost(&self, cookie: u64) {
        let _ = self.looks.try_send(Look::Lost(cookie));
    }

    /// Returns when the namespaces of a process are served or cannot be.
    pub async fn settle(&self, tgid: u32) {
        if netns::ids_of(tgid).into_keys().any(|id| self.is_new(id)) {
            self.wait(|done| Look::Process(tgid, Some(done))).await;
        }
    }

    /// Returns when the namespaces of all agents' processes are served or cannot be.
    pub async fn settle_all(&self) {
        self.wait(Look::Everywhere).await;
    }

    async fn wait(&self, look: impl FnOnce(oneshot::Sender<()>) -> Look) {
        let (done, settled) = oneshot::channel();
        let asked = async {
            if self.looks.send(look(done)).await.is_ok() {
                let _ = settled.await;
            }
        };
        if timeout(SETTLE_LIMIT, asked).await.is_err() {
            tracing::warn!("looking for network namespaces takes more than {SETTLE_LIMIT:?}");
        }
    }

    /// The namespaces besides the host's that are served or that one of the processes is in.
    pub fn all_of(&self, tgids: &[u32]) -> Vec<Arc<Namespace>> {
        let mut found: BTreeMap<Id, Arc<Namespace>> = lock(&self.served)
            .iter()
            .map(|(id, served)| (*id, served.namespace.clone()))
            .collect();
        for tgid in tgids {
            for (id, tid) in netns::ids_of(*tgid) {
                if id != self.home
                    && !found.contains_key(&id)
                    && let Ok(namespace) = Namespace::of(*tgid, tid)
                {
                    found.insert(id, Arc::new(namespace));
                }
            }
        }
        found.into_values().collect()
    }

    fn is_new(&self, id: Id) -> bool {
        id != self.home && !lock(&self.served).contains_key(&id)
    }

    /// The namespaces of these processes that are not served yet, each with a process that is in it.
    fn unserved(&self, tgids: &[u32]) -> Vec<(u32, Namespace)> {
        let mut found = BTreeMap::new();
        for tgid in tgids {
            for (id, tid) in netns::ids_of(*tgid) {
                // The thread may have ended or gone elsewhere meanwhile.
                if self.is_new(id)
                    && !found.contains_key(&id)
                    && let Ok(namespace) = Namespace::of(*tgid, tid)
                    && self.is_new(namespace.id())
                {
                    found.insert(namespace.id(), (*tgid, namespace));
                }
            }
        }
        found.into_values().collect()
    }
}

/// Why a namespace is not served: there are so many.
#[derive(Debug, PartialEq, Eq)]
enum NoRoom {
    All(usize),
    Agent(AgentId, usize),
}

/// Serves the namespaces that agents are in.
pub(crate) struct NamespaceServer {
    pub roster: Arc<Roster>,
    pub census: Arc<Census>,
    pub enforce: Arc<Enforce>,
    pub books: Arc<Books>,
    pub forwarder: ForwarderLink,
    pub stop: CancellationToken,
}

impl NamespaceServer {
    /// Until the daemon stops.
    pub(crate) async fn serve(self, mut looks: mpsc::Receiver<Look>) {
        let mut sessions = self.forwarder.sessions();
        let mut every = interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                Ok(()) = sessions.changed() => {
                    // What an earlier forwarder had went with it.
                    lock(&self.census.namespaces.served).clear();
                    self.look_everywhere().await;
                }
                Some(look) = looks.recv() => match look {
                    Look::Process(tgid, done) => {
                        if let Err(error) = self.look_at(vec![tgid]).await {
                            self.alarm(error);
                        }
                        if let Some(done) = done {
                            let _ = done.send(());
                        }
                    }
                    Look::Everywhere(done) => {
                        self.look_everywhere().await;
                        let _ = done.send(());
                    }
                    Look::Lost(cookie) => self.lost(cookie).await,
                },
                _ = every.tick() => {
                    self.look_everywhere().await;
                    if let Err(error) = self.leave_idle().await {
                        tracing::warn!(%error, "network namespaces that no agent is in are kept");
                    }
                }
            }
        }
    }

    async fn lost(&self, cookie: u64) {
        let id = {
            let served = lock(&self.census.namespaces.served);
            let found = served.iter().find(|(_, served)| served.cookie == cookie);
            found.map(|(id, _)| *id)
        };
        if let Some(id) = id {
            self.leave(id).await;
            self.look_everywhere().await;
        }
    }

    fn explained(&self, no: NoRoom) -> String {
        match no {
            NoRoom::All(most) => {
                format!("{most} network namespaces are served, the most there can be")
            }
            NoRoom::Agent(agent, share) => format!(
                "{share} network namespaces of {} are served, the most there can be of one agent",
                self.roster.name(agent)
            ),
        }
    }

    fn alarm(&self, error: String) {
        let alarm = Alarm::NamespaceClosed(error);
        let message = alarm.to_string();
        if self.books.alarms.raise(Concern::Namespaces, alarm) {
            tracing::error!("{message}");
        }
    }

    async fn look_everywhere(&self) {
        let running = lock(&self.census.lineage).all_running();
        match self.look_at(running).await {
            Ok(()) => self.books.alarms.clear(Concern::Namespaces),
            Err(error) => self.alarm(error),
        }
    }

    /// Serves the namespaces of these processes that are not served yet.
    async fn look_at(&self, tgids: Vec<u32>) -> Result<(), String> {
        if tgids.is_empty() {
            return Ok(());
        }
        let Status::Up { port, .. } = self.forwarder.status().0 else {
            // It will be looked again when there is one.
            return Ok(());
        };
        let namespaces = self.census.namespaces.clone();
        let found = spawn_blocking(move || namespaces.unserved(&tgids));
        let mut result = Ok(());
        for (tgid, namespace) in found.await.map_err(|e| e.to_string())? {
            if let Err(error) = self.enter(tgid, namespace, port).await {
                result = Err(error);
            }
        }
        result
    }

    /// Makes listeners inside and has the forwarder serve them, for the agent of this process.
    async fn enter(&self, tgid: u32, namespace: Namespace, port: u16) -> Result<(), String> {
        let namespaces = &self.census.namespaces;
        let label = lock(&self.enforce.kernel).label(tgid);
        let agent = label.map_err(|e| e.to_string())?.agent;
        if agent == AgentId::NONE {
            // It has ended meanwhile: who else is in there is found by itself.
            return Ok(());
        }
        let served: Vec<AgentId> = lock(&namespaces.served)
            .values()
            .map(|served| served.agent)
            .collect();
        room_for(agent, &served, namespaces.most).map_err(|no| self.explained(no))?;
        let namespace = Arc::new(namespace);
        let inside = namespace.clone();
        let made = spawn_blocking(move || inside.run(|| listeners(port)).flatten());
        let entering = made
            .await
            .map_err(|e| e.to_string())?
            .map_err(|e| e.to_string())?;
        let (cookie, port) = (entering.netns, entering.bound.port);
        let asked = self.forwarder.enter(entering, FORWARDER_LIMIT);
        asked.await?;
        let id = namespace.id();
        let served = Served {
            namespace,
            agent,
            cookie,
            idle: 0,
        };
        lock(&namespaces.served).insert(id, served);
        tracing::info!(netns = cookie, port, "serving another network namespace");
        Ok(())
    }

    /// Leaves the namespaces in which no agent has been for a while: listeners would keep them alive.
    async fn leave_idle(&self) -> Result<(), String> {
        let namespaces = &self.census.namespaces;
        if namespaces.count() == 0 {
            return Ok(());
        }
        let enforce = self.enforce.clone();
        let occupied = spawn_blocking(move || occupied(&enforce))
            .await
            .map_err(|e| e.to_string())??;
        let mut idle = Vec::new();
        for (id, served) in lock(&namespaces.served).iter_mut() {
            served.idle = if occupied.contains(id) {
                0
            } else {
                served.idle + 1
            };
            if served.idle >= IDLE_LOOKS {
                idle.push(*id);
            }
        }
        for id in idle {
            self.leave(id).await;
        }
        Ok(())
    }

    async fn leave(&self, id: Id) {
        let Some(served) = lock(&self.census.namespaces.served).remove(&id) else {
            return;
        };
        let left = self.forwarder.leave(served.cookie, FORWARDER_LIMIT);
        match left.await {
            Ok(()) => tracing::info!(netns = served.cookie, "left another network namespace"),
            Err(error) => {
                tracing::warn!(%error, netns = served.cookie, "leaving a network namespace");
            }
        }
    }
}

/// Whether `agent` may have one served besides those that are, or why not. `served`: whose each of these is.
fn room_for(agent: AgentId, served: &[AgentId], most: usize) -> Result<(), NoRoom> {
    let share = (most / SHARE).max(1);
    if served.iter().filter(|of| **of == agent).count() >= share {
        return Err(NoRoom::Agent(agent, share));
    }
    match served.len() < most {
        true => Ok(()),
        false => Err(NoRoom::All(most)),
    }
}

/// In the namespace of the calling thread, the forwarder's own port if nobody has it there.
fn listeners(port: u16) -> sys::Result<NewNamespace> {
    netns::bring_loopback_up()?;
    let bound = listen::listen_best(port).map_err(SysError::io("listen"))?;
    Ok(NewNamespace {
        netns: sys::socket::netns_cookie()?,
        bound,
    })
}

/// By the kernel's labels and not by the lineage, which is made of events that can be lost.
fn occupied(enforce: &Enforce) -> Result<BTreeSet<Id>, String> {
    let mut found = BTreeSet::new();
    for tgid in process::all() {
        let label = lock(&enforce.kernel).label(tgid);
        if label.map_err(|e| e.to_string())?.agent != AgentId::NONE {
            found.extend(netns::ids_of(tgid).into_keys());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_agents_namespaces_leave_room_for_others() {
        let [one, other] = [2, 3].map(AgentId);
        let share = vec![one; 5];
        assert_eq!(room_for(one, &share[..4], 20), Ok(()));
        assert_eq!(room_for(one, &share, 20), Err(NoRoom::Agent(one, 5)));
        assert_eq!(room_for(other, &share, 20), Ok(()));
        let all: Vec<_> = (10..30).map(AgentId).collect();
        assert_eq!(room_for(other, &all, 20), Err(NoRoom::All(20)));
        // However few there can be.
        assert_eq!(room_for(one, &[], 1), Ok(()));
    }
}
