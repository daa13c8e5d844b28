//! The kill of live connections: `sock_diag` lists every TCP socket together with its mark
//! (`INET_DIAG_REQ_SK_BPF_STORAGES`), wherever its descriptors are, closed but unsent ones included.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use agentguard_common::abi::{AgentId, SocketMark};

use super::KernelError;
use crate::sys::SysError;
use crate::sys::diag::{Diag, Kind, MESSAGE};

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

/// Destroys the agent's connections in the network namespace of the calling thread; answers how many. One that has closed
/// meanwhile is not counted.
pub(super) fn destroy(marks: BorrowedFd<'_>, agent: AgentId) -> Result<u32, KernelError> {
    let failed = |error: SysError| KernelError::Call {
        call: error.call,
        source: error.source,
    };
    let diag = Diag::open().map_err(failed)?;
    let with_mark = with_mark(marks);
    let is_agents = |body: &[u8]| mark_agent(body) == Some(agent);
    let mut destroyed = 0;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let kind = Kind {
            family: family as u8,
            proto: libc::IPPROTO_TCP as u8,
        };
        let found = diag.list(kind, STATES, &with_mark, is_agents);
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
    let storages = attribute(payload.get(MESSAGE..)?, SK_BPF_STORAGES)?;
    let storage = attribute(storages, STORAGE)?;
    let value = attribute(storage, STORAGE_MAP_VALUE)?;
    let at = std::mem::offset_of!(SocketMark, agent);
    let agent = value.get(at..)?.first_chunk::<4>()?;
    Some(AgentId(u32::from_ne_bytes(*agent)))
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
        value[std::mem::offset_of!(SocketMark, agent)] = 7;
        let storage = [nla(2, &[1, 0, 0, 0]), nla(STORAGE_MAP_VALUE, &value)].concat();
        let storages = nla(SK_BPF_STORAGES | NLA_F_NESTED, &nla(STORAGE, &storage));
        let payload = [vec![0; MESSAGE], nla(8, &[3]), storages].concat();
        assert_eq!(mark_agent(&payload), Some(AgentId(7)));
        assert_eq!(mark_agent(&payload[..MESSAGE]), None);
    }

    #[test]
    fn a_cut_attribute_ends_the_search() {
        for bytes in [&[0u8, 0, 0, 0][..], &[3, 0, 1, 0], &[9, 0, 1, 0, 1], &[8]] {
            assert_eq!(attribute(bytes, 2), None);
        }
    }
}
