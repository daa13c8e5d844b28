//! Lineage: a child is its parent's agent before its first instruction, and a tgid is nobody's once its last thread is
//! gone. A process that is moved into, or made in, a cgroup that an `[[identify]]` block names becomes that agent's.

use agentguard_common::abi::{
    AgentId, CgroupMask, ConfigSlot, EventKind, Identify, Label, PATH_LEN,
};
use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;

use crate::emit::{self, Who};
use crate::hook::enrol::enrolled;
use crate::identify::{in_force, mask_of};
use crate::maps::{CGROUPS, clear_config, config, count, label_of, scratch, set_label};
use crate::task::{Task, Unreadable, cgroup_id, current_tgid, is_cgroup2};

/// Argument `n` of the tracepoint's `TP_PROTO`.
#[inline(always)]
fn arg(ctx: &RawTracePointContext, n: usize) -> u64 {
    let args: *const u64 = ctx.as_ptr().cast();
    // SAFETY: the verifier checks the access against the context.
    let arg = unsafe { args.add(n) };
    // SAFETY: as above.
    unsafe { arg.read_volatile() }
}

#[inline(always)]
fn count_unreadable(result: Result<(), Unreadable>) {
    if let Err(unreadable) = result {
        count(unreadable.into());
    }
}

/// `wake_up_new_task`, in the parent, before the child can be chosen to run: (child). Its run queue is locked, and interrupts
/// are off; at `sched_process_fork` Linux 7.0 may leave a program out.
#[raw_tracepoint(tracepoint = "sched_wakeup_new")]
pub fn fork(ctx: RawTracePointContext) {
    count_unreadable(on_fork(Task(arg(&ctx, 0))));
}

#[inline(always)]
fn on_fork(child: Task) -> Result<(), Unreadable> {
    let parent_tgid = current_tgid();
    let label = label_of(parent_tgid);
    let tgid = match child.tgid() {
        Ok(tgid) => tgid,
        Err(unreadable) => {
            if label.agent != AgentId::NONE {
                // Nobody can tell which process the child is: the parent may do nothing from here on.
                set_label(
                    parent_tgid,
                    Label {
                        agent: label.agent,
                        flags: label.flags | Label::DENY_ALL,
                    },
                );
            }
            // The child goes on without the label until somebody has found it.
            if label.agent != AgentId::NONE || looks_at_cgroups() {
                emit::unread(0);
            }
            return Err(unreadable);
        }
    };
    if tgid == parent_tgid {
        return Ok(());
    }
    if label.agent == AgentId::NONE {
        if label_of(tgid).agent != AgentId::NONE {
            // The tgid of a process that went unnoticed.
            set_label(tgid, Label::default());
        }
        // CLONE_INTO_CGROUP passes no cgroup_attach_task.
        if !looks_at_cgroups() {
            return Ok(());
        }
        let enrolled = child.cgroup().and_then(|cgroup| enrol(child, cgroup));
        if enrolled.is_err() {
            emit::unread(tgid);
        }
        return enrolled;
    }
    set_label(tgid, label);
    let who = Who {
        tgid,
        parent_tgid,
        uid: emit::current_uid(),
        start_ns: child.start()?,
        cgroup: child.cgroup()?,
        path_len: 0,
    };
    emit::process(EventKind::Fork, label.agent, &who);
    Ok(())
}

#[inline(always)]
fn looks_at_cgroups() -> bool {
    in_force().keys & Identify::CGROUP as u8 != 0
}

/// `do_exit`, after the caller has been counted out of `signal->live`: (task).
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn exit(_ctx: RawTracePointContext) {
    count_unreadable(on_exit());
}

/// As [`exit`], which has left nothing to do unless the kernel left it out: as at an exec.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn exit_backstop(_ctx: RawTracePointContext) {
    count_unreadable(on_exit());
}

