//! Turning a call towards the forwarder, and forgetting that.

use agentguard_common::abi::{AgentId, ConfigSlot, FlowKey, Forwarder, Origin, SocketMark};
use agentguard_common::counter::Counter;
use agentguard_common::net::Addr;
use agentguard_common::share;
use agentguard_common::verdict::Refusal;
use aya_ebpf::bindings::BPF_NOEXIST;

use crate::emit::{current_uid, now};
use crate::hook::guard::Subject;
use crate::maps::{
    CONNECTS_DUE, FLOW_COUNTS, FLOWS, FORWARDERS, add, config, is_due, is_forwarder_port,
};
use crate::sock_addr::{Family, IPPROTO_TCP, SockAddr};
use crate::task::current_tgid;

const LOOPBACK4: Addr = Addr::from_v4([127, 0, 0, 1]);
const LOOPBACK6: Addr = Addr([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

/// Whether the kernel takes `addr` to where the forwarder listens: the unspecified address means loopback
/// (`ip_route_output_key_hash_rcu`, `tcp_v6_connect`).
#[inline(always)]
fn is_loopback(addr: &Addr) -> bool {
    *addr == LOOPBACK4
        || *addr == LOOPBACK6
        || *addr == Addr::from_v4([0, 0, 0, 0])
        || *addr == Addr([0; 16])
}

/// Whether a call names the forwarder's own port, which nobody may.
#[inline(always)]
pub fn is_forwarder(ctx: &SockAddr) -> bool {
    let port = ctx.port();
    is_forwarder_port(port)
        && is_loopback(&ctx.addr())
        && forwarder(ctx.netns()).is_some_and(|forwarder| forwarder.port == u32::from(port))
}

#[inline(always)]
pub fn forwarder(netns: u64) -> Option<Forwarder> {
    // SAFETY: copied at once; an element is replaced as a whole by userspace.
    unsafe { FORWARDERS.get(netns) }.copied()
}

/// Whether it listens, and its process lives.
#[inline(always)]
pub fn is_up(forwarder: &Forwarder) -> bool {
    forwarder.up != 0
        && forwarder.tgid != 0
        && u64::from(forwarder.tgid) == config(ConfigSlot::Forwarder)
}

/// Whether the agent may connect once more now.
#[inline(always)]
fn may_connect(agent: AgentId) -> bool {
    let is_below = FLOW_COUNTS
        .get(agent.0)
        .is_some_and(|flows| *flows < share::FLOWS_EACH);
    is_below
        && CONNECTS_DUE
            .get_ptr_mut(agent.0)
            .is_some_and(|due| is_due(due, share::CONNECTS_IN_A_ROW, share::CONNECT_EVERY_NS))
}

/// Keeps where the agent wanted to go on the socket, and rewrites the call to the forwarder. `Some`: refused.
#[inline(always)]
pub fn redirect(ctx: &SockAddr, subject: &Subject) -> Result<Option<Refusal>, Counter> {
    let netns = ctx.netns();
    let Some(forwarder) = forwarder(netns) else {
        return Ok(Some(if config(ConfigSlot::Forwarder) == 0 {
            Refusal::ForwarderDown
        } else {
            Refusal::Namespace
        }));
    };
    let addr = ctx.addr();
    if !is_up(&forwarder) || (!addr.is_v4() && forwarder.has_v6 == 0) {
        return Ok(Some(Refusal::ForwarderDown));
    }
    if ctx.is_bound_to_device() {
        return Ok(Some(Refusal::BoundToDevice));
    }
    if ctx.protocol() == IPPROTO_TCP && !may_connect(subject.agent) {
        return Ok(Some(Refusal::Share));
    }
    let target = if addr.is_v4() { LOOPBACK4 } else { LOOPBACK6 };
    let port = forwarder.port as u16;
    let mut mark = subject.mark()?;
    // SAFETY: socket storage lives as long as the socket, which the hook holds.
    let mark = unsafe { mark.as_mut() };
    unpublish(mark);
    mark.flow.proto = 0;
    mark.origin = Origin {
        agent: subject.agent,
        tgid: current_tgid(),
        uid: current_uid(),
        port: ctx.port(),
        proto: ctx.protocol() as u8,
        family: match ctx.family {
            Family::V4 => 4,
            Family::V6 => 6,
        },
        addr,
        time_ns: now(),
    };
    mark.flow.netns = netns;
    mark.flow.remote = target;
    mark.flow.remote_port = port;
    ctx.rewrite(target, port);
    Ok(None)
}

/// Whether the socket was redirected, and to there.
#[inline(always)]
pub fn is_redirected_to(mark: &SocketMark, addr: &Addr, port: u16) -> bool {
    mark.origin.port != 0 && mark.flow.remote_port == port && mark.flow.remote == *addr
}

/// Makes the socket one that was never redirected.
#[inline(always)]
pub fn forget(mark: &mut SocketMark) {
    unpublish(mark);
    mark.flow.proto = 0;
    mark.origin.port = 0;
}

/// Takes the socket's flow out of `FLOWS`, unless the key has passed to another socket. The mark keeps it: what a closed
/// socket has left to send goes the same way.
#[inline(always)]
pub fn unpublish(mark: &SocketMark) {
    if mark.flow.proto == 0 {
        return;
    }
    let key = mark.flow;
    // SAFETY: read at once; the element may be replaced meanwhile, then by a newer time.
    let published = unsafe { FLOWS.get(key) };
    if published.is_some_and(|origin| origin.time_ns == mark.origin.time_ns) {
        withdraw(&key, mark.origin.agent);
    }
}

/// Puts the socket's origin into `FLOWS` under `key`.
#[inline(always)]
pub fn publish(mark: &mut SocketMark, key: &FlowKey) -> Result<(), Counter> {
    if mark.flow.proto != 0 && mark.flow != *key {
        unpublish(mark);
    }
    // SAFETY: read at once.
    if let Some(before) = unsafe { FLOWS.get(key) } {
        withdraw(key, before.agent);
    }
    let origin = mark.origin;
    if FLOWS.insert(key, origin, u64::from(BPF_NOEXIST)).is_err() {
        mark.flow.proto = 0;
        return Err(Counter::FlowMapFull);
    }
    count_flow(origin.agent, 1);
    mark.flow = *key;
    Ok(())
}

/// Takes `agent`'s flow out.
#[inline(always)]
pub fn withdraw(key: &FlowKey, agent: AgentId) {
    if FLOWS.remove(key).is_ok() {
        count_flow(agent, -1);
    }
}

#[inline(always)]
fn count_flow(agent: AgentId, change: i64) {
    if let Some(flows) = FLOW_COUNTS.get_ptr_mut(agent.0) {
        add(flows, change);
    }
}
