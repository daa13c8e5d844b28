//! Who the agents are, whose they are, and which bundle is in force.

pub(crate) mod active;
pub(crate) mod book;
pub(crate) mod change;
pub(crate) mod registration;
pub mod registry;
pub(crate) mod stops;
pub(crate) mod supervise;
pub(crate) mod tasks;

use std::path::Path;
use std::sync::{Arc, Mutex};

use agentguard_bundle::history::History;
use agentguard_common::abi::AgentId;
use agentguard_kernel::{KernelError, Switch};
use agentguard_record::Meta;
use arc_swap::{ArcSwap, ArcSwapOption};
use jiff::Timestamp;
use tokio::sync::Notify;

use self::active::Active;
use self::book::Book;
use self::registry::{Intervention, Registry, RegistryError};
use self::stops::{Stops, stops};
use self::tasks::Tasks;
use crate::books::alarms::Alarm;
use crate::books::records;
use crate::enforce::orders;
use crate::host::config::Config;
use crate::host::startup::{self, StartError};
use crate::lock::lock;

/// Bundles whose name and serial late records can still be given.
const METAS: usize = 16;

pub struct Roster {
    pub registry: Mutex<Registry>,
    pub history: Mutex<History>,
    pub active: ArcSwapOption<Active>,
    /// Told when a bundle has come into force.
    pub applied: Notify,
    pub tasks: Tasks,
    metas: ArcSwap<Vec<Arc<Meta>>>,
}

impl Roster {
    /// What is below the daemon's state; the bundle to start with, which is not in force yet, and what is wrong with it.
    pub fn open(config: &Config) -> Result<(Self, Option<Active>, Option<Alarm>), StartError> {
        let failed = |error: &dyn std::fmt::Display| StartError::Failed(error.to_string());
        let state = &config.paths.state;
        let mut registry = Registry::open(&state.join("agents.json")).map_err(|e| failed(&e))?;
        let given = highest_label(&config.paths.pins).map_err(|e| failed(&e))?;
        registry.begin(given).map_err(|e| failed(&e))?;
        orders::hold_noted(state, &mut registry);
        let mut tasks = Book::open(&state.join("tasks.json")).map_err(|e| failed(&e))?;
        tasks.begin().map_err(|e| failed(&e))?;
        let (history, lost) = History::open(state).map_err(|e| failed(&e))?;
        for error in lost {
            tracing::error!(%error, "an earlier bundle cannot be used");
        }
        let (first, unusable) = startup::first_bundle(config, &registry, &history)?;
        let roster = Self {
            registry: Mutex::new(registry),
            history: Mutex::new(history),
            active: ArcSwapOption::empty(),
            applied: Notify::new(),
            tasks: Tasks::new(tasks),
            metas: ArcSwap::default(),
        };
        Ok((roster, first, unusable))
    }

    /// Kills every agent that is known and those of `first`, because what held them is gone: whoever revives one accepts that.
    pub fn kill_all(&self, first: Option<&Active>, why: &str) -> Result<(), RegistryError> {
        let mut registry = lock(&self.registry);
        if let Some(first) = first {
            registry.keep(&first.ids)?;
        }
        let names: Vec<String> = registry.agents().keys().cloned().collect();
        let killed = Intervention {
            reason: Some(why.to_owned()),
            by: "agentguard".to_owned(),
            at: Timestamp::now(),
        };
        registry.kill(&names, &killed)
    }

    /// Who is stopped now, and why.
    pub fn stops(&self) -> Stops {
        let active = self.active.load();
        let policy = active.as_ref().map(|active| &active.policy);
        stops(&lock(&self.registry), policy)
    }

    /// These agents, and those that act for one of them.
    pub fn line_below(&self, agents: &[AgentId]) -> Vec<(String, AgentId)> {
        let active = self.active.load();
        let acts_for_one = |id: AgentId| {
            let above = active.as_ref().map(|active| active.policy.above(id));
            above.is_some_and(|line| line.iter().any(|one| agents.contains(one)))
        };
        let known = self.known().into_iter();
        known
            .filter(|(_, id)| agents.contains(id) || acts_for_one(*id))
            .collect()
    }

    /// Every agent that is stopped now.
    pub fn stopped(&self) -> Vec<(String, AgentId)> {
        let stops = self.stops();
        let known = self.known().into_iter();
        known.filter(|(_, id)| stops.contains_key(id)).collect()
    }

    /// Of the bundle in force.
    pub fn meta(&self) -> Option<Arc<Meta>> {
        self.active
            .load()
            .as_ref()
            .map(|active| active.meta.clone())
    }

    /// The name that a record has for an agent.
    pub fn name(&self, agent: AgentId) -> String {
        lock(&self.registry)
            .name(agent)
            .map_or_else(|| records::unnamed(agent), str::to_owned)
    }

    /// Every agent that this host has known.
    pub fn known(&self) -> Vec<(String, AgentId)> {
        lock(&self.registry)
            .agents()
            .iter()
            .map(|(name, known)| (name.clone(), known.id))
            .collect()
    }

    /// From here on a record may name the bundle.
    pub fn remember(&self, meta: Arc<Meta>) {
        self.metas.rcu(|known| {
            let mut metas: Vec<_> = known
                .iter()
                .filter(|known| known.digest != meta.digest)
                .cloned()
                .collect();
            metas.push(meta.clone());
            if metas.len() > METAS {
                metas.remove(0);
            }
            metas
        });
    }

    /// Of a bundle that is or was in force, by its digest.
    pub fn recall(&self, digest: &str) -> Option<Arc<Meta>> {
        let metas = self.metas.load();
        metas.iter().find(|meta| meta.digest == digest).cloned()
    }
}

/// Of the agents whose processes run, by what an earlier daemon has pinned.
fn highest_label(pins: &Path) -> Result<AgentId, KernelError> {
    let labelled = match Switch::open(pins)? {
        Some(switch) => switch.labelled()?,
        None => Vec::new(),
    };
    let own = labelled.into_iter().map(|(_, label)| label.agent);
    Ok(own
        .filter(|id| !id.is_canary())
        .max()
        .unwrap_or(AgentId::NONE))
}
