//! `listen()`, which makes a socket without a port of its own bind to any: an agent listens only where a `[[listen]]` says so.

use agentguard_common::abi::{Event, EventKind, RuleKind};
use agentguard_common::net::Addr;
use agentguard_common::verdict::{Refusal, Verdict};
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;

use crate::emit::{self, What};
use crate::hook::guard::{Answer, Judged};
use crate::hook::lsm::{self, Caller};
use crate::rules;
use crate::sock_addr::IPPROTO_TCP;
use crate::task::{at, read};

const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const SOCK_STREAM: u32 = 1;

/// (socket, backlog, answer of the program before).
#[lsm(hook = "socket_listen")]
pub fn lsm_socket_listen(ctx: LsmContext) -> i32 {
    let Some(caller) = Caller::current() else {
        return lsm::ALLOW;
    };
    let socket: *const core::ffi::c_void = ctx.arg(0);
    let mut what = What::default();
    let judged = judge(&caller, socket.addr() as u64, &mut what);
    lsm::answer(
        ctx.arg(2),
        |_| judged,
        |caller, finding| emit::call(EventKind::Bind, finding, caller.agent, &what),
    )
}

#[inline(always)]
fn judge(caller: &Caller, socket: u64, what: &mut What) -> Judged {
    let sk: u64 = read(socket, at!(socket_sk))?;
    let family: u16 = read(sk, at!(sock_family))?;
    what.addr = match family {
        // Judged when a peer connects to it.
        AF_UNIX => return Ok(Answer::Allow),
        AF_INET => Addr::from_v4(read(sk, at!(sock_rcv_saddr))?),
        AF_INET6 => Addr(read(sk, at!(sock_v6_rcv_saddr))?),
        _ => {
            what.family = Event::AF | family;
            return Ok(Answer::Deny(Refusal::Family));
        }
    };
    what.family = if family == AF_INET { 4 } else { 6 };
    what.sock_type = SOCK_STREAM;
    what.proto = IPPROTO_TCP;
    what.port = read(sk, at!(sock_num))?;
    let (agent, killed) = (caller.agent, caller.killed);
    Ok(
        match rules::judge(agent, killed, RuleKind::ListenTcp, what.addr, what.port) {
            Verdict::Direct if what.port != 0 => Answer::Allow,
            Verdict::Observe(refusal) if what.port == 0 => Answer::Observe(refusal),
            // The bind was recorded, or the first answer will be.
            Verdict::Observe(_) => Answer::Allow,
            Verdict::Deny(refusal) => Answer::Deny(refusal),
            Verdict::Direct | Verdict::Forward | Verdict::Resolve => Answer::Deny(Refusal::Listen),
        },
    )
}
