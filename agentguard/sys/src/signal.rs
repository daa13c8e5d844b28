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
pub struct PendingSignal {
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
    pub fn take(&mut self) -> Option<PendingSignal> {
        let info = self.0.read_signal().ok().flatten()?;
        Some(PendingSignal {
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

/// A hangup ends neither this process nor those that it starts: what is ignored stays so over execve(2).
pub fn ignore_hangup() -> Result<()> {
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: no code of ours runs.
    unsafe { sigaction(Signal::SIGHUP, &ignore) }
        .map(drop)
        .map_err(SysError::of("sigaction"))
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

/// From here on a system call that a filter refuses with `SECCOMP_RET_TRAP` ends the process, with the call's number on
/// standard error.
pub fn tell_of_refused_calls() -> Result<()> {
    let action = SigAction::new(
        SigHandler::SigAction(refused_call),
        SaFlags::SA_SIGINFO,
        SigSet::empty(),
    );
    // SAFETY: the handler makes two async-signal-safe calls and does not return.
    unsafe { sigaction(Signal::SIGSYS, &action) }
        .map(drop)
        .map_err(SysError::of("sigaction"))
}

/// Exit status of a process that made a call it may not make: 128 + `SIGSYS`, as shells have it.
const REFUSED_CALL: libc::c_int = 128 + libc::SIGSYS;

extern "C" fn refused_call(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    /// `si_syscall` behind the head and `si_call_addr` (`include/uapi/asm-generic/siginfo.h`), which `libc` leaves out.
    const SI_SYSCALL: usize = 24;
    // SAFETY: the kernel gives a whole `siginfo_t`, 128 bytes, to a handler with SA_SIGINFO.
    let number = unsafe { info.cast::<u8>().add(SI_SYSCALL) };
    // SAFETY: as above, and aligned to 8.
    let mut number = unsafe { number.cast::<u32>().read() };
    // Nothing here may allocate or lock: whatever the process was doing is half done.
    let mut line = *b"system call            is not in the filter: ending\n";
    let mut at = 21;
    loop {
        line[at] = b'0' + (number % 10) as u8;
        number /= 10;
        at -= 1;
        if number == 0 {
            break;
        }
    }
    // SAFETY: `line` outlives the call.
    let _ = unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) };
    // SAFETY: runs no handlers and does not return.
    unsafe { libc::_exit(REFUSED_CALL) }
}
