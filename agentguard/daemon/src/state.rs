//! What the daemon's parts share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use agentguard_bundle::history::{Entry, History};
use agentguard_common::abi::{AgentId, Forwarder, Label};
use agentguard_kernel::{Kernel, KernelError};
use agentguard_link::state::PolicyUpdate;
use agentguard_policy::{Policy, Reassigned, Sources};
use agentguard_record::Meta;
use agentguard_record::guarantee::{Guarantee, GuaranteeId, require};
use agentguard_record::{Draft, DraftTask, Process};
use agentguard_sys as sys;
use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::books::limits::Ledger;
use crate::books::records;
use crate::census::activity::Activities;
use crate::census::adopt::Labels;
use crate::census::identify::Blocks;
use crate::census::lineage::Lineage;
use crate::census::{adoption, attendance as presence, namespaces};
use crate::guarantee;
use crate::guarantee::Facts;
use crate::host::config::Config;
use crate::host::network;
use crate::host::tls::ca::Authority;
use crate::roster::registry::Registry;
use crate::roster::stops::{Stops, stops};
use crate::roster::tasks;
use crate::{forwarder, lock};

/// Bundles whose name and serial late records can still be given.
const METAS: usize = 16;

/// The bundle in force.
pub struct Active {
    pub sources: Sources,
    pub policy: Policy,
    pub meta: Arc<Meta>,
    pub ids: BTreeMap<String, AgentId>,
    /// Agents that have another owner than the sources say.
    pub owners: BTreeMap<String, Reassigned>,
    pub blocks: Blocks,
    /// Who put it in force, and when.
    pub entry: Entry,
    /// 1 for the first bundle since the daemon started.
    pub generation: u64,
}

impl Active {
    /// As the forwarder takes it.
    pub fn update(&self) -> PolicyUpdate {
        PolicyUpdate {
            sources: self.sources.clone(),
            agents: self.ids.iter().map(|(n, id)| (*id, n.clone())).collect(),
            owners: self.owners.clone(),
        }
    }
}

/// Locks that are held together are taken in the order of their fields here.
pub struct Shared {
    pub config: Config,
    pub started: Timestamp,
    pub registry: Mutex<Registry>,
    /// Held for one call at a time: the kill never waits for more than one map's swap.
    pub kernel: Mutex<Kernel>,
    pub history: Mutex<History>,
    pub metas: Mutex<Vec<Arc<Meta>>>,
    pub activity: Mutex<Activities>,
    pub lineage: Mutex<Lineage>,
    pub active: ArcSwapOption<Active>,
    pub authority: Authority,
    pub forwarder: forwarder::ForwarderLink,
    pub forwarder_account: sys::user::Account,
    pub records: records::Handle,
    /// What limits have counted.
    pub ledger: Ledger,
    /// Asks for what is in the kernel's ring to be taken now.
    pub events: mpsc::Sender<oneshot::Sender<()>>,
    pub cgroups: sys::cgroup::CgroupNames,
    /// Of the host's network namespace.
    pub netns_cookie: u64,
    pub namespaces: namespaces::Handle,
    pub unread: adoption::Unread,
    pub network: network::Handle,
    /// Its lock comes last.
    pub tasks: tasks::Handle,
    pub presence: presence::Handle,
    /// One kill or revival at a time.
    pub killing: tokio::sync::Mutex<()>,
    /// One change of policy at a time.
    pub applying: tokio::sync::Mutex<()>,
    /// Told when a bundle has come into force.
    pub applied: tokio::sync::Notify,
    /// The bundle has expired, and the kernel has been told so.
    pub closed: AtomicBool,
    /// What the operator must know, by what it is about.
    pub alarms: Mutex<BTreeMap<&'static str, String>>,
    /// What the canary saw last.
    pub canary: Mutex<guarantee::Canary>,
    /// Every agent is held closed, whoever has been killed.
    pub held: AtomicBool,
    /// What the host offers, as it was found at start.
    pub host: Facts,
    pub stop: CancellationToken,
    /// Set before `stop`: take the programs away too.
    pub unload: AtomicBool,
}

impl Shared {
    pub fn set_forwarder(&self, forwarder: Forwarder) -> Result<(), KernelError> {
        lock(&self.kernel).set_forwarder(self.netns_cookie, forwarder)
    }

    /// Agents' connects are refused from here on. The kernel has mostly noticed by itself, when the listener closed.
    pub fn forwarder_is_down(&self) {
        if let Err(error) = self.set_forwarder(Forwarder::default()) {
            tracing::error!(%error, "cannot tell the kernel that the forwarder is gone");
        }
        lock(&self.activity).connected(&BTreeMap::new());
    }

    /// What holds now.
    pub fn guarantees(&self) -> Vec<Guarantee> {
        let landlock_abi = match self.forwarder.status().0 {
            forwarder::Status::Up { sandbox, .. } => sandbox.landlock_abi,
            forwarder::Status::Starting | forwarder::Status::Down { .. } => self.host.landlock_abi,
        };
        guarantee::judge(&Facts {
            hooks: lock(&self.kernel).hooks(),
            landlock_abi,
            canary: lock(&self.canary).clone(),
            ..self.host.clone()
        })
    }

