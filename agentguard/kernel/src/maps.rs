//! The pinned maps: what each must be, and a typed handle on it.

use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use agentguard_common::abi::{
    AgentState, CONFIG_LEN, CgroupMask, ConfigSlot, ExecHead, ExecRule, FileKey, FlowKey,
    Forwarder, Heard, Identify, Label, MAX_AGENTS, MAX_EXEC_RULES, MAX_IDENTIFY, MAX_TGID, Noted,
    Origin, PORT_WORDS, Question, RuleKey, SocketMark, Told,
};
use agentguard_common::counter::Counter;
use agentguard_common::share::{self, QuestionMark};

use super::KernelError;
use super::bpf::{self, MapInfo};

/// What a map must be for the programs and this build to mean the same by it.
pub(super) struct Spec {
    pub(super) name: &'static str,
    map_type: u32,
    key_size: usize,
    value_size: usize,
    max_entries: u32,
    map_flags: u32,
}

const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PERCPU_ARRAY: u32 = 6;
const LRU_HASH: u32 = 9;
const ARRAY_OF_MAPS: u32 = 12;
const SK_STORAGE: u32 = 24;
const RINGBUF: u32 = 27;
/// `BPF_F_NO_PREALLOC` | `BPF_F_CLONE`.
const CLONED: u32 = 0x201;

/// Every pinned map, as `agentguard-ebpf/src/maps.rs` defines it. Those that hold nothing between two calls are not pinned.
pub(super) const SPECS: [Spec; 29] = [
    array::<Label>("LABELS", MAX_TGID),
    array::<AgentState>("AGENTS", MAX_AGENTS),
    array::<u32>("KILL_ORDERS", MAX_AGENTS),
    spec("RULES", ARRAY_OF_MAPS, 4, 4, MAX_AGENTS, 0),
    spec("UNIX", ARRAY_OF_MAPS, 4, 4, MAX_AGENTS, 0),
    hash::<FlowKey, Origin>("FLOWS", share::FLOWS),
    array::<i64>("FLOW_COUNTS", MAX_AGENTS),
    hash::<u64, Origin>("ACCEPTED", share::ACCEPTED),
    lru::<QuestionMark, Question>("QUESTIONS", share::QUESTIONS),
    lru::<u32, QuestionMark>("QUESTION_PLACES", share::QUESTIONS),
    array::<u64>("QUESTION_TURNS", MAX_AGENTS),
    array::<u64>("CONNECTS_DUE", MAX_AGENTS),
    array::<u64>("QUESTIONS_DUE", MAX_AGENTS),
    hash::<u64, Forwarder>("FORWARDERS", share::NAMESPACES),
    lru::<Heard, u32>("HEARD", share::HEARD),
    lru::<u32, Heard>("HEARD_PLACES", share::HEARD),
    array::<u64>("HEARD_TURNS", MAX_AGENTS),
    array::<u64>("PORTS", PORT_WORDS),
    array::<u64>("CONFIG", CONFIG_LEN),
    array::<Identify>("IDENTIFY", 2 * MAX_IDENTIFY),
    array::<ExecHead>("EXEC_HEADS", 2 * MAX_AGENTS),
    array::<ExecRule>("EXEC_RULES", 2 * MAX_EXEC_RULES),
    hash::<FileKey, u32>("PROTECTED", 1024),
    hash::<u64, CgroupMask>("CGROUPS", 16384),
    spec("EVENTS", RINGBUF, 0, 0, share::RING_LEN, 0),
    array::<Told>("TOLD", MAX_AGENTS),
    array::<Noted>("NOTED", MAX_AGENTS),
    spec("COUNTERS", PERCPU_ARRAY, 4, 8, Counter::ALL.len() as u32, 0),
    spec("MARKS", SK_STORAGE, 4, size_of::<SocketMark>(), 0, CLONED),
];

const fn spec(
    name: &'static str,
    map_type: u32,
    key_size: usize,
    value_size: usize,
    max_entries: u32,
    map_flags: u32,
) -> Spec {
    Spec {
        name,
        map_type,
        key_size,
        value_size,
        max_entries,
        map_flags,
    }
}

