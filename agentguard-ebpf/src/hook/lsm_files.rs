//! The daemon's own files: an agent's process, whatever its user, changes none, reads no secret among them, and mounts nothing
//! over them where the daemon would see it. Removing and renaming is judged with the pins.

use agentguard_common::abi::{FileKey, Tamper};
use agentguard_common::verdict::Refusal;
use aya_ebpf::EbpfContext as _;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;

use crate::emit;
use crate::hook::guard::{Answer, Judged};
use crate::hook::lsm;
use crate::protected;
use crate::task::{Unreadable, at, read};

const FMODE_WRITE: u32 = 2;
const S_IFMT: u16 = 0o170_000;
const S_IFBLK: u16 = 0o060_000;

/// (file, answer of the program before).
#[lsm(hook = "file_open")]
pub fn lsm_file_open(ctx: LsmContext) -> i32 {
    let file = address(ctx.arg(0));
    called(ctx.arg(1), || {
        let inode: u64 = read(file, at!(file_inode))?;
        let mode: u16 = read(inode, at!(inode_mode))?;
        if mode & S_IFMT == S_IFBLK {
            // Any file can be read and changed there.
            return refuse(true);
        }
        let path = file.wrapping_add(u64::from(at!(file_path)));
        let flags = protected::of(read(path, at!(path_dentry))?)?;
        let opened: u32 = read(file, at!(file_mode))?;
        let writes = opened & FMODE_WRITE != 0 && flags & FileKey::NO_WRITE != 0;
        refuse(writes || flags & FileKey::NO_READ != 0)
    })
}

/// (folder, entry, mode, answer of the program before).
#[lsm(hook = "inode_create")]
pub fn lsm_inode_create(ctx: LsmContext) -> i32 {
    let entry = address(ctx.arg(1));
    called(ctx.arg(3), || changes(entry))
}

/// (folder, entry, target, answer of the program before).
#[lsm(hook = "inode_symlink")]
pub fn lsm_inode_symlink(ctx: LsmContext) -> i32 {
    let entry = address(ctx.arg(1));
    called(ctx.arg(3), || changes(entry))
}

/// (folder, entry, mode, answer of the program before).
#[lsm(hook = "inode_mkdir")]
pub fn lsm_inode_mkdir(ctx: LsmContext) -> i32 {
    let entry = address(ctx.arg(1));
    called(ctx.arg(3), || changes(entry))
}

/// (folder, entry, mode, device, answer of the program before).
#[lsm(hook = "inode_mknod")]
pub fn lsm_inode_mknod(ctx: LsmContext) -> i32 {
    let entry = address(ctx.arg(1));
    called(ctx.arg(4), || changes(entry))
}

/// (entry, folder, new entry, answer of the program before): by the other name it could be changed.
#[lsm(hook = "inode_link")]
pub fn lsm_inode_link(ctx: LsmContext) -> i32 {
    let (old, new) = (address(ctx.arg(0)), address(ctx.arg(2)));
    called(ctx.arg(3), || match changes(old)? {
        Answer::Allow => changes(new),
        refused => Ok(refused),
    })
}

/// Owner, mode, size, times. What is before the entry differs between kernels, and so where the answer of the program before
/// is, which ends the chain anyway if it is a refusal (`invoke_bpf_mod_ret`).
#[lsm(hook = "inode_setattr")]
pub fn lsm_inode_setattr(ctx: LsmContext) -> i32 {
    let argument = |index: usize| {
        // SAFETY: the hook has two arguments at least. Volatile, or LLVM makes one load of both, at a place that the
        // verifier does not know ("dereference of modified ctx ptr").
        unsafe { ctx.as_ptr().cast::<u64>().add(index).read_volatile() }
    };
    let (first, second) = (argument(0), argument(1));
    let entry = match at!(setattr_dentry) {
        0 => first,
        _ => second,
    };
    called(lsm::ALLOW, || changes(entry))
}

/// (the mount's id map, entry, name, value, length, flags, answer of the program before).
#[lsm(hook = "inode_setxattr")]
pub fn lsm_inode_setxattr(ctx: LsmContext) -> i32 {
    let entry = address(ctx.arg(1));
    called(lsm::ALLOW, || changes(entry))
}

/// (the mount's id map, entry, name, answer of the program before).
#[lsm(hook = "inode_removexattr")]
pub fn lsm_inode_removexattr(ctx: LsmContext) -> i32 {
    let entry = address(ctx.arg(1));
    called(lsm::ALLOW, || changes(entry))
}

/// (source, path, type, flags, data, answer of the program before).
#[lsm(hook = "sb_mount")]
pub fn lsm_sb_mount(ctx: LsmContext) -> i32 {
    let path = address(ctx.arg(1));
    called(ctx.arg(5), || covers(path))
}

/// (from, to, answer of the program before).
#[lsm(hook = "move_mount")]
pub fn lsm_move_mount(ctx: LsmContext) -> i32 {
    let path = address(ctx.arg(1));
    called(ctx.arg(2), || covers(path))
}

#[inline(always)]
fn address(argument: *const core::ffi::c_void) -> u64 {
    argument.addr() as u64
}

#[inline(always)]
fn called(previous: i32, judge: impl FnOnce() -> Judged) -> i32 {
    lsm::answer(
        previous,
        |_| judge(),
        |caller, finding| emit::tamper(finding, caller.agent, Tamper::Files, 0),
    )
}

#[inline(always)]
fn refuse(refused: bool) -> Judged {
    Ok(match refused {
        true => Answer::Deny(Refusal::Tamper),
        false => Answer::Allow,
    })
}

#[inline(always)]
fn changes(entry: u64) -> Judged {
    refuse(protected::of(entry)? & FileKey::NO_WRITE != 0)
}

/// A change of the mount that is there, such as how it propagates, comes this way too, and is refused with the others.
#[inline(always)]
fn covers(path: u64) -> Judged {
    let flags = protected::of(read(path, at!(path_dentry))?)?;
    refuse(flags != 0 && protected::is_seen(path)?)
}

/// Whether an entry may be taken from where it is.
#[inline(always)]
pub fn is_protected(entry: u64) -> Result<bool, Unreadable> {
    Ok(protected::of(entry)? != 0)
}
