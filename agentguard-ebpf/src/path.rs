//! The path of a file, walked from its dentry up to the root of its mount namespace.

use agentguard_common::abi::PATH_LEN;
use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_kernel};

use crate::maps::Scratch;
use crate::task::{Task, Unreadable, at, read};

/// Components and mounts a walk follows.
const MAX_STEPS: u32 = 64;

/// Where a walk stands.
#[repr(C)]
pub struct Walk {
    dentry: u64,
    mount: u64,
    /// Bytes written so far, from the end.
    len: u32,
    ended: u32,
}

const RUNNING: u32 = 0;
const AT_ROOT: u32 = 1;
const FAILED: u32 = 2;
const UNMOUNTED: u32 = 3;
/// `ERR_PTR(-MAX_ERRNO)`: from here on a pointer is an error.
const ERR_PTR: u64 = -4095i64 as u64;

/// A path that has been walked into `Scratch::path`.
#[derive(Clone, Copy)]
pub struct Found {
    pub len: u32,
    /// The mount at its top; 0 if it ends at a root that no mount shows, such as a memfd's.
    top: u64,
}

/// Puts the path of `task`'s executable into `Scratch::path` and answers its length; 0 for a task without one.
#[inline(always)]
pub fn executable(scratch: *mut Scratch, task: Task) -> Result<u32, Unreadable> {
    match executable_file(task)? {
        0 => Ok(0),
        file => Ok(of_file(scratch, file)?.len),
    }
}

/// The `struct file` of `task`'s executable; 0 for a task without one.
#[inline(always)]
pub fn executable_file(task: Task) -> Result<u64, Unreadable> {
    match read(task.0, at!(task_mm))? {
        0 => Ok(0),
        mm => read(mm, at!(mm_exe_file)),
    }
}

/// Puts the path of `task`'s working folder into `Scratch::cwd` and answers its length; 0 if it cannot be told.
#[inline(always)]
pub fn working_folder(scratch: *mut Scratch, task: Task) -> u32 {
    let fs = read::<u64>(task.0, at!(task_fs));
    let found = fs.and_then(|fs| walk(scratch, fs.wrapping_add(u64::from(at!(fs_pwd)))));
    let Ok(Found { len, .. }) = found else {
        return 0;
    };
    // SAFETY: both are PATH_LEN bytes long.
    let failed = unsafe {
        bpf_probe_read_kernel(
            (&raw mut (*scratch).cwd).cast(),
            PATH_LEN as u32,
            (&raw const (*scratch).path).cast(),
        )
    };
    if failed == 0 { len } else { 0 }
}

/// Puts the path of a `struct file` into `Scratch::path`. One of more than [`PATH_LEN`] - 1 bytes is an error.
#[inline(always)]
pub fn of_file(scratch: *mut Scratch, file: u64) -> Result<Found, Unreadable> {
    walk(scratch, file.wrapping_add(u64::from(at!(file_path))))
}

/// Whether the path that has been walked from `file` is a name by which the file can be found: it has not been unlinked (a
/// memfd never was linked), and the mounts above it are not those of a user namespace, whose owner names files as it likes.
#[inline(always)]
pub fn is_named(file: u64, found: &Found) -> Result<bool, Unreadable> {
    if found.top == 0 {
        return Ok(false);
    }
    let inode: u64 = read(file, at!(file_inode))?;
    let links: u32 = read(inode, at!(inode_nlink))?;
    let path = file.wrapping_add(u64::from(at!(file_path)));
    let dentry: u64 = read(path, at!(path_dentry))?;
    let hash = dentry.wrapping_add(u64::from(at!(dentry_hash)));
    let hashed: u64 = read(hash, at!(hlist_bl_node_pprev))?;
    if links == 0 || hashed == 0 {
        return Ok(false);
    }
    let namespace: u64 = read(found.top, at!(mount_ns))?;
    // A mount that the kernel keeps for itself has an error for a namespace (`MNT_NS_INTERNAL`), a detached one none.
    if namespace == 0 || namespace >= ERR_PTR {
        return Ok(false);
    }
    let owner: u64 = read(namespace, at!(mnt_namespace_user_ns))?;
    let level: u32 = read(owner, at!(user_namespace_level))?;
    Ok(level == 0)
}

