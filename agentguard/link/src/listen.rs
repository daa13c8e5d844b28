//! The forwarder's sockets: one port for TCP and UDP, both families, on loopback, where no connect of anybody's ends by
//! chance. The daemon makes them, in each network namespace, and hands them over.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use agentguard_sys::socket::{receive_room, take_marked_only};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};

/// Tried in this order when no port is configured: above and below Linux's usual ephemeral range (32768 to 60999).
const CANDIDATES: [std::ops::RangeInclusive<u16>; 2] = [61_000..=65_535, 20_000..=32_767];
const BACKLOG: i32 = 4096;
/// For questions that wait, bytes: several agents may ask as many as one may in a row (`agentguard_common::share`).
const QUESTIONS_ROOM: i32 = 4 << 20;

/// The sockets of one family: a listener, and the resolver's.
pub struct Pair {
    tcp: Socket,
    udp: Socket,
}

/// Bound, listening, and not yet served by anybody.
pub struct BoundSockets {
    pub port: u16,
    v4: Pair,
    /// `None` where the namespace has no `::1`.
    v6: Option<Pair>,
}

/// The sockets of one family, served by the current runtime.
pub struct Sockets {
    pub tcp: TcpListener,
    pub udp: UdpSocket,
}

/// Listens on `port`, or on the first one that is free for all if it is 0.
pub fn listen(port: u16) -> io::Result<BoundSockets> {
    if port != 0 {
        return on(port);
    }
    // Not everybody's first choice is the same.
    let offset = std::process::id() as usize;
    for range in CANDIDATES {
        let ports: Vec<u16> = range.collect();
        let start = offset % ports.len();
        for &port in ports[start..].iter().chain(&ports[..start]) {
            match on(port) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                result => return result,
            }
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

/// [`listen`] on this port if it is free, else on another.
pub fn listen_best(port: u16) -> io::Result<BoundSockets> {
    match listen(port) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => listen(0),
        result => result,
    }
}

impl BoundSockets {
    /// `SO_COOKIE` of the IPv4 and the IPv6 listener.
    pub fn cookies(&self) -> io::Result<(u64, Option<u64>)> {
        let v6 = self.v6.as_ref().map(|v6| v6.tcp.cookie()).transpose()?;
        Ok((self.v4.tcp.cookie()?, v6))
    }

    /// For another process, which takes them by [`Self::from_descriptors`].
    pub fn into_descriptors(self) -> Vec<OwnedFd> {
        [Some(self.v4), self.v6]
            .into_iter()
            .flatten()
            .flat_map(|pair| [pair.tcp.into(), pair.udp.into()])
            .collect()
    }

    /// `None` if these are not what [`Self::into_descriptors`] gave.
    pub fn from_descriptors(descriptors: Vec<OwnedFd>) -> Option<Self> {
        let mut sockets = descriptors.into_iter().map(Socket::from);
        let mut pair = || {
            Some(Pair {
                tcp: sockets.next()?,
                udp: sockets.next()?,
            })
        };
        let (v4, v6) = (pair()?, pair());
        let port = v4.tcp.local_addr().ok()?.as_socket()?.port();
        Some(Self { port, v4, v6 })
    }

    /// Must be called within a runtime.
    pub fn serve(self) -> io::Result<Vec<Sockets>> {
        let pairs = [Some(self.v4), self.v6].into_iter().flatten();
        pairs
            .map(|pair| {
                Ok(Sockets {
                    tcp: TcpListener::from_std(pair.tcp.into())?,
                    udp: UdpSocket::from_std(pair.udp.into())?,
                })
            })
            .collect()
    }
}

fn on(port: u16) -> io::Result<BoundSockets> {
    let v4 = pair(Ipv4Addr::LOCALHOST.into(), port)?;
    let v6 = match pair(Ipv6Addr::LOCALHOST.into(), port) {
        Ok(pair) => Some(pair),
        Err(error) if has_no_v6(&error) => None,
        Err(error) => return Err(error),
    };
    Ok(BoundSockets { port, v4, v6 })
}

fn pair(ip: IpAddr, port: u16) -> io::Result<Pair> {
    let addr = SocketAddr::new(ip, port);
    // No SO_REUSEPORT: nobody shares this port. SO_REUSEADDR only for what is left of an earlier forwarder.
    let tcp = socket(addr, Type::STREAM, Protocol::TCP)?;
    tcp.set_reuse_address(true)?;
    tcp.bind(&addr.into())?;
    tcp.listen(BACKLOG)?;
    let udp = socket(addr, Type::DGRAM, Protocol::UDP)?;
    // Agents' questions are marked when they leave: nobody else's datagram arrives.
    take_marked_only(&udp).map_err(io::Error::other)?;
    receive_room(&udp, QUESTIONS_ROOM).map_err(io::Error::other)?;
    udp.bind(&addr.into())?;
    Ok(Pair { tcp, udp })
}

fn socket(addr: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let kind = kind.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(addr), kind, Some(protocol))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

fn has_no_v6(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_sockets_share_a_port_outside_the_ephemeral_range() {
        let bound = listen(0).unwrap();
        let port = bound.port;
        assert!(CANDIDATES.iter().any(|range| range.contains(&port)));
        let (v4, v6) = bound.cookies().unwrap();
        assert_ne!(v4, 0);
        let handed = bound.into_descriptors();
        assert_eq!(handed.len(), if v6.is_some() { 4 } else { 2 });
        let taken = BoundSockets::from_descriptors(handed).unwrap();
        assert_eq!((taken.port, taken.cookies().unwrap()), (port, (v4, v6)));
        for sockets in taken.serve().unwrap() {
            assert_eq!(sockets.tcp.local_addr().unwrap().port(), port);
            assert_eq!(sockets.udp.local_addr().unwrap().port(), port);
        }
        assert!(BoundSockets::from_descriptors(Vec::new()).is_none());
    }

    #[tokio::test]
    async fn a_taken_port_is_an_error_or_passed_over() {
        let first = listen(0).unwrap();
        let error = listen(first.port).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert_ne!(listen(0).unwrap().port, first.port);
        assert_ne!(listen_best(first.port).unwrap().port, first.port);
    }
}
