//! Unix sockets by the name that the caller writes: this runs before the kernel looks it up, so a name that is not listed
//! is refused whatever it leads to. Sections of another hook, because the loader library knows none for these.

use agentguard_common::abi::{AgentId, Event, UnixName};
use agentguard_common::counter::Counter;
use agentguard_common::verdict::{Finding, Verdict};
use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_probe_read_kernel_str};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::emit::{self, What};
use crate::hook::guard::{ALLOW, Answer, DENY, Subject, finding};
use crate::maps::label_of;
use crate::rules;
use crate::sock_addr::load;
use crate::task::{at, current_tgid, has_lsm, read};

pub const AF_UNIX: u16 = Event::AF | 1;
/// Bytes of `sun_family`.
const FAMILY_LEN: u32 = 2;

#[cgroup_sock_addr(connect4)]
pub fn unix_connect(ctx: SockAddrContext) -> i32 {
    called(&ctx, 0)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn unix_sendmsg(ctx: SockAddrContext) -> i32 {
    called(&ctx, Event::UNIX_SEND)
}

/// Each connect is recorded; of datagrams, which have no end, only those that no entry lists.
#[inline(always)]
fn called(ctx: &SockAddrContext, call: u32) -> i32 {
    let label = label_of(current_tgid());
    // The LSM hooks know what the name leads to.
    if label.agent == AgentId::NONE || has_lsm() {
        return ALLOW;
    }
    let subject = Subject::labelled(label, core::ptr::null_mut());
    let mut name = UnixName::EMPTY;
    let judged = written(ctx, &mut name).map(|()| {
        match rules::judge_unix(subject.agent, subject.killed, &name) {
            Verdict::Deny(refusal) => Answer::Deny(refusal),
            Verdict::Observe(refusal) => Answer::Observe(refusal),
            Verdict::Direct | Verdict::Forward | Verdict::Resolve if call == Event::UNIX_SEND => {
                Answer::Allow
            }
            Verdict::Direct | Verdict::Forward | Verdict::Resolve => Answer::Record,
        }
    });
    let Some(finding) = finding(judged) else {
        return ALLOW;
    };
    let what = What {
        family: AF_UNIX,
        sock_type: load!(ctx.sock_addr, type_),
        proto: call,
        ..What::default()
    };
    match emit::unix(finding, subject.agent, &what, &name) {
        Finding::Refused(_) => DENY,
        Finding::Allowed | Finding::Observed(_) => ALLOW,
    }
}

/// What stands in `sun_path`: a path up to its NUL, or the whole of an abstract name. It is the kernel's copy, which the
/// caller can no longer change.
#[inline(always)]
fn written(ctx: &SockAddrContext, name: &mut UnixName) -> Result<(), Counter> {
    // The context behind the one that programs see (`struct bpf_sock_addr_kern`). Read back from memory it is a number to
    // the verifier, which allows no arithmetic on contexts.
    let kern: u64 = read(core::ptr::from_ref(&ctx.sock_addr).addr() as u64, 0)?;
    name_at(
        read(kern, at!(sock_addr_uaddr))?,
        read(kern, at!(sock_addr_uaddrlen))?,
        name,
    )
}

/// The name in the `sockaddr_un` of `len` bytes at `address`. The NUL of a path is counted in its length or not, and one
/// that fills `sun_path` has it behind.
#[inline(always)]
pub fn name_at(address: u64, len: u32, name: &mut UnixName) -> Result<(), Counter> {
    if len <= FAMILY_LEN || len > FAMILY_LEN + UnixName::MAX as u32 + 1 {
        return Err(Counter::ReadFailed);
    }
    let from = address.wrapping_add(u64::from(FAMILY_LEN));
    // The compiler must not see that the mask changes nothing: the verifier has lost the comparison above by here.
    let len = core::hint::black_box(len - FAMILY_LEN) & 127;
    let first: u8 = read(from, 0)?;
    let to = name.bytes.as_mut_ptr().cast();
    if first == 0 {
        // SAFETY: at most 127 bytes into 128; the helper checks the source.
        if unsafe { bpf_probe_read_kernel(to, len, from as *const _) } != 0 {
            return Err(Counter::ReadFailed);
        }
        name.len = len;
        return Ok(());
    }
    // With room for the NUL that it adds to a path that fills `sun_path`.
    // SAFETY: at most 128 bytes into 128; the helper checks the source.
    let read = unsafe { bpf_probe_read_kernel_str(to, len + 1, from as *const _) };
    if read <= 1 {
        return Err(Counter::ReadFailed);
    }
    name.len = (read - 1) as u32;
    Ok(())
}
