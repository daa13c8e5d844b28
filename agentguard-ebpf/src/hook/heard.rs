//! Who has written to an agent's listening UDP socket: its answers go to these, and to nobody else.

use agentguard_common::abi::{AgentId, Heard, RuleKind, SocketMark};
use agentguard_common::net::Addr;
use agentguard_common::share::{self, HEARD_BITS};
use agentguard_common::verdict::Verdict;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;

use crate::emit::What;
use crate::maps::{HEARD, HEARD_PLACES, HEARD_TURNS, turn};
use crate::rules;
use crate::sock_addr::{IPPROTO_UDP, SockAddr};

/// Keeps the sender of the datagram that the agent is about to read. One that is read without its address is not kept: what
/// has no address cannot be answered.
#[inline(always)]
pub fn hear(ctx: &SockAddr, mark: &SocketMark) {
    if mark.agent == AgentId::NONE || ctx.protocol() != IPPROTO_UDP {
        return;
    }
    let (addr, port) = ctx.local();
    if rules::judge(mark.agent, false, RuleKind::ListenUdp, addr, port) != Verdict::Direct {
        return;
    }
    // SAFETY: the hook's own context.
    let socket = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let key = Heard::new(socket, ctx.addr(), ctx.port());
    if HEARD.get_ptr(key).is_some() {
        return;
    }
    let Some(turn) = turn(&HEARD_TURNS, mark.agent) else {
        return;
    };
    let place = share::place(mark.agent, turn, HEARD_BITS);
    // SAFETY: copied at once.
    if let Some(oldest) = unsafe { HEARD_PLACES.get(place) }.copied() {
        let _ = HEARD.remove(oldest);
    }
    // Full maps give up whoever was heard longest ago.
    let _ = HEARD_PLACES.insert(place, key, 0);
    let _ = HEARD.insert(key, 0, 0);
}

/// Whether the packet answers one that was heard, and none has been answered before.
#[inline(always)]
pub fn answers(skb: *mut __sk_buff, to: Addr, port: u16) -> Option<bool> {
    // SAFETY: the hook's own context.
    let socket = unsafe { bpf_get_socket_cookie(skb.cast()) };
    let answered = HEARD.get_ptr(Heard::new(socket, to, port))?;
    // SAFETY: an element lives until the end of the program; two packets at once are both told of, which does no harm.
    Some(unsafe { answered.read_volatile() } == 0)
}

/// The answer to who was heard, if the packet is one, has been told of.
#[inline(always)]
pub fn answered(skb: *mut __sk_buff, what: &What) {
    // SAFETY: the hook's own context.
    let socket = unsafe { bpf_get_socket_cookie(skb.cast()) };
    if let Some(answered) = HEARD.get_ptr_mut(Heard::new(socket, what.addr, what.port)) {
        // SAFETY: as in `answers`.
        unsafe { answered.write_volatile(1) };
    }
}
