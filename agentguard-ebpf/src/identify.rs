//! Which agent a process is, by the `[[identify]]` blocks in force.

use agentguard_common::abi::{
    AgentId, ConfigSlot, Identify, IdentifyHead, Label, MAX_IDENTIFY, PATH_LEN,
};
use agentguard_common::glob::{Bytes, Match, Step};
use aya_ebpf::helpers::generated::bpf_loop;

use crate::maps::{CGROUPS, IDENTIFY, Scratch, config};
use crate::path;
use crate::task::{Task, Unreadable};

/// Steps that all blocks together may take. A pattern without `**` takes at most its own and the text's length. More are an
/// error, like everything that keeps from telling.
const MAX_STEPS: u32 = 1 << 16;

/// Where a scan of the blocks stands.
#[repr(C)]
pub struct Scan {
    at: Match,
    block: u32,
    end: u32,
    /// Bytes in `Scratch::path`.
    text_len: u32,
    uid: u32,
    /// The blocks whose cgroup pattern holds; for `scan_cgroup` the answer.
    cgroups: u64,
    agent: AgentId,
    found: AgentId,
}

/// What the blocks in force look at.
#[inline(always)]
pub fn in_force() -> IdentifyHead {
    IdentifyHead::unpack(config(ConfigSlot::Identify))
}

/// The label that `task` gets, if it changes. On success the executable's path is in the scratch if `path_len` is not 0.
#[inline(always)]
pub fn identify(
    scratch: *mut Scratch,
    head: IdentifyHead,
    task: Task,
    cgroup: u64,
    label: Label,
    path_len: u32,
) -> Result<Option<Label>, Unreadable> {
    if head.len == 0 || task.is_ours()? {
        return Ok(None);
    }
    let first = u32::from(head.bank & 1) * MAX_IDENTIFY;
    // SAFETY: the scratch is this program's alone meanwhile.
    let scan = unsafe { &mut (*scratch).scan };
    *scan = Scan {
        at: Match::default(),
        block: first,
        end: first + u32::from(head.len),
        text_len: path_len,
        uid: task.uid()?,
        cgroups: cgroup_mask(cgroup, head.bank),
        agent: label.agent,
        found: AgentId::NONE,
    };
    let mut context = scratch;
    // SAFETY: `scan_task` has bpf_loop's callback signature and takes such a context.
    unsafe {
        bpf_loop(
            MAX_STEPS,
            scan_task as *mut core::ffi::c_void as *mut _,
            (&raw mut context).cast(),
            0,
        )
    };
    if scan.block < scan.end {
        return Err(Unreadable);
    }
    if scan.found == AgentId::NONE || scan.found == label.agent {
        return Ok(None);
    }
    Ok(Some(Label {
        agent: scan.found,
        flags: label.flags,
    }))
}

/// Walks the executable's path if a block in force looks at it.
#[inline(always)]
pub fn path_for(scratch: *mut Scratch, head: IdentifyHead, task: Task) -> Result<u32, Unreadable> {
    if head.keys & Identify::EXE as u8 == 0 {
        return Ok(0);
    }
    path::executable(scratch, task)
}

#[inline(always)]
fn cgroup_mask(cgroup: u64, bank: u8) -> u64 {
    // SAFETY: read once; a concurrent replacement of the element yields the old or the new mask.
    match unsafe { CGROUPS.get(cgroup) } {
        Some(mask) if bank & 1 == 0 => mask.banks[0],
        Some(mask) => mask.banks[1],
        None => 0,
    }
}

/// The mask of one bank for a cgroup whose path is the `text_len` bytes in the scratch.
#[inline(always)]
pub fn mask_of(scratch: *mut Scratch, bank: u32, text_len: u32) -> Result<u64, Unreadable> {
    let first = bank * MAX_IDENTIFY;
    // SAFETY: as in `identify`.
    let scan = unsafe { &mut (*scratch).scan };
    *scan = Scan {
        at: Match::default(),
        block: first,
        end: first + MAX_IDENTIFY,
        text_len,
        uid: 0,
        cgroups: 0,
        agent: AgentId::NONE,
        found: AgentId::NONE,
    };
    let mut context = scratch;
    // SAFETY: as in `identify`.
    unsafe {
        bpf_loop(
            MAX_STEPS,
            scan_cgroup as *mut core::ffi::c_void as *mut _,
            (&raw mut context).cast(),
            0,
        )
    };
    if scan.block < scan.end {
        return Err(Unreadable);
    }
    Ok(scan.cgroups)
}

/// `bpf_loop` callback: one step of one block's exe pattern, or of getting to the next block.
extern "C" fn scan_task(_index: u32, context: *mut core::ffi::c_void) -> i64 {
    one_step(context, |block, scan, path| {
        let step = if !concerns(block, scan) {
            Step::No
        } else if block.keys & Identify::EXE == 0 {
            Step::Yes
        } else {
            glob_step(scan, &block.exe, block.exe_len, path, false)
        };
        if step == Step::Yes {
            scan.found = match scan.found {
                AgentId::NONE => block.agent,
                found if found == block.agent => found,
                _ => AgentId::AMBIGUOUS,
            };
        }
        step
    })
}

/// `bpf_loop` callback: one step of one block's cgroup pattern, or of getting to the next block.
extern "C" fn scan_cgroup(_index: u32, context: *mut core::ffi::c_void) -> i64 {
    one_step(context, |block, scan, path| {
        let step = if block.keys & Identify::CGROUP == 0 {
            Step::No
        } else {
            glob_step(scan, &block.cgroup, block.cgroup_len, path, true)
        };
        if step == Step::Yes {
            scan.cgroups |= 1 << (scan.block & (MAX_IDENTIFY - 1));
        }
        step
    })
}

/// 1 at the end of the blocks, else 0 to be called again. `context` points to a pointer to the scratch.
#[inline(always)]
fn one_step(
    context: *mut core::ffi::c_void,
    step: impl FnOnce(&Identify, &mut Scan, &[u8; PATH_LEN]) -> Step,
) -> i64 {
    // SAFETY: that of `identify` or `mask_of`.
    let scratch = unsafe { *context.cast::<*mut Scratch>() };
    // SAFETY: as in `identify`.
    let Scratch { scan, path, .. } = unsafe { &mut *scratch };
    if scan.block >= scan.end {
        return 1;
    }
    let Some(block) = IDENTIFY.get(scan.block & (2 * MAX_IDENTIFY - 1)) else {
        return 1;
    };
    let step = step(block, scan, path);
    if step != Step::More {
        scan.block += 1;
        scan.at = Match::default();
    }
    0
}

/// Everything of a block but its exe pattern.
#[inline(always)]
fn concerns(block: &Identify, scan: &Scan) -> bool {
    let bit = scan.block & (MAX_IDENTIFY - 1);
    (scan.agent == AgentId::NONE || (block.parent != AgentId::NONE && block.parent == scan.agent))
        && (block.keys & Identify::UID == 0 || block.uid == scan.uid)
        && (block.keys & Identify::CGROUP == 0 || (scan.cgroups >> bit) & 1 == 1)
        && (block.keys & Identify::EXE == 0 || scan.text_len != 0)
}

#[inline(always)]
fn glob_step(
    scan: &mut Scan,
    pattern: &[u8; PATH_LEN],
    len: u32,
    path: &[u8; PATH_LEN],
    below: bool,
) -> Step {
    let pattern = Bytes {
        bytes: pattern,
        len,
    };
    let text = Bytes {
        bytes: path,
        len: scan.text_len,
    };
    scan.at.step(pattern, text, below)
}