const fn array<V>(name: &'static str, max_entries: u32) -> Spec {
    spec(name, ARRAY, 4, size_of::<V>(), max_entries, 0)
}

const fn hash<K, V>(name: &'static str, max_entries: u32) -> Spec {
    spec(name, HASH, size_of::<K>(), size_of::<V>(), max_entries, 0)
}

const fn lru<K, V>(name: &'static str, max_entries: u32) -> Spec {
    spec(
        name,
        LRU_HASH,
        size_of::<K>(),
        size_of::<V>(),
        max_entries,
        0,
    )
}

impl Spec {
    /// Whether a map found under this name is what it must be.
    pub(super) fn check(&self, map: BorrowedFd<'_>) -> Result<(), KernelError> {
        let found = bpf::map_info(map)?;
        let expected = MapInfo {
            map_type: self.map_type,
            id: found.id,
            key_size: self.key_size as u32,
            value_size: self.value_size as u32,
            max_entries: self.max_entries,
            map_flags: self.map_flags,
        };
        if found == expected {
            return Ok(());
        }
        Err(KernelError::Pins(format!(
            "the pinned map {} is not this version's ({found:?}, expected {expected:?}); \
             `agentguard unload --yes` removes it",
            self.name
        )))
    }
}

/// A map with keys `K` and values `V`.
pub(super) struct Map<K, V> {
    fd: OwnedFd,
    types: PhantomData<fn(K) -> V>,
}

impl<K, V> Map<K, V> {
    pub(super) fn open(folder: &Path, name: &str, flags: u32) -> Result<Self, KernelError> {
        Ok(Self {
            fd: open(folder, name, flags)?,
            types: PhantomData,
        })
    }

    pub(super) fn update(&self, key: &K, value: &V) -> Result<(), KernelError> {
        bpf::update(self.as_fd(), key, value)
    }

    /// Whether there was one.
    pub(super) fn delete(&self, key: &K) -> Result<bool, KernelError> {
        bpf::delete(self.as_fd(), key)
    }
}

impl<K, V: Default + aya::Pod> Map<K, V> {
    pub(super) fn lookup(&self, key: &K) -> Result<Option<V>, KernelError> {
        bpf::lookup(self.as_fd(), key)
    }
}

impl<K: Default + aya::Pod, V> Map<K, V> {
    /// Of a hash map, as they are while nobody changes it.
    pub(super) fn keys(&self) -> Result<Vec<K>, KernelError> {
        let mut keys = Vec::new();
        while let Some(key) = bpf::next_key(self.as_fd(), keys.last())? {
            keys.push(key);
        }
        Ok(keys)
    }

    /// Takes every element out of a hash map.
    pub(super) fn clear(&self) -> Result<(), KernelError> {
        while let Some(key) = bpf::next_key::<K>(self.as_fd(), None)? {
            self.delete(&key)?;
        }
        Ok(())
    }
}

impl<K, V> AsFd for Map<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

pub(super) fn open(folder: &Path, name: &str, flags: u32) -> Result<OwnedFd, KernelError> {
    bpf::open_pin(&folder.join(name), flags)?
        .ok_or_else(|| KernelError::Pins(format!("{} is not pinned", folder.join(name).display())))
}

/// Handles on all of them that userspace uses.
pub(super) struct Maps {
    pub(super) labels: Map<u32, Label>,
    pub(super) agents: Map<u32, AgentState>,
    pub(super) kill_orders: Map<u32, u32>,
    pub(super) rules: Map<u32, u32>,
    pub(super) unix: Map<u32, u32>,
    pub(super) flows: Map<FlowKey, Origin>,
    flow_counts: Map<u32, i64>,
    pub(super) accepted: Map<u64, Origin>,
    pub(super) forwarders: Map<u64, Forwarder>,
    ports: Map<u32, u64>,
    config: Map<u32, u64>,
    pub(super) identify: Map<u32, Identify>,
    pub(super) exec_heads: Map<u32, ExecHead>,
    pub(super) exec_rules: Map<u32, ExecRule>,
    pub(super) protected: Map<FileKey, u32>,
    pub(super) cgroups: Map<u64, CgroupMask>,
    pub(super) counters: OwnedFd,
    pub(super) marks: OwnedFd,
}

