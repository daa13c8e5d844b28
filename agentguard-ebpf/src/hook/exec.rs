//! A new image: whose it is, and whether it may run. Where there is no LSM a refused image dies by SIGKILL, before its
//! first instruction; what is seen of a script then is its last interpreter.

use agentguard_common::abi::{AgentId, EventKind, IdentifyHead, Label, PATH_LEN};
use agentguard_common::counter::Counter;
use agentguard_common::verdict::{Finding, Refusal};
use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_send_signal};
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;

use crate::emit::{self, Who};
use crate::exec_rules::{Judgement, Rules};
use crate::identify::{identify, in_force, path_for};
use crate::maps::{
    EXEC_DONE, ExecDesk, Scratch, count, exec_desk, is_killed, label_of, set_label, task_scratch,
};
use crate::path;
use crate::task::{Task, Unreadable, at, current_tgid, has_lsm, read};

const SIGKILL: u32 = 9;

/// `exec_binprm`, once the new image is in place and its credentials are committed.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn exec(_ctx: RawTracePointContext) {
    on_exec(exec_desk(0));
    if let Some(done) = EXEC_DONE.get_ptr_mut(0) {
        // SAFETY: this CPU's. Who preempts this program may overwrite it, and then the backstop has more to do.
        unsafe { done.write_volatile(this_one().unwrap_or(0)) };
    }
}

/// For an exec at which the kernel left [`exec`] out. Since Linux 7.0 a tracepoint's programs can be preempted, and until one
/// goes on it is left out on its CPU (`prog->active` in `__bpf_trace_run`).
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn exec_backstop(_ctx: RawTracePointContext) {
    // SAFETY: as in `exec`.
    let done = EXEC_DONE
        .get_ptr(0)
        .map_or(0, |done| unsafe { done.read_volatile() });
    if done == 0 || this_one().ok() != Some(done) {
        on_exec(exec_desk(1));
    }
}

/// What tells the calling task's exec from every other.
#[inline(always)]
fn this_one() -> Result<u64, Unreadable> {
    let task = Task::current();
    let number: u64 = read(task.0, at!(task_self_exec_id))?;
    Ok((u64::from(current_tgid()) << 32) | (number & u64::from(u32::MAX)))
}

#[inline(always)]
fn on_exec(desk: Option<*mut ExecDesk>) {
    let tgid = current_tgid();
    let label = label_of(tgid);
    let head = in_force();
    let done = match desk {
        Some(desk) if label.agent == AgentId::NONE => {
            // SAFETY: a member of a map's value.
            unlabelled(tgid, head, unsafe { &raw mut (*desk).scratch })
        }
        Some(desk) => match Rules::of(label.agent) {
            // SAFETY: as above.
            None => unjudged(tgid, label, head, unsafe { &raw mut (*desk).scratch }),
            Some(rules) => judged(tgid, label, head, &rules, desk),
        },
        None => {
            if label.agent != AgentId::NONE {
                kill(tgid, label);
            }
            Err(Unreadable)
        }
    };
    if let Err(unreadable) = done {
        if label.agent == AgentId::NONE {
            emit::unread(tgid);
        }
        count(unreadable.into());
    }
}

/// The exec that makes a process an agent's is not judged: the identify block names the file.
#[inline(always)]
fn unlabelled(tgid: u32, head: IdentifyHead, scratch: *mut Scratch) -> Result<(), Unreadable> {
    if head.len == 0 {
        return Ok(());
    }
    let task = Task::current();
    // Blocks that do not look at the path are judged without it.
    let path = path_for(scratch, head, task);
    let path_len = *path.as_ref().unwrap_or(&0);
    let cgroup = task.cgroup()?;
    let Some(label) = identify(scratch, head, task, cgroup, Label::default(), path_len)? else {
        return path.map(|_| ());
    };
    set_label(tgid, label);
    if must_die(label) {
        kill(tgid, label);
    }
    let who = Who::current(task, path_len);
    emit::image(scratch, EventKind::Exec, held(label), label.agent, &who);
    Ok(())
}

/// A process of an agent without exec rules.
#[inline(always)]
fn unjudged(
    tgid: u32,
    before: Label,
    head: IdentifyHead,
    scratch: *mut Scratch,
) -> Result<(), Unreadable> {
    if must_die(before) {
        kill(tgid, before);
    }
    let task = Task::current();
    let path_len = path::executable(scratch, task).unwrap_or_else(|unreadable| {
        count(unreadable.into());
        0
    });
    let label = moved(task, before, head, path_len, scratch)?;
    let who = Who::current(task, path_len);
    emit::image(scratch, EventKind::Exec, held(label), label.agent, &who);
    Ok(())
}

