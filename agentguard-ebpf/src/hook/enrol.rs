//! A process that becomes an agent's without an exec: by a cgroup that it is moved into or made in, or by a user that it has
//! become.

use agentguard_common::abi::{AgentId, EventKind, IdentifyHead, Label};
use agentguard_common::verdict::Finding;

use crate::emit::{self, Who};
use crate::identify::{identify, in_force, path_for};
use crate::maps::{NewcomerDesk, Scratch, count, label_of, newcomer_desk, set_label};
use crate::task::{Task, Unreadable, current_tgid};

/// The label of who makes a socket. No tracepoint tells of setuid(2) and its kin: who has become a user's whom a
/// block names gets its label here.
#[inline(always)]
pub fn caller() -> Label {
    let tgid = current_tgid();
    let label = label_of(tgid);
    if label.agent != AgentId::NONE {
        return label;
    }
    let head = in_force();
    if head.users == 0 {
        return label;
    }
    became(head).unwrap_or_else(|unreadable| {
        count(unreadable.into());
        emit::unread(tgid);
        label
    })
}

/// By the caller's user, or else by its group leader's: the threads of io_uring that poll keep the credentials that the
/// process had when it made them, and an entry may bring registered ones.
#[inline(always)]
fn became(head: IdentifyHead) -> Result<Label, Unreadable> {
    let task = Task::current();
    if head.users & IdentifyHead::user(task.uid()?) != 0 {
        let label = newcomer(head, task)?;
        if label.agent != AgentId::NONE {
            return Ok(label);
        }
    }
    let leader = task.leader()?;
    if leader.0 != task.0 && head.users & IdentifyHead::user(leader.uid()?) != 0 {
        return newcomer(head, leader);
    }
    Ok(Label::default())
}

/// Unlike a tracepoint this can be preempted, by itself for another process: what has been disturbed is not used.
#[inline(always)]
fn newcomer(head: IdentifyHead, task: Task) -> Result<Label, Unreadable> {
    let desk = newcomer_desk().ok_or(Unreadable)?;
    // SAFETY: a map's value, which is this CPU's.
    let NewcomerDesk { turn, scratch } = unsafe { &mut *desk };
    let turn = &raw mut *turn;
    // SAFETY: as above.
    let mine = unsafe { turn.read_volatile() } + 1;
    // SAFETY: as above.
    unsafe { turn.write_volatile(mine) };
    let undisturbed = || {
        // SAFETY: as above.
        let is_mine = unsafe { turn.read_volatile() } == mine;
        // SAFETY: as above.
        unsafe { turn.write_volatile(mine + 1) };
        is_mine
    };
    let label = enrolled(scratch, head, task, task.cgroup()?, undisturbed)?;
    Ok(label.unwrap_or_default())
}

/// The new label of `task`, if the blocks make it an agent's, or another's than it was.
#[inline(always)]
pub fn enrolled(
    scratch: *mut Scratch,
    head: IdentifyHead,
    task: Task,
    cgroup: u64,
    undisturbed: impl FnOnce() -> bool,
) -> Result<Option<Label>, Unreadable> {
    let tgid = task.tgid()?;
    // As at exec.
    let path = path_for(scratch, head, task);
    let path_len = *path.as_ref().unwrap_or(&0);
    let label = identify(scratch, head, task, cgroup, label_of(tgid), path_len)?;
    if !undisturbed() {
        return Err(Unreadable);
    }
    let Some(label) = label else {
        return path.map(|_| None);
    };
    set_label(tgid, label);
    let who = Who {
        tgid,
        parent_tgid: task.parent()?.tgid()?,
        uid: task.uid()?,
        start_ns: task.start()?,
        cgroup,
        path_len,
    };
    let finding = Finding::Allowed;
    emit::image(scratch, EventKind::Enrol, finding, label.agent, &who);
    Ok(Some(label))
}
