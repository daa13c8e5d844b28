//! The end of live connections, by a kill or a new bundle: `sock_diag` lists every TCP socket together with its mark
//! (`INET_DIAG_REQ_SK_BPF_STORAGES`), wherever its descriptors are, closed but unsent ones included.

use std::mem::offset_of;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, BorrowedFd};

use agentguard_common::abi::{AgentId, FlowKey, Origin, SocketMark};
use agentguard_sys::SysError;
use agentguard_sys::diag::{Diag, MESSAGE, SocketKind};

use super::KernelError;

/// `linux/inet_diag.h`, `linux/sock_diag.h` and `linux/netlink.h`.
const REQ_SK_BPF_STORAGES: u16 = 2;
const REQ_MAP_FD: u16 = 1;
const SK_BPF_STORAGES: u16 = 20;
const STORAGE: u16 = 1;
const STORAGE_MAP_VALUE: u16 = 3;
const NLA_F_NESTED: u16 = 1 << 15;
/// All TCP states but TIME_WAIT, CLOSE, LISTEN and NEW_SYN_RECV: those have nothing to send, and a revived agent still
/// has its listeners.
const STATES: u32 = 0xfff & !(1 << 6 | 1 << 7 | 1 << 10);

/// A TCP connection of an agent's that goes straight through the kernel.
pub(super) struct Direct {
    pub agent: AgentId,
    pub local: SocketAddr,
    pub peer: SocketAddr,
}

/// Destroys the agent's connections in the network namespace of the calling thread; answers how many. One that has closed
/// meanwhile is not counted.
pub(super) fn destroy(marks: BorrowedFd<'_>, agent: AgentId) -> Result<u32, KernelError> {
    destroy_where(marks, |body| mark_agent(body) == Some(agent))
}

/// As [`destroy`], of whatever agent, what goes straight through the kernel and is `unwanted`.
pub(super) fn destroy_direct(
    marks: BorrowedFd<'_>,
    unwanted: impl Fn(&Direct) -> bool,
) -> Result<u32, KernelError> {
    destroy_where(marks, |body| direct(body).is_some_and(|it| unwanted(&it)))
}

fn destroy_where(
    marks: BorrowedFd<'_>,
    unwanted: impl Fn(&[u8]) -> bool,
) -> Result<u32, KernelError> {
    let failed = |error: SysError| KernelError::Call {
        call: error.call,
        source: error.source,
    };
    let diag = Diag::open().map_err(failed)?;
    let with_mark = with_mark(marks);
    let mut destroyed = 0;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let kind = SocketKind {
            family: family as u8,
            proto: libc::IPPROTO_TCP as u8,
        };
        let found = diag.list(kind, STATES, &with_mark, &unwanted);
        for found in found.map_err(failed)? {
            destroyed += u32::from(diag.destroy(&found).map_err(failed)?);
        }
    }
    Ok(destroyed)
}

/// The attribute that asks for this map's values.
fn with_mark(marks: BorrowedFd<'_>) -> Vec<u8> {
    let mut wanted = Vec::new();
    wanted.extend(12u16.to_ne_bytes());
    wanted.extend((REQ_SK_BPF_STORAGES | NLA_F_NESTED).to_ne_bytes());
    wanted.extend(8u16.to_ne_bytes());
    wanted.extend(REQ_MAP_FD.to_ne_bytes());
    wanted.extend(marks.as_raw_fd().to_ne_bytes());
    wanted
}

/// The agent in the socket's mark.
fn mark_agent(payload: &[u8]) -> Option<AgentId> {
    let agent = field(mark(payload)?, offset_of!(SocketMark, agent))?;
    Some(AgentId(u32::from_ne_bytes(agent)))
}

