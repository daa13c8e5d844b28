//! Every packet of a marked socket, judged by its own header: what a connect was told can be undone by source routing, and
//! `listen()` without `bind()` passes no other hook. The kill ends here too.

use core::ptr::NonNull;

use agentguard_common::abi::{EventKind, FlowKey, RuleKind, SocketMark};
use agentguard_common::counter::Counter;
use agentguard_common::net::Addr;
use agentguard_common::verdict::{Finding, Refusal, Verdict};
use aya_ebpf::bindings::{__sk_buff, bpf_sock};
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;

use crate::emit::{self, What};
use crate::hook::heard::{self, answers};
use crate::hook::question::{ask, may_ask};
use crate::hook::redirect::{forwarder, is_redirected_to, is_up};
use crate::maps::{MARKS, count, is_forwarder_port, is_killed};
use crate::rules;
use crate::sock_addr::{IPPROTO_TCP, IPPROTO_UDP, load};

const PASS: i32 = 1;
const DROP: i32 = 0;
/// Of the loopback device, in every network namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

/// What the packet's own headers say.
struct Packet {
    source: Addr,
    destination: Addr,
    source_port: u16,
    destination_port: u16,
    proto: u32,
    family: u16,
}

#[cgroup_skb(egress)]
pub fn egress(ctx: SkBuffContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some(mark) = mark(skb) else {
        return PASS;
    };
    // SAFETY: socket storage lives as long as the socket, which the packet holds.
    let agent = unsafe { mark.as_ref() }.agent;
    if agent.0 == 0 {
        return PASS;
    }
    let (finding, what) = match Packet::of(skb) {
        Ok(packet) => match judge(skb, mark, &packet) {
            Ok(None) => return PASS,
            Ok(Some(finding)) => (finding, packet.what()),
            Err(counter) => {
                count(counter);
                (Finding::Refused(Refusal::Internal), packet.what())
            }
        },
        Err(refusal) => (Finding::Refused(refusal), What::default()),
    };
    match report(mark, &what, finding) {
        Finding::Refused(_) => {
            count(Counter::PacketsDropped);
            DROP
        }
        Finding::Allowed => {
            heard::answered(skb, &what);
            PASS
        }
        Finding::Observed(_) => PASS,
    }
}

#[inline(always)]
fn mark(skb: *mut __sk_buff) -> Option<NonNull<SocketMark>> {
    // SAFETY: a context member; the verifier knows it as a socket or null.
    let sk: *mut bpf_sock = unsafe { (&raw const (*skb).__bindgen_anon_2.sk).read_volatile() };
    if sk.is_null() {
        return None;
    }
    MARKS.of(sk)
}

/// `None`: it may leave, and nobody is told.
#[inline(always)]
fn judge(
    skb: *mut __sk_buff,
    mut mark: NonNull<SocketMark>,
    packet: &Packet,
) -> Result<Option<Finding>, Counter> {
    // SAFETY: as in `egress`. Other processors may write to it too; each member is judged by what it holds now.
    let fields = unsafe { mark.as_mut() };
    let agent = fields.agent;
    if is_killed(agent) {
        return Ok((!packet.is_bare_reset(skb)).then_some(Finding::Refused(Refusal::Killed)));
    }
    if fields.flags & SocketMark::UPSTREAM != 0 {
        return Ok(None);
    }
    let on_loopback = load!(skb, ifindex) == LOOPBACK;
    let to_forwarder =
        is_redirected_to(fields, &packet.destination, packet.destination_port) && on_loopback;
    let (reach, listen) = match packet.proto {
        IPPROTO_TCP => {
            if to_forwarder
                && fields.flow.proto == IPPROTO_TCP
                && fields.flow.local_port == packet.source_port
            {
                return Ok(None);
            }
            (RuleKind::ReachTcp, RuleKind::ListenTcp)
        }
        IPPROTO_UDP => {
            if to_forwarder {
                return to_resolver(skb, fields, packet);
            }
            (RuleKind::ReachUdp, RuleKind::ListenUdp)
        }
        _ => return Ok(Some(Finding::Refused(Refusal::Protocol))),
    };
    let to = (packet.destination, packet.destination_port);
    let reaches = rules::judge(agent, false, reach, to.0, to.1);
    match reaches {
        Verdict::Direct => {
            return Ok((packet.proto == IPPROTO_UDP).then_some(Finding::Allowed));
        }
        Verdict::Deny(refusal @ Refusal::Ambiguous) => return Ok(Some(Finding::Refused(refusal))),
        Verdict::Deny(_) | Verdict::Observe(_) | Verdict::Forward | Verdict::Resolve => {}
    }
    let from = (packet.source, packet.source_port);
    let listens = rules::judge(agent, false, listen, from.0, from.1);
    if listens == Verdict::Direct {
        if packet.proto == IPPROTO_TCP {
            return Ok(None);
        }
        if let Some(is_first) = answers(skb, to.0, to.1) {
            return Ok(is_first.then_some(Finding::Allowed));
        }
    }
    Ok(Some(match (packet.proto, fields.origin.port) {
        (IPPROTO_UDP, _) => match reaches {
            // The forwarder knows no sender that has no flow.
            Verdict::Observe(_) if on_loopback && is_forwarder_port(to.1) => {
                Finding::Refused(Refusal::ForwarderPort)
            }
            Verdict::Observe(refusal) => Finding::Observed(refusal),
            _ => Finding::Refused(Refusal::NoRule),
        },
        // It has never connected: it answers.
        (_, 0) => match listens {
            Verdict::Observe(_) if fields.flags & SocketMark::LISTENS != 0 => return Ok(None),
            Verdict::Observe(refusal) => {
                fields.flags |= SocketMark::LISTENS;
                Finding::Observed(refusal)
            }
            _ => Finding::Refused(Refusal::Listen),
        },
        _ => Finding::Refused(Refusal::Packet),
    }))
}

