//! Unix sockets by the name that their owner has bound: whatever link, mount or spelling the agent came by, it is the socket
//! that answers which is judged.

use core::ops::ControlFlow;

use agentguard_common::abi::{Event, UnixName};
use agentguard_common::verdict::Verdict;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;

use crate::emit::{self, What};
use crate::hook::guard::{Answer, Judged};
use crate::hook::lsm::{self, Caller};
use crate::hook::unix::{AF_UNIX, name_at};
use crate::rules;
use crate::task::{at, read};

const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;

/// (sock, listener, the sock to be accepted, answer of the program before).
#[lsm(hook = "unix_stream_connect")]
pub fn lsm_unix_stream_connect(ctx: LsmContext) -> i32 {
    let Some(caller) = Caller::current() else {
        return lsm::ALLOW;
    };
    let listener: *const core::ffi::c_void = ctx.arg(1);
    let mut name = UnixName::EMPTY;
    let judged = judge(&caller, listener.addr() as u64, &mut name);
    answer(ctx.arg(3), judged, &name, SOCK_STREAM, 0)
}

/// Each datagram, also of a connected socket, and the connect itself: (socket, receiver, answer of the program before).
#[lsm(hook = "unix_may_send")]
pub fn lsm_unix_may_send(ctx: LsmContext) -> i32 {
    let Some(caller) = Caller::current() else {
        return lsm::ALLOW;
    };
    let receiver: *const core::ffi::c_void = ctx.arg(1);
    let mut name = UnixName::EMPTY;
    let judged = match read(receiver.addr() as u64, at!(socket_sk)) {
        Ok(sk) => judge(&caller, sk, &mut name),
        Err(unreadable) => Err(unreadable.into()),
    };
    // Of datagrams, which have no end, only those that no entry lists are recorded.
    let judged = match judged {
        Ok(Answer::Record) => Ok(Answer::Allow),
        other => other,
    };
    answer(ctx.arg(2), judged, &name, SOCK_DGRAM, Event::UNIX_SEND)
}

#[inline(always)]
fn judge(caller: &Caller, peer: u64, name: &mut UnixName) -> Judged {
    let address: u64 = read(peer, at!(unix_sock_addr))?;
    if address == 0 {
        // The other of a pair: nobody can have connected to it.
        return Ok(Answer::Allow);
    }
    let len: u32 = read(address, at!(unix_address_len))?;
    name_at(
        address.wrapping_add(u64::from(at!(unix_address_name))),
        len,
        name,
    )?;
    Ok(match rules::judge_unix(caller.agent, caller.killed, name) {
        Verdict::Deny(refusal) => Answer::Deny(refusal),
        Verdict::Observe(refusal) => Answer::Observe(refusal),
        Verdict::Direct | Verdict::Forward | Verdict::Resolve => Answer::Record,
    })
}

#[inline(always)]
fn answer(previous: i32, judged: Judged, name: &UnixName, sock_type: u32, call: u32) -> i32 {
    let what = What {
        family: AF_UNIX,
        sock_type,
        proto: call,
        ..What::default()
    };
    match lsm::found(previous, |_| judged) {
        ControlFlow::Break(answer) => answer,
        ControlFlow::Continue((caller, finding)) => {
            lsm::verdict(emit::unix(finding, caller.agent, &what, name))
        }
    }
}
