//! `bpf_sock_addr`, read and written one 32-bit member at a time: the verifier refuses the wider loads that the compiler
//! makes of neighbours.

use core::ffi::c_void;

use agentguard_common::net::{Addr, Be32};
use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::programs::SockAddrContext;

use crate::emit::What;

pub const IPPROTO_TCP: u32 = 6;
pub const IPPROTO_UDP: u32 = 17;

/// Which hook runs. Never `user_family`: AF_UNSPEC reaches sendmsg4 and bind4 as family 0 and works.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

#[derive(Clone, Copy)]
pub struct SockAddr {
    raw: *mut bpf_sock_addr,
    pub family: Family,
}

macro_rules! load {
    ($base:expr, $field:ident $(, $index:literal)?) => {
        // SAFETY: a context member; the verifier checks the access.
        unsafe { (&raw const (*$base).$field $([$index])?).read_volatile() }
    };
}
pub(crate) use load;

macro_rules! store {
    ($base:expr, $field:ident $([$index:literal])?, $value:expr) => {
        // SAFETY: as for `load`.
        unsafe { (&raw mut (*$base).$field $([$index])?).write_volatile($value) }
    };
}

impl SockAddr {
    #[inline(always)]
    pub fn new(ctx: &SockAddrContext, family: Family) -> Self {
        Self {
            raw: ctx.sock_addr,
            family,
        }
    }

    #[inline(always)]
    pub fn as_ptr(&self) -> *mut c_void {
        self.raw.cast()
    }

    #[inline(always)]
    pub fn addr(&self) -> Addr {
        match self.family {
            Family::V4 => Addr::from_be32(Be32(load!(self.raw, user_ip4))),
            Family::V6 => Addr::from_be32x4([
                Be32(load!(self.raw, user_ip6, 0)),
                Be32(load!(self.raw, user_ip6, 1)),
                Be32(load!(self.raw, user_ip6, 2)),
                Be32(load!(self.raw, user_ip6, 3)),
            ]),
        }
    }

    /// Host byte order.
    #[inline(always)]
    pub fn port(&self) -> u16 {
        u16::from_be(load!(self.raw, user_port) as u16)
    }

    /// An address that the hook's family cannot hold leaves the context as it is.
    #[inline(always)]
    pub fn rewrite(&self, addr: Addr, port: u16) {
        match self.family {
            Family::V4 => {
                let Some(ip) = addr.v4() else { return };
                store!(self.raw, user_ip4, ip.0);
            }
            Family::V6 => {
                let b = &addr.0;
                store!(
                    self.raw,
                    user_ip6[0],
                    u32::from_ne_bytes([b[0], b[1], b[2], b[3]])
                );
                store!(
                    self.raw,
                    user_ip6[1],
                    u32::from_ne_bytes([b[4], b[5], b[6], b[7]])
                );
                store!(
                    self.raw,
                    user_ip6[2],
                    u32::from_ne_bytes([b[8], b[9], b[10], b[11]])
                );
                store!(
                    self.raw,
                    user_ip6[3],
                    u32::from_ne_bytes([b[12], b[13], b[14], b[15]])
                );
            }
        }
        store!(self.raw, user_port, u32::from(port.to_be()));
    }

    #[inline(always)]
    pub fn protocol(&self) -> u32 {
        load!(self.raw, protocol)
    }

    #[inline(always)]
    pub fn sk(&self) -> *mut bpf_sock {
        // SAFETY: a context member; the verifier knows it as a socket.
        unsafe { (&raw const (*self.raw).__bindgen_anon_1.sk).read_volatile() }
    }

    #[inline(always)]
    pub fn is_bound_to_device(&self) -> bool {
        load!(self.sk(), bound_dev_if) != 0
    }

    /// The socket's own address and port (host byte order); 0 while it has none.
    #[inline(always)]
    pub fn local(&self) -> (Addr, u16) {
        let sk = self.sk();
        let addr = match self.family {
            Family::V4 => Addr::from_be32(Be32(load!(sk, src_ip4))),
            Family::V6 => Addr::from_be32x4([
                Be32(load!(sk, src_ip6, 0)),
                Be32(load!(sk, src_ip6, 1)),
                Be32(load!(sk, src_ip6, 2)),
                Be32(load!(sk, src_ip6, 3)),
            ]),
        };
        (addr, load!(sk, src_port) as u16)
    }

    #[inline(always)]
    pub fn netns(&self) -> u64 {
        // SAFETY: the hook's own context.
        unsafe { bpf_get_netns_cookie(self.raw.cast()) }
    }

    #[inline(always)]
    pub fn what(&self) -> What {
        What {
            addr: self.addr(),
            port: self.port(),
            family: match self.family {
                Family::V4 => 4,
                Family::V6 => 6,
            },
            sock_type: load!(self.raw, type_),
            proto: self.protocol(),
        }
    }
}
