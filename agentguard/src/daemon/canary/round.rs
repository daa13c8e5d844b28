//! One canary: a process, labelled as `run` labels one, that tries everything once.

use std::io::{self, BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::time::Duration;

use agentguard_common::abi::{AgentId, Label};

use super::super::lock;
use super::super::state::Shared;
use super::targets::Targets;
use crate::canary::{self, Attempt, Seen};
use crate::sys;

/// How long it may take for all of its attempts; each has a shorter limit of its own.
const LIMIT: Duration = Duration::from_secs(60);

pub(super) enum Trouble {
    /// Something was not as it must be.
    Surprise(String),
    /// There is nothing to judge.
    Lost(String),
}

impl Trouble {
    pub(super) fn into_message(self) -> String {
        match self {
            Self::Surprise(message) => message,
            Self::Lost(why) => format!("it could not be sent out: {why}"),
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Lost(error.to_string())
    }
}

pub(super) fn round(shared: &Shared, targets: &Targets) -> Result<(), Trouble> {
    let bird = Bird::start(shared)?;
    let result = fly(shared, targets, bird);
    targets.clear(None);
    result
}

fn fly(shared: &Shared, targets: &Targets, mut bird: Bird<'_>) -> Result<(), Trouble> {
    let kernel = targets.kernel()?;
    let attempts: Vec<Attempt> = kernel.iter().map(|(.., attempt)| attempt.clone()).collect();
    bird.label(AgentId::CANARY)?;
    let seen = bird.tries(&attempts)?;
    for ((name, permitted, _), seen) in kernel.iter().zip(seen) {
        judge(name, *permitted, &seen).map_err(Trouble::Surprise)?;
    }
    // Without a forwarder, or without an audit log, requests are refused in other ways.
    let (before, restarts) = shared.forwarder.status();
    if shared.forwarder.tgid().is_none() || !*shared.records.available().borrow() {
        return Ok(());
    }
    bird.label(AgentId::CANARY_HOSTS)?;
    let request = targets.request(shared.authority.certificate_pem())?;
    let seen = bird.tries(&[request])?;
    let port = match seen.first() {
        Some(Seen::Failed { port, .. }) => *port,
        _ => None,
    };
    if targets.clear(port) {
        let why = "a request reached its destination, past the forwarder";
        return Err(Trouble::Surprise(why.into()));
    }
    match seen.into_iter().next() {
        Some(Seen::Answered(403)) => Ok(()),
        Some(Seen::Answered(status)) => Err(Trouble::Surprise(format!(
            "a forbidden request was answered with {status}, not 403"
        ))),
        // It went away, or has too much to do, and nothing went through.
        Some(Seen::Failed { .. }) if shared.forwarder.status() != (before, restarts) => Ok(()),
        Some(Seen::Failed { error, .. }) => {
            tracing::warn!(
                error,
                "the canary's request was neither answered nor let through"
            );
            Ok(())
        }
        Some(Seen::Done) | None => Err(Trouble::Lost("it answered something else".into())),
    }
}

fn judge(name: &str, permitted: bool, seen: &Seen) -> Result<(), String> {
    match (permitted, seen) {
        (true, Seen::Done) => Ok(()),
        // A host without IPv6 has nothing to refuse there.
        (
            _,
            Seen::Failed {
                errno: Some(libc::EAFNOSUPPORT),
                ..
            },
        ) => Ok(()),
        (true, Seen::Failed { error, .. }) => {
            Err(format!("a permitted {name} did not work: {error}"))
        }
        (
            false,
            Seen::Failed {
                errno: Some(libc::EPERM),
                ..
            },
        ) => Ok(()),
        (false, Seen::Failed { error, .. }) => Err(format!(
            "a forbidden {name} was not refused, it failed: {error}"
        )),
        (false, Seen::Done) => Err(format!("a forbidden {name} went through")),
        (_, Seen::Answered(_)) => Err(format!("a {name} was answered by HTTP")),
    }
}

/// The process, and the daemon's end of the link. Dropped, it is nobody's, and ends.
struct Bird<'s> {
    shared: &'s Shared,
    child: Child,
    link: UnixStream,
    answers: BufReader<UnixStream>,
}

impl<'s> Bird<'s> {
    fn start(shared: &'s Shared) -> Result<Self, Trouble> {
        let lost = |error: sys::SysError| Trouble::Lost(error.to_string());
        let (link, theirs) = UnixStream::pair()?;
        link.set_read_timeout(Some(LIMIT))?;
        let answers = BufReader::new(link.try_clone()?);
        let account = &shared.forwarder_account;
        let child =
            sys::spawn::unprivileged(account, &["canary"], vec![theirs.into()]).map_err(lost)?;
        Ok(Self {
            shared,
            child,
            link,
            answers,
        })
    }

    /// It waits for its orders, and has done nothing yet as nobody's process.
    fn label(&self, agent: AgentId) -> Result<(), Trouble> {
        let label = Label { agent, flags: 0 };
        lock(&self.shared.kernel)
            .set_label(self.child.id(), label)
            .map_err(|error| Trouble::Lost(error.to_string()))
    }

    fn tries(&mut self, attempts: &[Attempt]) -> Result<Vec<Seen>, Trouble> {
        canary::say(&mut self.link, &attempts)?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let seen: Vec<Seen> = serde_json::from_str(&line).map_err(io::Error::from)?;
        if seen.len() == attempts.len() {
            Ok(seen)
        } else {
            Err(Trouble::Lost("it did not try everything".into()))
        }
    }
}

impl Drop for Bird<'_> {
    fn drop(&mut self) {
        // Before its end: its tgid may be somebody else's at once.
        if let Err(Trouble::Lost(error)) = self.label(AgentId::NONE) {
            tracing::error!(error, "the canary's label could not be taken off");
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_surprise_is_one() {
        let failed = |errno| Seen::Failed {
            errno: Some(errno),
            error: "x".into(),
            port: None,
        };
        for (permitted, seen, good) in [
            (true, Seen::Done, true),
            (true, failed(libc::EPERM), false),
            (true, failed(libc::EAFNOSUPPORT), true),
            (true, failed(libc::ECONNREFUSED), false),
            (false, failed(libc::EPERM), true),
            (false, failed(libc::EAFNOSUPPORT), true),
            (false, failed(libc::ETIMEDOUT), false),
            (false, failed(libc::ECONNREFUSED), false),
            (false, Seen::Done, false),
            (false, Seen::Answered(403), false),
        ] {
            assert_eq!(
                judge("x", permitted, &seen).is_ok(),
                good,
                "{permitted} {seen:?}"
            );
        }
    }
}
