//! What the programs tell the daemon, one after another in a ring.

use super::{ARGUMENTS_LEN, AgentId, PATH_LEN};
use crate::net::Addr;

/// What the programs have told of an agent, by its id; only they write it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Told {
    /// Bytes of events that went into the ring, each with what the ring adds.
    pub sent: u64,
    /// `CLOCK_BOOTTIME`, ns, at which as many refusals were due to be told one by one as have been: the theoretical arrival
    /// time of the generic cell rate algorithm.
    pub due_ns: u64,
    /// Findings that were told by their number, by [`Told::slot`].
    pub counts: [u64; Told::SLOTS],
    /// The last [`crate::verdict::Finding`] of each.
    pub last: [u32; Told::SLOTS],
}

impl Told {
    pub const SLOTS: usize = 32;
    const OBSERVED: usize = Self::SLOTS / 2;

    /// Where a kind of call is counted, of an agent that is only observed or is not.
    #[inline(always)]
    pub fn slot(kind: EventKind, observed: bool) -> usize {
        (kind as usize & (Self::OBSERVED - 1)) | if observed { Self::OBSERVED } else { 0 }
    }

    /// What is counted in a slot.
    pub fn kind(slot: usize) -> Option<EventKind> {
        let number = slot % Self::OBSERVED;
        u32::try_from(number).ok()?.try_into().ok()
    }
}

impl Default for Told {
    fn default() -> Self {
        Self {
            sent: 0,
            due_ns: 0,
            counts: [0; Self::SLOTS],
            last: [0; Self::SLOTS],
        }
    }
}

/// What of [`Told`] is recorded; only the daemon writes it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Noted {
    /// As [`Told::sent`].
    pub sent: u64,
    pub counts: [u64; Told::SLOTS],
}

impl Default for Noted {
    fn default() -> Self {
        Self {
            sent: 0,
            counts: [0; Told::SLOTS],
        }
    }
}

/// What an [`Event`] reports. Unknown numbers are counted and dropped by userspace.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventKind {
    Fork = 1,
    Exec = 2,
    Exit = 3,
    Connect = 4,
    Send = 5,
    Bind = 6,
    Socket = 7,
    Packet = 8,
    ForwarderDown = 9,
    /// A process that came under an agent other than by exec: its cgroup became one that an identify block names.
    Enrol = 10,
    /// A connect or a datagram to a Unix socket.
    Unix = 11,
    /// A [`Tamper`], refused.
    Tamper = 12,
    /// A network socket that is not its agent's own, sent on or received from another process; refused.
    HandedOver = 13,
    /// What could not be read kept process `tgid` from being identified; with 0 any process, or a cgroup. Somebody else has
    /// to look.
    Unread = 14,
}

/// What an agent tried against what holds it; `sock_type` of a [`EventKind::Tamper`].
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tamper {
    /// `bpf(2)`.
    Bpf = 1,
    /// Into another process, which is `parent_tgid`: `ptrace(2)`, `/proc/PID/mem` and all that asks for the same right.
    Ptrace = 2,
    /// A signal to another process, which is `parent_tgid`.
    Signal = 3,
    /// Typing into a terminal (`TIOCSTI`, `TIOCLINUX`).
    Terminal = 4,
    /// Taking something off a bpffs, where the programs are pinned.
    Pins = 5,
    /// Reading or changing the daemon's files, or a whole disk that may hold them.
    Files = 6,
    /// Limits, priority or scheduling of another process, which is `parent_tgid`.
    Limits = 7,
    /// A disk, whose number is `port` and `proto` (major and minor).
    BlockDevice = 8,
    /// The host's memory, or a disk by another way than as one: as [`Tamper::BlockDevice`].
    CharDevice = 9,
    /// Writing a parameter of the kernel's, whose name below `/proc/sys` is the path.
    Sysctl = 10,
}

impl TryFrom<u32> for Tamper {
    type Error = u32;

    fn try_from(raw: u32) -> Result<Self, u32> {
        Ok(match raw {
            1 => Self::Bpf,
            2 => Self::Ptrace,
            3 => Self::Signal,
            4 => Self::Terminal,
            5 => Self::Pins,
            6 => Self::Files,
            7 => Self::Limits,
            8 => Self::BlockDevice,
            9 => Self::CharDevice,
            10 => Self::Sysctl,
            other => return Err(other),
        })
    }
}

impl TryFrom<u32> for EventKind {
    type Error = u32;

    fn try_from(raw: u32) -> Result<Self, u32> {
        Ok(match raw {
            1 => Self::Fork,
            2 => Self::Exec,
            3 => Self::Exit,
            4 => Self::Connect,
            5 => Self::Send,
            6 => Self::Bind,
            7 => Self::Socket,
            8 => Self::Packet,
            9 => Self::ForwarderDown,
            10 => Self::Enrol,
            11 => Self::Unix,
            12 => Self::Tamper,
            13 => Self::HandedOver,
            14 => Self::Unread,
            other => return Err(other),
        })
    }
}

/// The one record of the `EVENTS` ring. Only `Exec`, `Enrol` and `Unix` carry `path`; the others end before it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub kind: u32,
    /// A [`crate::verdict::Finding`].
    pub reason: u32,
    pub agent: AgentId,
    pub tgid: u32,
    pub parent_tgid: u32,
    pub uid: u32,
    /// `CLOCK_BOOTTIME`, ns.
    pub time_ns: u64,
    /// `task_struct.start_boottime` of the thread-group leader, ns, where known.
    pub start_ns: u64,
    /// 0, as `uid` then is, of a packet: it may be sent in anybody's name.
    pub cgroup: u64,
    pub addr: Addr,
    /// Host byte order.
    pub port: u16,
    /// 4 or 6; [`Event::AF`] and `AF_*` for another family.
    pub family: u16,
    /// `SOCK_*` and `IPPROTO_*` as the agent asked for them.
    pub sock_type: u32,
    /// For `Unix` 0, or [`Event::UNIX_SEND`].
    pub proto: u32,
    /// Bytes of `path` in use.
    pub path_len: u32,
    /// The executed file, for `Exec` and `Enrol`; the [`UnixName`] for `Unix`; what a [`Tamper`] says.
    pub path: [u8; PATH_LEN],
}

impl Event {
    /// Bytes before `path`.
    pub const HEAD_LEN: usize = 80;
    pub const AF: u16 = 0x100;
    /// `proto` of a datagram that names its receiver.
    pub const UNIX_SEND: u32 = 1;
}

/// The record of an exec that was judged: an [`Event`] and what follows it, up to the last byte of `arguments` in use.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ExecEvent {
    pub event: Event,
    /// [`ExecEvent::PRIVATE`] and later bits.
    pub flags: u32,
    /// Bytes of `cwd` in use; 0: not known.
    pub cwd_len: u32,
    pub arguments_len: u32,
    /// Bytes that the process was given, of which `arguments` has the first.
    pub arguments_total: u32,
    pub cwd: [u8; PATH_LEN],
    /// Each ends with a NUL.
    pub arguments: [u8; ARGUMENTS_LEN],
}

impl ExecEvent {
    /// Bytes before `arguments`.
    pub const HEAD_LEN: usize = 608;
    /// The arguments are there and kept back.
    pub const PRIVATE: u32 = 1;
    /// The arguments could not be read.
    pub const UNSEEN: u32 = 2;
    /// Judged before there was a new image, of which another event tells if it came to that: refused, the process goes on
    /// with the one it has.
    pub const BEFORE: u32 = 4;
}
