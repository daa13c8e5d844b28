//! What an agent's process may not do, whatever its user, to what holds it and to processes that are not its agent's.

use agentguard_common::abi::{AgentId, Tamper};
use agentguard_common::verdict::{Finding, Refusal};
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;

use crate::emit;
use crate::hook::guard::{Answer, Judged};
use crate::hook::lsm::{self, Caller};
use crate::maps::label_of;
use crate::task::Task;

const PTRACE_MODE_NOAUDIT: u32 = 0x04;
const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541c;

/// No agent has a use for `bpf(2)`. The number of its arguments is not the same on all kernels; a refusal by a program before
/// this one ends the chain anyway (`invoke_bpf_mod_ret`).
#[lsm(hook = "bpf")]
pub fn lsm_bpf(_ctx: LsmContext) -> i32 {
    lsm::answer(
        lsm::ALLOW,
        |_| Ok(Answer::Deny(Refusal::Tamper)),
        |caller, finding| emit::tamper(finding, caller.agent, Tamper::Bpf, 0),
    )
}

/// (task, mode, answer of the program before).
#[lsm(hook = "ptrace_access_check")]
pub fn lsm_ptrace_access_check(ctx: LsmContext) -> i32 {
    let target = target(&ctx);
    let mode: u32 = ctx.arg(1);
    lsm::answer(
        ctx.arg(2),
        |caller| into(caller, target),
        |caller, finding| {
            if mode & PTRACE_MODE_NOAUDIT != 0 {
                return finding;
            }
            report(caller, finding, Tamper::Ptrace, target)
        },
    )
}

/// Only into a process of the same agent.
#[inline(always)]
fn into(caller: &Caller, target: Task) -> Judged {
    let label = label_of(target.tgid()?);
    Ok(
        if label.agent == caller.agent && label.agent != AgentId::AMBIGUOUS {
            Answer::Allow
        } else {
            Answer::Deny(Refusal::Tamper)
        },
    )
}

/// (task, siginfo, signal, credentials, answer of the program before).
#[lsm(hook = "task_kill")]
pub fn lsm_task_kill(ctx: LsmContext) -> i32 {
    let target = target(&ctx);
    let signal: i32 = ctx.arg(2);
    lsm::answer(
        ctx.arg(4),
        |caller| match signal {
            // Asks whether it is there.
            0 => Ok(Answer::Allow),
            _ => reaches(caller, target),
        },
        |caller, finding| report(caller, finding, Tamper::Signal, target),
    )
}

/// Only a process of the same agent. One whose last thread has ended is nobody's by now, and may still be its child.
#[inline(always)]
fn reaches(caller: &Caller, target: Task) -> Judged {
    let label = label_of(target.tgid()?);
    Ok(
        if label.agent == caller.agent
            || (label.agent == AgentId::NONE && target.group_is_dead()?)
        {
            Answer::Allow
        } else {
            Answer::Deny(Refusal::Tamper)
        },
    )
}

/// (task, resource, limit, answer of the program before): no other hook sees prlimit(2) and has the task.
#[lsm(hook = "task_setrlimit")]
pub fn lsm_task_setrlimit(ctx: LsmContext) -> i32 {
    limits(&ctx, ctx.arg(3))
}

/// (task, nice, answer of the program before).
#[lsm(hook = "task_setnice")]
pub fn lsm_task_setnice(ctx: LsmContext) -> i32 {
    limits(&ctx, ctx.arg(2))
}

/// (task, priority, answer of the program before).
#[lsm(hook = "task_setioprio")]
pub fn lsm_task_setioprio(ctx: LsmContext) -> i32 {
    limits(&ctx, ctx.arg(2))
}

/// (task, answer of the program before): its policy, and the CPUs that it may run on.
#[lsm(hook = "task_setscheduler")]
pub fn lsm_task_setscheduler(ctx: LsmContext) -> i32 {
    limits(&ctx, ctx.arg(1))
}

#[inline(always)]
fn limits(ctx: &LsmContext, previous: i32) -> i32 {
    let target = target(ctx);
    lsm::answer(
        previous,
        |caller| reaches(caller, target),
        |caller, finding| report(caller, finding, Tamper::Limits, target),
    )
}

/// (file, command, argument, answer of the program before).
#[lsm(hook = "file_ioctl")]
pub fn lsm_file_ioctl(ctx: LsmContext) -> i32 {
    let command: u32 = ctx.arg(1);
    if command != TIOCSTI && command != TIOCLINUX {
        return lsm::ALLOW;
    }
    lsm::answer(
        ctx.arg(3),
        |_| Ok(Answer::Deny(Refusal::Terminal)),
        |caller, finding| emit::tamper(finding, caller.agent, Tamper::Terminal, 0),
    )
}

#[inline(always)]
fn target(ctx: &LsmContext) -> Task {
    let task: *const core::ffi::c_void = ctx.arg(0);
    Task(task.addr() as u64)
}

#[inline(always)]
fn report(caller: &Caller, finding: Finding, tried: Tamper, target: Task) -> Finding {
    emit::tamper(finding, caller.agent, tried, target.tgid().unwrap_or(0))
}
