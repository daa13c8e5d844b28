//! The shared types: integers only, explicit padding, sizes and offsets asserted. [`VERSION`] names the pins folder, so
//! programs and maps of different layouts never meet.

mod event;

pub use self::event::{Event, EventKind, ExecEvent, Noted, Tamper, Told};
use crate::exec::Sha256;
use crate::net::Addr;

/// Grows with every change to a type in this module or to a map's key, value, type or meaning.
pub const VERSION: u32 = 8;

/// `pid_max`'s limit on 64-bit kernels (`PID_MAX_LIMIT` in `include/linux/threads.h`).
pub const MAX_TGID: u32 = 4_194_304;
/// Agents one host can know, retired ones included.
pub const MAX_AGENTS: u32 = 4096;
/// Kernel rules one agent can have.
pub const MAX_RULES: u32 = 4096;
/// `[[identify]]` blocks of a bundle.
pub const MAX_IDENTIFY: u32 = 64;
/// Exec rules in force at once.
pub const MAX_EXEC_RULES: u32 = 4096;
/// Of these the canary's own, the last of each bank, which no bundle replaces.
pub const CANARY_EXEC_RULES: u32 = 4;
/// Exec rules of a bundle, all its agents' together.
pub const BUNDLE_EXEC_RULES: u32 = MAX_EXEC_RULES - CANARY_EXEC_RULES;
/// One more than the bytes of an exec's arguments that are kept.
pub const ARGUMENTS_LEN: usize = 4096;
/// Bytes of an identify pattern or a walked path, with its NUL.
pub const PATH_LEN: usize = 256;

/// The id that stands for an agent in kernel maps. 0 is no agent; ids are given once per host and never reused.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct AgentId(pub u32);

impl AgentId {
    pub const NONE: Self = Self(0);
    /// A process that two agents' identify rules claim: it may do nothing.
    pub const AMBIGUOUS: Self = Self(1);
    /// The first id given to an agent of a bundle.
    pub const FIRST: u32 = 2;
    /// From here on ids are the daemon's own.
    pub const FIRST_RESERVED: u32 = MAX_AGENTS - 2;
    /// The process by which the daemon tries what must be refused, while it tries the forwarder.
    pub const CANARY_HOSTS: Self = Self(MAX_AGENTS - 2);
    /// The same, while it tries the kernel's rules.
    pub const CANARY: Self = Self(MAX_AGENTS - 1);

    pub const fn is_canary(self) -> bool {
        self.0 >= Self::FIRST_RESERVED && self.0 < MAX_AGENTS
    }
}

/// One slot of `LABELS`, indexed by tgid.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Label {
    pub agent: AgentId,
    /// [`Label::DENY_ALL`] and later bits.
    pub flags: u32,
}

impl Label {
    /// The task was to be killed and could not be.
    pub const DENY_ALL: u32 = 1;
}

/// `AGENTS` array value, indexed by agent id. Plain, so that the kill is one map update and no grace period.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AgentState {
    /// Not 0: nothing of this agent's leaves the host.
    pub killed: u32,
    pub reserved: u32,
}

/// Which rules of an agent's trie a look-up addresses.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RuleKind {
    ReachTcp = 6,
    ReachUdp = 17,
    ListenTcp = 0x86,
    ListenUdp = 0x91,
}

/// Key of an agent's LPM trie without the prefix length: kind, port, address, most significant first.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RuleKey {
    pub kind: u8,
    pub reserved: u8,
    /// Network byte order; 0 stands for every port.
    pub port: [u8; 2],
    pub addr: Addr,
}

impl RuleKey {
    /// Prefix bits before the address's own.
    pub const HEAD_BITS: u32 = 32;
    /// Prefix bits of a key that holds for every port and address of its kind.
    pub const KIND_BITS: u32 = 8;
    /// Stands for every Unix socket; what is found there is [`RuleVerdict::Observe`]. Which of them are listed is not in the
    /// trie.
    pub const UNIX: Self = Self {
        kind: 1,
        reserved: 0,
        port: [0; 2],
        addr: Addr([0; 16]),
    };
}

