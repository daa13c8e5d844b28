//! Names to ids, who has been stopped and whose an agent is: on disk, because pinned maps hold ids, and what operators
//! have done outlives the daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use agentguard_common::abi::{AgentId, MAX_AGENTS};
use agentguard_policy::Reassignment;
use agentguard_sys::{SysError, file};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("cannot read the agent registry `{}`: {reason}; restore it from a backup: with a new one, what is pinned would take old agents for new ones", path.display())]
    Unreadable { path: PathBuf, reason: String },
    #[error("cannot write the agent registry `{}`: {source}", path.display())]
    Write { path: PathBuf, source: SysError },
    #[error("this host has known {MAX_AGENTS} agents, and ids are never reused")]
    Full,
}

/// What an operator has done, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intervention {
    pub reason: Option<String>,
    /// The user who did it.
    pub by: String,
    pub at: Timestamp,
}

/// How an operator has taken an agent out of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Out {
    /// Until it is activated.
    Suspended,
    /// For good.
    Retired,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownAgent {
    pub id: AgentId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub killed: Option<Intervention>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out: Option<(Out, Intervention)>,
    /// Another owner than its file's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Reassignment>,
}

impl KnownAgent {
    const fn new(id: AgentId) -> Self {
        Self {
            id,
            killed: None,
            out: None,
            owner: None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RegistryFile {
    next: u32,
    agents: BTreeMap<String, KnownAgent>,
    /// Owners that are not active.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    inactive: BTreeMap<String, Intervention>,
}

/// Every agent this host has known.
#[derive(Debug)]
pub struct Registry {
    path: PathBuf,
    file: RegistryFile,
    /// It is on disk as it is here.
    is_written: bool,
}

impl Registry {
    /// Reads the registry at `path`, or starts an empty one.
    pub fn open(path: &Path) -> Result<Self, RegistryError> {
        let unreadable = |reason: String| RegistryError::Unreadable {
            path: path.to_owned(),
            reason,
        };
        let file = match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| unreadable(e.to_string()))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => RegistryFile {
                next: AgentId::FIRST,
                agents: BTreeMap::new(),
                inactive: BTreeMap::new(),
            },
            Err(e) => return Err(unreadable(e.to_string())),
        };
        let ids: BTreeSet<AgentId> = file.agents.values().map(|known| known.id).collect();
        let in_range = ids
            .iter()
            .all(|id| (AgentId::FIRST..file.next).contains(&id.0));
        if ids.len() != file.agents.len() || !in_range {
            return Err(unreadable("an id is given twice or out of range".into()));
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            is_written: true,
        })
    }

    /// Writes one that is new, whose ids begin behind `given`: these may be of agents that an earlier one knew.
    pub(crate) fn begin(&mut self, given: AgentId) -> Result<(), RegistryError> {
        if self.path.exists() {
            return Ok(());
        }
        let mut file = self.file.clone();
        file.next = file.next.max(given.0 + 1);
        self.is_written = false;
        self.replace(file)
    }

    pub fn agents(&self) -> &BTreeMap<String, KnownAgent> {
        &self.file.agents
    }

    pub fn id(&self, name: &str) -> Option<AgentId> {
        self.file.agents.get(name).map(|known| known.id)
    }

    pub fn name(&self, id: AgentId) -> Option<&str> {
        self.file
            .agents
            .iter()
            .find(|(_, known)| known.id == id)
            .map(|(name, _)| name.as_str())
    }

    /// Every id whose agent is killed.
    pub fn killed(&self) -> Vec<AgentId> {
        self.file
            .agents
            .values()
            .filter(|known| known.killed.is_some())
            .map(|known| known.id)
            .collect()
    }

    /// Owners that are not active.
    pub fn inactive(&self) -> &BTreeMap<String, Intervention> {
        &self.file.inactive
    }

