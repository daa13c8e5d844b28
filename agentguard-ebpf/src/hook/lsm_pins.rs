//! A program whose pin goes is detached: an agent's process, whatever its user, takes nothing off a bpffs and none away.

use agentguard_common::abi::Tamper;
use agentguard_common::verdict::Refusal;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;

use crate::emit;
use crate::hook::guard::{Answer, Judged};
use crate::hook::lsm;
use crate::task::{at, read};

/// `include/uapi/linux/magic.h`.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// (folder, entry, answer of the program before).
#[lsm(hook = "inode_unlink")]
pub fn lsm_inode_unlink(ctx: LsmContext) -> i32 {
    called(ctx.arg(2), argument(&ctx), at!(inode_sb))
}

/// (folder, entry, answer of the program before).
#[lsm(hook = "inode_rmdir")]
pub fn lsm_inode_rmdir(ctx: LsmContext) -> i32 {
    called(ctx.arg(2), argument(&ctx), at!(inode_sb))
}

/// (folder, entry, new folder, new entry, answer of the program before): both folders are of one file system.
#[lsm(hook = "inode_rename")]
pub fn lsm_inode_rename(ctx: LsmContext) -> i32 {
    called(ctx.arg(4), argument(&ctx), at!(inode_sb))
}

/// (mount, flags, answer of the program before): the last mount takes the pins with it.
#[lsm(hook = "sb_umount")]
pub fn lsm_sb_umount(ctx: LsmContext) -> i32 {
    called(ctx.arg(2), argument(&ctx), at!(vfsmount_sb))
}

#[inline(always)]
fn argument(ctx: &LsmContext) -> u64 {
    let first: *const core::ffi::c_void = ctx.arg(0);
    first.addr() as u64
}

#[inline(always)]
fn called(previous: i32, object: u64, super_block: u32) -> i32 {
    lsm::answer(
        previous,
        |_| judge(object, super_block),
        |caller, refusal| emit::tamper(refusal, caller.agent, Tamper::Pins, 0),
    )
}

#[inline(always)]
fn judge(object: u64, super_block: u32) -> Judged {
    let super_block: u64 = read(object, super_block)?;
    let magic: u64 = read(super_block, at!(super_block_magic))?;
    Ok(match magic {
        BPF_FS_MAGIC => Answer::Deny(Refusal::Tamper),
        _ => Answer::Allow,
    })
}