impl Maps {
    /// Opens those pinned in `folder`.
    pub(super) fn open(folder: &Path) -> Result<Self, KernelError> {
        Ok(Self {
            labels: Map::open(folder, "LABELS", 0)?,
            agents: Map::open(folder, "AGENTS", 0)?,
            kill_orders: Map::open(folder, "KILL_ORDERS", 0)?,
            rules: Map::open(folder, "RULES", 0)?,
            unix: Map::open(folder, "UNIX", 0)?,
            flows: Map::open(folder, "FLOWS", 0)?,
            flow_counts: Map::open(folder, "FLOW_COUNTS", 0)?,
            accepted: Map::open(folder, "ACCEPTED", 0)?,
            forwarders: Map::open(folder, "FORWARDERS", 0)?,
            ports: Map::open(folder, "PORTS", 0)?,
            config: Map::open(folder, "CONFIG", 0)?,
            identify: Map::open(folder, "IDENTIFY", 0)?,
            exec_heads: Map::open(folder, "EXEC_HEADS", 0)?,
            exec_rules: Map::open(folder, "EXEC_RULES", 0)?,
            protected: Map::open(folder, "PROTECTED", 0)?,
            cgroups: Map::open(folder, "CGROUPS", 0)?,
            counters: open(folder, "COUNTERS", 0)?,
            marks: open(folder, "MARKS", 0)?,
        })
    }

    /// Takes every flow out. One that comes or goes meanwhile makes its agent's count wrong by one.
    pub(super) fn clear_flows(&self) -> Result<(), KernelError> {
        self.flows.clear()?;
        (0..MAX_AGENTS).try_for_each(|agent| self.flow_counts.update(&agent, &0))
    }

    /// Puts a namespace's forwarder into the map, and the ports that there are now into the bitmap.
    pub(super) fn set_forwarder(
        &self,
        netns_cookie: u64,
        forwarder: Forwarder,
    ) -> Result<(), KernelError> {
        let port = u16::try_from(forwarder.port)
            .map_err(|_| KernelError::Limit(format!("{} is not a port", forwarder.port)))?;
        let before = self.forwarders.lookup(&netns_cookie)?;
        if port != 0 {
            // First: no connect to it may go unseen.
            self.set_port(port, true)?;
        }
        self.forwarders.update(&netns_cookie, &forwarder)?;
        self.drop_port(before)
    }

    pub(super) fn remove_forwarder(&self, netns_cookie: u64) -> Result<(), KernelError> {
        let before = self.forwarders.lookup(&netns_cookie)?;
        self.forwarders.delete(&netns_cookie)?;
        self.drop_port(before)
    }

    /// Takes a former forwarder's port out of the bitmap, unless one in another namespace has it too.
    fn drop_port(&self, before: Option<Forwarder>) -> Result<(), KernelError> {
        let Some(port) = before.and_then(|before| u16::try_from(before.port).ok()) else {
            return Ok(());
        };
        for other in self.forwarders.keys()? {
            let other = self.forwarders.lookup(&other)?;
            if other.is_some_and(|other| other.port == u32::from(port)) {
                return Ok(());
            }
        }
        self.set_port(port, false)
    }

    fn set_port(&self, port: u16, used: bool) -> Result<(), KernelError> {
        let word = u32::from(port >> 6);
        let bit = 1 << (port & 63);
        let ports = self.ports.lookup(&word)?.unwrap_or(0);
        let ports = if used { ports | bit } else { ports & !bit };
        self.ports.update(&word, &ports)
    }

    pub(super) fn config(&self, slot: ConfigSlot) -> Result<u64, KernelError> {
        Ok(self.config.lookup(&(slot as u32))?.unwrap_or(0))
    }

    pub(super) fn set_config(&self, slot: ConfigSlot, value: u64) -> Result<(), KernelError> {
        self.config.update(&(slot as u32), &value)
    }
}

/// Key of a rules trie: the prefix length in bits, then what it counts over.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct TrieKey {
    pub(super) prefix_len: u32,
    pub(super) data: RuleKey,
}
