//! A program whose pin goes is detached: an agent's process, whatever its user, takes nothing off a bpffs and none away. Nor
//! does it take the daemon's own files away, or a folder above them.

use core::cell::Cell;

use agentguard_common::abi::Tamper;
use agentguard_common::verdict::Refusal;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;

use crate::emit;
use crate::hook::guard::Answer;
use crate::hook::{lsm, lsm_files};
use crate::task::{Unreadable, at, read};

/// `include/uapi/linux/magic.h`.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// (folder, entry, answer of the program before).
#[lsm(hook = "inode_unlink")]
pub fn lsm_inode_unlink(ctx: LsmContext) -> i32 {
    removed(ctx.arg(2), address(ctx.arg(0)), [address(ctx.arg(1))])
}

/// (folder, entry, answer of the program before).
#[lsm(hook = "inode_rmdir")]
pub fn lsm_inode_rmdir(ctx: LsmContext) -> i32 {
    removed(ctx.arg(2), address(ctx.arg(0)), [address(ctx.arg(1))])
}

/// (folder, entry, new folder, new entry, answer of the program before): both folders are of one file system.
#[lsm(hook = "inode_rename")]
pub fn lsm_inode_rename(ctx: LsmContext) -> i32 {
    let entries = [address(ctx.arg(1)), address(ctx.arg(3))];
    removed(ctx.arg(4), address(ctx.arg(0)), entries)
}

/// (mount, flags, answer of the program before): the last mount takes the pins with it.
#[lsm(hook = "sb_umount")]
pub fn lsm_sb_umount(ctx: LsmContext) -> i32 {
    let mount = address(ctx.arg(0));
    called(ctx.arg(2), || {
        Ok(match is_bpffs(mount, at!(vfsmount_sb))? {
            true => Some(Tamper::Pins),
            false => None,
        })
    })
}

#[inline(always)]
fn address(argument: *const core::ffi::c_void) -> u64 {
    argument.addr() as u64
}

#[inline(always)]
fn removed<const N: usize>(previous: i32, folder: u64, entries: [u64; N]) -> i32 {
    called(previous, || {
        if is_bpffs(folder, at!(inode_sb))? {
            return Ok(Some(Tamper::Pins));
        }
        for entry in entries {
            if lsm_files::is_protected(entry)? {
                return Ok(Some(Tamper::Files));
            }
        }
        Ok(None)
    })
}

/// `judge` says what it would be.
#[inline(always)]
fn called(previous: i32, judge: impl FnOnce() -> Result<Option<Tamper>, Unreadable>) -> i32 {
    let tried = Cell::new(Tamper::Pins);
    lsm::answer(
        previous,
        |_| {
            Ok(match judge()? {
                Some(tampering) => {
                    tried.set(tampering);
                    Answer::Deny(Refusal::Tamper)
                }
                None => Answer::Allow,
            })
        },
        |caller, finding| emit::tamper(finding, caller.agent, tried.get(), 0),
    )
}

#[inline(always)]
fn is_bpffs(object: u64, super_block: u32) -> Result<bool, Unreadable> {
    let super_block: u64 = read(object, super_block)?;
    let magic: u64 = read(super_block, at!(super_block_magic))?;
    Ok(magic == BPF_FS_MAGIC)
}
