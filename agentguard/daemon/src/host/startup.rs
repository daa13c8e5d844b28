//! What has to be so before the daemon can start, and what to say when it is not.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use agentguard_bundle::history::{BundleOrigin, History, HistoryEntry};
use agentguard_bundle::pack::Signer;
use agentguard_bundle::store::{self, Trust};
use agentguard_kernel as kernel;
use agentguard_kernel::{KernelError, ProtectedPath};
use agentguard_policy::{Diagnostic, Policy, Sources};
use agentguard_record::Actor;
use agentguard_record::guarantee::GuaranteeId;
use agentguard_sys::file;
use agentguard_sys::lock::{self, FolderLock, LockHolder};
use agentguard_sys::user::{self, Account};
use jiff::Timestamp;

use super::Host;
use super::config::Config;
use crate::books::alarms::Alarm;
use crate::census::Census;
use crate::enforce::Enforce;
use crate::enforce::apply::{self, ApplyError};
use crate::forwarder::ForwarderLink;
use crate::roster::active::Active;
use crate::roster::registry::Registry;

/// Inode of the first pid namespace (`PROC_PID_INIT_INO` in `include/linux/proc_ns.h`).
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// Why the daemon does not start; the exit status is CONTRACT's.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the daemon must be started by root")]
    NotRoot,
    #[error("{0}")]
    Config(String),
    #[error("{0}")]
    Bundle(String),
    #[error("{0}")]
    Failed(String),
}

impl StartError {
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Config(_) => 2,
            Self::Bundle(_) => 3,
            Self::NotRoot => 5,
        }
    }
}

pub(crate) fn check_privileges() -> Result<(), StartError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(StartError::NotRoot);
    }
    let namespace = fs::metadata("/proc/self/ns/pid").map(|meta| meta.ino());
    if namespace.is_ok_and(|inode| inode != FIRST_PID_NAMESPACE) {
        return Err(StartError::Failed(
            "the daemon must run in the host's pid namespace: the kernel knows processes by the ids they have there \
             (in a container: --pid=host)"
                .into(),
        ));
    }
    Ok(())
}

/// The user the forwarder runs as.
pub(crate) fn forwarder_account(config: &Config) -> Result<Account, StartError> {
    let name = &config.forwarder.user;
    match user::account(name) {
        Ok(Some(account)) if account.uid == 0 => Err(StartError::Config(format!(
            "`forwarder.user`: `{name}` is root; the forwarder runs as a user of its own"
        ))),
        Ok(Some(account)) => Ok(account),
        Ok(None) => Err(StartError::Config(format!(
            "`forwarder.user`: there is no user `{name}`; make it with `useradd --system --no-create-home {name}`, or \
             name another"
        ))),
        Err(error) => Err(StartError::Failed(format!(
            "cannot look up user `{name}`: {error}"
        ))),
    }
}

/// A role for a group that this host does not have is given to nobody.
pub(crate) fn warn_of_unknown_groups(config: &Config) {
    for grant in &config.roles {
        if user::gid(&grant.group).is_none() {
            tracing::warn!(
                group = grant.group,
                "[[roles]] names a group that this host does not have"
            );
        }
    }
}

/// Where the programs are attached: above every process.
pub(crate) fn cgroup_root(config: &Config) -> Result<PathBuf, StartError> {
    let Some(root) = config.paths.cgroup_root() else {
        return kernel::cgroup_root().map_err(|e| StartError::Failed(e.to_string()));
    };
    match nix::sys::statfs::statfs(root) {
        Ok(found) if found.filesystem_type() == nix::sys::statfs::CGROUP2_SUPER_MAGIC => {
            Ok(root.to_owned())
        }
        _ => Err(StartError::Config(format!(
            "`paths.cgroup`: no cgroup v2 hierarchy is mounted at `{}`; say `auto`, or where it is",
            root.display()
        ))),
    }
}

