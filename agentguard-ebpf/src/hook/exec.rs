//! A new image: whose it is, and whether it may run. Where there is no LSM a refused image dies by SIGKILL, before its
//! first instruction.

use agentguard_common::abi::{AgentId, EventKind, Identify, Label};
use agentguard_common::counter::Counter;
use agentguard_common::verdict::Refusal;
use aya_ebpf::helpers::generated::bpf_send_signal;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;

use crate::emit::{self, Who};
use crate::identify::{identify, in_force, path_if};
use crate::maps::{count, is_killed, label_of, set_label};
use crate::task::{Task, Unreadable, current_tgid};

const SIGKILL: u32 = 9;

/// `exec_binprm`, once the new image is in place and its credentials are committed.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn exec(_ctx: RawTracePointContext) {
    if let Err(unreadable) = on_exec() {
        count(unreadable.into());
    }
}

#[inline(always)]
fn on_exec() -> Result<(), Unreadable> {
    let tgid = current_tgid();
    let before = label_of(tgid);
    let head = in_force();
    let is_agent = before.agent != AgentId::NONE;
    if !is_agent && head.len == 0 {
        return Ok(());
    }
    if is_agent && must_die(before) {
        kill(tgid, before);
    }
    let task = Task::current();
    let cgroup = task.cgroup()?;
    let path_len = path_if(is_agent || head.keys & Identify::EXE as u8 != 0, task);
    let label = match identify(head, task, cgroup, before, path_len)? {
        Some(label) => {
            set_label(tgid, label);
            if must_die(label) {
                kill(tgid, label);
            }
            label
        }
        None if is_agent => before,
        None => return Ok(()),
    };
    let who = Who {
        tgid,
        parent_tgid: task.parent()?.tgid()?,
        uid: task.uid()?,
        start_ns: task.start()?,
        cgroup,
        path_len,
    };
    emit::with_path(EventKind::Exec, refusal(label), label.agent, &who);
    Ok(())
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
