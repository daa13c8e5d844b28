//! The forwarder's sockets: one port for TCP and UDP, both families, on loopback, where no connect of anybody's ends by
//! chance.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

/// Tried in this order when no port is configured: above and below Linux's usual ephemeral range (32768 to 60999).
const CANDIDATES: [std::ops::RangeInclusive<u16>; 2] = [61_000..=65_535, 20_000..=32_767];
const BACKLOG: i32 = 4096;

/// The listeners of one family, not blocking.
pub struct Sockets {
    pub tcp: TcpListener,
    pub udp: UdpSocket,
    /// `SO_COOKIE` of `tcp`.
    pub cookie: u64,
}

pub struct Listening {
    pub port: u16,
    pub v4: Sockets,
    /// `None` where the namespace has no `::1`.
    pub v6: Option<Sockets>,
}

/// Listens on `port`, or on the first one that is free for all if it is 0.
pub fn listen(port: u16) -> io::Result<Listening> {
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

fn on(port: u16) -> io::Result<Listening> {
    let v4 = sockets(Ipv4Addr::LOCALHOST.into(), port)?;
    let v6 = match sockets(Ipv6Addr::LOCALHOST.into(), port) {
        Ok(sockets) => Some(sockets),
        Err(error) if has_no_v6(&error) => None,
        Err(error) => return Err(error),
    };
    Ok(Listening { port, v4, v6 })
}

fn sockets(ip: IpAddr, port: u16) -> io::Result<Sockets> {
    let addr = SocketAddr::new(ip, port);
    // No SO_REUSEPORT: nobody shares this port. SO_REUSEADDR only for what is left of an earlier forwarder.
    let tcp = socket(addr, Type::STREAM, Protocol::TCP)?;
    tcp.set_reuse_address(true)?;
    tcp.bind(&addr.into())?;
    tcp.listen(BACKLOG)?;
    let udp = socket(addr, Type::DGRAM, Protocol::UDP)?;
    udp.bind(&addr.into())?;
    Ok(Sockets {
        cookie: tcp.cookie()?,
        tcp: tcp.into(),
        udp: udp.into(),
    })
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
        let listening = listen(0).unwrap();
        assert!(
            CANDIDATES
                .iter()
                .any(|range| range.contains(&listening.port))
        );
        for sockets in [Some(&listening.v4), listening.v6.as_ref()]
            .into_iter()
            .flatten()
        {
            assert_eq!(sockets.tcp.local_addr().unwrap().port(), listening.port);
            assert_eq!(sockets.udp.local_addr().unwrap().port(), listening.port);
            assert_ne!(sockets.cookie, 0);
        }
    }

    #[tokio::test]
    async fn a_taken_port_is_an_error_or_passed_over() {
        let first = listen(0).unwrap();
        let error = listen(first.port).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert_ne!(listen(0).unwrap().port, first.port);
    }
}