/// Takes the folder for this daemon alone.
pub(crate) fn take(folder: &Path) -> Result<FolderLock, StartError> {
    let shown = folder.display();
    match FolderLock::take(folder) {
        Ok(Ok(lock)) => Ok(lock),
        Ok(Err(LockHolder::By(tgid))) => Err(held(folder, tgid)),
        Ok(Err(LockHolder::Unknown)) => Err(StartError::Failed(format!(
            "another daemon has `{shown}`; stop it, or give this one other paths"
        ))),
        Err(error) => Err(StartError::Failed(format!(
            "cannot lock `{shown}`: {error}"
        ))),
    }
}

/// Another daemon that works with these pins, by its lock on them.
pub(crate) fn check_free(pins: &Path) -> Result<(), StartError> {
    match lock::holder(pins) {
        LockHolder::By(tgid) => Err(held(pins, tgid)),
        LockHolder::Unknown => Ok(()),
    }
}

/// One line, and the verifier's own words to the log.
pub(crate) fn kernel_error(error: KernelError, pins: &Path) -> StartError {
    match (&error, lock::holder(pins)) {
        (KernelError::Held { .. }, LockHolder::By(tgid)) => held(pins, tgid),
        _ => StartError::Failed(error.to_string()),
    }
}

fn held(folder: &Path, tgid: u32) -> StartError {
    StartError::Failed(format!(
        "another daemon (pid {tgid}) has `{}`; stop it, or give this one other paths",
        folder.display()
    ))
}

/// Makes the folders the daemon needs; only root sees into the state.
pub(crate) fn make_folders(config: &Config) -> Result<(), StartError> {
    for (path, mode) in [
        (config.paths.state.clone(), 0o700),
        (config.paths.state.join("policy"), 0o700),
        (config.paths.runtime.clone(), 0o755),
    ] {
        file::ensure_folder(&path, mode).map_err(|error| {
            StartError::Failed(format!("cannot make `{}`: {error}", path.display()))
        })?;
    }
    Ok(())
}

/// What no agent changes, and what none reads either: the state, and the credentials of proxies.
pub(crate) fn own_files(config: &Config) -> Vec<ProtectedPath> {
    let mut files = vec![ProtectedPath {
        path: config.paths.state.clone(),
        secret: true,
    }];
    let others = [
        Some(config.paths.runtime.clone()),
        Some(config.paths.trust.clone()),
        Some(config.policy.bundle.clone()),
        config.file.clone(),
        std::env::current_exe().ok(),
    ];
    let credentials = config.upstream.credentials_file();
    files.extend(credentials.map(|path| ProtectedPath {
        path: path.to_owned(),
        secret: true,
    }));
    files.extend(others.into_iter().flatten().map(|path| ProtectedPath {
        path,
        secret: false,
    }));
    files
}

/// The bundle to start with, and what is wrong with it. The one applied last counts, else the configured one. Where
/// the one applied last cannot be used, the last of the history that can.
pub(crate) fn first_bundle(
    config: &Config,
    registry: &Registry,
    history: &History,
) -> Result<(Option<Active>, Option<Alarm>), StartError> {
    let prepare = |sources, entry| {
        let propose = |names: &_| registry.propose(names);
        apply::prepare(sources, propose, registry.reassigned(), 1, entry)
    };
    let trouble = match history.active() {
        Ok(Some((entry, sources))) => {
            let entry = entry
                .unwrap_or_else(|| entry_at_start(history, &sources, None, BundleOrigin::Apply));
            match prepare(sources, entry) {
                Ok(active) => return Ok((Some(active), None)),
                Err(error) => one_line(&error),
            }
        }
        Ok(None)
            if history
                .entries()
                .iter()
                .all(|it| it.origin == BundleOrigin::Start) =>
        {
            return configured(config, history, prepare);
        }
        Ok(None) => "its file is gone".to_owned(),
        Err(error) => error.to_string(),
    };
    // The daemon runs all the same, and another bundle can be applied.
    let unusable = |instead| Alarm::BundleUnusable {
        why: trouble.clone(),
        instead,
    };
    for entry in history.entries().iter().rev() {
        let sources = history.sources(entry).map_err(|e| e.to_string());
        let prepared =
            sources.and_then(|sources| prepare(sources, entry.clone()).map_err(|e| one_line(&e)));
        match prepared {
            Ok(active) => {
                let instead = (entry.meta.name.clone(), entry.meta.serial);
                return Ok((Some(active), Some(unusable(Some(instead)))));
            }
            Err(error) => {
                tracing::error!(error, seq = entry.seq, "an earlier bundle cannot be used")
            }
        }
    }
    Ok((None, Some(unusable(None))))
}

