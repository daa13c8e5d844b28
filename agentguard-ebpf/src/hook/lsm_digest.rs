//! The content of a file that is about to be executed, for the program that judges the exec. `do_open_execat` has taken writers
//! off the file (`deny_write_access`) before the hook, and the image keeps them off (`set_mm_exe_file`): the bytes that are
//! read here are those that run. Without an IMA policy nothing is remembered from one exec to the next (`__ima_inode_hash`).

use agentguard_common::exec::{Content, keeps_content};
use aya_ebpf::bindings::file;
use aya_ebpf::helpers::generated::bpf_ima_file_hash;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;

use crate::exec_rules::Rules;
use crate::hook::lsm::{self, Caller};
use crate::maps::{Scratch, count, task_scratch};
use crate::task::{Unreadable, at, read};

/// `enum hash_algo`.
const HASH_ALGO_SHA256: i64 = 4;

/// `search_binary_handler`: (bprm, answer of the program before). Runs before the program that judges, because it is attached
/// after that (`bpf_trampoline_link_prog`). May sleep, upon which 6.1 before 6.1.54 leaves it out for other execs on the
/// same CPU (`prog->active`): as after every failure here, the content then stays unknown, which counts against the file.
#[lsm(hook = "bprm_check_security", sleepable)]
pub fn lsm_digest(ctx: LsmContext) -> i32 {
    let previous: i32 = ctx.arg(1);
    if previous != lsm::ALLOW {
        return previous;
    }
    if let Some(caller) = Caller::current()
        && let Some(rules) = Rules::of(caller.agent)
        && rules.has_digests()
    {
        let bprm: *const core::ffi::c_void = ctx.arg(0);
        if let Err(unreadable) = measure(&rules, bprm.cast()) {
            count(unreadable.into());
        }
    }
    lsm::ALLOW
}

#[inline(always)]
fn measure(rules: &Rules, bprm: *const u8) -> Result<(), Unreadable> {
    let scratch = task_scratch().ok_or(Unreadable)?;
    // SAFETY: the scratch is this task's own.
    unsafe { (*scratch).content_of = 0 };
    let offset = at!(bprm_file) as usize;
    // SAFETY: a constant offset to the verifier, which follows the pointer as a member of `struct linux_binprm`.
    let member = unsafe { bprm.add(offset) };
    // SAFETY: as above; such reads cannot fault.
    let file = unsafe { member.cast::<*mut file>().read_volatile() };
    let address = file.addr() as u64;
    let inode: u64 = read(address, at!(file_inode))?;
    let super_block: u64 = read(inode, at!(inode_sb))?;
    if !keeps_content(read(super_block, at!(super_block_magic))?) || !rules.ask(scratch, address)? {
        return Ok(());
    }
    // SAFETY: the scratch is this task's own.
    let sha256 = unsafe { &raw mut (*scratch).content.sha256 };
    let size = size_of_val(&Content::default().sha256) as u32;
    // SAFETY: the hook's own file; `sha256` has that size.
    let algorithm = unsafe { bpf_ima_file_hash(file, sha256.cast(), size) };
    if algorithm == HASH_ALGO_SHA256 {
        // SAFETY: as above.
        unsafe { (*scratch).content.known = Content::KNOWN };
        // SAFETY: as above.
        unsafe { (*scratch).content_of = address };
    }
    Ok(())
}

/// Leaves in the scratch what is known of `file`, once.
#[inline(always)]
pub fn take(scratch: *mut Scratch, file: u64) {
    // SAFETY: the scratch is this task's own.
    let is_of = unsafe { (*scratch).content_of };
    // SAFETY: as above.
    unsafe { (*scratch).content_of = 0 };
    if is_of != file {
        // SAFETY: as above.
        unsafe { (*scratch).content.known = Content::UNKNOWN };
    }
}
