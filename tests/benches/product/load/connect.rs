//! The cost of `connect(2)` by itself. On loopback the call returns with the handshake done, so its time is that of the
//! kernel's whole path, hooks included.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};

use super::latency::Latencies;

/// Blocking, one after the other. Closes with a reset: nothing stays in TIME_WAIT.
pub fn connects(to: SocketAddr, count: u32) -> anyhow::Result<Latencies> {
    let mut latencies = Latencies::default();
    let address = SockaddrStorage::from(to);
    let family = if to.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    for _ in 0..count {
        let socket: OwnedFd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        let reset = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&socket, sockopt::Linger, &reset)?;
        let started = Instant::now();
        connect(socket.as_raw_fd(), &address)?;
        latencies.push(started.elapsed());
    }
    Ok(latencies)
}
