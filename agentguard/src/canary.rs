//! The throw-away agent process by which the daemon sees for itself that agents are refused. This is the process's side and
//! what the two say to each other; [`crate::daemon::canary`] starts it and judges what it saw.

mod attempt;

use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The host that the canary asks for: no bundle can have it (RFC 6761).
pub const HOST: &str = "canary.agentguard.invalid";
/// How long one attempt may take.
const LIMIT: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// TCP.
    Connect,
    /// One datagram, unconnected.
    Send,
    /// A TLS request for [`HOST`], trusting this PEM certificate alone.
    Request { anchor: String },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    pub what: What,
    pub to: SocketAddr,
}

/// What became of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seen {
    Done,
    /// An HTTP answer.
    Answered(u16),
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
        let seen: Vec<Seen> = attempts.iter().map(attempt::attempt).collect();
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
