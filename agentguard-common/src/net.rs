//! Addresses in the one form that everything behind this line judges: sixteen bytes, IPv4 as `::ffff:a.b.c.d`.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A 32-bit integer in network byte order, as `bpf_sock_addr.user_ip4` holds it.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Be32(pub u32);

/// An IPv6 or IPv4-mapped address in network byte order (RFC 4291 section 2.5.5.2).
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Addr(pub [u8; 16]);

impl Addr {
    /// Bits in front of an IPv4 address's own in the mapped form.
    pub const V4_PREFIX: u8 = 96;

    pub const fn from_v4(octets: [u8; 4]) -> Self {
        let [a, b, c, d] = octets;
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// `ip` as the kernel's `user_ip4` has it.
    pub const fn from_be32(ip: Be32) -> Self {
        Self::from_v4(ip.0.to_ne_bytes())
    }

    /// `words` as the kernel's `user_ip6` has them, each in network byte order.
    pub const fn from_be32x4(words: [Be32; 4]) -> Self {
        let a = words[0].0.to_ne_bytes();
        let b = words[1].0.to_ne_bytes();
        let c = words[2].0.to_ne_bytes();
        let d = words[3].0.to_ne_bytes();
        Self([
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1],
            d[2], d[3],
        ])
    }

    pub const fn is_v4(&self) -> bool {
        let b = &self.0;
        b[0] == 0
            && b[1] == 0
            && b[2] == 0
            && b[3] == 0
            && b[4] == 0
            && b[5] == 0
            && b[6] == 0
            && b[7] == 0
            && b[8] == 0
            && b[9] == 0
            && b[10] == 0xff
            && b[11] == 0xff
    }

    pub const fn v4(&self) -> Option<Be32> {
        if self.is_v4() {
            Some(Be32(u32::from_ne_bytes([
                self.0[12], self.0[13], self.0[14], self.0[15],
            ])))
        } else {
            None
        }
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::from_v4(v4.octets()),
            IpAddr::V6(v6) => Self(v6.octets()),
        }
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        match addr.v4() {
            Some(v4) => Self::V4(Ipv4Addr::from(v4.0.to_ne_bytes())),
            None => Self::V6(Ipv6Addr::from(addr.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn v4_is_what_the_mapped_v6_is(octets: [u8; 4]) {
            let v4 = Ipv4Addr::from(octets);
            let from_v4: Addr = IpAddr::V4(v4).into();
            let from_mapped: Addr = IpAddr::V6(v4.to_ipv6_mapped()).into();
            prop_assert_eq!(from_v4, from_mapped);
            prop_assert_eq!(IpAddr::from(from_mapped), IpAddr::V4(v4));
            prop_assert_eq!(from_v4, Addr::from_be32(Be32(u32::from_ne_bytes(octets))));
            prop_assert_eq!(from_v4.v4(), Some(Be32(u32::from_ne_bytes(octets))));
        }

        #[test]
        fn v6_comes_back(octets: [u8; 16]) {
            let ip = Ipv6Addr::from(octets);
            let addr: Addr = IpAddr::V6(ip).into();
            prop_assert_eq!(IpAddr::from(addr), IpAddr::V6(ip).to_canonical());
            let word = |n: usize| Be32(u32::from_ne_bytes([octets[n], octets[n + 1], octets[n + 2], octets[n + 3]]));
            prop_assert_eq!(addr, Addr::from_be32x4([word(0), word(4), word(8), word(12)]));
        }
    }
}
