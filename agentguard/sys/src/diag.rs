//! Live TCP and UDP sockets of a network namespace by `sock_diag`, and their end by `SOCK_DESTROY`
//! (`CONFIG_INET_DIAG_DESTROY`).

use std::collections::HashSet;
use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

use super::{Result, SysError};

/// `linux/sock_diag.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// `linux/netlink.h`.
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
/// `struct inet_diag_req_v2`.
const REQUEST: usize = 56;
/// `struct inet_diag_sockid` within `struct inet_diag_msg`, and the inode behind it.
const ID: std::ops::Range<usize> = 4..52;
const INODE: std::ops::Range<usize> = 68..72;
/// `struct inet_diag_msg`: attributes follow.
pub const MESSAGE: usize = 72;

/// What was done to the sockets of some processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CutSockets {
    pub destroyed: u32,
    /// The kernel would not: it lacks `CONFIG_INET_DIAG_DESTROY`.
    pub failed: u32,
}

/// Which sockets of those listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    All,
    /// Listeners stay: who is let go on again still has them.
    AllButListeners,
}

impl Which {
    /// `idiag_states`: a bit per `TCP_*` state of `include/net/tcp_states.h`.
    fn states(self) -> u32 {
        match self {
            Self::All => u32::MAX,
            Self::AllButListeners => !(1 << 10),
        }
    }
}

/// A family and a protocol, as `sock_diag` is asked for them one by one.
#[derive(Clone, Copy, Debug)]
pub struct SocketKind {
    pub family: u8,
    pub proto: u8,
}

/// A socket by the ids that `sock_diag` knows it by, its cookie among them.
#[derive(Clone, Debug)]
pub struct FoundSocket {
    kind: SocketKind,
    id: [u8; 48],
}

/// A `sock_diag` socket, of the network namespace that the calling thread was in.
pub struct Diag(Socket);

impl Diag {
    pub fn open() -> Result<Self> {
        let mut socket =
            Socket::new(NETLINK_SOCK_DIAG).map_err(SysError::io("socket NETLINK_SOCK_DIAG"))?;
        socket
            .bind_auto()
            .map_err(SysError::io("bind NETLINK_SOCK_DIAG"))?;
        socket
            .connect(&SocketAddr::new(0, 0))
            .map_err(SysError::io("connect NETLINK_SOCK_DIAG"))?;
        Ok(Self(socket))
    }

