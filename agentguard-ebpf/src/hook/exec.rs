//! A new image: whose it is, and whether it may run. Where there is no LSM a refused image dies by SIGKILL, before its
//! first instruction; what is seen of a script then is its last interpreter.

use agentguard_common::abi::{AgentId, EventKind, IdentifyHead, Label};
use agentguard_common::counter::Counter;
use agentguard_common::verdict::Refusal;
use aya_ebpf::helpers::generated::bpf_send_signal;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;

use crate::emit::{self, Who};
use crate::exec_rules::{Judgement, Rules};
use crate::identify::{identify, in_force, path_for};
use crate::maps::{Scratch, count, is_killed, label_of, scratch, set_label};
use crate::path;
use crate::task::{Task, Unreadable, current_tgid, has_lsm};

const SIGKILL: u32 = 9;

/// `exec_binprm`, once the new image is in place and its credentials are committed.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn exec(_ctx: RawTracePointContext) {
    let tgid = current_tgid();
    let label = label_of(tgid);
    let head = in_force();
    let done = if label.agent == AgentId::NONE {
        let done = unlabelled(tgid, head);
        if done.is_err() {
            emit::unread(tgid);
        }
        done
    } else {
        match (Rules::of(label.agent), scratch()) {
            (None, _) => unjudged(tgid, label, head),
            (Some(rules), Some(scratch)) => judged(tgid, label, head, &rules, scratch),
            (Some(_), None) => {
                kill(tgid, label);
                Err(Unreadable)
            }
        }
    };
    if let Err(unreadable) = done {
        count(unreadable.into());
    }
}

/// The exec that makes a process an agent's is not judged: the identify block names the file.
#[inline(always)]
fn unlabelled(tgid: u32, head: IdentifyHead) -> Result<(), Unreadable> {
    if head.len == 0 {
        return Ok(());
    }
    let task = Task::current();
    // Blocks that do not look at the path are judged without it.
    let path = path_for(head, task);
    let path_len = *path.as_ref().unwrap_or(&0);
    let cgroup = task.cgroup()?;
    let Some(label) = identify(head, task, cgroup, Label::default(), path_len)? else {
        return path.map(|_| ());
    };
    set_label(tgid, label);
    if must_die(label) {
        kill(tgid, label);
    }
    let who = Who::current(task, path_len);
    emit::with_path(EventKind::Exec, refusal(label), label.agent, &who);
    Ok(())
}

/// A process of an agent without exec rules.
#[inline(always)]
fn unjudged(tgid: u32, before: Label, head: IdentifyHead) -> Result<(), Unreadable> {
    if must_die(before) {
        kill(tgid, before);
    }
    let task = Task::current();
    let path_len = path::executable(task).unwrap_or_else(|unreadable| {
        count(unreadable.into());
        0
    });
    let label = moved(tgid, task, before, head, path_len)?;
    let who = Who::current(task, path_len);
    emit::with_path(EventKind::Exec, refusal(label), label.agent, &who);
    Ok(())
}

/// A process of an agent with exec rules, which judge its exec whatever agent it becomes.
#[inline(always)]
fn judged(
    tgid: u32,
    before: Label,
    head: IdentifyHead,
    rules: &Rules,
    scratch: *mut Scratch,
) -> Result<(), Unreadable> {
    let task = Task::current();
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
    if judgement.refusal.is_some() {
        count(Counter::Refused);
    }
    if judgement.refusal.is_some() || must_die(before) {
        kill(tgid, before);
    }
    let label = moved(tgid, task, before, head, path_len).unwrap_or(before);
    let who = Who::current(task, path_len);
    let refusal = refusal(label).or(judgement.refusal);
    emit::judged_exec(
        scratch,
        refusal,
        label.agent,
        &who,
        cwd_len,
        rules.private(),
    );
    Ok(())
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
    tgid: u32,
    task: Task,
    before: Label,
    head: IdentifyHead,
    path_len: u32,
) -> Result<Label, Unreadable> {
    let Some(label) = identify(head, task, task.cgroup()?, before, path_len)? else {
        return Ok(before);
    };
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
fn refusal(label: Label) -> Option<Refusal> {
    if must_die(label) {
        Some(Refusal::Killed)
    } else if label.agent == AgentId::AMBIGUOUS {
        Some(Refusal::Ambiguous)
    } else {
        None
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
