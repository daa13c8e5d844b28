//! Disks, and the host's memory as a whole: no agent opens or makes one, whatever its user. What is in files would be read and
//! changed there past every owner and hook.

use agentguard_common::abi::{AgentId, Tamper};
use agentguard_common::verdict::{Finding, Refusal};
use aya_ebpf::macros::cgroup_device;
use aya_ebpf::programs::DeviceContext;

use crate::emit;
use crate::hook::guard::{ALLOW, Answer, DENY, finding};
use crate::maps::label_of;
use crate::task::current_tgid;

/// `BPF_DEVCG_DEV_BLOCK`, in the lower half of the access type; the access is in the upper, and each is refused.
const BLOCK: u32 = 1;
const TYPE: u32 = 0xffff;

/// `Documentation/admin-guide/devices.txt`.
const MEM: u32 = 1;
const MISC: u32 = 10;
const SCSI_GENERIC: u32 = 21;
const MTD: u32 = 90;
const RAW: u32 = 162;
const MSR: u32 = 202;

/// Majors that the kernel gives as they come, of devices that carry commands to a disk: filled in by the loader, 0 if unused,
/// and read volatile.
#[unsafe(no_mangle)]
pub static DISK_MAJORS: [u32; 6] = [0; 6];

#[cgroup_device]
pub fn device(ctx: DeviceContext) -> i32 {
    let label = label_of(current_tgid());
    if label.agent == AgentId::NONE {
        return ALLOW;
    }
    // SAFETY: the hook's own context. Volatile, or LLVM may make one load of two.
    let access = unsafe { (&raw const (*ctx.device).access_type).read_volatile() };
    // SAFETY: as above.
    let major = unsafe { (&raw const (*ctx.device).major).read_volatile() };
    // SAFETY: as above.
    let minor = unsafe { (&raw const (*ctx.device).minor).read_volatile() };
    let tried = if access & TYPE == BLOCK {
        Tamper::BlockDevice
    } else if leads_to_all(major, minor) {
        Tamper::CharDevice
    } else {
        return ALLOW;
    };
    let Some(finding) = finding(Ok(Answer::Deny(Refusal::Tamper))) else {
        return ALLOW;
    };
    match emit::device(finding, label.agent, tried, major, minor) {
        Finding::Refused(_) => DENY,
        Finding::Allowed | Finding::Observed(_) => ALLOW,
    }
}

/// Character devices by which memory or a disk is read and written as a whole. Terminals, `null`, `fuse`, `kvm` and the like
/// are none.
#[inline(always)]
fn leads_to_all(major: u32, minor: u32) -> bool {
    match (major, minor) {
        // mem, kmem, port.
        (MEM, 1 | 2 | 4) => true,
        // vfio, nvram, mptctl, mpt2ctl, mpt3ctl, snapshot (of a hibernation), btrfs-control, mapper/control, loop-control.
        (MISC, 144 | 196 | 220 | 221 | 222 | 231 | 234 | 236 | 237) => true,
        (SCSI_GENERIC | MTD | RAW | MSR, _) => true,
        _ => (0..DISK_MAJORS.len()).any(|n| {
            // SAFETY: a read-only global, aligned.
            major != 0 && major == unsafe { (&raw const DISK_MAJORS[n]).read_volatile() }
        }),
    }
}
