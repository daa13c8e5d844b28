//! The daemon's own files as the LSM programs know them: by file system and inode, so that no other name leads past. What is
//! below a folder is protected with it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use agentguard_common::abi::{ConfigSlot, FileKey};

use super::KernelError;
use super::maps::Maps;

/// A file or folder that no agent changes, whatever its user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtectedPath {
    pub path: PathBuf,
    /// Nor reads.
    pub secret: bool,
}

/// `BTRFS_FIRST_FREE_OBJECTID`: the root of each of its subvolumes.
const BTRFS_SUBVOLUME: u64 = 256;

/// Replaces what is protected. A file that is not there is left out.
pub(super) fn replace(maps: &Maps, files: &[ProtectedPath]) -> Result<(), KernelError> {
    let mut wanted: BTreeMap<FileKey, u32> = BTreeMap::new();
    for file in files {
        match fs::canonicalize(&file.path) {
            Ok(path) => add(&mut wanted, &path, file.secret)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(unknown(&file.path, &error)),
        }
    }
    let namespace = fs::metadata("/proc/self/ns/mnt").map_err(|source| KernelError::Call {
        call: "stat",
        source,
    })?;
    maps.set_config(ConfigSlot::MountNamespace, namespace.ino())?;
    for (key, flags) in &wanted {
        maps.protected.update(key, flags)?;
    }
    for key in maps.protected.keys()? {
        if !wanted.contains_key(&key) {
            maps.protected.delete(&key)?;
        }
    }
    Ok(())
}

fn add(wanted: &mut BTreeMap<FileKey, u32>, path: &Path, secret: bool) -> Result<(), KernelError> {
    let mut flags = FileKey::NO_WRITE;
    if secret {
        flags |= FileKey::NO_READ;
    }
    // The root of the host's file system can neither be renamed nor be covered.
    for (n, place) in path
        .ancestors()
        .filter(|it| it.parent().is_some())
        .enumerate()
    {
        let key = key_of(place).map_err(|error| unknown(place, &error))?;
        let is_shared = is_subvolume(place, key.inode).map_err(|error| unknown(place, &error))?;
        match (n, is_shared) {
            (0, true) => {
                return Err(KernelError::Unsupported(format!(
                    "`{}` is the root of a Btrfs subvolume, which has its inode number in common with others; use a folder in it",
                    place.display()
                )));
            }
            (0, false) => *wanted.entry(key).or_default() |= flags,
            (_, true) => {}
            (_, false) => *wanted.entry(key).or_default() |= FileKey::STAYS,
        }
        let device = FileKey { inode: 0, ..key };
        *wanted.entry(device).or_default() |= FileKey::DEVICE;
    }
    Ok(())
}

fn unknown(path: &Path, error: &io::Error) -> KernelError {
    KernelError::Unsupported(format!("`{}` cannot be protected: {error}", path.display()))
}

fn is_subvolume(path: &Path, inode: u64) -> io::Result<bool> {
    let magic = nix::sys::statfs::statfs(path)?.filesystem_type();
    Ok(inode == BTRFS_SUBVOLUME && magic == nix::sys::statfs::BTRFS_SUPER_MAGIC)
}

/// What `stat` calls the device may be a subvolume's; the mount knows the file system's own.
fn key_of(path: &Path) -> io::Result<FileKey> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
        .open(path)?;
    let missing = || io::Error::other("the kernel does not tell its mount");
    let mount = mount_id(&file)?.ok_or_else(missing)?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let device = mounts
        .lines()
        .map(|line| line.split(' '))
        .find_map(|mut fields| {
            let is_it = fields.next()? == mount;
            is_it.then(|| fields.nth(1)).flatten()
        });
    Ok(FileKey {
        inode: file.metadata()?.ino(),
        device: device.and_then(device_number).ok_or_else(missing)?,
        reserved: 0,
    })
}

fn mount_id(file: &File) -> io::Result<Option<String>> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    Ok(id.map(|id| id.trim().to_owned()))
}

/// `MKDEV` of what `show_mountinfo` writes.
fn device_number(written: &str) -> Option<u32> {
    let (major, minor) = written.split_once(':')?;
    let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
    Some(major << 20 | minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_key_of_its_own_and_folders_above_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = fs::canonicalize(dir.path()).unwrap();
        let mut wanted = BTreeMap::new();
        add(&mut wanted, &path, true).unwrap();
        let key = key_of(&path).unwrap();
        assert_eq!(key.inode, fs::metadata(&path).unwrap().ino());
        assert_eq!(wanted[&key], FileKey::NO_READ | FileKey::NO_WRITE);
        let above = key_of(path.parent().unwrap()).unwrap();
        assert_eq!(wanted[&above], FileKey::STAYS);
        assert_eq!(wanted[&FileKey { inode: 0, ..key }], FileKey::DEVICE);
        add(&mut wanted, path.parent().unwrap(), false).unwrap();
        assert_eq!(wanted[&above], FileKey::STAYS | FileKey::NO_WRITE);
    }

    #[test]
    fn device_numbers() {
        assert_eq!(device_number("259:3"), Some(259 << 20 | 3));
        assert_eq!(device_number("0"), None);
    }
}