/// Value of an agent's LPM trie.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RuleVerdict {
    Direct = 1,
    /// The agent has hosts to reach: what no rule names goes to the forwarder.
    Forward = 2,
    /// The agent is only observed: what no rule names goes to the forwarder where that takes it, and else passes.
    Observe = 3,
}

/// Name of a Unix socket: a path as its caller writes it, or an abstract name behind a NUL. Key of an agent's map in `UNIX`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnixName {
    pub len: u32,
    /// Zero behind `len`. Longer than [`UnixName::MAX`], because the verifier wants the length masked.
    pub bytes: [u8; 128],
}

impl UnixName {
    /// `sun_path`'s size (`UNIX_PATH_MAX`).
    pub const MAX: usize = 108;
    pub const EMPTY: Self = Self {
        len: 0,
        bytes: [0; 128],
    };

    /// `None` for one that no socket can have.
    pub fn new(name: &[u8]) -> Option<Self> {
        if name.is_empty() || name.len() > Self::MAX {
            return None;
        }
        let mut bytes = [0; 128];
        bytes.get_mut(..name.len())?.copy_from_slice(name);
        Some(Self {
            len: name.len() as u32,
            bytes,
        })
    }
}

/// What the programs need to know of the forwarder of one network namespace. `FORWARDERS` value, keyed by netns cookie.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Forwarder {
    /// `SO_COOKIE` of the IPv4 and the IPv6 listener: the release of either clears `up`.
    pub listener4: u64,
    pub listener6: u64,
    pub up: u32,
    /// Host byte order, for TCP and for the resolver's UDP.
    pub port: u32,
    pub tgid: u32,
    /// 1 if the namespace has `::1`.
    pub has_v6: u32,
}

/// A flow on its way to the forwarder.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FlowKey {
    pub netns: u64,
    /// The agent's side.
    pub local: Addr,
    /// The forwarder's side.
    pub remote: Addr,
    /// Host byte order.
    pub local_port: u16,
    pub remote_port: u16,
    /// `IPPROTO_TCP` or `IPPROTO_UDP`.
    pub proto: u32,
}

/// Who started a flow and where it was to go.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Origin {
    pub agent: AgentId,
    pub tgid: u32,
    pub uid: u32,
    /// Host byte order.
    pub port: u16,
    pub proto: u8,
    /// 4 or 6, as the agent's socket has it.
    pub family: u8,
    pub addr: Addr,
    /// `CLOCK_BOOTTIME` of the connect, ns.
    pub time_ns: u64,
}

/// A datagram on its way to the resolver; `QUESTIONS` value.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Question {
    pub flow: FlowKey,
    pub origin: Origin,
}

/// Who has written to a listening UDP socket; `HEARD` key.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Heard {
    /// `SO_COOKIE` of the socket.
    pub socket: u64,
    pub addr: Addr,
    /// Host byte order.
    pub port: u32,
    pub reserved: u32,
}

impl Heard {
    pub const fn new(socket: u64, addr: Addr, port: u16) -> Self {
        Self {
            socket,
            addr,
            port: port as u32,
            reserved: 0,
        }
    }
}

/// What a socket carries in its `sk_storage`; cloned to accepted sockets.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SocketMark {
    /// Valid while `origin.port` is not 0, but for `tgid`, which is set with `agent`.
    pub origin: Origin,
    /// Where the socket was redirected to. A TCP socket has been put into `FLOWS` under this key if `flow.proto` is not 0.
    pub flow: FlowKey,
    pub agent: AgentId,
    /// [`SocketMark::UPSTREAM`] and later bits.
    pub flags: u32,
    /// The packet destination and judgement that was reported last, so that a stream of packets makes one event.
    pub reported: Addr,
    /// Host byte order.
    pub reported_port: u16,
    /// 0: nothing reported; else 1 + [`crate::verdict::Refusal`] or 0 for allowed, the highest bit set if it was observed.
    pub reported_as: u16,
    pub reserved: u32,
}

