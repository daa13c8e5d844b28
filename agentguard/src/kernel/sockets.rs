//! The cookie of the network namespace, and the kill of live connections: `sock_diag` lists every TCP socket together with
//! its mark (`INET_DIAG_REQ_SK_BPF_STORAGES`), wherever its descriptors are, closed but unsent ones included.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use agentguard_common::abi::{AgentId, SocketMark};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};

use super::KernelError;

/// Cookie of the caller's network namespace, as `bpf_get_netns_cookie` gives it.
pub fn netns_cookie() -> Result<u64, KernelError> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let failed = |source| KernelError::Call {
        call: "SO_NETNS_COOKIE",
        source,
    };
    let socket = std::net::UdpSocket::bind(("127.0.0.1", 0)).map_err(failed)?;
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` and `len` live through the call and `len` is `cookie`'s size.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    Ok(cookie)
}

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_HDR: usize = 16;
/// `struct inet_diag_msg`, whose `id` starts at 4.
const DIAG_MSG: usize = 72;
const ID: std::ops::Range<usize> = 4..52;
const REQ_SK_BPF_STORAGES: u16 = 2;
const REQ_MAP_FD: u16 = 1;
const SK_BPF_STORAGES: u16 = 20;
const STORAGE: u16 = 1;
const STORAGE_MAP_VALUE: u16 = 3;
const NLA_F_NESTED: u16 = 1 << 15;
/// All TCP states but TIME_WAIT, CLOSE, LISTEN and NEW_SYN_RECV: those have nothing to send, and a revived agent still
/// has its listeners.
const STATES: u32 = 0xfff & !(1 << 6 | 1 << 7 | 1 << 10);

fn failed(source: io::Error) -> KernelError {
    KernelError::Call {
        call: "NETLINK_SOCK_DIAG",
        source,
    }
}

/// Destroys the agent's connections; answers how many. One that has closed meanwhile is not counted.
pub(super) fn destroy(marks: BorrowedFd<'_>, agent: AgentId) -> Result<u32, KernelError> {
    let socket = Socket::new(NETLINK_SOCK_DIAG).map_err(failed)?;
    socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
    let mut destroyed = 0;
    for family in [libc::AF_INET, libc::AF_INET6] {
        for found in list(&socket, family as u8, marks, agent).map_err(failed)? {
            destroyed += u32::from(destroy_one(&socket, &found).map_err(failed)?);
        }
    }
    Ok(destroyed)
}

/// A socket by the ids that `sock_diag` knows it by, its cookie among them.
struct Found {
    family: u8,
    id: [u8; 48],
}

fn request(kind: u16, flags: u16, family: u8, id: &[u8; 48], attributes: &[u8]) -> Vec<u8> {
    let len = NLMSG_HDR + 56 + attributes.len();
    let mut message = Vec::with_capacity(len);
    message.extend((len as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    // Sequence number and port id: one request at a time on a socket of its own.
    message.extend([0; 8]);
    message.extend([family, libc::IPPROTO_TCP as u8, 0, 0]);
    message.extend(STATES.to_ne_bytes());
    message.extend(id);
    message.extend(attributes);
    message
}

fn list(
    socket: &Socket,
    family: u8,
    marks: BorrowedFd<'_>,
    agent: AgentId,
) -> io::Result<Vec<Found>> {
    let mut wanted = Vec::new();
    wanted.extend(12u16.to_ne_bytes());
    wanted.extend((REQ_SK_BPF_STORAGES | NLA_F_NESTED).to_ne_bytes());
    wanted.extend(8u16.to_ne_bytes());
    wanted.extend(REQ_MAP_FD.to_ne_bytes());
    wanted.extend(marks.as_raw_fd().to_ne_bytes());
    let message = request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, &[0; 48], &wanted);
    socket.send(&message, 0)?;
    let mut found = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        for (kind, payload) in messages(&datagram) {
            match kind {
                NLMSG_DONE => return Ok(found),
                NLMSG_ERROR => return Err(error_of(payload)),
                SOCK_DIAG_BY_FAMILY if mark_agent(payload) == Some(agent) => {
                    if let Some(Ok(id)) = payload.get(ID).map(<[u8; 48]>::try_from) {
                        found.push(Found { family, id });
                    }
                }
                _ => {}
            }
        }
    }
}

/// `false`: it is gone already.
fn destroy_one(socket: &Socket, found: &Found) -> io::Result<bool> {
    socket.send(
        &request(SOCK_DESTROY, NLM_F_ACK, found.family, &found.id, &[]),
        0,
    )?;
    let (datagram, _) = socket.recv_from_full()?;
    match messages(&datagram).next() {
        Some((NLMSG_ERROR, payload)) => match error_of(payload) {
            error if error.raw_os_error() == Some(0) => Ok(true),
            error if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            error => Err(error),
        },
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// `nlmsgerr.error`; 0 is an acknowledgement.
fn error_of(payload: &[u8]) -> io::Error {
    let code = payload
        .first_chunk::<4>()
        .map_or(libc::EPROTO, |bytes| -i32::from_ne_bytes(*bytes));
    io::Error::from_raw_os_error(code)
}

/// The agent in the socket's mark.
fn mark_agent(payload: &[u8]) -> Option<AgentId> {
    let storages = attribute(payload.get(DIAG_MSG..)?, SK_BPF_STORAGES)?;
    let storage = attribute(storages, STORAGE)?;
    let value = attribute(storage, STORAGE_MAP_VALUE)?;
    let at = std::mem::offset_of!(SocketMark, agent);
    let agent = value.get(at..)?.first_chunk::<4>()?;
    Some(AgentId(u32::from_ne_bytes(*agent)))
}

fn align4(len: usize) -> usize {
    len.next_multiple_of(4)
}

/// Type and payload of each netlink message; stops at one that is cut.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = u32::from_ne_bytes(*bytes.first_chunk::<4>()?) as usize;
        let kind = u16::from_ne_bytes([*bytes.get(4)?, *bytes.get(5)?]);
        let payload = bytes.get(NLMSG_HDR..len)?;
        bytes = bytes.get(align4(len)..).unwrap_or_default();
        Some((kind, payload))
    })
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
        let payload = [vec![0; DIAG_MSG], nla(8, &[3]), storages].concat();
        assert_eq!(mark_agent(&payload), Some(AgentId(7)));
        assert_eq!(mark_agent(&payload[..DIAG_MSG]), None);
    }

    #[test]
    fn a_cut_attribute_ends_the_search() {
        for bytes in [&[0u8, 0, 0, 0][..], &[3, 0, 1, 0], &[9, 0, 1, 0, 1], &[8]] {
            assert_eq!(attribute(bytes, 2), None);
        }
    }

    #[test]
    fn a_message_that_claims_too_much_is_left_out() {
        let mut bytes = vec![0; NLMSG_HDR];
        bytes[0] = 200;
        assert_eq!(messages(&bytes).count(), 0);
    }
}
