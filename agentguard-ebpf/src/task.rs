//! Reads of `task_struct` and what hangs on it, at the offsets that the loader found in the kernel's BTF.

use agentguard_common::abi::ConfigSlot;
use agentguard_common::counter::Counter;
use agentguard_common::layout::Layout;
use aya_ebpf::helpers::generated::{
    bpf_get_current_pid_tgid, bpf_get_current_task, bpf_probe_read_kernel,
};

use crate::maps::config;

/// Filled in by the loader; read volatile, or the compiler would put the zeros in.
#[unsafe(no_mangle)]
pub static LAYOUT: Layout = Layout::UNKNOWN;

/// 1 where LSM programs are loaded too: filled in and read as [`LAYOUT`] is. A program of a hook that an LSM hook covers
/// better only backs it up then.
#[unsafe(no_mangle)]
pub static LSM: u32 = 0;

#[inline(always)]
pub fn has_lsm() -> bool {
    // SAFETY: a read-only global, aligned.
    unsafe { core::ptr::addr_of!(LSM).read_volatile() != 0 }
}

/// The offset of one member.
macro_rules! at {
    ($field:ident) => {
        // SAFETY: a read-only global, aligned.
        unsafe { core::ptr::addr_of!($crate::task::LAYOUT.$field).read_volatile() }
    };
}
pub(crate) use at;

/// A read of kernel memory that failed.
pub struct Unreadable;

impl From<Unreadable> for Counter {
    fn from(_: Unreadable) -> Self {
        Self::ReadFailed
    }
}

/// The value `offset` bytes behind `base`.
#[inline(always)]
pub fn read<T: Copy + Default>(base: u64, offset: u32) -> Result<T, Unreadable> {
    let mut value = T::default();
    let from = base.wrapping_add(u64::from(offset)) as *const core::ffi::c_void;
    // SAFETY: the helper checks the source address; the destination is `value`, of exactly that size.
    let failed = unsafe {
        bpf_probe_read_kernel((&raw mut value).cast(), size_of::<T>() as u32, from.cast())
    };
    if failed == 0 {
        Ok(value)
    } else {
        Err(Unreadable)
    }
}

/// The calling task's thread group.
#[inline(always)]
pub fn current_tgid() -> u32 {
    // SAFETY: no arguments.
    (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32
}

/// A `task_struct`.
#[derive(Clone, Copy)]
pub struct Task(pub u64);

impl Task {
    #[inline(always)]
    pub fn current() -> Self {
        // SAFETY: no arguments.
        Self(unsafe { bpf_get_current_task() })
    }

    #[inline(always)]
    pub fn tgid(self) -> Result<u32, Unreadable> {
        read(self.0, at!(task_tgid))
    }

    #[inline(always)]
    pub fn parent(self) -> Result<Self, Unreadable> {
        read(self.0, at!(task_real_parent)).map(Self)
    }

    #[inline(always)]
    pub fn leader(self) -> Result<Self, Unreadable> {
        read(self.0, at!(task_group_leader)).map(Self)
    }

    /// The real uid, in the host's numbers: of its own credentials, whatever those it acts with meanwhile.
    #[inline(always)]
    pub fn uid(self) -> Result<u32, Unreadable> {
        let cred: u64 = read(self.0, at!(task_real_cred))?;
        read(cred, at!(cred_uid))
    }

    /// ns of `CLOCK_BOOTTIME`.
    #[inline(always)]
    pub fn start(self) -> Result<u64, Unreadable> {
        read(self.0, at!(task_start_boottime))
    }

    /// Whether every thread of the group has exited (`do_exit` has counted the caller already).
    #[inline(always)]
    pub fn group_is_dead(self) -> Result<bool, Unreadable> {
        let signal: u64 = read(self.0, at!(task_signal))?;
        let live: u32 = read(signal, at!(signal_live))?;
        Ok(live == 0)
    }

    /// Id of its cgroup in the v2 hierarchy.
    #[inline(always)]
    pub fn cgroup(self) -> Result<u64, Unreadable> {
        let set: u64 = read(self.0, at!(task_cgroups))?;
        let cgroup: u64 = read(set, at!(css_set_dfl_cgrp))?;
        cgroup_id(cgroup)
    }

    /// Number of its network namespace, as `/proc/PID/ns/net` has it.
    #[inline(always)]
    pub fn netns(self) -> Result<u32, Unreadable> {
        let namespaces: u64 = read(self.0, at!(task_nsproxy))?;
        let net: u64 = read(namespaces, at!(nsproxy_net_ns))?;
        let common = net.wrapping_add(u64::from(at!(net_ns)));
        read(common, at!(ns_common_inum))
    }

    /// The daemon and the forwarder, its child, are never labelled.
    #[inline(always)]
    pub fn is_ours(self) -> Result<bool, Unreadable> {
        let daemon = config(ConfigSlot::Daemon) as u32;
        Ok(daemon != 0 && (self.tgid()? == daemon || self.parent()?.tgid()? == daemon))
    }
}

/// Id of a `struct cgroup`.
#[inline(always)]
pub fn cgroup_id(cgroup: u64) -> Result<u64, Unreadable> {
    let kn: u64 = read(cgroup, at!(cgroup_kn))?;
    read(kn, at!(kernfs_node_id))
}

/// Whether a `struct cgroup` is of the v2 hierarchy, which has number 0 (`cgroup_init`).
#[inline(always)]
pub fn is_cgroup2(cgroup: u64) -> Result<bool, Unreadable> {
    let root: u64 = read(cgroup, at!(cgroup_root))?;
    let hierarchy: u32 = read(root, at!(cgroup_root_hierarchy_id))?;
    Ok(hierarchy == 0)
}