impl SocketMark {
    /// The forwarder's own socket, opened for the agent: subject to the kill only.
    pub const UPSTREAM: u32 = 1;
    /// That it listens where no rule lets it has been recorded: its agent is only observed.
    pub const LISTENS: u32 = 2;
}

/// `bind()` port by which the forwarder tags an upstream socket with the agent id in the address's last 32 bits
/// (network byte order); the bind hook turns both into "any". Nobody else's bind is read this way. With
/// `IP_BIND_ADDRESS_NO_PORT` set before, the bind takes no ephemeral port by itself.
pub const TAG_PORT: u16 = 1;

/// Index into `CONFIG`: one 64-bit word each, so that each changes at once.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConfigSlot {
    /// An [`IdentifyHead`].
    Identify = 0,
    /// The daemon's tgid: it and its children are never labelled. Cleared by its exit.
    Daemon = 1,
    /// The forwarder's tgid. Cleared by its exit, upon which connects of agents are denied.
    Forwarder = 2,
    /// The bank of `EXEC_HEADS` and `EXEC_RULES` that is in force: 0 or 1.
    Exec = 3,
    /// Number (`ns_common.inum`) of the mount namespace in which the paths of protected files are looked up.
    MountNamespace = 4,
}

/// Slots of `CONFIG`.
pub const CONFIG_LEN: u32 = 5;

/// Words of `PORTS`, a bitmap of the ports that forwarders listen on in some namespace: what a connect of nobody's has to
/// look at before it need know its namespace.
pub const PORT_WORDS: u32 = 65536 / 64;

/// Which of the two banks of `IDENTIFY` is in force, and what its blocks look at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IdentifyHead {
    /// 0 or 1.
    pub bank: u8,
    /// Blocks in the bank, at most [`MAX_IDENTIFY`].
    pub len: u8,
    /// [`Identify::EXE`] | [`Identify::UID`] | [`Identify::CGROUP`] of all its blocks.
    pub keys: u8,
    /// The users that its blocks name, by [`IdentifyHead::user`].
    pub users: u32,
}

impl IdentifyHead {
    pub const fn pack(self) -> u64 {
        let [a, b, c, d] = self.users.to_le_bytes();
        u64::from_le_bytes([self.bank, self.len, self.keys, 0, a, b, c, d])
    }

    pub const fn unpack(word: u64) -> Self {
        let [bank, len, keys, _, a, b, c, d] = word.to_le_bytes();
        Self {
            bank,
            len,
            keys,
            users: u32::from_le_bytes([a, b, c, d]),
        }
    }

    /// The bit of `users` that is set if a block names `uid`. Others share it.
    pub const fn user(uid: u32) -> u32 {
        1 << (uid & 31)
    }
}

/// `CGROUPS` value, keyed by cgroup v2 id: bit n of a bank's mask is set if the cgroup or one above it matches the
/// pattern of the bank's block n.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CgroupMask {
    pub banks: [u64; 2],
}

/// One `[[identify]]` block; `IDENTIFY` array value.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Identify {
    pub agent: AgentId,
    /// [`Identify::EXE`] | [`Identify::UID`] | [`Identify::CGROUP`]: the keys that must match.
    pub keys: u32,
    pub uid: u32,
    pub exe_len: u32,
    pub cgroup_len: u32,
    /// The agent that a labelled process must have for this block to move it; 0: only unlabelled ones.
    pub parent: AgentId,
    pub exe: [u8; PATH_LEN],
    pub cgroup: [u8; PATH_LEN],
}

impl Identify {
    pub const EXE: u32 = 1;
    pub const UID: u32 = 2;
    pub const CGROUP: u32 = 4;
}

/// Key of `PROTECTED`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct FileKey {
    /// 0: the file system as a whole, with [`FileKey::DEVICE`].
    pub inode: u64,
    /// `super_block.s_dev`.
    pub device: u32,
    pub reserved: u32,
}

