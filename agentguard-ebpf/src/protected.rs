//! Whether a directory entry is one of the daemon's, or below one. Entries are followed up to the root of their file system, so
//! that links, bind mounts and other mount namespaces lead nowhere else.

use agentguard_common::abi::{ConfigSlot, FileKey};
use aya_ebpf::helpers::generated::bpf_loop;

use crate::maps::{PROTECTED, config};
use crate::task::{Unreadable, at, read};

/// Folders on the way up to the root of a file system. What is deeper is an error.
const MAX_DEPTH: u32 = 512;

/// The way up from an entry.
struct Climb {
    /// Where it started, and where it is.
    entry: u64,
    dentry: u64,
    super_block: u64,
    device: u32,
    /// What has been found so far.
    flags: u32,
    /// `AT_ROOT` or `FAILED` when it has ended.
    ended: u32,
}

const RUNNING: u32 = 0;
const AT_ROOT: u32 = 1;
const FAILED: u32 = 2;

/// [`FileKey`]'s flags of a `struct dentry`, which need not have an inode yet: its own, and those of the folders above it but
/// for [`FileKey::STAYS`].
#[inline(never)]
pub fn of(entry: u64) -> Result<u32, Unreadable> {
    let super_block: u64 = read(entry, at!(dentry_sb))?;
    let device: u32 = read(super_block, at!(super_block_dev))?;
    if flags_of(0, device) == 0 {
        return Ok(0);
    }
    let mut climb = Climb {
        entry,
        dentry: entry,
        super_block,
        device,
        flags: 0,
        ended: RUNNING,
    };
    // SAFETY: `up` has bpf_loop's callback signature and takes such a context.
    unsafe {
        bpf_loop(
            MAX_DEPTH,
            up as *mut core::ffi::c_void as *mut _,
            (&raw mut climb).cast(),
            0,
        )
    };
    match climb.ended {
        AT_ROOT => Ok(climb.flags),
        _ => Err(Unreadable),
    }
}

/// 0: it is none of the daemon's.
#[inline(always)]
fn flags_of(inode: u64, device: u32) -> u32 {
    let key = FileKey {
        inode,
        device,
        reserved: 0,
    };
    // SAFETY: a plain integer, copied at once.
    unsafe { PROTECTED.get(key) }.copied().unwrap_or(0)
}

/// `bpf_loop` callback: one entry, and one up.
extern "C" fn up(_index: u32, context: *mut core::ffi::c_void) -> i64 {
    // SAFETY: `of`'s own.
    let climb = unsafe { &mut *context.cast::<Climb>() };
    if climb.step().is_err() {
        climb.ended = FAILED;
    }
    i64::from(climb.ended != RUNNING)
}

impl Climb {
    #[inline(always)]
    fn step(&mut self) -> Result<(), Unreadable> {
        let inode: u64 = read(self.dentry, at!(dentry_inode))?;
        if inode != 0 {
            let found = flags_of(read(inode, at!(inode_ino))?, self.device);
            self.flags |= match self.dentry == self.entry {
                true => found,
                false => found & !FileKey::STAYS,
            };
        }
        let parent: u64 = read(self.dentry, at!(dentry_parent))?;
        if parent == self.dentry {
            let root: u64 = read(self.super_block, at!(super_block_root))?;
            if self.dentry != root {
                // One that was opened by its handle alone may hang nowhere (`DCACHE_DISCONNECTED`): it can be any.
                self.flags = FileKey::NO_READ | FileKey::NO_WRITE;
            }
            self.ended = AT_ROOT;
        }
        self.dentry = parent;
        Ok(())
    }
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