#[inline(always)]
fn on_exit() -> Result<(), Unreadable> {
    let tgid = current_tgid();
    let label = label_of(tgid);
    let is_daemon = config(ConfigSlot::Daemon) == u64::from(tgid);
    let is_forwarder = config(ConfigSlot::Forwarder) == u64::from(tgid);
    if label.agent == AgentId::NONE && !is_daemon && !is_forwarder {
        return Ok(());
    }
    let task = Task::current();
    if !task.group_is_dead()? {
        return Ok(());
    }
    if is_daemon {
        clear_config(ConfigSlot::Daemon);
    }
    if is_forwarder {
        clear_config(ConfigSlot::Forwarder);
        emit::forwarder_down();
    }
    if label.agent != AgentId::NONE {
        set_label(tgid, Label::default());
        let who = Who {
            tgid,
            uid: emit::current_uid(),
            ..Who::default()
        };
        emit::process(EventKind::Exit, label.agent, &who);
    }
    Ok(())
}

/// `cgroup_attach_task`: (destination, its path, task, whole group).
#[raw_tracepoint(tracepoint = "cgroup_attach_task")]
pub fn cgroup_attach_task(ctx: RawTracePointContext) {
    let task = Task(arg(&ctx, 2));
    let done = on_attach(arg(&ctx, 0), task);
    if done.is_err() {
        emit::unread(task.tgid().unwrap_or(0));
    }
    count_unreadable(done);
}

#[inline(always)]
fn on_attach(cgroup: u64, task: Task) -> Result<(), Unreadable> {
    if !looks_at_cgroups() || !is_cgroup2(cgroup)? {
        return Ok(());
    }
    enrol(task, cgroup_id(cgroup)?)
}

/// Labels `task` if its new cgroup makes it an agent's.
#[inline(always)]
fn enrol(task: Task, cgroup: u64) -> Result<(), Unreadable> {
    // SAFETY: only whether there is one.
    if unsafe { CGROUPS.get(cgroup) }.is_none() {
        return Ok(());
    }
    let scratch = scratch().ok_or(Unreadable)?;
    // Nothing can preempt a tracepoint on the way here.
    enrolled(scratch, in_force(), task, cgroup, || true).map(|_| ())
}

/// `cgroup_mkdir`: (cgroup, its path).
#[raw_tracepoint(tracepoint = "cgroup_mkdir")]
pub fn cgroup_mkdir(ctx: RawTracePointContext) {
    let done = on_mkdir(arg(&ctx, 0), arg(&ctx, 1));
    if done.is_err() {
        emit::unread(0);
    }
    count_unreadable(done);
}

/// Both banks: userspace may be about to put the other one in force.
#[inline(always)]
fn on_mkdir(cgroup: u64, path: u64) -> Result<(), Unreadable> {
    if !is_cgroup2(cgroup)? {
        return Ok(());
    }
    let scratch = scratch().ok_or(Unreadable)?;
    // SAFETY: the helper checks the source; the destination is PATH_LEN bytes long.
    let len = unsafe {
        bpf_probe_read_kernel_str(
            (&raw mut (*scratch).path).cast(),
            PATH_LEN as u32,
            path as *const _,
        )
    };
    // With its NUL; of a path that fills the buffer it is the beginning.
    if len < 1 || len > PATH_LEN as i64 {
        return Err(Unreadable);
    }
    let len = len as u32 - 1;
    let mask = CgroupMask {
        banks: [mask_of(scratch, 0, len)?, mask_of(scratch, 1, len)?],
    };
    if mask != CgroupMask::default() {
        let id = cgroup_id(cgroup)?;
        CGROUPS.insert(id, mask, 0).map_err(|_| Unreadable)?;
    }
    Ok(())
}

/// `cgroup_rmdir`: (cgroup, its path).
#[raw_tracepoint(tracepoint = "cgroup_rmdir")]
pub fn cgroup_rmdir(ctx: RawTracePointContext) {
    count_unreadable(on_rmdir(arg(&ctx, 0)));
}

#[inline(always)]
fn on_rmdir(cgroup: u64) -> Result<(), Unreadable> {
    if is_cgroup2(cgroup)? {
        let _ = CGROUPS.remove(cgroup_id(cgroup)?);
    }
    Ok(())
}
