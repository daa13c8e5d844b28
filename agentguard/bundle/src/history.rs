//! Bundles on disk: the one in force, and what has been in force before it, with who put it there and when. What is
//! damaged is never used: a file's content has to have the digest that was written with it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use agentguard_policy::{Policy, Sources};
use agentguard_record::{Actor, Meta};
use agentguard_sys::SysError;
use agentguard_sys::file;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::pack::Signer;

/// Bundles that are kept.
const KEPT: usize = 20;

#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error("cannot read `{path}`: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("`{path}` is damaged: {why}")]
    Damaged { path: PathBuf, why: String },
    #[error("cannot write `{path}`: {source}")]
    Write { path: PathBuf, source: SysError },
}

/// How a bundle came into force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BundleOrigin {
    /// The configured one, while none had been applied.
    Start,
    Apply,
    Rollback,
}

/// One bundle's time in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// Counts every change of policy on this host, from 1.
    pub seq: u64,
    #[serde(flatten)]
    pub meta: Meta,
    /// The highest serial that has been in force here: what comes next must be above it.
    pub highest: u64,
    pub applied_at: Timestamp,
    pub origin: BundleOrigin,
    /// In files its uid alone.
    #[serde(rename = "uid", with = "by_uid")]
    pub by: Actor,
    pub signer: Option<Signer>,
}

/// [`HistoryEntry::by`] as files and the API have it.
mod by_uid {
    use agentguard_record::Actor;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(by: &Actor, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(by.uid())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Actor, D::Error> {
        u32::deserialize(from).map(actor)
    }

    pub(super) fn actor(uid: u32) -> Actor {
        Actor::Peer { uid, user: None }
    }
}

/// A bundle as a file has it.
#[derive(Serialize, Deserialize)]
struct Stored {
    /// Absent in files of versions that kept no history.
    #[serde(default)]
    entry: Option<HistoryEntry>,
    files: BTreeMap<String, String>,
}

/// The files, and what is known of them. Newest last.
pub struct History {
    folder: PathBuf,
    entries: Vec<HistoryEntry>,
}

impl History {
    /// Reads what is there below the daemon's state. Files that are damaged are told and left alone.
    pub fn open(state: &Path) -> Result<(Self, Vec<HistoryError>), HistoryError> {
        let folder = state.join("policy");
        let below = folder.join("history");
        file::ensure_folder(&below, 0o700).map_err(|source| HistoryError::Write {
            path: below.clone(),
            source,
        })?;
        let mut history = Self {
            folder,
            entries: Vec::new(),
        };
        let mut damaged = Vec::new();
        let cannot = |source| HistoryError::Read {
            path: below.clone(),
            source,
        };
        for found in fs::read_dir(&below).map_err(cannot)? {
            let path = found.map_err(cannot)?.path();
            if path.extension().is_none_or(|ending| ending != "json") {
                continue;
            }
            match load(&path) {
                Ok((Some(entry), _)) if history.path(entry.seq) == path => {
                    history.entries.push(entry);
                }
                Ok(_) => damaged.push(HistoryError::Damaged {
                    path,
                    why: "it is not what its name says".into(),
                }),
                Err(error) => damaged.push(error),
            }
        }
        history.entries.sort_by_key(|entry| entry.seq);
        Ok((history, damaged))
    }

    /// Newest last.
    pub fn entries(&self) -> &[HistoryEntry] {
        &self.entries
    }

    /// The highest serial that has been in force here, as far as is known.
    pub fn highest(&self) -> u64 {
        let known = self.entries.iter().map(|entry| entry.highest);
        known.max().unwrap_or(0)
    }

    /// Of the entry that comes next.
    pub fn next_seq(&self) -> u64 {
        self.entries.last().map_or(1, |entry| entry.seq + 1)
    }