    /// Agents that have been given another owner.
    pub fn reassigned(&self) -> BTreeMap<String, Reassignment> {
        let agents = self.file.agents.iter();
        agents
            .filter_map(|(name, known)| Some((name.clone(), known.owner.clone()?)))
            .collect()
    }

    /// The ids of `names`, with the next free ones for those that are new. Nothing is kept until [`Self::keep`].
    pub fn propose(
        &self,
        names: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, AgentId>, RegistryError> {
        let mut next = self.file.next;
        names
            .iter()
            .map(|name| {
                let id = match self.id(name) {
                    Some(id) => id,
                    None if next >= AgentId::FIRST_RESERVED => return Err(RegistryError::Full),
                    None => {
                        next += 1;
                        AgentId(next - 1)
                    }
                };
                Ok((name.clone(), id))
            })
            .collect()
    }

    /// Makes what [`Self::propose`] gave durable.
    pub fn keep(&mut self, ids: &BTreeMap<String, AgentId>) -> Result<(), RegistryError> {
        let mut file = self.file.clone();
        for (name, id) in ids {
            let known = file.agents.entry(name.clone());
            known.or_insert(KnownAgent::new(*id));
            file.next = file.next.max(id.0 + 1);
        }
        self.replace(file)
    }

    /// Kills agents that are known. They are killed here even if that cannot be written, and on disk with whatever is written
    /// next.
    ///
    /// # Errors
    /// It is not on disk yet.
    pub fn kill(&mut self, names: &[String], by: &Intervention) -> Result<(), RegistryError> {
        let file = self.changed(names, |known| known.killed = Some(by.clone()));
        let written = self.replace(file.clone());
        if written.is_err() {
            self.file = file;
            self.is_written = false;
        }
        written
    }

    /// Clears the kill of agents that are known.
    pub fn revive(&mut self, names: &[String]) -> Result<(), RegistryError> {
        self.change(names, |known| known.killed = None)
    }

    /// Takes agents that are known out of use, or back into it.
    pub fn set_out(
        &mut self,
        names: &[String],
        out: Option<&(Out, Intervention)>,
    ) -> Result<(), RegistryError> {
        self.change(names, |known| known.out = out.cloned())
    }

    /// Gives an agent that is known another owner than its file's.
    pub fn set_owner(
        &mut self,
        name: &str,
        owner: Option<&Reassignment>,
    ) -> Result<(), RegistryError> {
        self.change(&[name.to_owned()], |known| known.owner = owner.cloned())
    }

    /// Makes an owner inactive, or active.
    pub fn set_inactive(
        &mut self,
        owner: &str,
        inactive: Option<&Intervention>,
    ) -> Result<(), RegistryError> {
        let mut file = self.file.clone();
        match inactive {
            Some(done) => file.inactive.insert(owner.to_owned(), done.clone()),
            None => file.inactive.remove(owner),
        };
        self.replace(file)
    }

    fn change(
        &mut self,
        names: &[String],
        change: impl Fn(&mut KnownAgent),
    ) -> Result<(), RegistryError> {
        self.replace(self.changed(names, change))
    }

    fn changed(&self, names: &[String], change: impl Fn(&mut KnownAgent)) -> RegistryFile {
        let mut file = self.file.clone();
        for name in names {
            if let Some(known) = file.agents.get_mut(name) {
                change(known);
            }
        }
        file
    }

    fn replace(&mut self, file: RegistryFile) -> Result<(), RegistryError> {
        if file == self.file && self.is_written {
            return Ok(());
        }
        let json = serde_json::to_vec_pretty(&file).expect("a registry is plain data");
        file::write_atomically(&self.path, &json, 0o600).map_err(|source| {
            RegistryError::Write {
                path: self.path.clone(),
                source,
            }
        })?;
        self.file = file;
        self.is_written = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn ids_outlive_the_process_and_are_never_reused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agents.json");
        let mut registry = Registry::open(&path).unwrap();
        let ids = registry.propose(&names(&["b", "a"])).unwrap();
        assert_eq!((ids["a"], ids["b"]), (AgentId(2), AgentId(3)));
        assert_eq!(registry.id("a"), None, "a proposal is not kept");
        registry.keep(&ids).unwrap();

        let mut again = Registry::open(&path).unwrap();
        let ids = again.propose(&names(&["b", "c"])).unwrap();
        assert_eq!((ids["b"], ids["c"]), (AgentId(3), AgentId(4)));
        again.keep(&ids).unwrap();
        assert_eq!(
            again.name(AgentId(2)),
            Some("a"),
            "gone from the bundle, still known"
        );
    }

    #[test]
    fn a_kill_is_there_after_a_restart_until_revived() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agents.json");
        let mut registry = Registry::open(&path).unwrap();
        let ids = registry.propose(&names(&["a", "b"])).unwrap();
        registry.keep(&ids).unwrap();
        let killed = Intervention {
            reason: Some("odd".into()),
            by: "root".into(),
            at: Timestamp::UNIX_EPOCH,
        };
        registry.kill(&["b".into()], &killed).unwrap();

        let mut again = Registry::open(&path).unwrap();
        assert_eq!(again.killed(), [ids["b"]]);
        assert_eq!(again.agents()["b"].killed.as_ref(), Some(&killed));
        again.revive(&["b".into()]).unwrap();
        assert!(Registry::open(&path).unwrap().killed().is_empty());

        let owner = Reassignment {
            from: "ann".into(),
            to: "bob".into(),
        };
        again.set_owner("a", Some(&owner)).unwrap();
        again.set_inactive("ann", Some(&killed)).unwrap();
        let out = (Out::Retired, killed.clone());
        again.set_out(&["b".into()], Some(&out)).unwrap();
        let again = Registry::open(&path).unwrap();
        assert_eq!(again.reassigned(), [("a".into(), owner)].into());
        assert_eq!(again.inactive().get("ann"), Some(&killed));
        assert_eq!(again.agents()["b"].out, Some(out));
    }

