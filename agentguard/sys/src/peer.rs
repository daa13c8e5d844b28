//! Who is at the other end of a Unix stream socket.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::sys::socket::{getsockopt, sockopt};

use super::{Result, SysError, process};

/// The process that connected, as the kernel saw it then.
#[derive(Debug)]
pub struct Peer {
    /// 0 if it is in a pid namespace that this one cannot see into.
    pub tgid: u32,
    pub uid: u32,
    /// Primary and supplementary groups.
    pub groups: Vec<u32>,
    pidfd: Option<OwnedFd>,
}

impl Peer {
    pub fn of(socket: impl AsFd) -> Result<Self> {
        let cred = getsockopt(&socket, sockopt::PeerCredentials)
            .map_err(SysError::of("getsockopt SO_PEERCRED"))?;
        let tgid = u32::try_from(cred.pid()).unwrap_or(0);
        let mut groups = peer_groups(socket.as_fd())?;
        groups.push(cred.gid());
        // Before Linux 6.5 there is no SO_PEERPIDFD: the tgid may have been reused by now, and then it is not the caller
        // that is judged. Opening it at once leaves a window of microseconds.
        let pidfd = peer_pidfd(socket.as_fd())
            .or_else(|_| process::pidfd_open(tgid))
            .ok();
        Ok(Self {
            tgid,
            uid: cred.uid(),
            groups,
            pidfd,
        })
    }

    /// One that is known otherwise; it counts as ended.
    pub fn known(tgid: u32, uid: u32, groups: Vec<u32>) -> Self {
        Self {
            tgid,
            uid,
            groups,
            pidfd: None,
        }
    }

    /// Whether the process that connected is still there, so that its tgid still means it.
    pub fn is_alive(&self) -> bool {
        self.pidfd
            .as_ref()
            .is_some_and(|fd| process::pidfd_alive(fd.as_fd()))
    }
}

/// `SO_PEERPIDFD` (Linux 6.5).
fn peer_pidfd(socket: BorrowedFd<'_>) -> Result<OwnedFd> {
    let mut fd: libc::c_int = -1;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `fd` and `len` outlive the call, and `len` is the size of `fd`.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERPIDFD,
            (&raw mut fd).cast(),
            &raw mut len,
        )
    };
    if rc != 0 {
        return Err(SysError::last("getsockopt SO_PEERPIDFD"));
    }
    // SAFETY: the kernel has just installed this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `SO_PEERGROUPS` (Linux 4.13).
fn peer_groups(socket: BorrowedFd<'_>) -> Result<Vec<u32>> {
    const MOST: usize = 65_536;
    let mut capacity = 64;
    loop {
        let mut groups = vec![0 as libc::gid_t; capacity];
        let mut len = (capacity * size_of::<libc::gid_t>()) as libc::socklen_t;
        // SAFETY: `groups` has room for `len` bytes.
        let rc = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        if rc == 0 {
            let count = len as usize / size_of::<libc::gid_t>();
            groups.truncate(count);
            return Ok(groups);
        }
        let error = SysError::last("getsockopt SO_PEERGROUPS");
        if error.source.raw_os_error() != Some(libc::ERANGE) || capacity >= MOST {
            return Err(error);
        }
        capacity = MOST;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn the_peer_of_a_pair_is_this_process() {
        let (a, _b) = UnixStream::pair().unwrap();
        let peer = Peer::of(&a).unwrap();
        assert_eq!(peer.tgid, std::process::id());
        assert_eq!(peer.uid, nix::unistd::getuid().as_raw());
        assert!(peer.groups.contains(&nix::unistd::getgid().as_raw()));
        assert!(peer.is_alive());
    }
}
