//! The TCP handshake with the forwarder: the flow is published when the agent's SYN is about to leave, and becomes the
//! accepted socket's own before `accept` returns.

use agentguard_common::abi::{FlowKey, SocketMark};
use agentguard_common::counter::Counter;
use agentguard_common::net::{Addr, Be32};
use aya_ebpf::bindings::{
    BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock, bpf_sock_ops,
};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;

use crate::hook::redirect::{forwarder, publish, withdraw};
use crate::maps::{ACCEPTED, FLOWS, MARKS, count, is_forwarder_port};
use crate::sock_addr::{IPPROTO_TCP, load};

const AF_INET: u32 = 2;

#[sock_ops]
pub fn connected(ctx: SockOpsContext) -> u32 {
    let ops = ctx.ops;
    match load!(ops, op) {
        BPF_SOCK_OPS_TCP_CONNECT_CB => leaving(ops),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => arrived(ops),
        _ => {}
    }
    1
}

/// `tcp_connect`: the source address and port are chosen.
#[inline(always)]
fn leaving(ops: *mut bpf_sock_ops) {
    let sk = socket(ops);
    if sk.is_null() {
        return;
    }
    let Some(mut mark) = MARKS.of(sk) else {
        return;
    };
    // SAFETY: socket storage lives as long as the socket, which the hook holds.
    let mark = unsafe { mark.as_mut() };
    if mark.origin.port == 0 || mark.flags & SocketMark::UPSTREAM != 0 {
        return;
    }
    let (local, remote) = ends(ops);
    let key = FlowKey {
        netns: mark.flow.netns,
        local: local.0,
        remote: remote.0,
        local_port: local.1,
        remote_port: remote.1,
        proto: IPPROTO_TCP,
    };
    if key.remote != mark.flow.remote || key.remote_port != mark.flow.remote_port {
        return;
    }
    // Without a published flow, egress drops the SYN.
    if let Err(counter) = publish(mark, &key) {
        count(counter);
    }
}

/// `tcp_init_transfer` of a connection that somebody accepts.
#[inline(always)]
fn arrived(ops: *mut bpf_sock_ops) {
    if !is_forwarder_port(load!(ops, local_port) as u16) {
        return;
    }
    // SAFETY: the hook's own context.
    let netns = unsafe { bpf_get_netns_cookie(ops.cast()) };
    let (local, remote) = ends(ops);
    if forwarder(netns).is_none_or(|forwarder| forwarder.port != u32::from(local.1)) {
        return;
    }
    let key = FlowKey {
        netns,
        local: remote.0,
        remote: local.0,
        local_port: remote.1,
        remote_port: local.1,
        proto: IPPROTO_TCP,
    };
    // SAFETY: copied at once.
    let Some(origin) = unsafe { FLOWS.get(key) }.copied() else {
        count(Counter::FlowMissing);
        return;
    };
    // SAFETY: the hook's own context.
    let cookie = unsafe { bpf_get_socket_cookie(ops.cast()) };
    if ACCEPTED.insert(cookie, origin, 0).is_err() {
        count(Counter::FlowMapFull);
    }
    withdraw(&key, origin.agent);
}

#[inline(always)]
fn socket(ops: *mut bpf_sock_ops) -> *mut bpf_sock {
    // SAFETY: a context member; the verifier knows it as a socket or null.
    unsafe { (&raw const (*ops).__bindgen_anon_2.sk).read_volatile() }
}

type End = (Addr, u16);

/// Local and remote address and port (host byte order).
#[inline(always)]
fn ends(ops: *mut bpf_sock_ops) -> (End, End) {
    // Both families' members are read before one is chosen: of two loads in two branches LLVM makes one load at a chosen
    // address, and the verifier refuses computed context pointers.
    let is_v4 = load!(ops, family) == AF_INET;
    let local4 = Be32(load!(ops, local_ip4));
    let remote4 = Be32(load!(ops, remote_ip4));
    let local6 = [
        Be32(load!(ops, local_ip6, 0)),
        Be32(load!(ops, local_ip6, 1)),
        Be32(load!(ops, local_ip6, 2)),
        Be32(load!(ops, local_ip6, 3)),
    ];
    let remote6 = [
        Be32(load!(ops, remote_ip6, 0)),
        Be32(load!(ops, remote_ip6, 1)),
        Be32(load!(ops, remote_ip6, 2)),
        Be32(load!(ops, remote_ip6, 3)),
    ];
    let (local, remote) = if is_v4 {
        (Addr::from_be32(local4), Addr::from_be32(remote4))
    } else {
        (Addr::from_be32x4(local6), Addr::from_be32x4(remote6))
    };
    let local_port = load!(ops, local_port) as u16;
    // The whole 32-bit word is in network byte order.
    let remote_port = u32::from_be(load!(ops, remote_port)) as u16;
    ((local, local_port), (remote, remote_port))
}
