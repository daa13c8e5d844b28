//! While CMD runs: its terminal to ours and back, its caller's signals to it, and in the end its exit status.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use agentguard_sys::pty::{self, RawMode};
use agentguard_sys::signal::{PendingSignal, Signals};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::Terminal;

const BUFFER: usize = 16 * 1024;

/// Returns CMD's exit status, 128 + the signal that ended it. Its descendants go on.
pub(super) fn until_the_end(
    child: Pid,
    mut signals: Signals,
    master: Option<OwnedFd>,
    terminal: Option<Terminal>,
) -> io::Result<u8> {
    let mut screen = match (master, terminal) {
        (Some(master), Some(terminal)) => Some(Screen::open(master, terminal)?),
        _ => None,
    };
    loop {
        let ready = wait(&signals, screen.as_ref())?;
        if let Some(screen) = &mut screen {
            screen.relay(ready.output, ready.input, ready.room)?;
        }
        while let Some(pending) = signals.take() {
            match pending.signal {
                Signal::SIGCHLD => {
                    if let Some(status) = ended(child)? {
                        if let Some(screen) = &mut screen {
                            screen.drain();
                        }
                        return Ok(status);
                    }
                }
                Signal::SIGWINCH => {
                    if let Some(screen) = &screen {
                        screen.resize();
                    }
                }
                _ => forward(child, pending),
            }
        }
    }
}

#[derive(Default)]
struct Ready {
    output: bool,
    input: bool,
    room: bool,
}

fn wait(signals: &Signals, screen: Option<&Screen>) -> io::Result<Ready> {
    let mut all = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    if let Some(screen) = screen {
        let mut master = PollFlags::empty();
        master.set(PollFlags::POLLIN, screen.open);
        master.set(PollFlags::POLLOUT, !screen.typed.is_empty());
        if !master.is_empty() {
            all.push(PollFd::new(screen.master.as_fd(), master));
            if screen.takes_input && screen.typed.is_empty() {
                all.push(PollFd::new(screen.stdin.as_fd(), PollFlags::POLLIN));
            }
        }
    }
    match poll(&mut all, PollTimeout::NONE) {
        Ok(_) | Err(nix::Error::EINTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    let events = |at: usize| {
        let seen = all.get(at).and_then(PollFd::revents);
        seen.unwrap_or(PollFlags::empty())
    };
    let readable = PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR;
    Ok(Ready {
        output: events(1).intersects(readable),
        room: events(1).contains(PollFlags::POLLOUT),
        input: events(2).intersects(readable),
    })
}

fn ended(child: Pid) -> io::Result<Option<u8>> {
    match waitpid(child, Some(WaitPidFlag::WNOHANG))? {
        WaitStatus::Exited(_, status) => Ok(Some(u8::try_from(status & 0xff).unwrap_or(u8::MAX))),
        WaitStatus::Signaled(_, signal, _) => {
            Ok(Some(128 + u8::try_from(signal as i32).unwrap_or(0)))
        }
        _ => Ok(None),
    }
}

/// What the terminal sends to a whole process group goes to CMD's, which is a session of its own; the rest to CMD alone.
fn forward(child: Pid, pending: PendingSignal) {
    // It may have ended in between.
    let _ = match pending.from_terminal {
        true => killpg(child, pending.signal),
        false => kill(child, pending.signal),
    };
}

/// CMD's terminal shown on ours.
struct Screen {
    master: File,
    terminal: File,
    stdin: OwnedFd,
    takes_input: bool,
    /// Someone may still write to CMD's terminal.
    open: bool,
    /// Read from our terminal, not yet taken by CMD's.
    typed: Vec<u8>,
    _raw: Option<RawMode<OwnedFd>>,
}

impl Screen {
    fn open(master: OwnedFd, terminal: Terminal) -> io::Result<Self> {
        let flags = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
        nix::fcntl::fcntl(&master, flags)?;
        let raw = match terminal.is_interactive() {
            true => Some(RawMode::set(terminal.fd.try_clone()?).map_err(io::Error::other)?),
            false => None,
        };
        Ok(Self {
            master: File::from(master),
            takes_input: terminal.ends[0],
            terminal: File::from(terminal.fd),
            stdin: io::stdin().as_fd().try_clone_to_owned()?,
            open: true,
            typed: Vec::new(),
            _raw: raw,
        })
    }

    fn relay(&mut self, output: bool, input: bool, room: bool) -> io::Result<()> {
        let mut buffer = [0; BUFFER];
        if output && self.open {
            match self.master.read(&mut buffer) {
                Ok(0) => self.open = false,
                Ok(length) => self.terminal.write_all(&buffer[..length])?,
                // EIO: nobody has CMD's side open any more.
                Err(error) if would_block(&error) => {}
                Err(_) => self.open = false,
            }
        }
        if input {
            match File::from(self.stdin.try_clone()?).read(&mut buffer) {
                Ok(0) => self.takes_input = false,
                Ok(length) => self.typed.extend_from_slice(&buffer[..length]),
                Err(error) if would_block(&error) => {}
                Err(_) => self.takes_input = false,
            }
        }
        if (room || input) && !self.typed.is_empty() {
            match self.master.write(&self.typed) {
                Ok(length) => drop(self.typed.drain(..length)),
                Err(error) if would_block(&error) => {}
                Err(_) => self.typed.clear(),
            }
        }
        Ok(())
    }

    /// What CMD wrote before it ended.
    fn drain(&mut self) {
        let mut buffer = [0; BUFFER];
        while let Ok(length @ 1..) = self.master.read(&mut buffer) {
            if self.terminal.write_all(&buffer[..length]).is_err() {
                return;
            }
        }
    }

    fn resize(&self) {
        if let Ok(size) = pty::window_size(self.terminal.as_fd()) {
            // The kernel tells CMD by SIGWINCH; a size that cannot be set is only seen.
            let _ = pty::set_window_size(self.master.as_fd(), &size);
        }
    }
}

fn would_block(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
