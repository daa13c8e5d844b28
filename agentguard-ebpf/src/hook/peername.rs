//! What the agent sees as its peer: the address it asked for.

use agentguard_common::abi::SocketMark;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use crate::hook::guard::ALLOW;
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
pub fn show_asked(ctx: &SockAddr) -> i32 {
    let Some(mark) = MARKS.of(ctx.sk()) else {
        return ALLOW;
    };
    // SAFETY: socket storage lives as long as the socket, which the hook holds.
    let mark: &SocketMark = unsafe { mark.as_ref() };
    if is_redirected_to(mark, &ctx.addr(), ctx.port()) {
        ctx.rewrite(mark.origin.addr, mark.origin.port);
    }
    ALLOW
}
