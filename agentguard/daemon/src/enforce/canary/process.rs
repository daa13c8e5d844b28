//! The throw-away agent process by which the daemon sees for itself that agents are refused. This is the process's side and
//! what the two say to each other; [`crate::enforce::canary`] starts it and judges what it saw.

mod attempt;

use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A path of the host's that the canary may not ask for.
pub const FORBIDDEN: &str = "/forbidden";
/// What the origin answers, and the forwarder never by itself: 204 No Content.
pub const FROM_ORIGIN: u16 = 204;
/// How long one attempt may take.
const LIMIT: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Attempt {
    /// TCP.
    Connect(SocketAddr),
    /// One datagram, unconnected.
    Send(SocketAddr),
    /// A stream socket in the file system.
    Unix(PathBuf),
    /// This very program once more, as a process of its own.
    Exec,
    /// A TLS request for [`HOST`], trusting this PEM certificate alone.
    Request {
        to: SocketAddr,
        path: String,
        anchor: String,
    },
}

/// What became of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AttemptOutcome {
    Done,
    /// An HTTP answer.
    Answered(u16),
    /// By SIGKILL, which is how an exec is refused without LSM.
    Killed,
    /// `port`: the socket's own, where it came to be connected.
    Failed {
        errno: Option<i32>,
        error: String,
        port: Option<u16>,
    },
}

/// Does what each line on `link` says, until there are no more.
pub fn run(link: OwnedFd) -> io::Result<()> {
    let mut link = UnixStream::from(link);
    let orders = BufReader::new(link.try_clone()?);
    for line in orders.lines() {
        let attempts: Vec<Attempt> = serde_json::from_str(&line?)?;
        let seen: Vec<AttemptOutcome> = attempts.iter().map(attempt::attempt).collect();
        say(&mut link, &seen)?;
    }
    Ok(())
}

/// One value, one line.
pub fn say(link: &mut UnixStream, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    link.write_all(&line)
}