    /// The sockets in these states whose message (`struct inet_diag_msg` and what `attributes` asked for) is `wanted`.
    pub fn list(
        &self,
        kind: SocketKind,
        states: u32,
        attributes: &[u8],
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Result<Vec<FoundSocket>> {
        let flags = NLM_F_REQUEST | NLM_F_DUMP;
        let header = (SOCK_DIAG_BY_FAMILY, flags);
        self.send(&request(header, kind, states, &[0; 48], attributes))?;
        let mut found = Vec::new();
        loop {
            let datagram = self.receive()?;
            for (message, body) in messages(&datagram) {
                match message {
                    NLMSG_DONE => return Ok(found),
                    NLMSG_ERROR => match error_of(body) {
                        // What this kernel has no diag module for has no sockets to list (`inet_diag_lock_handler`).
                        libc::ENOENT => return Ok(found),
                        errno => return Err(refused(errno)),
                    },
                    SOCK_DIAG_BY_FAMILY if body.len() >= MESSAGE && wanted(body) => {
                        let mut id = [0; 48];
                        id.copy_from_slice(&body[ID]);
                        found.push(FoundSocket { kind, id });
                    }
                    _ => {}
                }
            }
        }
    }

    /// Peers see a reset, owners `ECONNABORTED`. `false`: it is gone already.
    pub fn destroy(&self, found: &FoundSocket) -> Result<bool> {
        let header = (SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK);
        self.send(&request(header, found.kind, u32::MAX, &found.id, &[]))?;
        let datagram = self.receive()?;
        let answer = messages(&datagram).find(|(message, _)| *message == NLMSG_ERROR);
        match answer.map(|(_, body)| error_of(body)) {
            Some(0) => Ok(true),
            Some(libc::ENOENT) => Ok(false),
            Some(errno) => Err(refused(errno)),
            None => Err(refused(libc::EPROTO)),
        }
    }

    fn send(&self, message: &[u8]) -> Result<()> {
        let sent = self.0.send(message, 0).map(drop);
        sent.map_err(SysError::io("send NETLINK_SOCK_DIAG"))
    }

    fn receive(&self) -> Result<Vec<u8>> {
        let received = self.0.recv_from_full().map(|(datagram, _)| datagram);
        received.map_err(SysError::io("recv NETLINK_SOCK_DIAG"))
    }
}

/// Destroys the TCP and UDP sockets of this network namespace whose inode is listed.
pub fn destroy(inodes: &HashSet<u64>, which: Which) -> Result<CutSockets> {
    let mut cut = CutSockets::default();
    if inodes.is_empty() {
        return Ok(cut);
    }
    let diag = Diag::open()?;
    let listed = |body: &[u8]| inodes.contains(&u64::from(u32_at(body, INODE.start)));
    for family in [libc::AF_INET, libc::AF_INET6] {
        for proto in [libc::IPPROTO_TCP, libc::IPPROTO_UDP] {
            let kind = SocketKind {
                family: family as u8,
                proto: proto as u8,
            };
            for found in diag.list(kind, which.states(), &[], listed)? {
                match diag.destroy(&found) {
                    Ok(destroyed) => cut.destroyed += u32::from(destroyed),
                    Err(_) => cut.failed += 1,
                }
            }
        }
    }
    Ok(cut)
}

fn refused(errno: i32) -> SysError {
    SysError {
        call: "NETLINK_SOCK_DIAG",
        source: io::Error::from_raw_os_error(errno),
    }
}

/// `struct nlmsghdr`, `struct inet_diag_req_v2` and its attributes.
fn request(
    (message, flags): (u16, u16),
    kind: SocketKind,
    states: u32,
    id: &[u8; 48],
    attributes: &[u8],
) -> Vec<u8> {
    let len = HEADER + REQUEST + attributes.len();
    let mut m = Vec::with_capacity(len);
    m.extend_from_slice(&(len as u32).to_ne_bytes());
    m.extend_from_slice(&message.to_ne_bytes());
    m.extend_from_slice(&flags.to_ne_bytes());
    // Sequence number and port id: one request at a time on a socket of its own.
    m.extend_from_slice(&[0; 8]);
    m.extend_from_slice(&[kind.family, kind.proto, 0, 0]);
    m.extend_from_slice(&states.to_ne_bytes());
    m.extend_from_slice(id);
    m.extend_from_slice(attributes);
    m
}

/// Type and body of each message; stops at one that is cut.
fn messages(mut datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        if datagram.len() < HEADER {
            return None;
        }
        let len = u32_at(datagram, 0) as usize;
        if !(HEADER..=datagram.len()).contains(&len) {
            return None;
        }
        let message = u16::from_ne_bytes([datagram[4], datagram[5]]);
        let body = &datagram[HEADER..len];
        datagram = &datagram[len.next_multiple_of(4).min(datagram.len())..];
        Some((message, body))
    })
}

/// `nlmsgerr.error` as an errno; 0 is an acknowledgement.
fn error_of(body: &[u8]) -> i32 {
    if body.len() < 4 {
        return libc::EPROTO;
    }
    -u32_at(body, 0).cast_signed()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn inode(fd: i32) -> u64 {
        let path = format!("/proc/self/fd/{fd}");
        std::fs::metadata(path).unwrap().ino()
    }

    #[test]
    fn a_message_that_claims_too_much_is_left_out() {
        let mut bytes = vec![0; HEADER];
        bytes[0] = 200;
        assert_eq!(messages(&bytes).count(), 0);
        assert_eq!(messages(&bytes[..7]).count(), 0);
    }

    #[test]
    fn only_the_named_socket_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut cut = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut cut_peer, _) = listener.accept().unwrap();
        let mut kept = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut kept_peer, _) = listener.accept().unwrap();
        let both = HashSet::from([inode(cut.as_raw_fd()), inode(listener.as_raw_fd())]);
        let result = destroy(&both, Which::AllButListeners).unwrap();
        if !nix::unistd::geteuid().is_root() {
            assert_eq!(result.failed, 1);
            return;
        }
        assert_eq!(
            result,
            CutSockets {
                destroyed: 1,
                failed: 0
            }
        );
        assert!(cut.write(b"x").is_err());
        assert!(cut_peer.read(&mut [0]).is_err());
        kept.write_all(b"y").unwrap();
        kept_peer.read_exact(&mut [0]).unwrap();
        TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let ours = HashSet::from([inode(listener.as_raw_fd())]);
        assert_eq!(destroy(&ours, Which::All).unwrap().destroyed, 1);
        TcpStream::connect(listener.local_addr().unwrap()).unwrap_err();
    }
}
