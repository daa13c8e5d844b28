//! An exec before it happens: refused with EPERM. Every file of the chain is judged, a script and each of its interpreters.

use core::cell::Cell;

use agentguard_common::verdict::Refusal;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;

use crate::emit::{self, Who};
use crate::exec_rules::Rules;
use crate::hook::guard::{Answer, Judged};
use crate::hook::lsm::{self, Caller};
use crate::hook::lsm_digest;
use crate::maps::task_scratch;
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
        |caller, refusal| report(caller, refusal, &seen),
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
    let judgement = rules.judge(scratch, file)?;
    seen.path_len.set(judgement.path_len);
    Ok(judgement.refusal.map_or(Answer::Allow, Answer::Deny))
}

#[inline(always)]
fn report(caller: &Caller, refusal: Option<Refusal>, seen: &Seen) {
    let who = Who::current(Task::current(), seen.path_len.get());
    emit::refused_exec(
        task_scratch(),
        refusal,
        caller.agent,
        &who,
        seen.cwd_len.get(),
    );
}
