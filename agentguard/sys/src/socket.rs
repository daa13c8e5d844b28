//! Sockets' own numbers, and the pair that daemon and forwarder talk over.

use std::io::{self, IoSliceMut};
use std::mem::zeroed;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, socketpair,
};

use super::{Result, SysError};

/// `SO_NETNS_COOKIE` (Linux 5.14), not in `libc` yet.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// `SO_COOKIE`: unique among the sockets of this boot.
pub fn cookie(socket: impl AsFd) -> Result<u64> {
    u64_option(socket, libc::SO_COOKIE, "getsockopt SO_COOKIE")
}

/// The address family of a descriptor that is a socket.
pub fn family(fd: impl AsFd) -> Option<i32> {
    let mut family: libc::c_int = 0;
    let mut len = size_of_val(&family) as libc::socklen_t;
    // SAFETY: both outlive the call, and `len` is the size of `family`.
    let failed = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_DOMAIN,
            (&raw mut family).cast(),
            &raw mut len,
        )
    };
    (failed == 0).then_some(family)
}

/// How sending gets on (`tcp_info`, `tcp_get_info()`).
#[derive(Clone, Copy, Debug)]
pub struct TcpProgress {
    /// Times in a row that the oldest unacknowledged segment was sent again. None while the peer's window is closed.
    pub retransmits: u8,
    /// Since the last acknowledgement.
    pub since_ack: Duration,
}

/// How a TCP socket's sending gets on.
pub fn tcp_progress(socket: impl AsFd) -> Result<TcpProgress> {
    // SAFETY: it is integers, for which zeros are valid.
    let mut info: libc::tcp_info = unsafe { zeroed() };
    let mut len = size_of_val(&info) as libc::socklen_t;
    // SAFETY: both outlive the call, and `len` is the size of `info`; older kernels fill in less.
    let failed = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    match failed {
        0 => Ok(TcpProgress {
            retransmits: info.tcpi_retransmits,
            since_ack: Duration::from_millis(info.tcpi_last_ack_recv.into()),
        }),
        _ => Err(SysError::last("getsockopt TCP_INFO")),
    }
}

/// The cookie of the network namespace the calling thread is in, as `bpf_get_netns_cookie` gives it.
pub fn netns_cookie() -> Result<u64> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").map_err(SysError::io("bind"))?;
    u64_option(socket, SO_NETNS_COOKIE, "getsockopt SO_NETNS_COOKIE")
}

/// Descriptors that [`receive`] has room for in one datagram.
const MOST_DESCRIPTORS: usize = 4;

/// Takes one datagram, and the descriptors that came with it (`SCM_RIGHTS`) where there is a place for them: else the
/// kernel drops them. Answers the datagram's own length, longer than the buffer or not.
pub fn receive(
    socket: RawFd,
    buffer: &mut [u8],
    descriptors: Option<&mut Vec<OwnedFd>>,
) -> io::Result<usize> {
    let mut room = nix::cmsg_space!([RawFd; MOST_DESCRIPTORS]);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_TRUNC | MsgFlags::MSG_CMSG_CLOEXEC;
    let Some(descriptors) = descriptors else {
        return Ok(recvmsg::<()>(socket, &mut parts, None, flags)?.bytes);
    };
    let received = recvmsg::<()>(socket, &mut parts, Some(&mut room), flags)?;
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = message {
            // SAFETY: the kernel has just installed these descriptors for us alone.
            descriptors.extend(
                fds.into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    Ok(received.bytes)
}

/// Room for so many bytes that wait to be received, with what the kernel adds to each datagram, beyond what the host lets
/// everybody have (socket(7), `SO_RCVBUFFORCE`). Needs CAP_NET_ADMIN.
pub fn receive_room(socket: impl AsFd, bytes: i32) -> Result<()> {
    set(
        socket.as_fd(),
        libc::SO_RCVBUFFORCE,
        &bytes,
        "SO_RCVBUFFORCE",
    )
}

/// Has the kernel tell the mark of each datagram that comes to `socket` ([`receive_marked`]) and drop those without one, as long
/// as the socket is there. Needs CAP_NET_ADMIN or CAP_NET_RAW.
pub fn take_marked_only(socket: impl AsFd) -> Result<()> {
    /// Of the packet's mark (`linux/filter.h`).
    const MARK: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_MARK) as u32;
    let statement = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let mut filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, MARK),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, 0),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    let socket = socket.as_fd();
    set(socket, libc::SO_ATTACH_FILTER, &program, "SO_ATTACH_FILTER")?;
    set(socket, libc::SO_LOCK_FILTER, &1, "SO_LOCK_FILTER")?;
    set(socket, libc::SO_RCVMARK, &1, "SO_RCVMARK")
}

