//! A socket before it is made: only of families that other hooks judge.

use agentguard_common::abi::{Event, EventKind};
use agentguard_common::verdict::Refusal;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;

use crate::emit::{self, What};
use crate::hook::guard::Answer;
use crate::hook::lsm;

const AF_UNIX: i32 = 1;
const AF_INET: i32 = 2;
const AF_INET6: i32 = 10;
const AF_NETLINK: i32 = 16;
const NETLINK_ROUTE: i32 = 0;

/// (family, type without flags, protocol, whether the kernel makes it for itself, answer of the program before).
/// `__sock_create` has made AF_PACKET of its old spelling by now.
#[lsm(hook = "socket_create")]
pub fn lsm_socket_create(ctx: LsmContext) -> i32 {
    let (family, sock_type, protocol, kern): (i32, i32, i32, i32) =
        (ctx.arg(0), ctx.arg(1), ctx.arg(2), ctx.arg(3));
    lsm::answer(
        ctx.arg(4),
        |_| {
            let judged_elsewhere = match family {
                AF_UNIX | AF_INET | AF_INET6 => true,
                // Interfaces and routes, which resolvers read.
                AF_NETLINK => protocol == NETLINK_ROUTE,
                _ => false,
            };
            Ok(if judged_elsewhere || kern != 0 {
                Answer::Allow
            } else {
                Answer::Deny(Refusal::Family)
            })
        },
        |caller, finding| {
            let what = What {
                family: Event::AF | family as u16,
                sock_type: sock_type as u32,
                proto: protocol as u32,
                ..What::default()
            };
            emit::call(EventKind::Socket, finding, caller.agent, &what)
        },
    )
}