/// A process of an agent with exec rules, which judge its exec whatever agent it becomes.
#[inline(always)]
fn judged(
    tgid: u32,
    before: Label,
    head: IdentifyHead,
    rules: &Rules,
    desk: *mut ExecDesk,
) -> Result<(), Unreadable> {
    let task = Task::current();
    // SAFETY: a member of a map's value.
    let scratch = unsafe { &raw mut (*desk).scratch };
    let cwd_len = path::working_folder(scratch, task);
    let judgement = match judge(task, rules, scratch) {
        Ok(judgement) => judgement,
        Err(unreadable) => {
            count(unreadable.into());
            Judgement {
                path_len: 0,
                refusal: Some(Refusal::Internal),
            }
        }
    };
    let path_len = judgement.path_len;
    let judged = judgement.refusal.map_or(Finding::Allowed, |refusal| {
        Finding::of(refusal, rules.observed())
    });
    let refused = matches!(judged, Finding::Refused(_));
    if refused {
        count(Counter::Refused);
    }
    if refused || must_die(before) {
        kill(tgid, before);
    }
    let label = moved(task, before, head, path_len, scratch).unwrap_or(before);
    let mut who = Who::current(task, path_len);
    let mut finding = match held(label) {
        Finding::Allowed => judged,
        other => other,
    };
    let kept = match finding {
        Finding::Allowed if has_lsm() && rules.observed() => kept(),
        _ => None,
    };
    if let Some((refusal, from)) = kept {
        // Of the image; what follows is of the file that it came by.
        emit::image(scratch, EventKind::Exec, finding, label.agent, &who);
        who.path_len = take_path(scratch, from);
        finding = Finding::Observed(refusal);
    }
    let told = emit::judged_exec(
        desk,
        finding,
        label.agent,
        &who,
        cwd_len,
        rules.private(),
        kept.is_some(),
    );
    if let (Finding::Allowed, Finding::Refused(_)) = (finding, told) {
        kill(tgid, label);
    }
    Ok(())
}

/// What the LSM program would have refused of this exec, and where it has left the path.
#[inline(always)]
fn kept() -> Option<(Refusal, *mut Scratch)> {
    let from = task_scratch()?;
    // SAFETY: the scratch is this task's own.
    let raw = unsafe { (*from).observed_as };
    // SAFETY: as above.
    unsafe { (*from).observed_as = 0 };
    Some((Refusal::try_from(raw).ok()?, from))
}

/// Moves the path that was kept to where events take theirs from, and answers its length.
#[inline(always)]
fn take_path(scratch: *mut Scratch, from: *mut Scratch) -> u32 {
    // SAFETY: both are PATH_LEN bytes long. A failed read zeroes the destination.
    unsafe {
        bpf_probe_read_kernel(
            (&raw mut (*scratch).path).cast(),
            PATH_LEN as u32,
            (&raw const (*from).observed).cast(),
        )
    };
    // SAFETY: the scratch is this task's own.
    unsafe { (*from).observed_len }
}

/// Where LSM programs run, they have judged every file of the chain by now.
#[inline(always)]
fn judge(task: Task, rules: &Rules, scratch: *mut Scratch) -> Result<Judgement, Unreadable> {
    let file = path::executable_file(task)?;
    if has_lsm() {
        return Ok(Judgement {
            path_len: path::of_file(scratch, file).map_or(0, |found| found.len),
            refusal: None,
        });
    }
    rules.judge(scratch, file)
}

/// The label of an agent's process after identification.
#[inline(always)]
fn moved(
    task: Task,
    before: Label,
    head: IdentifyHead,
    path_len: u32,
    scratch: *mut Scratch,
) -> Result<Label, Unreadable> {
    let Some(label) = identify(scratch, head, task, task.cgroup()?, before, path_len)? else {
        return Ok(before);
    };
    let tgid = current_tgid();
    set_label(tgid, label);
    if must_die(label) {
        kill(tgid, label);
    }
    Ok(label)
}

#[inline(always)]
fn must_die(label: Label) -> bool {
    label.flags & Label::DENY_ALL != 0 || is_killed(label.agent)
}

#[inline(always)]
fn held(label: Label) -> Finding {
    if must_die(label) {
        Finding::Refused(Refusal::Killed)
    } else if label.agent == AgentId::AMBIGUOUS {
        Finding::Refused(Refusal::Ambiguous)
    } else {
        Finding::Allowed
    }
}

#[inline(always)]
fn kill(tgid: u32, label: Label) {
    // SAFETY: no pointers.
    if unsafe { bpf_send_signal(SIGKILL) } != 0 {
        count(Counter::SignalFailed);
        set_label(
            tgid,
            Label {
                agent: label.agent,
                flags: label.flags | Label::DENY_ALL,
            },
        );
    }
}