/// The configured bundle, while none has been applied.
fn configured(
    config: &Config,
    history: &History,
    prepare: impl FnOnce(Sources, HistoryEntry) -> Result<Active, ApplyError>,
) -> Result<(Option<Active>, Option<Alarm>), StartError> {
    let path = &config.policy.bundle;
    if !path.exists() {
        return Ok((None, None));
    }
    // A process that can write the bundle decides what agents may do: root's alone, or one with a trusted key.
    let loaded = store::load(path, Trust::Root, &config.paths.trust)
        .map_err(|error| StartError::Bundle(error.to_string()))?;
    let entry = entry_at_start(history, &loaded.sources, loaded.signer, BundleOrigin::Start);
    match prepare(loaded.sources, entry) {
        Ok(active) => Ok((Some(active), None)),
        Err(error) => Err(StartError::Bundle(format!(
            "the bundle `{}`: {}",
            path.display(),
            one_line(&error)
        ))),
    }
}

/// The newest entry, if it is of this very bundle; else the one that comes next.
fn entry_at_start(
    history: &History,
    sources: &Sources,
    signer: Option<Signer>,
    origin: BundleOrigin,
) -> HistoryEntry {
    let meta = Policy::meta_of(sources).unwrap_or_default();
    match history.entries().last() {
        Some(last) if last.meta == meta && last.signer == signer => last.clone(),
        _ => HistoryEntry {
            seq: history.next_seq(),
            highest: meta.serial.max(history.highest()),
            meta,
            applied_at: Timestamp::now(),
            origin,
            by: Actor::Daemon,
            signer,
        },
    }
}

/// A bundle that requires what this host lacks is not put in force: agents stay closed. Answers which gaps count and are
/// accepted.
pub(crate) fn hold_to_requirements(
    host: &Host,
    census: &Census,
    enforce: &Enforce,
    forwarder: &ForwarderLink,
    active: Option<Active>,
) -> Result<(Option<Active>, Vec<GuaranteeId>), Alarm> {
    let Some(active) = active else {
        return Ok((None, Vec::new()));
    };
    match enforce.meets(host, census, forwarder, &active.policy) {
        Ok(accepted) => Ok((Some(active), accepted)),
        Err(why) => Err(Alarm::BundleRefused {
            name: active.meta.name.clone(),
            serial: active.meta.serial,
            why,
        }),
    }
}

fn one_line(error: &ApplyError) -> String {
    match error {
        ApplyError::Invalid(diagnostics) => {
            let first = diagnostics.first().map(show).unwrap_or_default();
            match diagnostics.len() {
                0 | 1 => first,
                more => format!(
                    "{first} (and {} more; see `agentguard policy check`)",
                    more - 1
                ),
            }
        }
        ApplyError::Refused(_) | ApplyError::Failed(_) => error.to_string(),
    }
}

/// `file:line:column: message`.
pub(crate) fn show(diagnostic: &Diagnostic) -> String {
    let mut place = diagnostic.file.clone();
    for number in [diagnostic.line, diagnostic.column].into_iter().flatten() {
        place = format!("{place}:{number}");
    }
    format!("{place}: {}", diagnostic.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let _first = take(dir.path()).unwrap();
        let error = take(dir.path()).unwrap_err();
        let me = format!("another daemon (pid {})", std::process::id());
        assert!(error.to_string().starts_with(&me), "{error}");
        assert_eq!(error.exit_status(), 1);
    }

    #[test]
    fn the_forwarders_user_must_exist_and_not_be_root() {
        let mut config = Config::default();
        config.forwarder.user = "no-such-user-here".into();
        let error = forwarder_account(&config).unwrap_err();
        assert!(error.to_string().contains("useradd"), "{error}");
        assert_eq!(error.exit_status(), 2);
        config.forwarder.user = "root".into();
        assert_eq!(forwarder_account(&config).unwrap_err().exit_status(), 2);
    }
}
