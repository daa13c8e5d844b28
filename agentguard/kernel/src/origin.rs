//! What the forwarder reads through inherited read-only descriptors.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use agentguard_common::abi::{FlowKey, Origin};

use super::{KernelError, bpf};

/// `ACCEPTED` and `FLOWS`. Needs no privilege: the descriptors carry it.
pub struct OriginMaps {
    accepted: OwnedFd,
    flows: OwnedFd,
}

impl OriginMaps {
    pub fn from_fds(accepted: OwnedFd, flows: OwnedFd) -> Self {
        Self { accepted, flows }
    }

    /// The origin of an accepted connection, by `SO_COOKIE`.
    pub fn accepted(&self, cookie: u64) -> io::Result<Option<Origin>> {
        bpf::lookup(self.accepted.as_fd(), &cookie).map_err(source)
    }

    /// The origin of a datagram that reached the resolver.
    pub fn datagram(&self, key: &FlowKey) -> io::Result<Option<Origin>> {
        bpf::lookup(self.flows.as_fd(), key).map_err(source)
    }
}

fn source(error: KernelError) -> io::Error {
    match error {
        KernelError::Call { source, .. } => source,
        other => io::Error::other(other),
    }
}
