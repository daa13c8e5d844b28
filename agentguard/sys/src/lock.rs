//! One daemon per folder: a lock on the folder itself, so that nothing is left behind and its holder is known.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

use super::{Result, SysError};

/// Held until dropped, or until the process ends.
#[derive(Debug)]
pub struct FolderLock(
    #[allow(dead_code, reason = "the lock is held while it is there")] Flock<File>,
);

/// Who has a folder's lock.
#[derive(Debug, PartialEq, Eq)]
pub enum LockHolder {
    By(u32),
    Unknown,
}

impl FolderLock {
    /// Works on any filesystem, bpffs too, which has no regular files.
    pub fn take(folder: &Path) -> Result<std::result::Result<Self, LockHolder>> {
        let dir = File::open(folder).map_err(SysError::io("open"))?;
        match Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Ok(Self(lock))),
            Err((_, nix::Error::EWOULDBLOCK)) => Ok(Err(holder(folder))),
            Err((_, errno)) => Err(SysError::of("flock")(errno)),
        }
    }
}

/// Finds the holder's tgid in `/proc/locks` by the folder's inode.
pub fn holder(folder: &Path) -> LockHolder {
    let (Ok(meta), Ok(locks)) = (fs::metadata(folder), fs::read_to_string("/proc/locks")) else {
        return LockHolder::Unknown;
    };
    let (major, minor) = (
        nix::sys::stat::major(meta.dev()),
        nix::sys::stat::minor(meta.dev()),
    );
    let file = format!("{major:02x}:{minor:02x}:{}", meta.ino());
    locks
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let held = fields.get(1) == Some(&"FLOCK") && fields.get(5) == Some(&file.as_str());
            held.then(|| fields.get(4)?.parse().ok()).flatten()
        })
        .next()
        .map_or(LockHolder::Unknown, LockHolder::By)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_taker_learns_who_is_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = FolderLock::take(dir.path()).unwrap().unwrap();
        let second = FolderLock::take(dir.path()).unwrap().unwrap_err();
        assert_eq!(second, LockHolder::By(std::process::id()));
        drop(first);
        assert!(FolderLock::take(dir.path()).unwrap().is_ok());
    }
}