/// A question to the resolver: only now is its source port known.
#[inline(always)]
fn to_resolver(
    skb: *mut __sk_buff,
    mark: &SocketMark,
    packet: &Packet,
) -> Result<Option<Finding>, Counter> {
    let netns = mark.flow.netns;
    let up = forwarder(netns).is_some_and(|forwarder| {
        is_up(&forwarder) && forwarder.port == u32::from(packet.destination_port)
    });
    if !up {
        return Ok(Some(Finding::Refused(Refusal::ForwarderDown)));
    }
    if !may_ask(mark.agent) {
        return Ok(Some(Finding::Refused(Refusal::Share)));
    }
    let key = FlowKey {
        netns,
        local: packet.source,
        remote: packet.destination,
        local_port: packet.source_port,
        remote_port: packet.destination_port,
        proto: IPPROTO_UDP,
    };
    ask(skb, mark, key)?;
    Ok(None)
}

/// One event for a stream of packets that are judged alike; what they come to.
#[inline(always)]
fn report(mut mark: NonNull<SocketMark>, what: &What, finding: Finding) -> Finding {
    // SAFETY: as in `judge`.
    let mark = unsafe { mark.as_mut() };
    let number = finding.number();
    let judged = (1 + (number & 0xff) as u16) | (number >> 16) as u16;
    if mark.reported_as == judged && mark.reported_port == what.port && mark.reported == what.addr {
        return finding;
    }
    let kind = if what.proto == IPPROTO_UDP {
        EventKind::Send
    } else {
        EventKind::Packet
    };
    let told = emit::packet(kind, finding, mark.agent, mark.origin.tgid, what);
    // The next packet asks again for what could not be recorded.
    if told == finding {
        mark.reported_as = judged;
        mark.reported_port = what.port;
        mark.reported = what.addr;
    }
    told
}

impl Packet {
    /// IPv4 without options or IPv6 without extension headers, unfragmented: this hook runs before fragmentation
    /// (`ip_finish_output`).
    #[inline(always)]
    fn of(skb: *mut __sk_buff) -> Result<Self, Refusal> {
        let [first] = bytes::<1>(skb, 0)?;
        match first >> 4 {
            4 if first & 0xf == 5 => {
                let b = bytes::<24>(skb, 0)?;
                if (b[6] & 0x1f) | b[7] != 0 {
                    return Err(Refusal::Packet);
                }
                Ok(Self {
                    source: Addr::from_v4([b[12], b[13], b[14], b[15]]),
                    destination: Addr::from_v4([b[16], b[17], b[18], b[19]]),
                    source_port: u16::from_be_bytes([b[20], b[21]]),
                    destination_port: u16::from_be_bytes([b[22], b[23]]),
                    proto: u32::from(b[9]),
                    family: 4,
                })
            }
            6 => {
                let [_, _, _, _, _, _, next, _] = bytes::<8>(skb, 0)?;
                if u32::from(next) != IPPROTO_TCP && u32::from(next) != IPPROTO_UDP {
                    return Err(Refusal::SourceRoute);
                }
                let [sh, sl, dh, dl] = bytes::<4>(skb, 40)?;
                Ok(Self {
                    source: Addr(bytes::<16>(skb, 8)?),
                    destination: Addr(bytes::<16>(skb, 24)?),
                    source_port: u16::from_be_bytes([sh, sl]),
                    destination_port: u16::from_be_bytes([dh, dl]),
                    proto: u32::from(next),
                    family: 6,
                })
            }
            _ => Err(Refusal::SourceRoute),
        }
    }

    /// A TCP reset without payload. The kill lets it go, because it tells the peer to stop sending: one that is not told
    /// goes on with what fits its window and with retransmissions.
    #[inline(always)]
    fn is_bare_reset(&self, skb: *mut __sk_buff) -> bool {
        const RST: u8 = 0x04;
        let ip = if self.family == 4 { 20 } else { 40 };
        let Ok([offset, flags]) = bytes::<2>(skb, ip + 12) else {
            return false;
        };
        let headers = ip + u32::from(offset >> 4) * 4;
        self.proto == IPPROTO_TCP && flags & RST != 0 && load!(skb, len) == headers
    }

    #[inline(always)]
    fn what(&self) -> What {
        What {
            addr: self.destination,
            port: self.destination_port,
            family: self.family,
            sock_type: 0,
            proto: self.proto,
        }
    }
}

/// `N` bytes of the packet, counted from its network header.
#[inline(always)]
fn bytes<const N: usize>(skb: *mut __sk_buff, offset: u32) -> Result<[u8; N], Refusal> {
    let mut to = [0; N];
    // SAFETY: the helper checks the packet's bounds; the destination is `to`, of exactly that size.
    let failed = unsafe { bpf_skb_load_bytes(skb.cast(), offset, (&raw mut to).cast(), N as u32) };
    if failed == 0 {
        Ok(to)
    } else {
        Err(Refusal::Internal)
    }
}
