//! Whether a directory entry is one of the daemon's, or below one. Entries are followed up to the root of their file system, so
//! that links, bind mounts and other mount namespaces lead nowhere else.

use agentguard_common::abi::{ConfigSlot, FileKey};

use crate::maps::{PROTECTED, config};
use crate::task::{Unreadable, at, read};

/// Folders on the way up to the root of a file system. What is deeper is an error.
const MAX_DEPTH: u32 = 96;

/// [`FileKey`]'s flags of a `struct dentry`, which need not have an inode yet: its own, and those of the folders above it but
/// for [`FileKey::STAYS`].
#[inline(never)]
pub fn of(entry: u64) -> Result<u32, Unreadable> {
    let super_block: u64 = read(entry, at!(dentry_sb))?;
    let device: u32 = read(super_block, at!(super_block_dev))?;
    let mut key = FileKey {
        inode: 0,
        device,
        reserved: 0,
    };
    // SAFETY: a plain integer, copied at once.
    if unsafe { PROTECTED.get(&key) }.is_none() {
        return Ok(0);
    }
    let mut dentry = entry;
    let mut flags = 0;
    for _ in 0..MAX_DEPTH {
        let inode: u64 = read(dentry, at!(dentry_inode))?;
        if inode != 0 {
            key.inode = read(inode, at!(inode_ino))?;
            // SAFETY: as above.
            if let Some(found) = unsafe { PROTECTED.get(&key) } {
                flags |= match dentry == entry {
                    true => *found,
                    false => *found & !FileKey::STAYS,
                };
            }
        }
        let parent: u64 = read(dentry, at!(dentry_parent))?;
        if parent == dentry {
            let root: u64 = read(super_block, at!(super_block_root))?;
            // One that was opened by its handle alone may hang nowhere (`DCACHE_DISCONNECTED`): it can be any.
            return Ok(match dentry == root {
                true => flags,
                false => FileKey::NO_READ | FileKey::NO_WRITE,
            });
        }
        dentry = parent;
    }
    Err(Unreadable)
}

/// Whether what is mounted at a `struct path` is seen by the daemon: in its mount namespace, or on a mount that others share.
#[inline(always)]
pub fn is_seen(path: u64) -> Result<bool, Unreadable> {
    let vfsmount: u64 = read(path, at!(path_mnt))?;
    let mount = vfsmount.wrapping_sub(u64::from(at!(mount_mnt)));
    let group: u32 = read(mount, at!(mount_group_id))?;
    if group != 0 {
        return Ok(true);
    }
    let namespace: u64 = read(mount, at!(mount_ns))?;
    if namespace == 0 {
        return Ok(false);
    }
    let common = namespace.wrapping_add(u64::from(at!(mnt_namespace_ns)));
    let number: u32 = read(common, at!(ns_common_inum))?;
    Ok(u64::from(number) == config(ConfigSlot::MountNamespace))
}
