//! What the canary aims at: sockets of the daemon's own on loopback, so that no traffic of the host is disturbed.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use ipnet::IpNet;

use crate::canary::{Attempt, What};
use crate::kernel::Rule;

pub(super) struct Targets {
    /// Its rules name these.
    permitted: TcpListener,
    permitted_v6: Option<TcpListener>,
    permitted_udp: UdpSocket,
    /// And not these.
    forbidden: TcpListener,
    forbidden_udp: UdpSocket,
}

impl Targets {
    pub(super) fn open() -> io::Result<Self> {
        let local = (Ipv4Addr::LOCALHOST, 0);
        let targets = Self {
            permitted: TcpListener::bind(local)?,
            // Where the host has no `::1`, nothing permitted can be there.
            permitted_v6: TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).ok(),
            permitted_udp: UdpSocket::bind(local)?,
            forbidden: TcpListener::bind(local)?,
            forbidden_udp: UdpSocket::bind(local)?,
        };
        for listener in targets.listeners() {
            listener.set_nonblocking(true)?;
        }
        for socket in [&targets.permitted_udp, &targets.forbidden_udp] {
            socket.set_nonblocking(true)?;
        }
        Ok(targets)
    }

    pub(super) fn rules(&self) -> Vec<Rule> {
        let exactly = |addr: SocketAddr| (IpNet::from(addr.ip()), Some(addr.port()));
        let tcp = [Some(&self.permitted), self.permitted_v6.as_ref()];
        let mut rules: Vec<Rule> = tcp
            .into_iter()
            .flatten()
            .filter_map(|listener| listener.local_addr().ok())
            .map(|addr| {
                let (net, port) = exactly(addr);
                Rule::ReachTcp { net, port }
            })
            .collect();
        if let Ok(addr) = self.permitted_udp.local_addr() {
            let (net, port) = exactly(addr);
            rules.push(Rule::ReachUdp { net, port });
        }
        rules
    }

    /// With a name for people, and whether it is permitted.
    pub(super) fn kernel(&self) -> io::Result<Vec<(&'static str, bool, Attempt)>> {
        let (yes, no) = (self.permitted.local_addr()?, self.forbidden.local_addr()?);
        let (yes_udp, no_udp) = (
            self.permitted_udp.local_addr()?,
            self.forbidden_udp.local_addr()?,
        );
        let v6 = |addr: SocketAddr| SocketAddr::new(Ipv6Addr::LOCALHOST.into(), addr.port());
        let mapped = |addr: SocketAddr| match addr.ip() {
            IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), addr.port()),
            IpAddr::V6(_) => addr,
        };
        let mut all = vec![
            ("TCP connect over IPv4", false, What::Connect, no),
            ("TCP connect over IPv6", false, What::Connect, v6(no)),
            (
                "TCP connect over mapped IPv6",
                false,
                What::Connect,
                mapped(no),
            ),
            ("datagram over IPv4", false, What::Send, no_udp),
            ("datagram over IPv6", false, What::Send, v6(no_udp)),
            ("TCP connect over IPv4", true, What::Connect, yes),
            (
                "TCP connect over mapped IPv6",
                true,
                What::Connect,
                mapped(yes),
            ),
            ("datagram over IPv4", true, What::Send, yes_udp),
        ];
        if let Some(listener) = &self.permitted_v6 {
            let yes = listener.local_addr()?;
            all.push(("TCP connect over IPv6", true, What::Connect, yes));
        }
        let attempts = all.into_iter();
        let attempts = attempts.map(|(name, permitted, what, to)| {
            let attempt = Attempt { what, to };
            (name, permitted, attempt)
        });
        Ok(attempts.collect())
    }

    /// A request that the forwarder must refuse. Were it not led there, it would end here.
    pub(super) fn request(&self, anchor: &str) -> io::Result<Attempt> {
        Ok(Attempt {
            what: What::Request {
                anchor: anchor.to_owned(),
            },
            to: self.forbidden.local_addr()?,
        })
    }

    /// Takes what has come in. Whether a connection from `port` reached what no rule names.
    pub(super) fn clear(&self, port: Option<u16>) -> bool {
        let mut datagram = [0; 16];
        for socket in [&self.permitted_udp, &self.forbidden_udp] {
            while socket.recv(&mut datagram).is_ok() {}
        }
        for listener in self
            .listeners()
            .filter(|it| !std::ptr::eq(*it, &self.forbidden))
        {
            while listener.accept().is_ok() {}
        }
        let mut reached = false;
        // Others may connect here as well, and mean nothing.
        while let Ok((_, from)) = self.forbidden.accept() {
            reached |= Some(from.port()) == port;
        }
        reached
    }

    fn listeners(&self) -> impl Iterator<Item = &TcpListener> {
        let all = [
            Some(&self.permitted),
            self.permitted_v6.as_ref(),
            Some(&self.forbidden),
        ];
        all.into_iter().flatten()
    }
}
