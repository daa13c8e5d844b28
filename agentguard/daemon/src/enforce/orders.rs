//! Kills that root orders past a daemon that does not answer. The pinned map holds the agent from that moment on, and a note
//! below the daemon's state says who ordered it and why. The daemon takes an order in as it takes any other kill: when a
//! note comes, and at its start.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agentguard_bundle::history::History;
use agentguard_common::abi::AgentId;
use agentguard_control::api::{Cut, Target};
use agentguard_kernel::{KernelError, Switch};
use agentguard_policy::Policy;
use agentguard_record::Actor;
use agentguard_sys::netns::{self, Namespace};
use agentguard_sys::watch::FolderWatch;
use agentguard_sys::{SysError, file, user};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::kill::{KillError, KillSwitch, named};
use super::stop::everywhere;
use crate::host::config::Config;
use crate::lock::lock;
use crate::roster::registry::{Intervention, Registry};

/// Who ordered a kill past the daemon, and why.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KillNote {
    agents: Vec<String>,
    reason: Option<String>,
    uid: u32,
    at: Timestamp,
}

impl KillNote {
    fn reason(&self) -> String {
        let why = format!(
            "ordered at {} past the daemon, which did not answer",
            self.at
        );
        match &self.reason {
            Some(reason) => format!("{reason} ({why})"),
            None => why,
        }
    }

    /// Of the agents, those that this host knows.
    fn known(&self, registry: &Registry) -> Vec<String> {
        let known = |name: &&String| registry.id(name).is_some();
        self.agents.iter().filter(known).cloned().collect()
    }
}

/// At the start, before anything is let through: what is noted holds, whether the maps that held it are still there or not.
/// The intake records it.
pub(crate) fn hold_noted(state: &Path, registry: &mut Registry) {
    for (path, note) in notes(&folder(state)) {
        let killed = Intervention {
            reason: Some(note.reason()),
            by: user::name(note.uid),
            at: note.at,
        };
        let known = note.known(registry);
        if let Err(error) = registry.kill(&known, &killed) {
            tracing::error!(%error, path = %path.display(), "a kill order holds, and not over the next start");
        }
    }
}

fn folder(state: &Path) -> PathBuf {
    state.join("kills")
}

/// A kill by the pinned map: the agents are held when this is there.
pub struct KillOrder {
    switch: Switch,
    registry: Registry,
    state: PathBuf,
    /// With what each is now.
    agents: Vec<(String, AgentId, &'static str)>,
}

impl KillOrder {
    /// Holds the agents that `target` names. `None` if nothing is pinned: no agent is held by anything then.
    ///
    /// # Errors
    /// An agent that this host does not know, or files and maps that only root can open.
    pub fn give(config: &Config, target: &Target) -> Result<Option<Self>, KillError> {
        let failed = |error: &dyn std::fmt::Display| KillError::Failed(error.to_string());
        let Some(switch) = Switch::open(&config.paths.pins).map_err(|e| failed(&e))? else {
            return Ok(None);
        };
        let state = config.paths.state.clone();
        let registry = Registry::open(&state.join("agents.json")).map_err(|e| failed(&e))?;
        let named = named(&registry, target)?;
        let mut order = Self {
            switch,
            registry,
            state,
            agents: Vec::new(),
        };
        order.hold(named, "killed").map_err(|e| failed(&e))?;
        Ok(Some(order))
    }

    fn hold(
        &mut self,
        agents: Vec<(String, AgentId)>,
        state: &'static str,
    ) -> Result<(), KernelError> {
        // Every one of them, also if one cannot be.
        let held: Vec<_> = agents.iter().map(|(_, id)| self.switch.hold(*id)).collect();
        let agents = agents.into_iter().map(|(name, id)| (name, id, state));
        self.agents.extend(agents);
        held.into_iter().collect()
    }

