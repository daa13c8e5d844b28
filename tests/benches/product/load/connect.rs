//! The cost of `connect(2)` by itself. On loopback the call returns with the handshake done, so its time is that of the
//! kernel's whole path, hooks included.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use agentguard_common::share;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};

use super::latency::Latencies;

/// Blocking, one after the other. Closes with a reset: nothing stays in TIME_WAIT.
pub(super) fn connects(to: SocketAddr, count: u32) -> anyhow::Result<Latencies> {
    let mut latencies = Latencies::default();
    let address = SockaddrStorage::from(to);
    let family = if to.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    for made in 1..=count {
        if u64::from(made) % share::CONNECTS_IN_A_ROW == 0 {
            // An agent's connects have a rate.
            let due = share::CONNECTS_IN_A_ROW * share::CONNECT_EVERY_NS;
            thread::sleep(Duration::from_nanos(due));
        }
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

pub(super) fn unix_connects(path: &Path, count: u32) -> anyhow::Result<Latencies> {
    let mut latencies = Latencies::default();
    for _ in 0..count {
        let started = Instant::now();
        let stream = UnixStream::connect(path)?;
        latencies.push(started.elapsed());
        drop(stream);
    }
    Ok(latencies)
}

/// How long `bytes` took, to the last one read.
pub(super) fn stream(to: SocketAddr, bytes: u64) -> anyhow::Result<Duration> {
    let mut stream = TcpStream::connect(to)?;
    let chunk = vec![b's'; 256 << 10];
    let started = Instant::now();
    let mut left = bytes;
    while left > 0 {
        let len = left.min(chunk.len() as u64) as usize;
        stream.write_all(&chunk[..len])?;
        left -= len as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    stream.read_exact(&mut [0])?;
    Ok(started.elapsed())
}
