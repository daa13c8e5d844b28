//! An exec before it happens: refused with EPERM. Every file of the chain is judged, a script and each of its interpreters.

use core::cell::Cell;

use agentguard_common::abi::PATH_LEN;
use agentguard_common::verdict::{Finding, Refusal};
use aya_ebpf::helpers::generated::bpf_probe_read_kernel;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;

use crate::emit::{self, Who};
use crate::exec_rules::Rules;
use crate::hook::guard::{Answer, Judged};
use crate::hook::lsm::{self, Caller};
use crate::hook::lsm_digest;
use crate::maps::{Scratch, task_scratch};
use crate::path;
use crate::task::{Task, Unreadable, at, read};

/// Where judging has left what the event is about.
#[derive(Default)]
struct Seen {
    path_len: Cell<u32>,
    cwd_len: Cell<u32>,
}

/// `search_binary_handler`, once for each file of the chain: (bprm, answer of the program before).
#[lsm(hook = "bprm_check_security")]
pub fn lsm_bprm_check_security(ctx: LsmContext) -> i32 {
    let seen = Seen::default();
    lsm::answer(
        ctx.arg(1),
        |caller| judge(caller, ctx.arg(0), &seen),
        |caller, finding| report(caller, finding, &seen),
    )
}

#[inline(always)]
fn judge(caller: &Caller, bprm: u64, seen: &Seen) -> Judged {
    let rules = Rules::of(caller.agent);
    if rules.is_none() && !caller.killed {
        return Ok(Answer::Allow);
    }
    let scratch = task_scratch().ok_or(Unreadable)?;
    seen.cwd_len
        .set(path::working_folder(scratch, Task::current()));
    let file: u64 = read(bprm, at!(bprm_file))?;
    let Some(rules) = rules.filter(|_| !caller.killed) else {
        seen.path_len.set(path::of_file(scratch, file)?.len);
        return Ok(Answer::Deny(Refusal::Killed));
    };
    lsm_digest::take(scratch, file);
    if rules.observed() && is_first(bprm)? {
        // SAFETY: the scratch is this task's own.
        unsafe { (*scratch).observed_as = 0 };
    }
    let judgement = rules.judge(scratch, file)?;
    seen.path_len.set(judgement.path_len);
    Ok(match judgement.refusal {
        None => Answer::Allow,
        Some(refusal) => match Finding::of(refusal, rules.observed()) {
            Finding::Observed(refusal) => {
                keep(scratch, refusal, judgement.path_len);
                Answer::Allow
            }
            Finding::Refused(refusal) => Answer::Deny(refusal),
            Finding::Allowed => Answer::Allow,
        },
    })
}

/// Whether it is the file that was to be executed, and not an interpreter (`bprm_change_interp`).
#[inline(always)]
fn is_first(bprm: u64) -> Result<bool, Unreadable> {
    let filename: u64 = read(bprm, at!(bprm_filename))?;
    let interp: u64 = read(bprm, at!(bprm_interp))?;
    Ok(filename == interp)
}

/// For the tracepoint, which comes if the exec succeeds and then records it.
#[inline(always)]
fn keep(scratch: *mut Scratch, refusal: Refusal, path_len: u32) {
    // SAFETY: the scratch is this task's own.
    if unsafe { (*scratch).observed_as } != 0 {
        return;
    }
    // SAFETY: both are PATH_LEN bytes long. A failed read zeroes the destination.
    unsafe {
        bpf_probe_read_kernel(
            (&raw mut (*scratch).observed).cast(),
            PATH_LEN as u32,
            (&raw const (*scratch).path).cast(),
        )
    };
    // SAFETY: as above.
    unsafe { (*scratch).observed_len = path_len };
    // SAFETY: as above.
    unsafe { (*scratch).observed_as = refusal as u32 };
}

#[inline(always)]
fn report(caller: &Caller, finding: Finding, seen: &Seen) -> Finding {
    let who = Who::current(Task::current(), seen.path_len.get());
    emit::refused_exec(
        task_scratch(),
        finding,
        caller.agent,
        &who,
        seen.cwd_len.get(),
    )
}
