//! A network socket that the agent has not made itself: it is not received from another process, and if it was there before
//! the agent was, it carries none of its bytes. A connect makes it the agent's own, and is judged.

use agentguard_common::abi::EventKind;
use agentguard_common::verdict::Refusal;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_sock_from_file;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;

use crate::emit::{self, What};
use crate::hook::guard::{Answer, Judged};
use crate::hook::lsm::{self, Caller};
use crate::maps::MARKS;
use crate::task::{at, read};

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// By SCM_RIGHTS or pidfd_getfd: (file, answer of the program before).
#[lsm(hook = "file_receive")]
pub fn lsm_file_receive(ctx: LsmContext) -> i32 {
    let Some(caller) = Caller::current() else {
        return lsm::ALLOW;
    };
    let file: *const core::ffi::c_void = ctx.arg(0);
    // SAFETY: the hook's own file.
    let socket = unsafe { bpf_sock_from_file(file.cast_mut().cast()) };
    if socket.is_null() {
        return lsm::ALLOW;
    }
    answer(ctx.arg(1), judge(&caller, socket.cast()))
}

/// (socket, message, length, answer of the program before).
#[lsm(hook = "socket_sendmsg")]
pub fn lsm_socket_sendmsg(ctx: LsmContext) -> i32 {
    let Some(caller) = Caller::current() else {
        return lsm::ALLOW;
    };
    let socket: *const core::ffi::c_void = ctx.arg(0);
    answer(ctx.arg(3), judge(&caller, socket.cast()))
}

#[inline(always)]
fn judge(caller: &Caller, socket: *const u8) -> Judged {
    let file: u64 = read(socket.addr() as u64, at!(socket_file))?;
    if file == 0 {
        // The kernel's own, which a file system uses in the agent's name.
        return Ok(Answer::Allow);
    }
    let offset = at!(socket_sk) as usize;
    // SAFETY: a constant offset to the verifier, which follows the pointer as a member of `struct socket`.
    let member = unsafe { socket.add(offset) };
    // SAFETY: as above; such reads cannot fault.
    let sk = unsafe { member.cast::<*mut bpf_sock>().read_volatile() };
    if sk.is_null() {
        return Ok(Answer::Allow);
    }
    let family: u16 = read(sk.addr() as u64, at!(sock_family))?;
    if family != AF_INET && family != AF_INET6 {
        return Ok(Answer::Allow);
    }
    let is_own = MARKS.of(sk).is_some_and(|mark| {
        // SAFETY: socket storage lives as long as the socket, which the hook holds.
        unsafe { mark.as_ref() }.agent == caller.agent
    });
    Ok(if is_own {
        Answer::Allow
    } else {
        Answer::Deny(Refusal::HandedOver)
    })
}

#[inline(always)]
fn answer(previous: i32, judged: Judged) -> i32 {
    lsm::answer(
        previous,
        |_| judged,
        |caller, finding| {
            emit::call(
                EventKind::HandedOver,
                finding,
                caller.agent,
                &What::default(),
            )
        },
    )
}