fn set<T>(
    socket: BorrowedFd<'_>,
    option: libc::c_int,
    value: &T,
    call: &'static str,
) -> Result<()> {
    // SAFETY: `value` outlives the call, with what it points to, and the length is its own.
    let failed = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    match failed {
        0 => Ok(()),
        _ => Err(SysError::last(call)),
    }
}

/// A datagram's length in the buffer, its sender, and its mark if the socket was told to take it.
pub fn receive_marked(
    socket: impl AsFd,
    buffer: &mut [u8],
) -> io::Result<(usize, SocketAddr, Option<u32>)> {
    // Room for a `cmsghdr` and a mark, as `cmsghdr` is aligned.
    let mut room = [0u64; 3];
    // SAFETY: `sockaddr_storage` and `msghdr` are integers and pointers, for which zeros are valid.
    let (mut peer, mut message): (libc::sockaddr_storage, libc::msghdr) = unsafe { zeroed() };
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    message.msg_name = (&raw mut peer).cast();
    message.msg_namelen = size_of_val(&peer) as libc::socklen_t;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = room.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&room) as _;
    // SAFETY: everything that `message` points to outlives the call, with its length beside it.
    let received = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, 0) };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has filled in the control messages and their length.
    let head = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: null, or the first control message.
    let mark = unsafe { head.as_ref() }
        .filter(|head| (head.cmsg_level, head.cmsg_type) == (libc::SOL_SOCKET, libc::SO_MARK))
        .map(|head| {
            // SAFETY: the kernel has made it, with its data behind it.
            let data = unsafe { libc::CMSG_DATA(head) };
            // SAFETY: the data of an `SO_MARK` message is a `u32` (`sock_recv_mark`).
            unsafe { data.cast::<u32>().read_unaligned() }
        });
    let peer = address(&peer).ok_or(io::ErrorKind::InvalidData)?;
    Ok((received, peer, mark))
}

fn address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: of this family it is a `sockaddr_in`, which is smaller and aligned no more strictly.
            let v4 = unsafe { &*std::ptr::from_ref(storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr));
            Some((ip, u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above, a `sockaddr_in6`.
            let v6 = unsafe { &*std::ptr::from_ref(storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            Some((ip, u16::from_be(v6.sin6_port)).into())
        }
        _ => None,
    }
}

/// A connected `SOCK_SEQPACKET` pair, closed on exec, blocking.
pub fn seqpacket_pair() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .map_err(SysError::of("socketpair"))
}

fn u64_option(socket: impl AsFd, option: libc::c_int, call: &'static str) -> Result<u64> {
    let mut value = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `value` and `len` outlive the call, and `len` is the size of `value`.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    if rc != 0 {
        return Err(SysError::last(call));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_tell_sockets_apart() {
        let a = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let b = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_ne!(cookie(&a).unwrap(), cookie(&b).unwrap());
        assert_eq!(cookie(&a).unwrap(), cookie(&a).unwrap());
        assert_ne!(netns_cookie().unwrap(), 0);
    }

    #[test]
    fn a_datagram_without_a_mark_does_not_arrive() {
        for loopback in ["127.0.0.1:0", "[::1]:0"] {
            let taking = std::net::UdpSocket::bind(loopback).unwrap();
            taking.set_nonblocking(true).unwrap();
            take_marked_only(&taking).unwrap();
            let at = taking.local_addr().unwrap();
            let sending = std::net::UdpSocket::bind(loopback).unwrap();
            let from = sending.local_addr().unwrap();
            sending.send_to(b"nobody's", at).unwrap();
            set(sending.as_fd(), libc::SO_MARK, &0x1234, "SO_MARK").unwrap();
            sending.send_to(b"marked", at).unwrap();
            let mut buffer = [0; 16];
            let received = receive_marked(&taking, &mut buffer).unwrap();
            assert_eq!(received, (6, from, Some(0x1234)), "{loopback}");
            let error = receive_marked(&taking, &mut buffer).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{loopback}");
        }
    }
}
