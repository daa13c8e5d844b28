//! A socket's first and last moment: marked with its agent when it is made, its flow forgotten when it is closed.

use agentguard_common::abi::{AgentId, ConfigSlot, EventKind};
use agentguard_common::verdict::Refusal;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie};
use aya_ebpf::macros::cgroup_sock;
use aya_ebpf::programs::SockContext;

use crate::emit::{self, What};
use crate::hook::enrol::caller;
use crate::hook::guard::{ALLOW, Answer, Judged, Subject, answer};
use crate::hook::redirect::unpublish;
use crate::maps::{ACCEPTED, FORWARDERS, MARKS, config};
use crate::sock_addr::{IPPROTO_TCP, IPPROTO_UDP, load};
use crate::task::current_tgid;

const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
const AF_INET6: u32 = 10;

#[cgroup_sock(sock_create)]
pub fn sock_create(ctx: SockContext) -> i32 {
    let sk = ctx.sock;
    let label = caller();
    if label.agent.0 == 0 {
        return ALLOW;
    }
    let subject = Subject::labelled(label, sk);
    let what = What {
        family: if load!(sk, family) == AF_INET6 { 6 } else { 4 },
        sock_type: load!(sk, type_),
        proto: load!(sk, protocol),
        ..What::default()
    };
    let judged = judge(&subject, &what);
    answer(&subject, EventKind::Socket, &what, judged)
}

/// `inet_create` has put the standard protocol in the place of 0 by now.
#[inline(always)]
fn judge(subject: &Subject, what: &What) -> Judged {
    if subject.killed {
        return Ok(Answer::Deny(Refusal::Killed));
    }
    if subject.agent == AgentId::AMBIGUOUS {
        return Ok(Answer::Deny(Refusal::Ambiguous));
    }
    match (what.sock_type, what.proto) {
        (SOCK_STREAM, IPPROTO_TCP) | (SOCK_DGRAM, IPPROTO_UDP) => {
            subject.mark()?;
            Ok(Answer::Allow)
        }
        _ => Ok(Answer::Deny(Refusal::Protocol)),
    }
}

#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    let sk = ctx.sock;
    if let Some(mark) = MARKS.of(sk) {
        // SAFETY: socket storage lives as long as the socket, which the hook holds.
        unpublish(unsafe { mark.as_ref() });
        return ALLOW;
    }
    let tgid = current_tgid();
    if u64::from(tgid) == config(ConfigSlot::Forwarder) {
        forwarders(sk, tgid);
    }
    ALLOW
}

/// A connection that the forwarder is done with, or one of its listeners.
#[inline(always)]
fn forwarders(sk: *mut bpf_sock, tgid: u32) {
    // SAFETY: the hook's own context.
    let cookie = unsafe { bpf_get_socket_cookie(sk.cast()) };
    let _ = ACCEPTED.remove(cookie);
    // SAFETY: the hook's own context.
    let netns = unsafe { bpf_get_netns_cookie(sk.cast()) };
    let Some(forwarder) = FORWARDERS.get_ptr_mut(netns) else {
        return;
    };
    // SAFETY: the element is this namespace's; userspace replaces it only for a new forwarder.
    let forwarder = unsafe { &mut *forwarder };
    let is_listener = cookie == forwarder.listener4 || cookie == forwarder.listener6;
    if forwarder.tgid == tgid && forwarder.up != 0 && is_listener {
        forwarder.up = 0;
        emit::forwarder_down();
    }
}
