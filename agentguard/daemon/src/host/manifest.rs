//! Which files of the state there have been: one that is gone is no first start. Kept twice, so that the loss of a copy does
//! not pass for one either.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use agentguard_kernel as kernel;
use agentguard_sys::{Result, SysError, file};
use serde::{Deserialize, Serialize};

use super::config::PathsSection;

/// Without one of these an agent may do more than it could: who is killed, what tasks narrow, what limits have counted.
const HOLDING: [&str; 3] = ["agents.json", "tasks.json", "limits.log"];
const AUDIT: &str = "audit";

/// A start that has found a loss and has not dealt with it yet leaves this behind, with what is lost.
const UNSETTLED: &str = "lost.json";

/// What there has been and is not any more.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct LostState {
    /// Of what holds agents, by file name.
    pub holding: Vec<&'static str>,
    pub audit: bool,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    files: BTreeSet<String>,
}

fn copies(state: &Path) -> [PathBuf; 2] {
    ["manifest.json", "policy/manifest.json"].map(|name| state.join(name))
}

/// It is remembered until [`keep`]: what is gone is made anew before that.
pub(crate) fn lost(paths: &PathsSection) -> Result<LostState> {
    // Programs that an earlier daemon has left hold agents by its registry.
    let pinned = kernel::hooks(&paths.pins).iter().any(|hook| hook.attached);
    let lost = lost_of(&paths.state, pinned);
    let mut files: BTreeSet<String> = lost.holding.iter().map(|name| (*name).to_owned()).collect();
    if lost.audit {
        files.insert(AUDIT.to_owned());
    }
    if !files.is_empty() {
        write(&paths.state.join(UNSETTLED), files)?;
    }
    Ok(lost)
}

fn lost_of(state: &Path, pinned: bool) -> LostState {
    let known: BTreeSet<String> = copies(state).iter().flat_map(|path| read(path)).collect();
    let unsettled = read(&state.join(UNSETTLED));
    let is_lost =
        |name: &str| unsettled.contains(name) || (known.contains(name) && !is_there(state, name));
    LostState {
        holding: HOLDING
            .into_iter()
            .filter(|name| {
                is_lost(name) || (pinned && *name == HOLDING[0] && !is_there(state, name))
            })
            .collect(),
        audit: is_lost(AUDIT),
    }
}

/// What a copy names: everything, if it is there and cannot be read.
fn read(path: &Path) -> BTreeSet<String> {
    let manifest = match fs::read(path) {
        Ok(json) => serde_json::from_slice::<Manifest>(&json).map_err(|error| error.to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Manifest::default()),
        Err(error) => Err(error.to_string()),
    };
    manifest.map(|manifest| manifest.files).unwrap_or_else(|error| {
        tracing::error!(error, path = %path.display(), "the list of what the state holds cannot be read");
        HOLDING.into_iter().chain([AUDIT]).map(str::to_owned).collect()
    })
}

fn is_there(state: &Path, name: &str) -> bool {
    let path = state.join(name);
    match name == AUDIT {
        true => fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()),
        false => path.exists(),
    }
}

/// From here on what there is now has been there.
pub(crate) fn keep(state: &Path) -> Result<()> {
    let names = HOLDING.into_iter().chain([AUDIT]);
    let files = names
        .filter(|name| is_there(state, name))
        .map(str::to_owned);
    let files: BTreeSet<String> = files.collect();
    for path in copies(state) {
        write(&path, files.clone())?;
    }
    match fs::remove_file(state.join(UNSETTLED)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(SysError::io("unlink")(error))
        }
        _ => Ok(()),
    }
}

fn write(path: &Path, files: BTreeSet<String>) -> Result<()> {
    let json = serde_json::to_vec_pretty(&Manifest { files }).expect("a manifest is plain data");
    // A full disk keeps no daemon from starting that has nothing new to say.
    match fs::read(path).is_ok_and(|now| now == json) {
        true => Ok(()),
        false => file::write_atomically(path, &json, 0o600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["policy", AUDIT] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        dir
    }

    #[test]
    fn what_is_gone_is_told_from_a_first_start() {
        let dir = state();
        assert_eq!(
            lost_of(dir.path(), false),
            LostState::default(),
            "a first start"
        );
        for name in HOLDING {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        fs::write(dir.path().join(AUDIT).join("1.log"), "x").unwrap();
        keep(dir.path()).unwrap();
        assert_eq!(lost_of(dir.path(), true), LostState::default());

        fs::remove_file(dir.path().join("tasks.json")).unwrap();
        fs::remove_dir_all(dir.path().join(AUDIT)).unwrap();
        let expected = LostState {
            holding: vec!["tasks.json"],
            audit: true,
        };
        assert_eq!(lost_of(dir.path(), false), expected);
        // One copy is enough.
        fs::remove_file(dir.path().join("manifest.json")).unwrap();
        assert_eq!(lost_of(dir.path(), false), expected);
        fs::write(dir.path().join("policy/manifest.json"), "{").unwrap();
        assert_eq!(
            lost_of(dir.path(), false),
            expected,
            "one that cannot be read"
        );
    }

    #[test]
    fn a_loss_is_remembered_until_it_has_been_dealt_with() {
        let dir = state();
        for name in HOLDING {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        keep(dir.path()).unwrap();
        let paths = PathsSection {
            state: dir.path().to_owned(),
            pins: dir.path().join("pins"),
            ..PathsSection::default()
        };
        fs::remove_file(dir.path().join("agents.json")).unwrap();
        assert_eq!(lost(&paths).unwrap().holding, ["agents.json"]);
        // A start that made it anew, and came no further.
        fs::write(dir.path().join("agents.json"), "x").unwrap();
        assert_eq!(lost(&paths).unwrap().holding, ["agents.json"]);
        keep(dir.path()).unwrap();
        assert_eq!(lost(&paths).unwrap(), LostState::default());
    }

    #[test]
    fn programs_that_are_pinned_say_that_there_was_a_registry() {
        let dir = state();
        assert_eq!(lost_of(dir.path(), true).holding, ["agents.json"]);
    }
}
