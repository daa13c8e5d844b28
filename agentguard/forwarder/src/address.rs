//! Which addresses upstream may have. Everything that is not the Internet's is refused unless the configuration lists
//! it, in whatever form it is written.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Why an address is not dialled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AddressRefusal {
    #[error("unspecified")]
    Unspecified,
    #[error("loopback")]
    Loopback,
    #[error("cloud metadata")]
    Metadata,
    #[error("link-local")]
    LinkLocal,
    #[error("private")]
    Private,
    #[error("carrier-grade NAT")]
    SharedNat,
    #[error("multicast")]
    Multicast,
    #[error("broadcast")]
    Broadcast,
    #[error("reserved")]
    Reserved,
}

/// `upstream.allow_addresses`.
#[derive(Clone, Debug, Default)]
pub struct AllowedAddresses(Vec<IpNet>);

impl AllowedAddresses {
    pub fn new(nets: &[IpNet]) -> Self {
        Self(nets.to_vec())
    }

    /// An address that carries an IPv4 one (mapped, NAT64, 6to4, …) is judged as that one too, and as every one it
    /// carries: each must be public or listed.
    pub fn check(&self, ip: IpAddr) -> Result<(), AddressRefusal> {
        let ip = ip.to_canonical();
        if self.lists(ip) {
            return Ok(());
        }
        match ip {
            IpAddr::V4(v4) => judge_v4(v4),
            IpAddr::V6(v6) => {
                judge_v6(v6)?;
                embedded(v6)
                    .filter(|v4| !self.lists(IpAddr::V4(*v4)))
                    .try_for_each(judge_v4)
            }
        }
    }

    fn lists(&self, ip: IpAddr) -> bool {
        self.0.iter().any(|net| net.contains(&ip))
    }
}

/// Instance metadata services that are not, or not only, link-local: AWS, GCP, Azure (wire server), Alibaba, Oracle.
const METADATA_V4: [Ipv4Addr; 6] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(169, 254, 170, 23),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
];
const METADATA_V6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];

/// IANA's IPv4 special-purpose registry (RFC 6890), but for the documentation networks, which lead nowhere.
fn judge_v4(ip: Ipv4Addr) -> Result<(), AddressRefusal> {
    if METADATA_V4.contains(&ip) {
        return Err(AddressRefusal::Metadata);
    }
    Err(match ip.octets() {
        [0, 0, 0, 0] => AddressRefusal::Unspecified,
        [0, ..] => AddressRefusal::Reserved,
        [127, ..] => AddressRefusal::Loopback,
        [169, 254, ..] => AddressRefusal::LinkLocal,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => AddressRefusal::Private,
        [100, 64..=127, ..] => AddressRefusal::SharedNat,
        [192, 0, 0, _] | [198, 18..=19, ..] => AddressRefusal::Reserved,
        [224..=239, ..] => AddressRefusal::Multicast,
        [255, 255, 255, 255] => AddressRefusal::Broadcast,
        [240..=255, ..] => AddressRefusal::Reserved,
        _ => return Ok(()),
    })
}

/// IANA's IPv6 special-purpose registry, with the site-local prefix that RFC 3879 retired.
fn judge_v6(ip: Ipv6Addr) -> Result<(), AddressRefusal> {
    if METADATA_V6.contains(&ip) {
        return Err(AddressRefusal::Metadata);
    }
    Err(match ip.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => AddressRefusal::Unspecified,
        [0, 0, 0, 0, 0, 0, 0, 1] => AddressRefusal::Loopback,
        [0xfe80..=0xfebf, ..] => AddressRefusal::LinkLocal,
        [0xfec0..=0xfeff, ..] | [0xfc00..=0xfdff, ..] => AddressRefusal::Private,
        [0xff00..=0xffff, ..] => AddressRefusal::Multicast,
        // A network's own NAT64 prefix (RFC 8215): where the IPv4 address is in it depends on that network.
        [0x64, 0xff9b, 1, ..] => AddressRefusal::Reserved,
        // Discard-only (RFC 6666) and SRv6 SIDs (RFC 9602).
        [0x100, 0, 0, 0, ..] | [0x5f00, ..] => AddressRefusal::Reserved,
        _ => return Ok(()),
    })
}