    /// Whether this host gives what the bundle requires, and which gaps the configuration accepts.
    pub fn meets(&self, policy: &Policy) -> Result<Vec<GuaranteeId>, String> {
        let accepted = &self.config.policy.accept_gaps;
        require(policy.require(), accepted, &self.guarantees())
    }

    /// Who is stopped now, and why.
    pub fn stops(&self) -> Stops {
        let active = self.active.load();
        let policy = active.as_ref().map(|active| &active.policy);
        stops(&lock(&self.registry), policy)
    }

    pub fn hold(&self, held: bool) {
        self.held.store(held, Ordering::SeqCst);
    }

    /// Whether the canary's failure holds every agent.
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::SeqCst)
    }

    /// Whether the kernel holds every agent closed because the bundle has expired.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    pub fn alarm(&self, about: &'static str, message: Option<String>) {
        let mut alarms = lock(&self.alarms);
        match message {
            Some(message) => alarms.insert(about, message),
            None => alarms.remove(about),
        };
    }

    pub fn remember(&self, meta: Arc<Meta>) {
        let mut metas = lock(&self.metas);
        metas.retain(|known| known.digest != meta.digest);
        metas.push(meta);
        if metas.len() > METAS {
            metas.remove(0);
        }
    }

    /// Completes drafts by what the daemon knows of their agents and processes, and has them written. A process may be
    /// given as it was at the time.
    pub async fn record(&self, mut drafts: Vec<(Draft, Option<Process>)>) {
        // What the canary does is the daemon's own doing, and told when it goes wrong.
        drafts.retain(|(draft, _)| !draft.agent.is_canary());
        let items = {
            let registry = lock(&self.registry);
            let active = self.active.load();
            let metas = lock(&self.metas);
            let mut activity = lock(&self.activity);
            let mut lineage = lock(&self.lineage);
            let clock = Clock::now();
            let complete = |(draft, process): (Draft, Option<Process>)| {
                activity.decided(draft.agent, draft.outcome, draft.time_us);
                let name = registry.name(draft.agent).map(str::to_owned);
                let owner = active
                    .as_ref()
                    .and_then(|active| active.policy.agent(draft.agent))
                    .map(|agent| agent.owner.clone());
                let at = clock.boottime_of(draft.time_us);
                records::Item::Decision(Box::new(records::Decided {
                    agent: name.unwrap_or_else(|| records::unnamed(draft.agent)),
                    owner,
                    task: match &draft.task {
                        DraftTask::OfProcess => lineage.task(draft.tgid, at),
                        DraftTask::None => None,
                        DraftTask::On(task) => Some(Arc::new(task.clone())),
                    },
                    process: process
                        .or_else(|| lineage.process_or_look(draft.tgid, at, draft.agent)),
                    bundle: draft.bundle.as_ref().and_then(|digest| {
                        metas.iter().find(|meta| meta.digest == *digest).cloned()
                    }),
                    draft,
                }))
            };
            drafts.into_iter().map(complete).collect()
        };
        self.records.append(items).await;
    }

    /// Everything decided before this was called can be read from the log when it returns.
    pub async fn settle_records(&self) {
        let limit = std::time::Duration::from_secs(5);
        let (reply, drained) = oneshot::channel();
        let kernel = async {
            if self.events.send(reply).await.is_ok() {
                let _ = drained.await;
            }
        };
        let flush = self.forwarder.flush(limit);
        let (_, flushed) = tokio::join!(kernel, flush);
        if let Err(error) = flushed {
            tracing::warn!(%error, "the forwarder's latest records may be missing");
        }
        self.records.settled().await;
    }
}

/// Relates the wall clock of drafts to the clock of processes.
pub struct Clock {
    offset_ns: i128,
}

impl Clock {
    pub fn now() -> Self {
        let wall = Timestamp::now().as_nanosecond();
        Self {
            offset_ns: wall - i128::from(sys::process::boottime_ns()),
        }
    }

    pub fn boottime_of(&self, time_us: i64) -> u64 {
        u64::try_from(i128::from(time_us) * 1000 - self.offset_ns).unwrap_or(0)
    }

    /// Microseconds since the Unix epoch.
    pub fn wall_of(&self, boottime_ns: u64) -> i64 {
        i64::try_from((i128::from(boottime_ns) + self.offset_ns) / 1000).unwrap_or(0)
    }
}

/// Labels, the kernel locked for each call: a scan of all processes holds no kill up.
impl Labels for &Shared {
    type Error = KernelError;

    fn label(&self, tgid: u32) -> Result<AgentId, KernelError> {
        lock(&self.kernel).label(tgid).map(|label| label.agent)
    }

    fn set_label(&mut self, tgid: u32, agent: AgentId) -> Result<(), KernelError> {
        lock(&self.kernel).set_label(tgid, Label { agent, flags: 0 })
    }
}
