//! Live TCP and UDP sockets by inode, and their end by `SOCK_DESTROY` (`CONFIG_INET_DIAG_DESTROY`).

use std::collections::HashSet;

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
/// `struct inet_diag_sockid` within `struct inet_diag_msg`, and the inode behind it.
const ID: std::ops::Range<usize> = 4..52;
const INODE: std::ops::Range<usize> = 68..72;
const MESSAGE: usize = 72;

/// What was done to the sockets of some processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    pub destroyed: u32,
    /// The kernel would not: another owner's end raced, or the kernel lacks `CONFIG_INET_DIAG_DESTROY`.
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

/// Destroys the TCP and UDP sockets of this network namespace whose inode is listed: peers see a reset, owners
/// `ECONNABORTED`.
pub fn destroy(inodes: &HashSet<u64>, which: Which) -> Result<Cut> {
    let mut cut = Cut::default();
    if inodes.is_empty() {
        return Ok(cut);
    }
    let mut socket =
        Socket::new(NETLINK_SOCK_DIAG).map_err(SysError::io("socket NETLINK_SOCK_DIAG"))?;
    socket
        .bind_auto()
        .map_err(SysError::io("bind NETLINK_SOCK_DIAG"))?;
    socket
        .connect(&SocketAddr::new(0, 0))
        .map_err(SysError::io("connect NETLINK_SOCK_DIAG"))?;
    for family in [libc::AF_INET, libc::AF_INET6] {
        for proto in [libc::IPPROTO_TCP, libc::IPPROTO_UDP] {
            for id in dump(&socket, (family as u8, proto as u8), which, inodes)? {
                let request = request(
                    (SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK),
                    (family as u8, proto as u8),
                    u32::MAX,
                    &id,
                );
                match acknowledged(&socket, &request)? {
                    0 => cut.destroyed += 1,
                    errno if errno == -libc::ENOENT => {}
                    _ => cut.failed += 1,
                }
            }
        }
    }
    Ok(cut)
}

fn dump(
    socket: &Socket,
    of: (u8, u8),
    which: Which,
    inodes: &HashSet<u64>,
) -> Result<Vec<Vec<u8>>> {
    let wanted = request(
        (SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP),
        of,
        which.states(),
        &[0; 48],
    );
    send(socket, &wanted)?;
    let mut found = Vec::new();
    loop {
        let (datagram, _) = socket
            .recv_from_full()
            .map_err(SysError::io("recv NETLINK_SOCK_DIAG"))?;
        for (kind, body) in messages(&datagram) {
            match kind {
                NLMSG_DONE => return Ok(found),
                // A protocol that this kernel has no diag module for has no sockets to end either.
                NLMSG_ERROR => return Ok(found),
                _ if body.len() >= MESSAGE => {
                    let inode = u32_at(body, INODE.start);
                    if inodes.contains(&u64::from(inode)) {
                        found.push(body[ID].to_vec());
                    }
                }
                _ => {}
            }
        }
    }
}

fn acknowledged(socket: &Socket, request: &[u8]) -> Result<i32> {
    send(socket, request)?;
    let (datagram, _) = socket
        .recv_from_full()
        .map_err(SysError::io("recv NETLINK_SOCK_DIAG"))?;
    Ok(messages(&datagram)
        .find(|(kind, body)| *kind == NLMSG_ERROR && body.len() >= 4)
        .map_or(0, |(_, body)| u32_at(body, 0).cast_signed()))
}

fn send(socket: &Socket, message: &[u8]) -> Result<()> {
    socket
        .send(message, 0)
        .map(drop)
        .map_err(SysError::io("send NETLINK_SOCK_DIAG"))
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn request(
    (kind, flags): (u16, u16),
    (family, proto): (u8, u8),
    states: u32,
    id: &[u8],
) -> Vec<u8> {
    let mut m = Vec::with_capacity(HEADER + 56);
    m.extend_from_slice(&72u32.to_ne_bytes());
    m.extend_from_slice(&kind.to_ne_bytes());
    m.extend_from_slice(&flags.to_ne_bytes());
    m.extend_from_slice(&[0; 8]);
    m.extend_from_slice(&[family, proto, 0, 0]);
    m.extend_from_slice(&states.to_ne_bytes());
    m.extend_from_slice(id);
    m
}

fn messages(mut datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        if datagram.len() < HEADER {
            return None;
        }
        let len = u32_at(datagram, 0) as usize;
        if !(HEADER..=datagram.len()).contains(&len) {
            return None;
        }
        let kind = u16::from_ne_bytes([datagram[4], datagram[5]]);
        let body = &datagram[HEADER..len];
        datagram = &datagram[len.next_multiple_of(4).min(datagram.len())..];
        Some((kind, body))
    })
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
            Cut {
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