/// The IPv4 addresses that packets to `ip` may end up at.
fn embedded(ip: Ipv6Addr) -> impl Iterator<Item = Ipv4Addr> {
    let v4 = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    let (first, second) = match ip.segments() {
        // IPv4-compatible (RFC 4291 section 2.5.5.1), SIIT (RFC 2765), NAT64 (RFC 6052).
        [0, 0, 0, 0, 0, 0, a, b]
        | [0, 0, 0, 0, 0xffff, 0, a, b]
        | [0x64, 0xff9b, 0, 0, 0, 0, a, b] => (Some(v4(a, b)), None),
        // Teredo (RFC 4380): the server, and the client with its bits inverted.
        [0x2001, 0, a, b, _, _, c, d] => (Some(v4(a, b)), Some(v4(!c, !d))),
        // 6to4 (RFC 3056), which may also have an ISATAP interface.
        [0x2002, a, b, _, _, 0x5efe, c, d] => (Some(v4(a, b)), Some(v4(c, d))),
        [0x2002, a, b, ..] => (Some(v4(a, b)), None),
        // ISATAP (RFC 5214).
        [_, _, _, _, 0 | 0x200, 0x5efe, a, b] => (Some(v4(a, b)), None),
        _ => (None, None),
    };
    first.into_iter().chain(second)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn allowed(nets: &[&str]) -> AllowedAddresses {
        AllowedAddresses(nets.iter().map(|net| net.parse().unwrap()).collect())
    }

    #[test]
    fn table() {
        use AddressRefusal::*;
        let none = allowed(&[]);
        for (ip, expected) in [
            ("1.1.1.1", Ok(())),
            ("9.255.255.255", Ok(())),
            ("11.0.0.0", Ok(())),
            ("172.15.255.255", Ok(())),
            ("172.32.0.0", Ok(())),
            ("100.63.255.255", Ok(())),
            ("100.128.0.0", Ok(())),
            ("192.0.2.1", Ok(())),
            ("223.255.255.255", Ok(())),
            ("2606:4700::1111", Ok(())),
            ("2001:db8::1", Ok(())),
            ("0.0.0.0", Err(Unspecified)),
            ("0.1.2.3", Err(Reserved)),
            ("127.0.0.1", Err(Loopback)),
            ("127.255.255.255", Err(Loopback)),
            ("10.0.0.0", Err(Private)),
            ("10.255.255.255", Err(Private)),
            ("172.16.0.0", Err(Private)),
            ("172.31.255.255", Err(Private)),
            ("192.168.0.1", Err(Private)),
            ("100.64.0.0", Err(SharedNat)),
            ("100.127.255.255", Err(SharedNat)),
            ("100.100.100.200", Err(Metadata)),
            ("169.254.169.254", Err(Metadata)),
            ("169.254.0.1", Err(LinkLocal)),
            ("168.63.129.16", Err(Metadata)),
            ("192.0.0.1", Err(Reserved)),
            ("192.0.0.192", Err(Metadata)),
            ("198.18.0.1", Err(Reserved)),
            ("224.0.0.1", Err(Multicast)),
            ("239.255.255.255", Err(Multicast)),
            ("240.0.0.1", Err(Reserved)),
            ("255.255.255.255", Err(Broadcast)),
            ("::", Err(Unspecified)),
            ("::1", Err(Loopback)),
            ("fe80::1", Err(LinkLocal)),
            ("febf::1", Err(LinkLocal)),
            ("fec0::1", Err(Private)),
            ("fc00::1", Err(Private)),
            ("fdff::1", Err(Private)),
            ("fd00:ec2::254", Err(Metadata)),
            ("ff02::1", Err(Multicast)),
            ("100::1", Err(Reserved)),
            ("64:ff9b:1::a00:1", Err(Reserved)),
            // Forms that carry an IPv4 address.
            ("::ffff:127.0.0.1", Err(Loopback)),
            ("::ffff:169.254.169.254", Err(Metadata)),
            ("::ffff:1.1.1.1", Ok(())),
            ("::10.0.0.1", Err(Private)),
            ("::ffff:0:10.0.0.1", Err(Private)),
            ("64:ff9b::169.254.169.254", Err(Metadata)),
            ("64:ff9b::1.1.1.1", Ok(())),
            ("2002:7f00:1::1", Err(Loopback)),
            ("2002:a9fe:a9fe::", Err(Metadata)),
            ("2002:101:101::1", Ok(())),
            ("2002:101:101:0:0:5efe:a00:1", Err(Private)),
            ("2606:4700::5efe:127.0.0.1", Err(Loopback)),
            ("2001:0:101:101:0:0:f5ff:fffe", Err(Private)),
            ("2001:0:a00:1:0:0:fefe:fefe", Err(Private)),
            ("2001:0:101:101:0:0:fefe:fefe", Ok(())),
        ] {
            assert_eq!(none.check(ip.parse().unwrap()), expected, "{ip}");
        }
    }

    #[test]
    fn listed_addresses_are_allowed_in_every_form() {
        let some = allowed(&["127.0.0.0/8", "10.1.0.0/16", "fd00::/16"]);
        for (ip, expected) in [
            ("127.0.0.1", Ok(())),
            ("::ffff:127.0.0.1", Ok(())),
            ("64:ff9b::10.1.2.3", Ok(())),
            ("fd00:ec2::254", Ok(())),
            ("::1", Err(AddressRefusal::Loopback)),
            ("10.2.0.1", Err(AddressRefusal::Private)),
            ("2002:a02:1::", Err(AddressRefusal::Private)),
            // One of the two it carries is listed, the other is not.
            ("2001:0:a01:1:0:0:f5fd:fffe", Err(AddressRefusal::Private)),
        ] {
            assert_eq!(some.check(ip.parse().unwrap()), expected, "{ip}");
        }
    }

    proptest! {
        #[test]
        fn no_form_of_a_refused_address_is_let_through(bits: u32) {
            let v4 = Ipv4Addr::from(bits);
            let none = AllowedAddresses::default();
            let plain = none.check(v4.into());
            let [a, b] = [(bits >> 16) as u16, bits as u16];
            for form in [
                v4.to_ipv6_mapped(),
                Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, a, b),
                Ipv6Addr::new(0x2002, a, b, 0, 0, 0, 0, 1),
                Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, a, b),
            ] {
                prop_assert_eq!(none.check(form.into()), plain, "{}", form);
            }
        }
    }
}
