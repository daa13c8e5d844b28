//! Every map, and what a program may do with it. Sizes and types are part of `abi::VERSION`.

use core::intrinsics::{AtomicOrdering, atomic_xadd};
use core::ptr::NonNull;

use agentguard_common::abi::{
    AgentId, AgentState, CONFIG_LEN, CgroupMask, ConfigSlot, Event, ExecEvent, ExecHead, ExecRule,
    FileKey, FlowKey, Forwarder, Heard, Identify, Label, MAX_AGENTS, MAX_EXEC_RULES, MAX_IDENTIFY,
    MAX_RULES, MAX_TGID, Noted, Origin, PATH_LEN, PORT_WORDS, Question, RuleKey, SocketMark, Told,
    UnixName,
};
use agentguard_common::counter::Counter;
use agentguard_common::share::QuestionMark;
use agentguard_common::{exec, share};
use aya_ebpf::bindings::bpf_map_type::{BPF_MAP_TYPE_SK_STORAGE, BPF_MAP_TYPE_TASK_STORAGE};
use aya_ebpf::bindings::{
    BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_LOCAL_STORAGE_GET_F_CREATE, BPF_SK_STORAGE_GET_F_CREATE,
    bpf_sock,
};
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::helpers::generated::{
    bpf_get_current_task_btf, bpf_sk_storage_get, bpf_task_storage_get,
};
use aya_ebpf::macros::btf_map;

use crate::emit::now;
use crate::identify::Scan;
use crate::path::Walk;

/// Label of each process, by tgid.
#[btf_map]
pub static LABELS: Array<Label, { MAX_TGID as usize }> = Array::new();
/// By agent id.
#[btf_map]
pub static AGENTS: Array<AgentState, { MAX_AGENTS as usize }> = Array::new();
/// By agent id; not 0: root has ordered a kill that the daemon has not taken in yet.
#[btf_map]
pub static KILL_ORDERS: Array<u32, { MAX_AGENTS as usize }> = Array::new();
/// Agent id → trie of its rules (`RuleVerdict`). No trie: nothing is allowed.
#[btf_map]
pub static RULES: ArrayOfMaps<
    LpmTrie<RuleKey, u32, { MAX_RULES as usize }>,
    { MAX_AGENTS as usize },
> = ArrayOfMaps::new();
/// Agent id → the Unix sockets that its file lists. No map: none.
#[btf_map]
pub static UNIX: ArrayOfMaps<HashMap<UnixName, u32, 1>, { MAX_AGENTS as usize }> =
    ArrayOfMaps::new();
/// Not LRU: an evicted origin is a lost identity.
#[btf_map]
pub static FLOWS: HashMap<FlowKey, Origin, { share::FLOWS as usize }> = HashMap::new();
/// Entries of `FLOWS`, by agent id.
#[btf_map]
pub static FLOW_COUNTS: Array<i64, { MAX_AGENTS as usize }> = Array::new();
/// Socket cookie of a connection that the forwarder accepts → its origin.
#[btf_map]
pub static ACCEPTED: HashMap<u64, Origin, { share::ACCEPTED as usize }> = HashMap::new();
/// What has been asked of the resolver, by the mark that its packet carries.
#[btf_map]
pub static QUESTIONS: LruHashMap<QuestionMark, Question, { share::QUESTIONS as usize }> =
    LruHashMap::new();
/// What is in `QUESTIONS`, by [`share::place`].
#[btf_map]
pub static QUESTION_PLACES: LruHashMap<u32, QuestionMark, { share::QUESTIONS as usize }> =
    LruHashMap::new();
