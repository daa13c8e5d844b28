//! Starts the forwarder and the canary: their user, their descriptors, nothing else.

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use super::user::Account;
use super::{Result, SysError, privilege};

/// The first inherited descriptor.
const FIRST: i32 = 3;

/// Takes over the descriptors that [`unprivileged`] gave this process; `None` if it was started otherwise. To be called
/// once, before anything is opened.
pub fn inherited<const N: usize>() -> Option<[OwnedFd; N]> {
    let take = |fd: i32| {
        let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
        let of_ours = ["socket:", "anon_inode:"];
        let name = link.to_str()?;
        if !of_ours.iter().any(|kind| name.starts_with(kind)) {
            return None;
        }
        // SAFETY: open, as the link shows, and nothing else in this process has it: it was there before `main`.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let close = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC);
        nix::fcntl::fcntl(&fd, close).ok()?;
        Some(fd)
    };
    let last = FIRST + i32::try_from(N).ok()?;
    let taken: Option<Vec<OwnedFd>> = (FIRST..last).map(take).collect();
    taken?.try_into().ok()
}

/// Runs this very executable as `account` with `arguments`, an empty environment, `descriptors` from 3 on, no groups, no
/// capabilities and no way to regain any. Its standard error is a pipe.
pub fn unprivileged(
    account: &Account,
    arguments: &[&str],
    descriptors: Vec<OwnedFd>,
) -> Result<Child> {
    let (uid, gid) = (account.uid, account.gid);
    let last = FIRST + i32::try_from(descriptors.len()).unwrap_or(0);
    // Out of the way of 3…last, so that no dup2 overwrites one that is still to be copied.
    let parked = descriptors
        .iter()
        .map(|fd| {
            nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(last + 16))
                .map_err(SysError::of("fcntl F_DUPFD_CLOEXEC"))
        })
        .collect::<Result<Vec<_>>>()?;
    let sources = parked.clone();
    let mut command = Command::new("/proc/self/exe");
    command
        .args(arguments)
        .env_clear()
        // A terminal's signals are the daemon's: who ends it ends this.
        .process_group(0)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let set_up = move || -> std::io::Result<()> {
        for (to, from) in (FIRST..).zip(&sources) {
            privilege::dup_to(*from, to).map_err(|e| e.source)?;
        }
        privilege::drop_bounding_set().map_err(|e| e.source)?;
        privilege::become_user(uid, gid, &[]).map_err(|e| e.source)?;
        privilege::drop_capabilities().map_err(|e| e.source)?;
        privilege::no_new_privs().map_err(|e| e.source)
    };
    // SAFETY: `set_up` only makes async-signal-safe system calls on what was prepared before the fork, but for the
    // boxed error of a failed one, after which the child ends.
    unsafe { command.pre_exec(set_up) };
    let child = command.spawn().map_err(SysError::io("spawn"));
    for fd in parked {
        let _ = nix::unistd::close(fd);
    }
    drop(descriptors);
    child
}