/// `None` for the forwarder's sockets and those that lead to it (`is_redirected_to` of the programs), and without an agent.
fn direct(payload: &[u8]) -> Option<Direct> {
    const FLOW: usize = offset_of!(SocketMark, flow);
    const ORIGIN: usize = offset_of!(SocketMark, origin);
    let mark = mark(payload)?;
    let agent = mark_agent(payload).filter(|agent| *agent != AgentId::NONE)?;
    let flags = u32::from_ne_bytes(field(mark, offset_of!(SocketMark, flags))?);
    if flags & SocketMark::UPSTREAM != 0 {
        return None;
    }
    // `struct inet_diag_msg`: family first, then `struct inet_diag_sockid`.
    let family = i32::from(*payload.first()?);
    let port = |at| Some(u16::from_be_bytes(field(payload, at)?));
    let addr = |at| match family {
        libc::AF_INET => Some(IpAddr::from(field::<4>(payload, at)?)),
        _ => Some(Ipv6Addr::from(field::<16>(payload, at)?).to_canonical()),
    };
    let local = SocketAddr::new(addr(8)?, port(4)?);
    let peer = SocketAddr::new(addr(24)?, port(6)?);
    let origin_port = u16::from_ne_bytes(field(mark, ORIGIN + offset_of!(Origin, port))?);
    let to_port = u16::from_ne_bytes(field(mark, FLOW + offset_of!(FlowKey, remote_port))?);
    let to: [u8; 16] = field(mark, FLOW + offset_of!(FlowKey, remote))?;
    let to = SocketAddr::new(Ipv6Addr::from(to).to_canonical(), to_port);
    (origin_port == 0 || peer != to).then_some(Direct { agent, local, peer })
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

/// A [`SocketMark`]'s bytes.
fn mark(payload: &[u8]) -> Option<&[u8]> {
    let storages = attribute(payload.get(MESSAGE..)?, SK_BPF_STORAGES)?;
    let storage = attribute(storages, STORAGE)?;
    attribute(storage, STORAGE_MAP_VALUE)
}

fn align4(len: usize) -> usize {
    len.next_multiple_of(4)
}

/// Payload of the first attribute of type `wanted`.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let len = usize::from(u16::from_ne_bytes(*bytes.first_chunk::<2>()?));
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]) & !NLA_F_NESTED;
        let payload = bytes.get(4..len)?;
        if kind == wanted {
            return Some(payload);
        }
        bytes = bytes.get(align4(len)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nla(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((4 + payload.len() as u16).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(payload);
        bytes.resize(align4(bytes.len()), 0);
        bytes
    }

    #[test]
    fn the_mark_is_found_behind_other_attributes() {
        let mut value = [0u8; size_of::<SocketMark>()];
        value[offset_of!(SocketMark, agent)] = 7;
        let storage = [nla(2, &[1, 0, 0, 0]), nla(STORAGE_MAP_VALUE, &value)].concat();
        let storages = nla(SK_BPF_STORAGES | NLA_F_NESTED, &nla(STORAGE, &storage));
        let payload = [vec![0; MESSAGE], nla(8, &[3]), storages].concat();
        assert_eq!(mark_agent(&payload), Some(AgentId(7)));
        assert_eq!(mark_agent(&payload[..MESSAGE]), None);
    }

    /// A message about an IPv4 connection from 10.0.0.1:4000 to 10.0.0.2:443.
    fn message(mark: &[u8]) -> Vec<u8> {
        let storage = nla(STORAGE_MAP_VALUE, mark);
        let storages = nla(SK_BPF_STORAGES | NLA_F_NESTED, &nla(STORAGE, &storage));
        let mut message = vec![0; MESSAGE];
        message[0] = libc::AF_INET as u8;
        message[4..6].copy_from_slice(&4000u16.to_be_bytes());
        message[6..8].copy_from_slice(&443u16.to_be_bytes());
        message[8..12].copy_from_slice(&[10, 0, 0, 1]);
        message[24..28].copy_from_slice(&[10, 0, 0, 2]);
        [message, storages].concat()
    }

    #[test]
    fn what_leads_to_the_forwarder_is_not_direct() {
        let mut mark = [0u8; size_of::<SocketMark>()];
        assert!(direct(&message(&mark)).is_none(), "no agent's");
        mark[offset_of!(SocketMark, agent)] = 7;
        let found = direct(&message(&mark)).unwrap();
        assert_eq!(found.agent, AgentId(7));
        assert_eq!(found.local, "10.0.0.1:4000".parse().unwrap());
        assert_eq!(found.peer, "10.0.0.2:443".parse().unwrap());
        let flow = offset_of!(SocketMark, flow);
        let mut redirected = mark;
        redirected[offset_of!(SocketMark, origin) + offset_of!(Origin, port)] = 1;
        let remote = flow + offset_of!(FlowKey, remote);
        redirected[remote + 10..remote + 16].copy_from_slice(&[0xff, 0xff, 10, 0, 0, 2]);
        let port = flow + offset_of!(FlowKey, remote_port);
        redirected[port..port + 2].copy_from_slice(&443u16.to_ne_bytes());
        assert!(direct(&message(&redirected)).is_none());
        redirected[remote + 15] = 3;
        assert!(direct(&message(&redirected)).is_some(), "elsewhere by now");
        mark[offset_of!(SocketMark, flags)] = SocketMark::UPSTREAM as u8;
        assert!(direct(&message(&mark)).is_none(), "the forwarder's");
        assert!(direct(&message(&mark)[..MESSAGE]).is_none());
    }

    #[test]
    fn a_cut_attribute_ends_the_search() {
        for bytes in [&[0u8, 0, 0, 0][..], &[3, 0, 1, 0], &[9, 0, 1, 0, 1], &[8]] {
            assert_eq!(attribute(bytes, 2), None);
        }
    }
}