    /// Writes down for the daemon what has been ordered, which may be at once; where is answered.
    ///
    /// # Errors
    /// The order holds until the host restarts, and nothing says whose it is.
    pub fn note(&self, reason: Option<String>, uid: u32) -> Result<PathBuf, SysError> {
        let at = Timestamp::now();
        let killed = self.agents.iter().filter(|(.., state)| *state == "killed");
        let note = KillNote {
            agents: killed.map(|(name, ..)| name.clone()).collect(),
            reason,
            uid,
            at,
        };
        let json = serde_json::to_vec(&note).expect("a note is plain data");
        let folder = folder(&self.state);
        file::ensure_folder(&folder, 0o700)?;
        let name = format!("{}-{}.json", at.as_nanosecond(), std::process::id());
        let path = folder.join(name);
        file::write_atomically(&path, &json, 0o600)?;
        Ok(path)
    }

    /// Holds those that act for one of the agents. Before the note: a daemon that takes it in lets go what it holds itself.
    ///
    /// # Errors
    /// Not all could be held.
    pub fn hold_below(&mut self) -> Result<(), String> {
        let held = self
            .below()
            .and_then(|below| self.hold(below, "held").map_err(|error| error.to_string()));
        held.map_err(|error| {
            format!("agents that act for these could not all be held: kill them by name ({error})")
        })
    }

    /// Resets what all of them have open; what went wrong is told besides.
    pub fn cut(&self) -> (Vec<Cut>, Vec<String>) {
        let mut failures = Vec::new();
        let cuts = self.agents.iter().map(|(name, id, state)| {
            let (processes, sockets) = self.reset(*id).unwrap_or_else(|error| {
                failures.push(format!(
                    "nothing of `{name}` leaves the host, but its sockets are open: {error}"
                ));
                (0, 0)
            });
            Cut {
                agent: name.clone(),
                state: (*state).to_owned(),
                already: false,
                processes,
                sockets,
                connections: 0,
            }
        });
        let cuts = cuts.collect();
        (cuts, failures)
    }

    /// By the bundle that was in force last.
    fn below(&self) -> Result<Vec<(String, AgentId)>, String> {
        let (history, _) = History::open(&self.state).map_err(|error| error.to_string())?;
        let applied = history.active().map_err(|error| error.to_string())?;
        let sources = match (applied, history.entries().last()) {
            (Some((_, sources)), _) => sources,
            (None, Some(entry)) => history.sources(entry).map_err(|error| error.to_string())?,
            (None, None) => return Ok(Vec::new()),
        };
        let ids = self
            .registry
            .propose(&Policy::agent_names(&sources))
            .map_err(|error| error.to_string())?;
        let policy = Policy::compile(&sources, &ids).map_err(|_| "the bundle is not valid")?;
        let killed: BTreeSet<AgentId> = self.agents.iter().map(|(_, id, _)| *id).collect();
        let acts_for_one = |id: &AgentId| policy.above(*id).iter().any(|one| killed.contains(one));
        let known = self.registry.agents().iter();
        Ok(known
            .map(|(name, known)| (name.clone(), known.id))
            .filter(|(_, id)| !killed.contains(id) && acts_for_one(id))
            .collect())
    }

    /// How many processes the agent has, and how many of its sockets were reset, wherever these are.
    fn reset(&self, agent: AgentId) -> Result<(u32, u32), String> {
        let text = |error: KernelError| error.to_string();
        let tgids = self.switch.processes(agent).map_err(text)?;
        let here = Namespace::current().map(|namespace| namespace.id()).ok();
        let mut seen = BTreeSet::from_iter(here);
        let threads = tgids.iter().flat_map(|tgid| {
            let threads = netns::ids_of(*tgid).into_iter();
            threads.map(|(id, tid)| (*tgid, id, tid))
        });
        let elsewhere: Vec<Arc<Namespace>> = threads
            .filter(|(_, id, _)| seen.insert(*id))
            .filter_map(|(tgid, _, tid)| Namespace::of(tgid, tid).ok().map(Arc::new))
            .collect();
        let mut destroyed = 0;
        everywhere(&elsewhere, || {
            destroyed += self.switch.destroy_sockets(agent).map_err(text)?;
            Ok(())
        })?;
        Ok((u32::try_from(tgids.len()).unwrap_or(u32::MAX), destroyed))
    }
}

/// Takes in what has been ordered past the daemon.
pub(crate) struct OrderIntake {
    pub kill_switch: KillSwitch,
    pub state: PathBuf,
    pub stop: CancellationToken,
}

impl OrderIntake {
    /// Until the daemon stops.
    pub(crate) async fn serve(self) {
        let folder = folder(&self.state);
        let watch = file::ensure_folder(&folder, 0o700).and_then(|()| FolderWatch::of(&folder));
        self.take_in(&folder).await;
        self.take_in_unsigned().await;
        let watch = match watch {
            Ok(watch) => watch,
            Err(error) => {
                tracing::error!(%error, "a kill that root orders past this daemon is taken in at its next start only");
                return;
            }
        };
        loop {
            tokio::select! {
                came = watch.arrival() => if let Err(error) = came {
                    tracing::error!(%error, "the folder of kill orders cannot be watched");
                    return;
                },
                () = self.stop.cancelled() => return,
            }
            self.take_in(&folder).await;
        }
    }