    #[test]
    fn a_kill_that_cannot_be_written_holds_and_is_written_with_what_comes_next() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        std::fs::create_dir(&state).unwrap();
        let path = state.join("agents.json");
        let mut registry = Registry::open(&path).unwrap();
        let ids = registry.propose(&names(&["a", "b"])).unwrap();
        registry.keep(&ids).unwrap();
        let killed = Intervention {
            reason: None,
            by: "root".into(),
            at: Timestamp::UNIX_EPOCH,
        };
        std::fs::remove_dir_all(&state).unwrap();
        registry.kill(&["a".into()], &killed).unwrap_err();
        assert_eq!(registry.killed(), [ids["a"]]);
        registry.revive(&["a".into()]).unwrap_err();
        assert_eq!(
            registry.killed(),
            [ids["a"]],
            "what cannot be written frees nobody"
        );
        std::fs::create_dir(&state).unwrap();
        // Even by one that changes nothing.
        registry.kill(&[], &killed).unwrap();
        assert_eq!(Registry::open(&path).unwrap().killed(), [ids["a"]]);
    }

    #[test]
    fn a_damaged_registry_is_not_started_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agents.json");
        for text in [
            "",
            "{}",
            r#"{"next":2,"agents":{"a":{"id":2}}}"#,
            r#"{"next":4,"agents":{"a":{"id":2},"b":{"id":2}}}"#,
            r#"{"next":4,"agents":{"a":{"id":1}}}"#,
        ] {
            std::fs::write(&path, text).unwrap();
            assert!(Registry::open(&path).is_err(), "{text}");
        }
    }

    #[test]
    fn a_full_registry_refuses_new_names_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agents.json");
        std::fs::write(
            &path,
            format!(r#"{{"next":{MAX_AGENTS},"agents":{{"a":{{"id":2}}}}}}"#),
        )
        .unwrap();
        let registry = Registry::open(&path).unwrap();
        assert!(registry.propose(&names(&["a"])).is_ok());
        assert!(registry.propose(&names(&["b"])).is_err());
    }
}
