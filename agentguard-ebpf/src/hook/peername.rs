//! What the agent sees as its peer: the address it asked for, or who has written to a socket that it listens on.

use agentguard_common::abi::SocketMark;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::hook::guard::ALLOW;
use crate::hook::heard::hear;
use crate::hook::redirect::is_redirected_to;
use crate::maps::MARKS;
use crate::sock_addr::{Family, SockAddr};

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    show_asked(&SockAddr::new(&ctx, Family::V4))
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    show_asked(&SockAddr::new(&ctx, Family::V6))
}

/// Puts the asked address in the place of the forwarder's. These hooks may only allow.
#[inline(always)]
fn show_asked(ctx: &SockAddr) -> i32 {
    if let Some(mark) = MARKS.of(ctx.sk()) {
        // SAFETY: socket storage lives as long as the socket, which the hook holds.
        show(ctx, unsafe { mark.as_ref() });
    }
    ALLOW
}

/// As above, for a datagram that the agent is about to read; another's sender may be answered.
#[inline(always)]
pub fn show_sender(ctx: &SockAddr) -> i32 {
    if let Some(mark) = MARKS.of(ctx.sk()) {
        // SAFETY: as above.
        let mark = unsafe { mark.as_ref() };
        if !show(ctx, mark) {
            hear(ctx, mark);
        }
    }
    ALLOW
}

/// Whether the address was the forwarder's.
#[inline(always)]
fn show(ctx: &SockAddr, mark: &SocketMark) -> bool {
    let redirected = is_redirected_to(mark, &ctx.addr(), ctx.port());
    if redirected {
        ctx.rewrite(mark.origin.addr, mark.origin.port);
    }
    redirected
}