    async fn take_in(&self, folder: &Path) {
        for (path, note) in notes(folder) {
            let reason = note.reason();
            let by = Actor::Peer {
                uid: note.uid,
                user: None,
            };
            let known = note.known(&lock(&self.kill_switch.stopper.roster.registry));
            if known.is_empty() || !self.kill(known, reason, by).await {
                // It holds, and is taken in again.
                continue;
            }
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != ErrorKind::NotFound
            {
                tracing::warn!(%error, path = %path.display(), "a kill order that was taken in cannot be removed");
            }
        }
    }

    /// Orders that hold without a note: the disk was full.
    async fn take_in_unsigned(&self) {
        let known = self.kill_switch.stopper.roster.known();
        let names = known.into_iter().map(|(name, _)| name);
        let ordered: Vec<String> = names.filter(|name| self.is_ordered(name)).collect();
        if !ordered.is_empty() {
            let why =
                "ordered past the daemon, which did not answer, by root; no note says by whom";
            self.kill(ordered, why.to_owned(), Actor::Daemon).await;
        }
    }

    fn is_ordered(&self, name: &str) -> bool {
        let stopper = &self.kill_switch.stopper;
        let Some(id) = lock(&stopper.roster.registry).id(name) else {
            return false;
        };
        let ordered = lock(&stopper.enforce.kernel).is_ordered(id);
        ordered.unwrap_or(true)
    }

    /// Whether it is a kill as any other now.
    async fn kill(&self, agents: Vec<String>, reason: String, by: Actor) -> bool {
        let target = Target {
            agents,
            all: false,
            reason: None,
        };
        let by = std::future::ready(by);
        let killed = self.kill_switch.kill(&target, Some(reason), by).await;
        if let Err(error) = &killed {
            tracing::error!(%error, "a kill that was ordered past the daemon");
        }
        killed.is_ok()
    }
}

/// Oldest first. One that cannot be read is left where it is.
fn notes(folder: &Path) -> Vec<(PathBuf, KillNote)> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::error!(%error, "kill orders cannot be read");
            return Vec::new();
        }
    };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|ending| ending == "json"))
        .collect();
    paths.sort();
    let read = |path: PathBuf| {
        let note = fs::read(&path)
            .map_err(|error| error.to_string())
            .and_then(|json| serde_json::from_slice(&json).map_err(|error| error.to_string()));
        match note {
            Ok(note) => Some((path, note)),
            Err(error) => {
                tracing::error!(error, path = %path.display(), "a kill order cannot be read");
                None
            }
        }
    };
    paths.into_iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_read_oldest_first_and_others_left() {
        let dir = tempfile::tempdir().unwrap();
        let note = |name: &str, agent: &str| {
            let note = KillNote {
                agents: vec![agent.to_owned()],
                reason: None,
                uid: 0,
                at: Timestamp::UNIX_EPOCH,
            };
            let json = serde_json::to_vec(&note).unwrap();
            fs::write(dir.path().join(name), json).unwrap();
        };
        note("2-1.json", "b");
        note("1-1.json", "a");
        note("3-1.next", "half written");
        fs::write(dir.path().join("0-1.json"), "{").unwrap();
        let read = notes(dir.path());
        let agents: Vec<_> = read.iter().flat_map(|(_, note)| &note.agents).collect();
        assert_eq!(agents, ["a", "b"]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4);
        assert!(notes(&dir.path().join("not there")).is_empty());
    }
}
