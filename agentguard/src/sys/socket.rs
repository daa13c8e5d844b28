//! Sockets' own numbers, and the pair that daemon and forwarder talk over.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use super::{Result, SysError};

/// `SO_NETNS_COOKIE` (Linux 5.14), not in `libc` yet.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// `SO_COOKIE`: unique among the sockets of this boot.
pub fn cookie(socket: impl AsFd) -> Result<u64> {
    u64_option(socket, libc::SO_COOKIE, "getsockopt SO_COOKIE")
}

/// The cookie of the network namespace this process is in.
pub fn netns_cookie() -> Result<u64> {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").map_err(SysError::io("bind"))?;
    u64_option(socket, SO_NETNS_COOKIE, "getsockopt SO_NETNS_COOKIE")
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
