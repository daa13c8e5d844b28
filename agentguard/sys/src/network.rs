//! The host's interfaces, addresses, default routes and search domains.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use tokio::io::unix::AsyncFd;

/// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV4_ROUTE`, `RTMGRP_IPV6_IFADDR`, `RTMGRP_IPV6_ROUTE` (rtnetlink(7)).
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;

/// Tells when something of interfaces, addresses or routes changes, and not what.
pub struct NetworkChanges(AsyncFd<Socket>);

impl NetworkChanges {
    /// Must be called in a tokio runtime.
    pub fn new() -> std::io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, GROUPS))?;
        socket.set_non_blocking(true)?;
        // SAFETY: the socket owns its descriptor, and closes it only when it is dropped, after its registration.
        let socket = unsafe { AsyncFd::register(socket) };
        Ok(Self(socket?))
    }

    /// Resolves after a change. Messages that were lost are a change, too.
    pub async fn next(&self) -> std::io::Result<()> {
        let mut ready = self.0.readable().await?;
        let mut message = [0_u8; 8192];
        while nix::unistd::read(self.0.get_ref(), &mut message).is_ok_and(|len| len > 0) {}
        ready.clear_ready();
        Ok(())
    }
}

/// What there is now, each with its interface's name.
#[derive(Debug, Default)]
pub struct NetworkView {
    /// Interfaces that are up and have a carrier.
    pub up: Vec<String>,
    /// Of interfaces that are up.
    pub addresses: Vec<(String, IpAddr)>,
    /// Where default routes go to.
    pub gateways: Vec<(String, IpAddr)>,
    /// What the resolver's configuration searches.
    pub domains: Vec<String>,
}

impl NetworkView {
    /// # Errors
    /// What of it cannot be read; a host without IPv6 or without a resolver's configuration has none.
    pub fn now() -> std::io::Result<Self> {
        let mut seen = Self::default();
        let running = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING;
        for address in getifaddrs()? {
            if !address.flags.contains(running) {
                continue;
            }
            let name = address.interface_name;
            if !seen.up.contains(&name) {
                seen.up.push(name.clone());
            }
            let Some(address) = address.address else {
                continue;
            };
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            let v6 = address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()));
            seen.addresses.extend(v4.or(v6).map(|addr| (name, addr)));
        }
        seen.gateways.extend(gateways4(&read("/proc/net/route")?));
        seen.gateways
            .extend(gateways6(&read("/proc/net/ipv6_route")?));
        seen.domains.extend(domains(&read("/etc/resolv.conf")?));
        Ok(seen)
    }
}

fn read(path: &str) -> std::io::Result<String> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        read => read,
    }
}

/// `Iface Destination Gateway … Mask …`, addresses as the processor has their bytes (`fib_route_seq_show`).
fn gateways4(text: &str) -> Vec<(String, IpAddr)> {
    let gateway = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok();
        let is_default = number(1)? == 0 && number(7)? == 0;
        let addr = Ipv4Addr::from(number(2)?.to_ne_bytes());
        let name = (*fields.first()?).to_owned();
        (is_default && !addr.is_unspecified()).then_some((name, IpAddr::V4(addr)))
    };
    text.lines().filter_map(gateway).collect()
}

/// Destination and its length, source and its length, next hop, metric, … and last the interface (`rt6_info_route`).
fn gateways6(text: &str) -> Vec<(String, IpAddr)> {
    let gateway = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| u128::from_str_radix(fields.get(at)?, 16).ok();
        let is_default = number(0)? == 0 && number(1)? == 0;
        let addr = Ipv6Addr::from(number(4)?);
        let name = (*fields.get(9)?).to_owned();
        (is_default && !addr.is_unspecified()).then_some((name, IpAddr::V6(addr)))
    };
    text.lines().filter_map(gateway).collect()
}

/// Of several `search` and `domain` lines the last counts (resolv.conf(5)).
fn domains(text: &str) -> Vec<String> {
    let mut lines = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        matches!(words.next()?, "search" | "domain").then(|| words.map(str::to_owned).collect())
    });
    lines.next_back().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_and_domains_are_read_as_the_kernel_and_the_resolver_write_them() {
        let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let expected = ("eth0".to_owned(), "192.0.2.1".parse().unwrap());
        assert_eq!(gateways4(v4), [expected]);
        let zeros = "0".repeat(32);
        let hop = "fe800000000000000000000000000001";
        let v6 = format!(
            "{zeros} 00 {zeros} 00 {hop} 00000400 00000001 00000000 00000003     eth0\n\
             {zeros} 00 {zeros} 00 {zeros} ffffffff 00000001 00000000 00200200       lo\n"
        );
        let expected = ("eth0".to_owned(), "fe80::1".parse().unwrap());
        assert_eq!(gateways6(&v6), [expected]);
        let text =
            "# search no\nsearch a.example\nnameserver 192.0.2.53\nsearch b.example c.example\n";
        assert_eq!(domains(text), ["b.example", "c.example"]);
        assert!(NetworkView::now().unwrap().up.contains(&"lo".to_owned()));
    }
}