/// How many each agent has asked, by agent id.
#[btf_map]
pub static QUESTION_TURNS: Array<u64, { MAX_AGENTS as usize }> = Array::new();
/// When each agent's next connection to the forwarder is due (`CLOCK_BOOTTIME`), ns, by agent id.
#[btf_map]
pub static CONNECTS_DUE: Array<u64, { MAX_AGENTS as usize }> = Array::new();
/// When each agent's next question is due (`CLOCK_BOOTTIME`), ns, by agent id.
#[btf_map]
pub static QUESTIONS_DUE: Array<u64, { MAX_AGENTS as usize }> = Array::new();
/// By netns cookie.
#[btf_map]
pub static FORWARDERS: HashMap<u64, Forwarder, { share::NAMESPACES as usize }> = HashMap::new();
/// Who may be answered from a listening UDP socket; not 0: it has been.
#[btf_map]
pub static HEARD: LruHashMap<Heard, u32, { share::HEARD as usize }> = LruHashMap::new();
/// What is in `HEARD`, by [`share::place`].
#[btf_map]
pub static HEARD_PLACES: LruHashMap<u32, Heard, { share::HEARD as usize }> = LruHashMap::new();
/// How many each agent has heard, by agent id.
#[btf_map]
pub static HEARD_TURNS: Array<u64, { MAX_AGENTS as usize }> = Array::new();
#[btf_map]
static PORTS: Array<u64, { PORT_WORDS as usize }> = Array::new();
#[btf_map]
pub static CONFIG: Array<u64, { CONFIG_LEN as usize }> = Array::new();
/// Two banks, of which `ConfigSlot::Identify` names the one in force.
#[btf_map]
pub static IDENTIFY: Array<Identify, { 2 * MAX_IDENTIFY as usize }> = Array::new();
/// By agent id, in two banks, of which `ConfigSlot::Exec` names the one in force.
#[btf_map]
pub static EXEC_HEADS: Array<ExecHead, { 2 * MAX_AGENTS as usize }> = Array::new();
/// In two banks, as the heads.
#[btf_map]
pub static EXEC_RULES: Array<ExecRule, { 2 * MAX_EXEC_RULES as usize }> = Array::new();
/// The daemon's own files and folders, and those above them; by [`FileKey`]'s flags.
#[btf_map]
pub static PROTECTED: HashMap<FileKey, u32, 1024> = HashMap::new();
/// Only cgroups that some block matches, by cgroup v2 id.
#[btf_map]
pub static CGROUPS: HashMap<u64, CgroupMask, 16384> = HashMap::new();
#[btf_map]
pub static EVENTS: RingBuf<Event, { share::RING_LEN as usize }> = RingBuf::new();
/// By agent id.
#[btf_map]
pub static TOLD: Array<Told, { MAX_AGENTS as usize }> = Array::new();
/// By agent id.
#[btf_map]
pub static NOTED: Array<Noted, { MAX_AGENTS as usize }> = Array::new();
#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { Counter::ALL.len() }> = PerCpuArray::new();
/// For the tracepoints that the kernel calls with interrupts off, which never nest.
#[btf_map]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();
/// For the two programs at an exec. Since Linux 7.0 each can be preempted, by one of the above and by the other.
#[btf_map]
static EXEC_DESKS: PerCpuArray<ExecDesk, 2> = PerCpuArray::new();
/// The exec that the first of the two has dealt with last on this CPU.
#[btf_map]
pub static EXEC_DONE: PerCpuArray<u64, 1> = PerCpuArray::new();
/// For the program at a new socket.
#[btf_map]
static NEWCOMER_DESK: PerCpuArray<NewcomerDesk, 1> = PerCpuArray::new();
/// For the LSM programs, which can be preempted by one another.
#[btf_map]
static TASK_SCRATCH: TaskScratch = TaskScratch::new();
#[btf_map]
pub static MARKS: Marks = Marks::new();

/// What the tracepoints work on. In a map and not on the stack: the verifier follows every value on the stack through every
/// turn of a `bpf_loop`, but takes what it reads from a map as it comes.
#[repr(C)]
pub struct Scratch {
    /// A path as it is being walked: written from the end of the first half to its front, then moved to `path`.
    pub names: [u8; 2 * PATH_LEN],
    pub path: [u8; PATH_LEN],
    /// The working folder of an exec.
    pub cwd: [u8; PATH_LEN],
    pub walk: Walk,
    pub scan: Scan,
    pub exec: exec::Scan,
    /// Of the file at `content_of`. A tracepoint has none, which is unknown content.
    pub content: exec::Content,
    /// A `struct file`; 0: of none.
    pub content_of: u64,
    /// Of the exec that is under way, for an agent that is only observed: the first file of its chain that would have been
    /// refused.
    pub observed: [u8; PATH_LEN],
    /// Bytes of its path.
    pub observed_len: u32,
    /// A `Refusal`; 0: none would have been.
    pub observed_as: u32,
}

/// What a program at an exec works on.
#[repr(C)]
pub struct ExecDesk {
    pub scratch: Scratch,
    /// Where the event is put together: of the arguments only as many bytes as there are go into the ring.
    pub event: ExecEvent,
}

/// What the program at a new socket works on.
#[repr(C)]
pub struct NewcomerDesk {
    /// Changed by whoever begins or ends work here.
    pub turn: u64,
    pub scratch: Scratch,
}

#[inline(always)]
pub fn scratch() -> Option<*mut Scratch> {
    SCRATCH.get_ptr_mut(0)
}

#[inline(always)]
pub fn exec_desk(number: u32) -> Option<*mut ExecDesk> {
    EXEC_DESKS.get_ptr_mut(number)
}

#[inline(always)]
pub fn newcomer_desk() -> Option<*mut NewcomerDesk> {
    NEWCOMER_DESK.get_ptr_mut(0)
}

/// The calling task's own, made when it first needs one.
#[inline(always)]
pub fn task_scratch() -> Option<*mut Scratch> {
    let map = (&raw const TASK_SCRATCH).cast_mut().cast();
    // SAFETY: no arguments.
    let task = unsafe { bpf_get_current_task_btf() };
    let create = u64::from(BPF_LOCAL_STORAGE_GET_F_CREATE);
    // SAFETY: the verifier knows `task` as a task.
    let scratch = unsafe { bpf_task_storage_get(map, task, core::ptr::null_mut(), create) };
    NonNull::new(scratch.cast()).map(NonNull::as_ptr)
}

