//! Signals as something to wait for among descriptors.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::{Result, SysError};

/// The signals a caller of `run` may send it, which are CMD's.
pub const FORWARDED: [Signal; 7] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCONT,
];

/// Blocks the forwarded signals, `SIGCHLD` and `SIGWINCH`, and hands them out one by one.
pub struct Signals(SignalFd);

/// A signal that has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    pub signal: Signal,
    /// The terminal sent it to its whole foreground process group.
    pub from_terminal: bool,
}

impl Signals {
    pub fn block() -> Result<Self> {
        let mut set = SigSet::empty();
        for signal in FORWARDED {
            set.add(signal);
        }
        set.add(Signal::SIGCHLD);
        set.add(Signal::SIGWINCH);
        set.thread_block().map_err(SysError::of("sigprocmask"))?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(SysError::of("signalfd"))?;
        Ok(Self(fd))
    }

    /// The next one that is pending.
    pub fn take(&mut self) -> Option<Pending> {
        let info = self.0.read_signal().ok().flatten()?;
        Some(Pending {
            signal: Signal::try_from(i32::try_from(info.ssi_signo).ok()?).ok()?,
            from_terminal: info.ssi_code == libc::SI_KERNEL,
        })
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// As after a fresh login: nothing blocked, nothing ignored (Rust's runtime ignores `SIGPIPE`).
pub fn reset() -> Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator() {
        if matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
            continue;
        }
        // SAFETY: the default action runs no code of ours.
        unsafe { sigaction(signal, &default) }.map_err(SysError::of("sigaction"))?;
    }
    SigSet::empty()
        .thread_set_mask()
        .map_err(SysError::of("sigprocmask"))
}
