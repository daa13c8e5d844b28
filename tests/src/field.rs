//! Where an attempt wants to get to: one port number for TCP and UDP, IPv4 and IPv6, on loopback, with an answer for whoever
//! connects, and a capture behind every hook that could drop what is sent there. A second port is for what an agent may
//! reach.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};

/// What goes out on a way that has no ports.
const MARK: &[u8] = b"agentguard-attempt";

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";

const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_UDPLITE: u8 = 136;
/// Hop-by-hop options, routing and destination options (RFC 8200, section 4).
const IPV6_EXTENSIONS: [u8; 3] = [0, 43, 60];

/// What of an attempt's is on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The beginning of a connection to the goal, payload for it, or the mark on a way without ports.
    pub anything: bool,
    /// The mark in payload for the goal.
    pub mark: bool,
}

pub struct Field {
    goal: Port,
    open: Port,
    wire: OwnedFd,
}

impl Field {
    pub fn new() -> Self {
        Self::with(Port::new(0))
    }

    /// The goal is this port.
    pub fn on(port: u16) -> Self {
        Self::with(Port::new(port))
    }

    fn with(goal: Port) -> Self {
        Self {
            goal,
            open: Port::new(0),
            wire: wire(),
        }
    }

    /// Where an attempt wants to get to.
    pub fn port(&self) -> u16 {
        self.goal.number
    }

    /// For what an agent may reach.
    pub fn open(&self) -> u16 {
        self.open.number
    }

    /// What has been on the wire since the last look. Loopback delivers before a send returns, so what a program that has
    /// ended got out is here.
    pub fn seen(&mut self) -> Seen {
        let mut seen = Seen::default();
        let mut packet = [0; 65536];
        while let Ok(length) = recv(self.wire.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            let packet = &packet[..length];
            if is_attempt(packet, self.goal.number) {
                seen.anything = true;
                seen.mark |= has_mark(packet);
            }
        }
        seen
    }
}

impl Default for Field {
    fn default() -> Self {
        Self::new()
    }
}

/// The same number everywhere.
struct Port {
    number: u16,
    ended: Arc<AtomicBool>,
    answering: Vec<JoinHandle<()>>,
    _udp: [UdpSocket; 2],
}

impl Port {
    /// 0: any that is free.
    fn new(wanted: u16) -> Self {
        loop {
            let tcp4 = TcpListener::bind((Ipv4Addr::LOCALHOST, wanted)).expect("a port");
            let number = tcp4.local_addr().expect("bound").port();
            let tcp6 = TcpListener::bind((Ipv6Addr::LOCALHOST, number));
            let udp4 = UdpSocket::bind((Ipv4Addr::LOCALHOST, number));
            let udp6 = UdpSocket::bind((Ipv6Addr::LOCALHOST, number));
            match (tcp6, udp4, udp6) {
                (Ok(tcp6), Ok(udp4), Ok(udp6)) => {
                    let ended = Arc::new(AtomicBool::new(false));
                    let answering = [tcp4, tcp6].map(|listener| {
                        let ended = ended.clone();
                        std::thread::spawn(move || answer_all(&listener, &ended))
                    });
                    return Self {
                        number,
                        ended,
                        answering: answering.into(),
                        _udp: [udp4, udp6],
                    };
                }
                other => assert!(wanted == 0, "port {wanted} is taken: {other:?}"),
            }
        }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // The end of each accept.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.number));
        let _ = TcpStream::connect((Ipv6Addr::LOCALHOST, self.number));
        for thread in self.answering.drain(..) {
            let _ = thread.join();
        }
    }
}

fn answer_all(listener: &TcpListener, ended: &AtomicBool) {
    while let Ok((stream, _)) = listener.accept() {
        if ended.load(Ordering::Acquire) {
            return;
        }
        std::thread::spawn(move || answer(stream));
    }
}

/// Once anything has been said, and to the end of what is said.
fn answer(mut stream: TcpStream) {
    // Nobody's test waits for longer.
    let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
    let mut said = [0; 65536];
    if matches!(stream.read(&mut said), Ok(1..)) {
        let _ = stream.write_all(ANSWER);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        while matches!(stream.read(&mut said), Ok(1..)) {}
    }
}

/// Every packet of this network namespace's, from its network header on.
fn wire() -> OwnedFd {
    let wire = socket(
        AddressFamily::Packet,
        SockType::Datagram,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )
    .expect("tests run as root");
    setsockopt(&wire, sockopt::RcvBufForce, &(64 << 20)).expect("set");
    wire
}

fn has_mark(packet: &[u8]) -> bool {
    packet.windows(MARK.len()).any(|window| window == MARK)
}

fn is_attempt(packet: &[u8], port: u16) -> bool {
    let Some(first) = packet.first() else {
        return false;
    };
    let (proto, head) = match first >> 4 {
        4 => (packet.get(9), usize::from(first & 15) * 4),
        6 if packet
            .get(6)
            .is_some_and(|next| IPV6_EXTENSIONS.contains(next)) =>
        {
            (
                packet.get(40),
                48 + usize::from(packet.get(41).copied().unwrap_or_default()) * 8,
            )
        }
        6 => (packet.get(6), 40),
        _ => return false,
    };
    let (Some(proto), Some(transport)) = (proto, packet.get(head..)) else {
        return false;
    };
    let is_there = transport.get(2..4) == Some(&port.to_be_bytes());
    match (*proto, transport) {
        (IPPROTO_TCP, [_, _, _, _, _, _, _, _, _, _, _, _, offset, flags, ..]) => {
            const SYN: u8 = 2;
            const ACK: u8 = 16;
            let has_payload = transport.len() > usize::from(offset >> 4) * 4;
            is_there && (flags & (SYN | ACK) == SYN || has_payload)
        }
        (IPPROTO_UDP | IPPROTO_UDPLITE, _) => is_there,
        (_, rest) => has_mark(rest),
    }
}
