//! Events for the daemon: one layout, written in place in the ring. What tells of a verdict answers what it comes to.

use agentguard_common::abi::{
    ARGUMENTS_LEN, AgentId, Event, EventKind, ExecEvent, PATH_LEN, Tamper, UnixName,
};
use agentguard_common::net::Addr;
use agentguard_common::verdict::Finding;
use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_uid_gid, bpf_ktime_get_boot_ns,
    bpf_probe_read_kernel, bpf_probe_read_user,
};

use crate::hook::sysctl::Name;
use crate::maps::{ExecDesk, Scratch};
use crate::task::{Task, Unreadable, at, current_tgid, read};
use crate::told;

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

impl Who {
    /// Of the calling task. What cannot be read is left 0.
    #[inline(always)]
    pub fn current(task: Task, path_len: u32) -> Self {
        let parent = task.parent().and_then(Task::tgid);
        Self {
            tgid: current_tgid(),
            parent_tgid: parent.unwrap_or(0),
            uid: task.uid().unwrap_or(0),
            start_ns: task.start().unwrap_or(0),
            cgroup: task.cgroup().unwrap_or(0),
            path_len,
        }
    }
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
pub fn call(kind: EventKind, finding: Finding, agent: AgentId, what: &What) -> Finding {
    let who = Who {
        tgid: current_tgid(),
        uid: current_uid(),
        cgroup: current_cgroup(),
        ..Who::default()
    };
    head_only(kind, finding, agent, &who, what)
}

/// What the current task, an agent's, tried against `target`.
#[inline(always)]
pub fn tamper(finding: Finding, agent: AgentId, tried: Tamper, target: u32) -> Finding {
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
    head_only(EventKind::Tamper, finding, agent, &who, &what)
}

/// A device that the current task, an agent's, tried to open or make.
#[inline(always)]
pub fn device(finding: Finding, agent: AgentId, tried: Tamper, major: u32, minor: u32) -> Finding {
    let what = What {
        sock_type: tried as u32,
        port: major as u16,
        proto: minor,
        ..What::default()
    };
    call(EventKind::Tamper, finding, agent, &what)
}

/// A packet: whose context it is sent in says nothing about who sent it.
#[inline(always)]
pub fn packet(
    kind: EventKind,
    finding: Finding,
    agent: AgentId,
    tgid: u32,
    what: &What,
) -> Finding {
    let who = Who {
        tgid,
        ..Who::default()
    };
    head_only(kind, finding, agent, &who, what)
}

#[inline(always)]
pub fn process(kind: EventKind, agent: AgentId, who: &Who) {
    told::process(kind, Finding::Allowed, agent, Event::HEAD_LEN, |event| {
        fill(
            event.cast(),
            kind,
            Finding::Allowed,
            agent,
            who,
            &What::default(),
        );
    });
}

/// No forwarder listens any more.
#[inline(always)]
pub fn forwarder_down() {
    process(EventKind::ForwarderDown, AgentId::NONE, &Who::default());
}

/// Whose the process is could not be told. 0: of which process is not known either.
#[inline(always)]
pub fn unread(tgid: u32) {
    let who = Who {
        tgid,
        ..Who::default()
    };
    process(EventKind::Unread, AgentId::NONE, &who);
}

#[inline(always)]
fn head_only(kind: EventKind, finding: Finding, agent: AgentId, who: &Who, what: &What) -> Finding {
    told::verdict(kind, finding, agent, Event::HEAD_LEN, |event| {
        fill(event.cast(), kind, finding, agent, who, what);
    })
}

/// What a process has become, with the path that is in the scratch.
#[inline(always)]
pub fn image(scratch: *mut Scratch, kind: EventKind, finding: Finding, agent: AgentId, who: &Who) {
    told::process(kind, finding, agent, size_of::<Event>(), |event| {
        let event: *mut Event = event.cast();
        fill(event, kind, finding, agent, who, &What::default());
        // SAFETY: both are PATH_LEN bytes long. A failed read zeroes the destination.
        unsafe {
            bpf_probe_read_kernel(
                (&raw mut (*event).path).cast(),
                PATH_LEN as u32,
                (&raw const (*scratch).path).cast(),
            )
        };
    });
}

/// A call of the current task's that names a Unix socket.
#[inline(always)]
pub fn unix(finding: Finding, agent: AgentId, what: &What, name: &UnixName) -> Finding {
    named(EventKind::Unix, finding, agent, what, &name.bytes, name.len)
}

/// A parameter of the kernel's that the current task, an agent's, tried to write.
#[inline(always)]
pub fn sysctl(finding: Finding, agent: AgentId, name: &Name) -> Finding {
    let what = What {
        sock_type: Tamper::Sysctl as u32,
        ..What::default()
    };
    let len = name.len() as u32;
    named(EventKind::Tamper, finding, agent, &what, name, len)
}

#[inline(always)]
fn named(
    kind: EventKind,
    finding: Finding,
    agent: AgentId,
    what: &What,
    name: &[u8; 128],
    len: u32,
) -> Finding {
    let who = Who {
        tgid: current_tgid(),
        uid: current_uid(),
        cgroup: current_cgroup(),
        path_len: len,
        ..Who::default()
    };
    told::verdict(kind, finding, agent, size_of::<Event>(), |event| {
        let event: *mut Event = event.cast();
        fill(event, kind, finding, agent, &who, what);
        // SAFETY: the name is shorter than `path`, which the reservation covers. A failed read zeroes the destination.
        unsafe {
            bpf_probe_read_kernel(
                (&raw mut (*event).path).cast(),
                size_of_val(name) as u32,
                name.as_ptr().cast(),
            )
        };
    })
}

/// An exec that has been judged, with the path and the working folder that are in the desk's scratch, and the arguments of
/// the new image.
#[inline(always)]
pub fn judged_exec(
    desk: *mut ExecDesk,
    finding: Finding,
    agent: AgentId,
    who: &Who,
    cwd_len: u32,
    private: bool,
    before: bool,
) -> Finding {
    // SAFETY: a member of a map's value.
    let (scratch, event) = unsafe { (&raw mut (*desk).scratch, &raw mut (*desk).event) };
    fill_exec(event, Some(scratch), finding, agent, who, cwd_len);
    let (flags, (len, total)) = match arguments(event, private) {
        Ok(found) if private => (ExecEvent::PRIVATE, found),
        Ok(found) => (0, found),
        Err(Unreadable) => (ExecEvent::UNSEEN, (0, 0)),
    };
    // SAFETY: the desk is this program's alone meanwhile.
    let fields = unsafe { &mut *event };
    fields.flags = flags | if before { ExecEvent::BEFORE } else { 0 };
    fields.arguments_len = len;
    fields.arguments_total = total;
    let len = ExecEvent::HEAD_LEN + (len as usize & (ARGUMENTS_LEN - 1));
    // SAFETY: `len` is at most the event's size.
    let bytes = unsafe { core::slice::from_raw_parts(event.cast_const().cast::<u8>(), len) };
    told::whole(EventKind::Exec, finding, agent, bytes)
}

/// An exec that was refused before there was a new image, whose arguments nobody has seen.
#[inline(always)]
pub fn refused_exec(
    scratch: Option<*mut Scratch>,
    finding: Finding,
    agent: AgentId,
    who: &Who,
    cwd_len: u32,
) -> Finding {
    told::verdict(
        EventKind::Exec,
        finding,
        agent,
        ExecEvent::HEAD_LEN,
        |event| fill_exec(event.cast(), scratch, finding, agent, who, cwd_len),
    )
}

/// Everything but the arguments, which are called unseen.
#[inline(always)]
fn fill_exec(
    event: *mut ExecEvent,
    scratch: Option<*mut Scratch>,
    finding: Finding,
    agent: AgentId,
    who: &Who,
    cwd_len: u32,
) {
    macro_rules! put {
        ($($field:ident: $value:expr),* $(,)?) => { $(
            // SAFETY: `event` covers the head of an `ExecEvent`.
            unsafe { (&raw mut (*event).$field).write($value) };
        )* };
    }
    // SAFETY: an `ExecEvent` begins with an `Event`.
    let head = unsafe { &raw mut (*event).event };
    fill(head, EventKind::Exec, finding, agent, who, &What::default());
    put! {
        flags: ExecEvent::UNSEEN | ExecEvent::BEFORE,
        cwd_len: cwd_len,
        arguments_len: 0,
        arguments_total: 0,
    }
    // A read from address 0 fails and zeroes the destination, as every failed read does.
    let (path, cwd) = match scratch {
        // SAFETY: members of a map's value.
        Some(scratch) => unsafe { (&raw const (*scratch).path, &raw const (*scratch).cwd) },
        None => (core::ptr::null(), core::ptr::null()),
    };
    // SAFETY: both are PATH_LEN bytes long.
    unsafe { bpf_probe_read_kernel((&raw mut (*head).path).cast(), PATH_LEN as u32, path.cast()) };
    // SAFETY: as above.
    unsafe { bpf_probe_read_kernel((&raw mut (*event).cwd).cast(), PATH_LEN as u32, cwd.cast()) };
}

/// Copies the start of the arguments into the event unless they are private; answers how many bytes, and of how many.
#[inline(always)]
fn arguments(event: *mut ExecEvent, private: bool) -> Result<(u32, u32), Unreadable> {
    let mm: u64 = read(Task::current().0, at!(task_mm))?;
    let start: u64 = read(mm, at!(mm_arg_start))?;
    let end: u64 = read(mm, at!(mm_arg_end))?;
    let total = end.wrapping_sub(start);
    if private {
        return Ok((0, total as u32));
    }
    let len = if total < ARGUMENTS_LEN as u64 {
        total as u32
    } else {
        ARGUMENTS_LEN as u32 - 1
    };
    // The compiler must not see that the mask changes nothing: the verifier has lost the comparison above by here.
    let len = core::hint::black_box(len) & (ARGUMENTS_LEN as u32 - 1);
    // SAFETY: `arguments` is longer than `len`; the helper checks the source.
    let failed = unsafe {
        bpf_probe_read_user((&raw mut (*event).arguments).cast(), len, start as *const _)
    };
    if failed == 0 {
        Ok((len, total as u32))
    } else {
        Err(Unreadable)
    }
}

#[inline(always)]
fn fill(
    event: *mut Event,
    kind: EventKind,
    finding: Finding,
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
        reason: finding.number(),
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
