//! `connect()`: direct, to the forwarder, or refused. UDP connects by themselves decide nothing but DNS: their packets are
//! judged when they leave.

use agentguard_common::abi::{EventKind, RuleKind};
use agentguard_common::counter::Counter;
use agentguard_common::verdict::{Refusal, Verdict};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::hook::guard::{ALLOW, Answer, DENY, Judged, Subject, answer};
use crate::hook::redirect::{forget, is_forwarder, redirect};
use crate::maps::count;
use crate::rules;
use crate::sock_addr::{Family, IPPROTO_TCP, IPPROTO_UDP, SockAddr};

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    connect(&SockAddr::new(&ctx, Family::V4))
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    connect(&SockAddr::new(&ctx, Family::V6))
}

#[inline(always)]
fn connect(ctx: &SockAddr) -> i32 {
    let Some(subject) = Subject::of(ctx.sk()) else {
        if is_forwarder(ctx) {
            count(Counter::Refused);
            return DENY;
        }
        return ALLOW;
    };
    if subject.is_free_upstream() {
        return ALLOW;
    }
    let what = ctx.what();
    let judged = match ctx.protocol() {
        IPPROTO_TCP => tcp(ctx, &subject),
        IPPROTO_UDP => udp(ctx, &subject),
        _ => Ok(Answer::Deny(Refusal::Protocol)),
    };
    answer(&subject, EventKind::Connect, &what, judged)
}

#[inline(always)]
fn tcp(ctx: &SockAddr, subject: &Subject) -> Judged {
    let verdict = subject.judge(RuleKind::ReachTcp, ctx);
    if let Verdict::Deny(refusal) = verdict {
        return Ok(Answer::Deny(refusal));
    }
    if is_forwarder(ctx) {
        return Ok(Answer::Deny(Refusal::ForwarderPort));
    }
    match verdict {
        Verdict::Deny(refusal) => Ok(Answer::Deny(refusal)),
        Verdict::Direct => {
            direct(subject)?;
            Ok(Answer::Record)
        }
        Verdict::Observe(refusal) => {
            direct(subject)?;
            Ok(Answer::Observe(refusal))
        }
        Verdict::Forward | Verdict::Resolve => to_forwarder(ctx, subject),
    }
}

#[inline(always)]
fn udp(ctx: &SockAddr, subject: &Subject) -> Judged {
    match subject.judge(RuleKind::ReachUdp, ctx) {
        Verdict::Deny(Refusal::Killed) => return Ok(Answer::Deny(Refusal::Killed)),
        Verdict::Deny(Refusal::Ambiguous) => return Ok(Answer::Deny(Refusal::Ambiguous)),
        Verdict::Forward | Verdict::Resolve => return to_forwarder(ctx, subject),
        Verdict::Direct | Verdict::Observe(_) | Verdict::Deny(_) => {}
    }
    direct(subject)?;
    Ok(Answer::Allow)
}

#[inline(always)]
fn to_forwarder(ctx: &SockAddr, subject: &Subject) -> Judged {
    Ok(match redirect(ctx, subject)? {
        Some(refusal) => Answer::Deny(refusal),
        None => Answer::Allow,
    })
}

/// The socket goes where it was told to; what an earlier connect left on it is void.
#[inline(always)]
fn direct(subject: &Subject) -> Result<(), Counter> {
    let mut mark = subject.mark()?;
    // SAFETY: socket storage lives as long as the socket, which the hook holds.
    forget(unsafe { mark.as_mut() });
    Ok(())
}

impl Subject {
    #[inline(always)]
    pub fn judge(&self, kind: RuleKind, ctx: &SockAddr) -> Verdict {
        rules::judge(self.agent, self.killed, kind, ctx.addr(), ctx.port())
    }
}
