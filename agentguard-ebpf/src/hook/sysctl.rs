//! Parameters of the kernel's below `/proc/sys`: no agent writes one, whatever its user. Some name a program that the kernel
//! runs as root and nobody's (`core_pattern`). Those of a network namespace other than the host's are its own business.

use agentguard_common::abi::AgentId;
use agentguard_common::verdict::{Finding, Refusal};
use aya_ebpf::helpers::generated::bpf_sysctl_get_name;
use aya_ebpf::macros::cgroup_sysctl;
use aya_ebpf::programs::SysctlContext;

use crate::emit;
use crate::hook::guard::{ALLOW, Answer, DENY, Judged, finding};
use crate::maps::label_of;
use crate::task::{Task, current_tgid};

/// `proc_ns_inode`'s number of the host's network namespace: filled in by the loader, and read volatile.
#[unsafe(no_mangle)]
pub static HOST_NETNS: u32 = 0;

/// A name below `/proc/sys`, zero behind its end; of a longer one the beginning.
pub type Name = [u8; 128];

#[cgroup_sysctl]
pub fn sysctl(ctx: SysctlContext) -> i32 {
    let label = label_of(current_tgid());
    // SAFETY: the hook's own context.
    let writes = unsafe { (&raw const (*ctx.sysctl).write).read_volatile() };
    if label.agent == AgentId::NONE || writes == 0 {
        return ALLOW;
    }
    let mut name: Name = [0; 128];
    // SAFETY: the hook's own context, and a buffer of that length.
    unsafe { bpf_sysctl_get_name(ctx.sysctl, name.as_mut_ptr().cast(), name.len() as u64, 0) };
    let Some(finding) = finding(judge(&name)) else {
        return ALLOW;
    };
    match emit::sysctl(finding, label.agent, &name) {
        Finding::Refused(_) => DENY,
        Finding::Allowed | Finding::Observed(_) => ALLOW,
    }
}

/// Container runtimes set those of the network from inside, before they execute what the container is for.
#[inline(always)]
fn judge(name: &Name) -> Judged {
    if let [b'n', b'e', b't', b'/', ..] = name {
        // SAFETY: a read-only global, aligned.
        let host = unsafe { (&raw const HOST_NETNS).read_volatile() };
        if Task::current().netns()? != host {
            return Ok(Answer::Allow);
        }
    }
    Ok(Answer::Deny(Refusal::Tamper))
}
