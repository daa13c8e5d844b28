//! Terminals: the one `run` was started on, and the one it gives its child.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::termios::{LocalFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use super::{Result, SysError};

nix::ioctl_read_bad!(tiocgwinsz, libc::TIOCGWINSZ, Winsize);
nix::ioctl_write_ptr_bad!(tiocswinsz, libc::TIOCSWINSZ, Winsize);
nix::ioctl_write_int_bad!(tiocsctty, libc::TIOCSCTTY);

/// A pseudo-terminal of the size and modes of `like`; both ends closed on exec. `echo`: it shows what is typed, because
/// `like` itself will not.
pub fn open_like(like: BorrowedFd<'_>, echo: bool) -> Result<(OwnedFd, OwnedFd)> {
    let mut modes = tcgetattr(like).map_err(SysError::of("tcgetattr"))?;
    if !echo {
        modes.local_flags.remove(LocalFlags::ECHO);
    }
    let size = window_size(like).ok();
    let OpenptyResult { master, slave } =
        openpty(size.as_ref(), &modes).map_err(SysError::of("openpty"))?;
    for fd in [&master, &slave] {
        let flags = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC);
        nix::fcntl::fcntl(fd, flags).map_err(SysError::of("fcntl F_SETFD"))?;
    }
    Ok((master, slave))
}

pub fn window_size(terminal: BorrowedFd<'_>) -> Result<Winsize> {
    let mut size = Winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: `size` outlives the call.
    unsafe { tiocgwinsz(terminal.as_raw_fd(), &raw mut size) }
        .map_err(SysError::of("ioctl TIOCGWINSZ"))?;
    Ok(size)
}

pub fn set_window_size(terminal: BorrowedFd<'_>, size: &Winsize) -> Result<()> {
    // SAFETY: `size` outlives the call.
    unsafe { tiocswinsz(terminal.as_raw_fd(), size) }.map_err(SysError::of("ioctl TIOCSWINSZ"))?;
    Ok(())
}

/// Makes `terminal` the controlling one of the session this process has just begun.
pub fn set_controlling(terminal: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: takes integers.
    unsafe { tiocsctty(terminal.as_raw_fd(), 0) }.map_err(SysError::of("ioctl TIOCSCTTY"))?;
    Ok(())
}

/// The terminal passes every byte on as it comes; dropping this restores its modes.
pub struct RawMode<F: AsFd> {
    terminal: F,
    before: Termios,
}

impl<F: AsFd> RawMode<F> {
    pub fn set(terminal: F) -> Result<Self> {
        let before = tcgetattr(&terminal).map_err(SysError::of("tcgetattr"))?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&terminal, SetArg::TCSANOW, &raw).map_err(SysError::of("tcsetattr"))?;
        Ok(Self { terminal, before })
    }
}

impl<F: AsFd> Drop for RawMode<F> {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.terminal, SetArg::TCSADRAIN, &self.before);
    }
}