/// Puts a `struct path` into `Scratch::path`.
#[inline(always)]
fn walk(scratch: *mut Scratch, path: u64) -> Result<Found, Unreadable> {
    let vfsmount: u64 = read(path, at!(path_mnt))?;
    // SAFETY: the scratch is this program's alone meanwhile.
    let walk = unsafe { &mut (*scratch).walk };
    walk.dentry = read(path, at!(path_dentry))?;
    walk.mount = vfsmount.wrapping_sub(u64::from(at!(mount_mnt)));
    walk.len = 0;
    walk.ended = RUNNING;
    let mut context = scratch;
    // SAFETY: `up` has bpf_loop's callback signature and takes such a context.
    unsafe {
        bpf_loop(
            MAX_STEPS,
            up as *mut core::ffi::c_void as *mut _,
            (&raw mut context).cast(),
            0,
        )
    };
    let top = match walk.ended {
        AT_ROOT => walk.mount,
        UNMOUNTED => 0,
        _ => return Err(Unreadable),
    };
    if walk.len as usize >= PATH_LEN {
        return Err(Unreadable);
    }
    let len = walk.len;
    move_to_front(scratch, len)?;
    Ok(Found { len, top })
}

/// Copies the `len` bytes before the middle of `names` to the front of `path`.
#[inline(always)]
fn move_to_front(scratch: *mut Scratch, len: u32) -> Result<(), Unreadable> {
    let from = (PATH_LEN as u32 - len) & (PATH_LEN as u32 - 1);
    // SAFETY: `from` < PATH_LEN, half of `names`.
    let from = unsafe { (&raw mut (*scratch).names).cast::<u8>().add(from as usize) };
    // SAFETY: PATH_LEN bytes from there are still inside `names`, and `path` is as long.
    let failed = unsafe {
        bpf_probe_read_kernel(
            (&raw mut (*scratch).path).cast(),
            PATH_LEN as u32,
            from.cast_const().cast(),
        )
    };
    if failed == 0 { Ok(()) } else { Err(Unreadable) }
}

/// `bpf_loop` callback: one component or one mount up, in the scratch that `context` points to.
extern "C" fn up(_index: u32, context: *mut core::ffi::c_void) -> i64 {
    // SAFETY: `walk`'s own.
    let scratch = unsafe { *context.cast::<*mut Scratch>() };
    if step(scratch).is_err() {
        // SAFETY: as in `walk`.
        unsafe { (*scratch).walk.ended = FAILED };
    }
    // SAFETY: as in `walk`.
    let ended = unsafe { (*scratch).walk.ended };
    i64::from(ended != RUNNING)
}

#[inline(always)]
fn step(scratch: *mut Scratch) -> Result<(), Unreadable> {
    // SAFETY: as in `walk`.
    let walk = unsafe { &mut (*scratch).walk };
    let vfsmount = walk.mount.wrapping_add(u64::from(at!(mount_mnt)));
    let root: u64 = read(vfsmount, at!(vfsmount_root))?;
    if walk.dentry == root {
        let parent: u64 = read(walk.mount, at!(mount_parent))?;
        if parent == walk.mount {
            walk.ended = AT_ROOT;
            return Ok(());
        }
        walk.dentry = read(walk.mount, at!(mount_mountpoint))?;
        walk.mount = parent;
        return Ok(());
    }
    let parent: u64 = read(walk.dentry, at!(dentry_parent))?;
    prepend(scratch, walk)?;
    if parent == walk.dentry {
        walk.ended = UNMOUNTED;
        return Ok(());
    }
    walk.dentry = parent;
    Ok(())
}

/// Writes `/` and the dentry's name before what has been written.
#[inline(always)]
fn prepend(scratch: *mut Scratch, walk: &mut Walk) -> Result<(), Unreadable> {
    let qstr = walk.dentry.wrapping_add(u64::from(at!(dentry_name)));
    let name_len: u32 = read(qstr, at!(qstr_len))?;
    let name: u64 = read(qstr, at!(qstr_name))?;
    let len = walk.len.wrapping_add(name_len).wrapping_add(1);
    // NAME_MAX is 255, and the slash has to fit too.
    if name_len >= PATH_LEN as u32 || len >= PATH_LEN as u32 {
        return Err(Unreadable);
    }
    let at = (PATH_LEN as u32).wrapping_sub(len) & (PATH_LEN as u32 - 1);
    // SAFETY: `at` < PATH_LEN, half of `names`.
    let slash = unsafe { (&raw mut (*scratch).names).cast::<u8>().add(at as usize) };
    // SAFETY: inside `names`.
    unsafe { slash.write_volatile(b'/') };
    // SAFETY: at most PATH_LEN, which is still inside `names`.
    let to = unsafe { slash.add(1) };
    // The compiler must not see that the mask changes nothing: the verifier has lost the comparison above by here.
    let bounded = core::hint::black_box(name_len) & (PATH_LEN as u32 - 1);
    // SAFETY: at most PATH_LEN - 1 bytes from there end inside `names`; the helper checks the source.
    let failed = unsafe { bpf_probe_read_kernel(to.cast(), bounded, name as *const _) };
    if failed != 0 {
        return Err(Unreadable);
    }
    walk.len = len;
    Ok(())
}
