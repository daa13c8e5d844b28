//! `bind()`: an agent listens only where a `[[listen]]` says so. The forwarder's bind to `TAG_PORT` names the agent that an
//! upstream socket is for.

use agentguard_common::abi::{AgentId, EventKind, MAX_AGENTS, RuleKind, SocketMark, TAG_PORT};
use agentguard_common::net::Addr;
use agentguard_common::verdict::{Refusal, Verdict};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::hook::guard::{ALLOW, Answer, DENY, Judged, Subject, answer};
use crate::hook::redirect::{forwarder, is_forwarder, is_up};
use crate::maps::{MARKS, is_killed};
use crate::sock_addr::{Family, IPPROTO_TCP, IPPROTO_UDP, SockAddr};
use crate::task::current_tgid;

#[cgroup_sock_addr(bind4)]
pub fn bind4(ctx: SockAddrContext) -> i32 {
    bind(&SockAddr::new(&ctx, Family::V4))
}

#[cgroup_sock_addr(bind6)]
pub fn bind6(ctx: SockAddrContext) -> i32 {
    bind(&SockAddr::new(&ctx, Family::V6))
}

#[inline(always)]
fn bind(ctx: &SockAddr) -> i32 {
    let Some(subject) = Subject::of(ctx.sk()) else {
        if ctx.port() == TAG_PORT && is_forwarders(ctx) {
            return tag(ctx);
        }
        return ALLOW;
    };
    if subject.is_free_upstream() {
        return ALLOW;
    }
    let what = ctx.what();
    let judged = judge(ctx, &subject);
    answer(&subject, EventKind::Bind, &what, judged)
}

#[inline(always)]
fn judge(ctx: &SockAddr, subject: &Subject) -> Judged {
    let kind = match ctx.protocol() {
        IPPROTO_TCP => RuleKind::ListenTcp,
        IPPROTO_UDP => RuleKind::ListenUdp,
        _ => return Ok(Answer::Deny(Refusal::Protocol)),
    };
    match subject.judge(kind, ctx) {
        // Resolvers bind to port 0.
        Verdict::Deny(Refusal::Listen) | Verdict::Observe(_)
            if ctx.protocol() == IPPROTO_UDP && ctx.port() == 0 =>
        {
            subject.mark()?;
            Ok(Answer::Allow)
        }
        // Who listens there would be taken for it.
        Verdict::Observe(_) if is_forwarder(ctx) => Ok(Answer::Deny(Refusal::ForwarderPort)),
        Verdict::Observe(refusal) => {
            let mut mark = subject.mark()?;
            // SAFETY: socket storage lives as long as the socket, which the hook holds.
            unsafe { mark.as_mut() }.flags |= SocketMark::LISTENS;
            Ok(Answer::Observe(refusal))
        }
        Verdict::Deny(refusal) => Ok(Answer::Deny(refusal)),
        Verdict::Direct => {
            subject.mark()?;
            Ok(Answer::Record)
        }
        Verdict::Forward | Verdict::Resolve => Ok(Answer::Deny(Refusal::Listen)),
    }
}

#[inline(always)]
fn is_forwarders(ctx: &SockAddr) -> bool {
    forwarder(ctx.netns())
        .is_some_and(|forwarder| is_up(&forwarder) && forwarder.tgid == current_tgid())
}

/// Marks an upstream socket with the agent in the last 32 bits of the address, and lets the bind be one to anything.
#[inline(always)]
fn tag(ctx: &SockAddr) -> i32 {
    let b = ctx.addr().0;
    let agent = AgentId(u32::from_be_bytes([b[12], b[13], b[14], b[15]]));
    if agent.0 < AgentId::FIRST || agent.0 >= MAX_AGENTS || is_killed(agent) {
        return DENY;
    }
    let Some(mut mark) = MARKS.of_or_new(ctx.sk()) else {
        return DENY;
    };
    // SAFETY: socket storage lives as long as the socket, which the hook holds.
    let mark = unsafe { mark.as_mut() };
    mark.agent = agent;
    mark.flags = SocketMark::UPSTREAM;
    let any = match ctx.family {
        Family::V4 => Addr::from_v4([0; 4]),
        Family::V6 => Addr([0; 16]),
    };
    ctx.rewrite(any, 0);
    ALLOW
}
