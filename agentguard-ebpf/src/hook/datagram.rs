//! Datagrams with a destination of their own, and what a receiver sees as their source. `udpv6_sendmsg` hands mapped
//! addresses to `udp_sendmsg`, so those run sendmsg4.

use agentguard_common::abi::{EventKind, RuleKind};
use agentguard_common::counter::Counter;
use agentguard_common::verdict::Verdict;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::hook::guard::{ALLOW, Answer, Judged, Subject, answer};
use crate::hook::peername::show_sender;
use crate::hook::redirect::{is_redirected_to, redirect};
use crate::rules;
use crate::sock_addr::{Family, SockAddr};

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    sendmsg(&SockAddr::new(&ctx, Family::V4))
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    sendmsg(&SockAddr::new(&ctx, Family::V6))
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    show_sender(&SockAddr::new(&ctx, Family::V4))
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    show_sender(&SockAddr::new(&ctx, Family::V6))
}

#[inline(always)]
fn sendmsg(ctx: &SockAddr) -> i32 {
    let Some(subject) = Subject::of(ctx.sk()) else {
        return ALLOW;
    };
    if subject.is_free_upstream() {
        return ALLOW;
    }
    let what = ctx.what();
    let judged = judge(ctx, &subject);
    answer(&subject, EventKind::Send, &what, judged)
}

#[inline(always)]
fn judge(ctx: &SockAddr, subject: &Subject) -> Judged {
    match subject.judge(RuleKind::ReachUdp, ctx) {
        // Egress records.
        Verdict::Direct | Verdict::Observe(_) => {}
        Verdict::Forward | Verdict::Resolve => {
            if let Some(refusal) = redirect(ctx, subject)? {
                return Ok(Answer::Deny(refusal));
            }
        }
        Verdict::Deny(refusal) => {
            if subject.killed || !may_leave_undecided(ctx, subject)? {
                return Ok(Answer::Deny(refusal));
            }
        }
    }
    // Egress judges by the mark.
    subject.mark()?;
    Ok(Answer::Allow)
}

/// Sends that egress can judge better, by the packet.
#[inline(always)]
fn may_leave_undecided(ctx: &SockAddr, subject: &Subject) -> Result<bool, Counter> {
    // `udp_sendmsg` refuses port 0 before the hook: there is no name, only a control message on a connected socket.
    if ctx.port() == 0 {
        return Ok(true);
    }
    // A v6 socket connected to a mapped address: `udpv6_sendmsg` makes a name of the peer, which is the resolver.
    // SAFETY: socket storage lives as long as the socket, which the hook holds.
    let mark = unsafe { subject.mark()?.as_ref() };
    if is_redirected_to(mark, &ctx.addr(), ctx.port()) {
        return Ok(true);
    }
    let (addr, port) = ctx.local();
    let listens = rules::judge(
        subject.agent,
        subject.killed,
        RuleKind::ListenUdp,
        addr,
        port,
    );
    Ok(port != 0 && listens == Verdict::Direct)
}
