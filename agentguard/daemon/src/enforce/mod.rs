//! What closes agents and opens them: the only room that changes what the kernel lets through.

pub(crate) mod apply;
pub(crate) mod canary;
pub(crate) mod expiry;
pub(crate) mod kill;
pub(crate) mod orders;
pub(crate) mod stop;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use agentguard_common::abi::{AgentId, Forwarder, Label};
use agentguard_kernel::{Events, Kernel, KernelError};
use agentguard_policy::{Agent, Policy};
use agentguard_record::guarantee::{Guarantee, GuaranteeId, require};
use agentguard_sys as sys;
use agentguard_sys::process;

use crate::census::Census;
use crate::census::adopt::Labels;
use crate::forwarder::{self, ForwarderLink};
use crate::guarantee::{self, Facts};
use crate::host::Host;
use crate::host::config::Config;
use crate::host::startup::{self, StartError};
use crate::lock::lock;

pub struct Enforce {
    /// Held for one call at a time: the kill never waits for more than one map's swap.
    pub kernel: Mutex<Kernel>,
    /// Cookie of the host's own network namespace, where the forwarder listens.
    pub netns_cookie: u64,
    /// What the canary saw last.
    canary: Mutex<guarantee::CanaryState>,
    /// Why the daemon's own files are not protected, if they are not.
    unprotected: Option<String>,
    /// The bundle has expired, and the kernel has been told so.
    closed: AtomicBool,
    /// Every agent is held closed, killed or not.
    held: AtomicBool,
}

impl Enforce {
    /// Loads the programs, or takes over what an earlier daemon has pinned.
    pub fn open(config: &Config, cgroup_root: &Path) -> Result<(Self, Events), StartError> {
        let failed = |error: &dyn std::fmt::Display| StartError::Failed(error.to_string());
        let pins = &config.paths.pins;
        let mut kernel =
            Kernel::load(pins, cgroup_root).map_err(|e| startup::kernel_error(e, pins))?;
        let events = kernel.take_events().map_err(|e| failed(&e))?;
        let unprotected = kernel.protect(&startup::own_files(config)).err();
        if let Some(error) = &unprotected {
            tracing::error!(%error, "the daemon's files are not protected from agents that are root");
        }
        let enforce = Self {
            kernel: Mutex::new(kernel),
            netns_cookie: sys::socket::netns_cookie().map_err(|e| failed(&e))?,
            canary: Mutex::new(guarantee::CanaryState::Pending),
            unprotected: unprotected.map(|error| error.to_string()),
            closed: AtomicBool::new(false),
            held: AtomicBool::new(false),
        };
        Ok((enforce, events))
    }

    pub fn set_forwarder(&self, forwarder: Forwarder) -> Result<(), KernelError> {
        lock(&self.kernel).set_forwarder(self.netns_cookie, forwarder)
    }

    /// Agents' connects are refused from here on. The kernel has mostly noticed by itself, when the listener closed.
    pub fn forwarder_is_down(&self, census: &Census) {
        if let Err(error) = self.set_forwarder(Forwarder::default()) {
            tracing::error!(%error, "cannot tell the kernel that the forwarder is gone");
        }
        lock(&census.activity).connected(&BTreeMap::new());
    }

    /// What holds now, or would with `policy` in force.
    pub fn guarantees(
        &self,
        host: &Host,
        census: &Census,
        forwarder: &ForwarderLink,
        policy: Option<&Policy>,
    ) -> Vec<Guarantee> {
        let landlock_abi = match forwarder.status().0 {
            forwarder::Status::Up { sandbox, .. } => sandbox.landlock_abi,
            forwarder::Status::Starting | forwarder::Status::Down { .. } => host.facts.landlock_abi,
        };
        let hooks = lock(&self.kernel).hooks();
        let canary = lock(&self.canary).clone();
        guarantee::judge(&Facts {
            hooks,
            landlock_abi,
            canary,
            unprotected: self.unprotected.clone(),
            beside_run: policy.map(beside_run).unwrap_or_default(),
            without_filter: policy
                .map(|policy| without_filter(policy, census))
                .unwrap_or_default(),
            ..host.facts.clone()
        })
    }

    /// Whether this host gives what the bundle requires, and which gaps the configuration accepts.
    pub fn meets(
        &self,
        host: &Host,
        census: &Census,
        forwarder: &ForwarderLink,
        policy: &Policy,
    ) -> Result<Vec<GuaranteeId>, String> {
        let accepted = &host.config.policy.accept_gaps;
        require(
            policy.require(),
            accepted,
            &self.guarantees(host, census, forwarder, Some(policy)),
        )
    }

    /// Whether the canary's failure holds every agent.
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::SeqCst)
    }

    /// Whether the kernel holds every agent closed because the bundle has expired.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// In the kernel alone, and whatever else holds the agent.
    fn set_killed(&self, agent: AgentId, killed: bool) -> Result<(), KernelError> {
        lock(&self.kernel).set_killed(agent, killed || self.is_held())
    }
}

/// Of those that [`beside_run`] does not name, who has a process that nothing holds as `agentguard run` does. `/proc` is read
/// with nothing locked.
fn without_filter(policy: &Policy, census: &Census) -> Vec<String> {
    let settled = lock(&census.lineage).settled(process::boottime_ns());
    let mut found = BTreeSet::new();
    for (tgid, start_ns, id) in settled {
        let agent = policy.agent(id).filter(|agent| !need_not_run(agent));
        let Some(agent) = agent.filter(|agent| !found.contains(&agent.name)) else {
            continue;
        };
        // One that has ended meanwhile has no filter either.
        if !process::has_filter(tgid) && process::runs(tgid, start_ns) {
            found.insert(agent.name.clone());
        }
    }
    found.into_iter().collect()
}

fn need_not_run(agent: &Agent) -> bool {
    agent.keep_privileges || !agent.identify.is_empty()
}

fn beside_run(policy: &Policy) -> Vec<String> {
    policy
        .agents()
        .filter(|agent| need_not_run(agent))
        .map(|agent| agent.name.clone())
        .collect()
}

/// Labels, the kernel locked for each call: a scan of all processes holds no kill up.
impl Labels for &Enforce {
    type Error = KernelError;

    fn label(&self, tgid: u32) -> Result<AgentId, KernelError> {
        lock(&self.kernel).label(tgid).map(|label| label.agent)
    }

    fn set_label(&mut self, tgid: u32, agent: AgentId) -> Result<(), KernelError> {
        lock(&self.kernel).set_label(tgid, Label { agent, flags: 0 })
    }
}
