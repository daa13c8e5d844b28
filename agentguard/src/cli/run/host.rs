//! What an agent of root's finds of the host in its mount namespace: the kernel's files, and the daemon's, are root's to write,
//! and read-only there. What is hidden from it altogether is [`super::child`]'s.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use agentguard_sys::mount::{self, Mounted};
use agentguard_sys::{Result, SysError};

/// File systems whose files are the kernel's, wherever they are mounted. `proc` has those of processes besides.
const KERNELS: [&str; 14] = [
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "efivarfs",
    "fusectl",
    "pstore",
    "resctrl",
    "securityfs",
    "selinuxfs",
    "sysfs",
    "tracefs",
];

/// For good: whoever has no capability and no `mount(2)` undoes none of it. `kept`: what is not to be changed. `hidden`: what is
/// covered already, and stays so.
pub(super) fn make_read_only(kept: &[PathBuf], hidden: &[PathBuf]) -> Result<()> {
    let mounted = mount::mounted()?;
    for at in &mounted {
        if at.kind == "proc" && at.root == Path::new("/") {
            for file in of_no_process(&at.target)? {
                mount::hold(&file)?;
                mount::freeze(&file)?;
            }
        } else if at.kind == "proc" || KERNELS.contains(&at.kind.as_str()) {
            mount::freeze(&at.target)?;
        }
    }
    let real = |paths: &[PathBuf]| -> Vec<PathBuf> {
        let found = paths.iter().map(fs::canonicalize);
        found.filter_map(std::result::Result::ok).collect()
    };
    let (kept, hidden) = (real(kept), real(hidden));
    for folder in above(kept.iter().chain(&hidden), &mounted) {
        mount::hold(&folder)?;
    }
    for path in &kept {
        mount::hold(path)?;
        mount::freeze(path)?;
    }
    walk_in_again()
}

/// What is directly below a `/proc`, may be written or is a folder, and is not a process's. The links lead to the caller's own.
fn of_no_process(proc: &Path) -> Result<Vec<PathBuf>> {
    const WRITE: u32 = 0o222;
    let failed = "read /proc";
    let mut found = Vec::new();
    for entry in fs::read_dir(proc).map_err(SysError::io(failed))? {
        let entry = entry.map_err(SysError::io(failed))?;
        let name = entry.file_name();
        if name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let Ok(meta) = fs::symlink_metadata(entry.path()) else {
            continue;
        };
        if meta.is_dir() || (meta.is_file() && meta.mode() & WRITE != 0) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// The folders above these that something could be moved away with, the highest first. The root is none, nor is what something
/// is mounted on.
fn above<'p>(paths: impl Iterator<Item = &'p PathBuf>, mounted: &[Mounted]) -> BTreeSet<PathBuf> {
    let folders = paths.flat_map(|path| path.ancestors().skip(1));
    folders
        .filter(|folder| folder.parent().is_some())
        .filter(|folder| !mounted.iter().any(|at| at.target == *folder))
        .map(Path::to_path_buf)
        .collect()
}

/// The working folder is still the one below what has been mounted. One that is gone has no way back.
fn walk_in_again() -> Result<()> {
    match std::env::current_dir() {
        Ok(folder) => std::env::set_current_dir(folder).map_err(SysError::io("chdir")),
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_above_come_before_what_is_below_them() {
        let mounted = [Mounted {
            root: "/".into(),
            target: "/run".into(),
            kind: "tmpfs".into(),
        }];
        let paths = ["/run/agentguard", "/var/lib/agentguard", "/etc"].map(PathBuf::from);
        let folders = above(paths.iter(), &mounted);
        assert!(folders.iter().eq(["/var", "/var/lib"].map(Path::new)));
    }

    #[test]
    fn what_is_of_no_process_may_be_written_or_is_a_folder() {
        let found = of_no_process(Path::new("/proc")).unwrap();
        let has = |path: &str| found.iter().any(|it| it == Path::new(path));
        assert!(has("/proc/sys") && has("/proc/irq"), "{found:?}");
        assert!(!has("/proc/1") && !has("/proc/self") && !has("/proc/meminfo"));
    }
}
