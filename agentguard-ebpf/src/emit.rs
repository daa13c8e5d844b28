//! Records for the daemon: one layout, written in place in the ring. A full ring is counted, and never changes a verdict.

use agentguard_common::abi::{AgentId, Event, EventKind, PATH_LEN, Tamper, UnixName};
use agentguard_common::counter::Counter;
use agentguard_common::net::Addr;
use agentguard_common::verdict::Refusal;
use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_uid_gid, bpf_ktime_get_boot_ns,
    bpf_probe_read_kernel,
};

use crate::maps::{EVENTS, count, scratch};
use crate::task::current_tgid;

/// What a socket event is about.
#[derive(Clone, Copy, Default)]
pub struct What {
    pub addr: Addr,
    /// Host byte order.
    pub port: u16,
    pub family: u16,
    pub sock_type: u32,
    pub proto: u32,
}

/// What a process event is about.
#[derive(Clone, Copy, Default)]
pub struct Who {
    pub tgid: u32,
    pub parent_tgid: u32,
    pub uid: u32,
    pub start_ns: u64,
    pub cgroup: u64,
    /// Bytes of the path in the scratch.
    pub path_len: u32,
}

/// 0 for an allow.
#[inline(always)]
fn number(refusal: Option<Refusal>) -> u32 {
    refusal.map_or(0, |refusal| refusal as u32)
}

#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_boot_ns() }
}

#[inline(always)]
pub fn current_uid() -> u32 {
    // SAFETY: no arguments.
    (unsafe { bpf_get_current_uid_gid() }) as u32
}

#[inline(always)]
fn current_cgroup() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_get_current_cgroup_id() }
}

/// A call of the current task's.
#[inline(always)]
pub fn call(kind: EventKind, refusal: Option<Refusal>, agent: AgentId, what: &What) {
    let who = Who {
        tgid: current_tgid(),
        uid: current_uid(),
        cgroup: current_cgroup(),
        ..Who::default()
    };
    head_only(kind, refusal, agent, &who, what);
}

/// What the current task, an agent's, tried against `target`.
#[inline(always)]
pub fn tamper(refusal: Option<Refusal>, agent: AgentId, tried: Tamper, target: u32) {
    let who = Who {
        tgid: current_tgid(),
        parent_tgid: target,
        uid: current_uid(),
        cgroup: current_cgroup(),
        ..Who::default()
    };
    let what = What {
        sock_type: tried as u32,
        ..What::default()
    };
    head_only(EventKind::Tamper, refusal, agent, &who, &what);
}

/// A packet: whose context it is sent in says nothing about who sent it.
#[inline(always)]
pub fn packet(kind: EventKind, refusal: Option<Refusal>, agent: AgentId, tgid: u32, what: &What) {
    let who = Who {
        tgid,
        ..Who::default()
    };
    head_only(kind, refusal, agent, &who, what);
}

#[inline(always)]
pub fn process(kind: EventKind, agent: AgentId, who: &Who) {
    head_only(kind, None, agent, who, &What::default());
}

#[inline(always)]
fn head_only(kind: EventKind, refusal: Option<Refusal>, agent: AgentId, who: &Who, what: &What) {
    let Some(mut bytes) = EVENTS.reserve_bytes(Event::HEAD_LEN, 0) else {
        count(Counter::RingFull);
        return;
    };
    fill(bytes.as_mut_ptr().cast(), kind, refusal, agent, who, what);
    bytes.submit(0);
}

/// An event with the path that is in the scratch.
#[inline(always)]
pub fn with_path(kind: EventKind, refusal: Option<Refusal>, agent: AgentId, who: &Who) {
    let Some(mut bytes) = EVENTS.reserve_bytes(size_of::<Event>(), 0) else {
        count(Counter::RingFull);
        return;
    };
    let event: *mut Event = bytes.as_mut_ptr().cast();
    fill(event, kind, refusal, agent, who, &What::default());
    if let Some(scratch) = scratch() {
        // SAFETY: both are PATH_LEN bytes long. A failed read zeroes the destination.
        unsafe {
            bpf_probe_read_kernel(
                (&raw mut (*event).path).cast(),
                PATH_LEN as u32,
                (&raw const (*scratch).path).cast(),
            )
        };
    }
    bytes.submit(0);
}

/// A call of the current task's that names a Unix socket.
#[inline(always)]
pub fn unix(refusal: Option<Refusal>, agent: AgentId, what: &What, name: &UnixName) {
    let Some(mut bytes) = EVENTS.reserve_bytes(size_of::<Event>(), 0) else {
        count(Counter::RingFull);
        return;
    };
    let event: *mut Event = bytes.as_mut_ptr().cast();
    let who = Who {
        tgid: current_tgid(),
        uid: current_uid(),
        cgroup: current_cgroup(),
        path_len: name.len,
        ..Who::default()
    };
    fill(event, EventKind::Unix, refusal, agent, &who, what);
    // SAFETY: the name is shorter than `path`, which the reservation covers. A failed read zeroes the destination.
    unsafe {
        bpf_probe_read_kernel(
            (&raw mut (*event).path).cast(),
            size_of_val(&name.bytes) as u32,
            name.bytes.as_ptr().cast(),
        )
    };
    bytes.submit(0);
}

#[inline(always)]
fn fill(
    event: *mut Event,
    kind: EventKind,
    refusal: Option<Refusal>,
    agent: AgentId,
    who: &Who,
    what: &What,
) {
    macro_rules! put {
        ($($field:ident: $value:expr),* $(,)?) => { $(
            // SAFETY: the reservation covers the head of an `Event`; each field is written once.
            unsafe { (&raw mut (*event).$field).write($value) };
        )* };
    }
    put! {
        kind: kind as u32,
        reason: number(refusal),
        agent: agent,
        tgid: who.tgid,
        parent_tgid: who.parent_tgid,
        uid: who.uid,
        time_ns: now(),
        start_ns: who.start_ns,
        cgroup: who.cgroup,
        addr: what.addr,
        port: what.port,
        family: what.family,
        sock_type: what.sock_type,
        proto: what.proto,
        path_len: who.path_len,
    }
}