impl FileKey {
    /// Nobody reads it, or what is below it.
    pub const NO_READ: u32 = 1;
    /// Nobody changes it, or what is below it.
    pub const NO_WRITE: u32 = 2;
    /// It stays where it is: a folder above one that is protected.
    pub const STAYS: u32 = 4;
    /// The file system holds something that is protected.
    pub const DEVICE: u32 = 8;
}

/// What an agent may execute. `EXEC_HEADS` array value, by bank and agent id; zeros: it is not judged.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ExecHead {
    /// Index of its first rule in `EXEC_RULES`; those that deny come first.
    pub first: u32,
    pub len: u32,
    /// [`ExecHead::JUDGED`] and later bits.
    pub flags: u32,
    pub reserved: u32,
}

impl ExecHead {
    pub const JUDGED: u32 = 1;
    /// What no rule matches is allowed.
    pub const DEFAULT_ALLOW: u32 = 2;
    /// Arguments stay in the kernel.
    pub const PRIVATE: u32 = 4;
    /// One of its rules has a digest.
    pub const DIGESTS: u32 = 8;
    /// What the rules refuse is executed, and recorded.
    pub const OBSERVED: u32 = 16;
}

/// One rule about files. `EXEC_RULES` array value.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ExecRule {
    /// See [`crate::glob`].
    pub pattern: [u8; PATH_LEN],
    pub len: u32,
    /// [`ExecRule::DENIES`] | [`ExecRule::DIGEST`].
    pub flags: u32,
    pub sha256: Sha256,
}

impl ExecRule {
    /// What matches is refused.
    pub const DENIES: u32 = 1;
    /// Only a file with this `sha256` matches.
    pub const DIGEST: u32 = 2;
}

const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<Label>() == 8);
    assert!(size_of::<AgentState>() == 8);
    assert!(size_of::<RuleKey>() == 20);
    assert!(size_of::<Forwarder>() == 32);
    assert!(size_of::<Heard>() == 32);
    assert!(size_of::<FlowKey>() == 48 && offset_of!(FlowKey, local_port) == 40);
    assert!(size_of::<Origin>() == 40 && offset_of!(Origin, addr) == 16);
    assert!(size_of::<Question>() == 88 && offset_of!(Question, origin) == 48);
    assert!(size_of::<SocketMark>() == 120 && offset_of!(SocketMark, reported) == 96);
    assert!(size_of::<UnixName>() == 132);
    assert!(size_of::<CgroupMask>() == 16);
    assert!(size_of::<Identify>() == 24 + 2 * PATH_LEN);
    assert!(size_of::<FileKey>() == 16);
    assert!(size_of::<ExecHead>() == 16);
    assert!(size_of::<ExecRule>() == 40 + PATH_LEN);
    assert!(size_of::<Told>() == 16 + 12 * Told::SLOTS);
    assert!(size_of::<Noted>() == 8 + 8 * Told::SLOTS);
    assert!(offset_of!(ExecEvent, arguments) == ExecEvent::HEAD_LEN);
    assert!(size_of::<ExecEvent>() == ExecEvent::HEAD_LEN + ARGUMENTS_LEN);
    assert!(size_of::<Event>() == 80 + PATH_LEN && offset_of!(Event, path) == Event::HEAD_LEN);
};

#[cfg(feature = "aya")]
mod bytes {
    use super::*;

    macro_rules! pod {
        ($($t:ty),*) => { $(
            // SAFETY: `repr(C)` or `repr(transparent)` integers without implicit padding (asserted above): any bytes are
            // a valid value.
            #[allow(unsafe_code, reason = "the trait is unsafe to implement")]
            unsafe impl aya::Pod for $t {}
        )* };
    }
    pod!(
        AgentId,
        Label,
        AgentState,
        RuleKey,
        Forwarder,
        FlowKey,
        Origin,
        Question,
        Heard,
        SocketMark,
        Identify,
        CgroupMask,
        UnixName,
        FileKey,
        Event,
        Told,
        Noted,
        ExecHead,
        ExecRule,
        ExecEvent,
        crate::layout::Layout
    );
}