/// `BPF_MAP_TYPE_TASK_STORAGE`, which aya-ebpf has no definition of.
#[repr(C)]
struct TaskScratch {
    r#type: *const [i32; BPF_MAP_TYPE_TASK_STORAGE as usize],
    key: *const i32,
    value: *const Scratch,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; BPF_F_NO_PREALLOC as usize],
}

// SAFETY: the fields are placeholders for the loader and never read.
unsafe impl Sync for TaskScratch {}

impl TaskScratch {
    const fn new() -> Self {
        use core::ptr::null;
        Self {
            r#type: null(),
            key: null(),
            value: null(),
            max_entries: null(),
            map_flags: null(),
        }
    }
}

/// `BPF_MAP_TYPE_SK_STORAGE` with `BPF_F_CLONE`, which aya-ebpf's own definition lacks.
#[repr(C)]
pub struct Marks {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const SocketMark,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: the fields are placeholders for the loader and never read.
unsafe impl Sync for Marks {}

impl Marks {
    const fn new() -> Self {
        use core::ptr::null;
        Self {
            r#type: null(),
            key: null(),
            value: null(),
            max_entries: null(),
            map_flags: null(),
        }
    }

    #[inline(always)]
    fn storage(&self, sk: *mut bpf_sock, flags: u32) -> Option<NonNull<SocketMark>> {
        let map = core::ptr::from_ref(self).cast_mut().cast();
        // SAFETY: the verifier checks that `sk` is a socket; the helper itself ignores request and time-wait sockets.
        let mark =
            unsafe { bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), u64::from(flags)) };
        NonNull::new(mark.cast())
    }

    #[inline(always)]
    pub fn of(&self, sk: *mut bpf_sock) -> Option<NonNull<SocketMark>> {
        self.storage(sk, 0)
    }

    /// Zeroed if it is new.
    #[inline(always)]
    pub fn of_or_new(&self, sk: *mut bpf_sock) -> Option<NonNull<SocketMark>> {
        self.storage(sk, BPF_SK_STORAGE_GET_F_CREATE)
    }
}

#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the slot is this CPU's; a nested program's addition may be lost, which a counter can bear.
        unsafe { *value += 1 };
    }
}

/// Whether a forwarder listens on `port`, in whatever namespace.
#[inline(always)]
pub fn is_forwarder_port(port: u16) -> bool {
    PORTS
        .get(u32::from(port >> 6))
        .is_some_and(|word| (word >> (port & 63)) & 1 == 1)
}

#[inline(always)]
pub fn config(slot: ConfigSlot) -> u64 {
    match CONFIG.get_ptr(slot as u32) {
        // SAFETY: an element of an array map stays; userspace changes it in one 64-bit store.
        Some(word) => unsafe { word.read_volatile() },
        None => 0,
    }
}

#[inline(always)]
pub fn clear_config(slot: ConfigSlot) {
    if let Some(word) = CONFIG.get_ptr_mut(slot as u32) {
        // SAFETY: as in `config`.
        unsafe { word.write_volatile(0) };
    }
}

/// Adds to an element of an array map, whatever other processors add.
#[inline(always)]
pub fn add<T: Copy>(element: *mut T, more: T) {
    // SAFETY: such an element stays, and is aligned.
    unsafe { atomic_xadd::<T, T, { AtomicOrdering::Relaxed }>(element, more) };
}

/// Whether one more is due: `in_a_row` at once, and one each `every_ns` on average. Two CPUs at once may take one turn for
/// both, and one that is preempted in between gives back what others took meanwhile. `due`: an element of an array map.
#[inline(always)]
pub fn is_due(due: *mut u64, in_a_row: u64, every_ns: u64) -> bool {
    let now = now();
    // SAFETY: such an element stays, and is aligned.
    let next = unsafe { due.read_volatile() }.max(now);
    if next - now >= in_a_row * every_ns {
        return false;
    }
    // SAFETY: as above.
    unsafe { due.write_volatile(next + every_ns) };
    true
}

/// The number of `agent`'s next entry in a table. Two that are made at once may get the same: this instruction set (v1) adds
/// without telling what was there.
#[inline(always)]
pub fn turn(turns: &Array<u64, { MAX_AGENTS as usize }>, agent: AgentId) -> Option<u64> {
    let turn = turns.get_ptr_mut(agent.0)?;
    add(turn, 1);
    // SAFETY: as in `add`.
    Some(unsafe { turn.read_volatile() })
}

#[inline(always)]
pub fn label_of(tgid: u32) -> Label {
    LABELS.get(tgid).copied().unwrap_or_default()
}

#[inline(always)]
pub fn set_label(tgid: u32, label: Label) {
    if let Some(slot) = LABELS.get_ptr_mut(tgid) {
        // SAFETY: an element of an array map stays.
        unsafe { slot.write_volatile(label) };
    }
}

#[inline(always)]
pub fn is_killed(agent: AgentId) -> bool {
    match (AGENTS.get(agent.0), KILL_ORDERS.get(agent.0)) {
        (Some(state), Some(ordered)) => state.killed != 0 || *ordered != 0,
        // An id beyond the maps is nobody's.
        _ => true,
    }
}
