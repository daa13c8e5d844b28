//! The path of a task's executable, walked from its dentry up to the root of its mount namespace.

use agentguard_common::abi::PATH_LEN;
use aya_ebpf::helpers::generated::{bpf_loop, bpf_probe_read_kernel};

use crate::maps::{Scratch, scratch};
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

/// Puts the path of `task`'s executable into `Scratch::path` and answers its length; 0 for a task without one. A path of
/// more than [`PATH_LEN`] - 1 bytes is an error.
#[inline(always)]
pub fn executable(task: Task) -> Result<u32, Unreadable> {
    let mm: u64 = read(task.0, at!(task_mm))?;
    if mm == 0 {
        return Ok(0);
    }
    let file: u64 = read(mm, at!(mm_exe_file))?;
    if file == 0 {
        return Ok(0);
    }
    let path = file.wrapping_add(u64::from(at!(file_path)));
    let vfsmount: u64 = read(path, at!(path_mnt))?;
    let scratch = scratch().ok_or(Unreadable)?;
    // SAFETY: an element of this CPU's, which nobody else uses meanwhile.
    let walk = unsafe { &mut (*scratch).walk };
    walk.dentry = read(path, at!(path_dentry))?;
    walk.mount = vfsmount.wrapping_sub(u64::from(at!(mount_mnt)));
    walk.len = 0;
    walk.ended = RUNNING;
    // SAFETY: `up` has bpf_loop's callback signature.
    unsafe {
        bpf_loop(
            MAX_STEPS,
            up as *mut core::ffi::c_void as *mut _,
            core::ptr::null_mut(),
            0,
        )
    };
    if walk.ended != AT_ROOT || walk.len as usize >= PATH_LEN {
        return Err(Unreadable);
    }
    move_to_front(scratch, walk.len)
}

/// Copies the `len` bytes before the middle of `names` to the front of `path`.
#[inline(always)]
fn move_to_front(scratch: *mut Scratch, len: u32) -> Result<u32, Unreadable> {
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
    if failed == 0 {
        Ok(len)
    } else {
        Err(Unreadable)
    }
}

/// `bpf_loop` callback: one component or one mount up.
extern "C" fn up(_index: u32, _ctx: *mut core::ffi::c_void) -> i64 {
    let Some(scratch) = scratch() else {
        return 1;
    };
    if step(scratch).is_err() {
        // SAFETY: as in `executable`.
        unsafe { (*scratch).walk.ended = FAILED };
    }
    // SAFETY: as in `executable`.
    let ended = unsafe { (*scratch).walk.ended };
    i64::from(ended != RUNNING)
}

#[inline(always)]
fn step(scratch: *mut Scratch) -> Result<(), Unreadable> {
    // SAFETY: as in `executable`.
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
        // A root that no mount shows, such as a memfd's.
        walk.ended = AT_ROOT;
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
