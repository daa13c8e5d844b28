//! Sockets of the test's own, with an end to every wait.

use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long a peer on loopback may take.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// A listener that nobody's rules know, and its port.
pub fn server(ip: &str) -> (TcpListener, u16) {
    let ip: IpAddr = ip.parse().expect("an address");
    let listener = TcpListener::bind((ip, 0)).expect("a port");
    let port = listener.local_addr().expect("bound").port();
    (listener, port)
}

/// Accepts one connection, or panics after a while.
#[track_caller]
pub fn accept(listener: &TcpListener) -> TcpStream {
    assert!(is_readable(listener, PATIENCE), "nobody connects");
    let (stream, _) = listener.accept().expect("it is there");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    stream
}

/// Whether there is something to read within `patience`.
pub fn is_readable(socket: &impl AsFd, patience: Duration) -> bool {
    let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    let patience = PollTimeout::try_from(patience).expect("short enough");
    poll(&mut polled, patience) == Ok(1)
}