    /// The bundle applied last; `None`: none ever was.
    pub fn active(&self) -> Result<Option<(Option<HistoryEntry>, Sources)>, HistoryError> {
        match load(&self.active_path()) {
            Err(HistoryError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    pub fn sources(&self, entry: &HistoryEntry) -> Result<Sources, HistoryError> {
        let path = self.path(entry.seq);
        match load(&path)? {
            (Some(found), sources) if found == *entry => Ok(sources),
            _ => Err(HistoryError::Damaged {
                path,
                why: "it has been changed".into(),
            }),
        }
    }

    /// Writes the bundle beside the one in force; [`Self::commit`] puts it in its place.
    pub fn stage(&self, entry: &HistoryEntry, sources: &Sources) -> Result<(), HistoryError> {
        write(&self.staged_path(), entry, sources)
    }

    /// From here on a restart finds the staged bundle, durably, and before it never does.
    pub fn commit(&self) -> Result<(), HistoryError> {
        let path = self.active_path();
        file::rename_durably(&self.staged_path(), &path)
            .map_err(|source| HistoryError::Write { path, source })
    }

    /// Keeps a bundle that is in force, unless it is kept already, and lets the oldest go.
    pub fn keep(&mut self, entry: &HistoryEntry, sources: &Sources) -> Result<(), HistoryError> {
        if self.entries.iter().any(|kept| kept.seq == entry.seq) {
            return Ok(());
        }
        write(&self.path(entry.seq), entry, sources)?;
        // As it is read back: of who did it, a file keeps the uid.
        self.entries.push(HistoryEntry {
            by: by_uid::actor(entry.by.uid()),
            ..entry.clone()
        });
        self.entries.sort_by_key(|entry| entry.seq);
        while self.entries.len() > KEPT {
            let oldest = self.entries.remove(0);
            if let Err(error) = fs::remove_file(self.path(oldest.seq)) {
                tracing::warn!(%error, seq = oldest.seq, "an old bundle could not be removed");
            }
        }
        Ok(())
    }

    fn active_path(&self) -> PathBuf {
        self.folder.join("active.json")
    }

    fn staged_path(&self) -> PathBuf {
        self.folder.join("active.staged")
    }

    fn path(&self, seq: u64) -> PathBuf {
        self.folder.join("history").join(format!("{seq:010}.json"))
    }
}

fn write(path: &Path, entry: &HistoryEntry, sources: &Sources) -> Result<(), HistoryError> {
    let stored = serde_json::json!({ "entry": entry, "files": sources.files });
    file::write_atomically(path, stored.to_string().as_bytes(), 0o600).map_err(|source| {
        HistoryError::Write {
            path: path.to_owned(),
            source,
        }
    })
}

fn load(path: &Path) -> Result<(Option<HistoryEntry>, Sources), HistoryError> {
    let damaged = |why: String| HistoryError::Damaged {
        path: path.to_owned(),
        why,
    };
    let bytes = fs::read(path).map_err(|source| HistoryError::Read {
        path: path.to_owned(),
        source,
    })?;
    let stored: Stored = serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
    let sources = Sources {
        files: stored.files,
    };
    if let Some(entry) = &stored.entry {
        let same = Policy::meta_of(&sources).is_some_and(|meta| meta == entry.meta);
        if !same {
            return Err(damaged("its files do not have the digest they had".into()));
        }
    }
    Ok((stored.entry, sources))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(serial: u64) -> (HistoryEntry, Sources) {
        let text = format!("name = \"b\"\nserial = {serial}\n");
        let files = [("bundle.toml".to_owned(), text)];
        let sources = Sources {
            files: files.into(),
        };
        let entry = HistoryEntry {
            seq: serial,
            meta: Policy::meta_of(&sources).unwrap(),
            highest: serial,
            applied_at: Timestamp::from_second(1_000).unwrap(),
            origin: BundleOrigin::Apply,
            by: Actor::Peer { uid: 0, user: None },
            signer: None,
        };
        (entry, sources)
    }

    #[test]
    fn what_is_kept_comes_back_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let (mut history, _) = History::open(dir.path()).unwrap();
        assert!(history.active().unwrap().is_none());
        for serial in 1..=25 {
            let (entry, sources) = bundle(serial);
            history.stage(&entry, &sources).unwrap();
            history.commit().unwrap();
            history.keep(&entry, &sources).unwrap();
            history.keep(&entry, &sources).unwrap();
        }
        let (again, damaged) = History::open(dir.path()).unwrap();
        assert!(damaged.is_empty(), "{damaged:?}");
        assert_eq!(again.entries(), history.entries());
        assert_eq!((again.entries().len(), again.entries()[0].seq), (KEPT, 6));
        assert_eq!((again.highest(), again.next_seq()), (25, 26));
        let (entry, sources) = again.active().unwrap().unwrap();
        assert_eq!(entry.unwrap(), bundle(25).0);
        assert_eq!(sources, bundle(25).1);
        assert_eq!(again.sources(&again.entries()[3]).unwrap(), bundle(9).1);
    }

    #[test]
    fn who_did_it_is_a_uid_in_files() {
        let ann = Actor::Peer {
            uid: 7,
            user: Some("ann".into()),
        };
        let dir = tempfile::tempdir().unwrap();
        let (mut history, _) = History::open(dir.path()).unwrap();
        for (serial, by, uid) in [(1, Actor::Daemon, 0), (2, ann, 7)] {
            let (entry, sources) = bundle(serial);
            let entry = HistoryEntry { by, ..entry };
            let json = serde_json::to_value(&entry).unwrap();
            assert_eq!(json["uid"], uid);
            assert!(json.get("by").is_none() && json.get("user").is_none());
            history.keep(&entry, &sources).unwrap();
            let kept = history.entries().last().unwrap();
            assert_eq!(history.sources(kept).unwrap(), sources);
        }
    }

    #[test]
    fn what_is_damaged_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let (mut history, _) = History::open(dir.path()).unwrap();
        for serial in 1..=2 {
            let (entry, sources) = bundle(serial);
            history.stage(&entry, &sources).unwrap();
            history.commit().unwrap();
            history.keep(&entry, &sources).unwrap();
        }
        for path in [history.path(1), history.active_path()] {
            let text = fs::read_to_string(&path).unwrap();
            fs::write(&path, text.replace("name = ", "name =  ")).unwrap();
        }
        assert!(history.active().is_err());
        assert!(history.sources(&bundle(1).0).is_err());
        let (again, damaged) = History::open(dir.path()).unwrap();
        assert_eq!((again.entries().len(), damaged.len()), (1, 1));
        fs::write(history.active_path(), "{\"files\":{\"bundle.toml\":\"x\"}}").unwrap();
        let (entry, _) = history.active().unwrap().unwrap();
        assert!(entry.is_none(), "as versions without a history wrote it");
    }
}
