//! Sockets' own numbers, and the pair that daemon and forwarder talk over.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

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
}
