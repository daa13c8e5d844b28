//! One canary: a process, labelled as `run` labels one, that tries everything once.

use std::io::{self, BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::time::Duration;

use agentguard_common::abi::{AgentId, Label};
use agentguard_kernel::UnixJudged;
use agentguard_sys as sys;
use agentguard_sys::user::Account;

use super::CanaryParts;
use super::targets::{REQUEST, Targets, Trial};
use crate::enforce::Enforce;
use crate::enforce::canary::process as canary;
use crate::enforce::canary::process::{Attempt, AttemptOutcome, FROM_ORIGIN};
use crate::forwarder::Status;
use crate::lock::lock;

/// How long it may take for all of its attempts; each has a shorter limit of its own.
const LIMIT: Duration = Duration::from_secs(60);

pub(super) enum Trouble {
    /// What is forbidden was not refused.
    Surprise(String),
    /// What is permitted did not work, or there is nothing to judge.
    Doubt(String),
}

impl Trouble {
    pub(super) fn lost(why: impl std::fmt::Display) -> Self {
        Self::Doubt(format!("it could not be sent out: {why}"))
    }

    pub(super) fn message(&self) -> &str {
        match self {
            Self::Surprise(message) | Self::Doubt(message) => message,
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::lost(error)
    }
}

pub(super) fn round(parts: &CanaryParts, targets: &Targets) -> Result<(), Trouble> {
    targets.clear();
    let bird = Bird::start(&parts.enforce, &parts.host.account)?;
    let result = fly(parts, targets, bird);
    targets.clear();
    result
}

fn fly(parts: &CanaryParts, targets: &Targets, mut bird: Bird<'_>) -> Result<(), Trouble> {
    let unix = lock(&parts.enforce.kernel).unix_judged() != UnixJudged::Never;
    bird.label(AgentId::CANARY)?;
    let mut kernel = bird.tries(targets.kernel(unix)?)?;
    // An upgrade has come meanwhile.
    kernel.retain(|(trial, _)| trial.attempt != Attempt::Exec || targets.has_its_program());
    bird.label(AgentId::CANARY_HOSTS)?;
    kernel.extend(bird.tries(vec![forbidden("exec", Attempt::Exec)])?);
    match judge_all(&kernel) {
        Err(open @ Trouble::Surprise(_)) => Err(open),
        // What is shut may be an agent's doing, and hides nothing that is open.
        shut => match requests(parts, targets, &mut bird) {
            Err(open @ Trouble::Surprise(_)) => Err(open),
            other => shut.and(other),
        },
    }
}

fn requests(parts: &CanaryParts, targets: &Targets, bird: &mut Bird<'_>) -> Result<(), Trouble> {
    let before = parts.forwarder.status();
    let trials = match before.0 {
        Status::Up { .. } => targets.requests(parts.authority.certificate_pem()).into(),
        Status::Down { .. } => {
            let attempt = Attempt::Connect(targets.origin.addr());
            vec![forbidden("TCP connect without a forwarder", attempt)]
        }
        // What an earlier daemon's has left may still be going.
        Status::Starting => return Ok(()),
    };
    // Without an audit log requests are refused in other ways.
    let is_recorded = || *parts.books.records.available().borrow();
    let was_recorded = is_recorded();
    let seen = bird.tries(trials)?;
    for (_, seen) in &seen {
        if let AttemptOutcome::Failed { port, .. } = seen
            && targets.origin.was_reached_from(*port)
        {
            let why = "a request reached its destination, past the forwarder";
            return Err(Trouble::Surprise(why.into()));
        }
    }
    if parts.forwarder.status() != before || !was_recorded || !is_recorded() {
        return Ok(());
    }
    judge_all(&seen)
}

fn forbidden(name: &'static str, attempt: Attempt) -> Trial {
    Trial {
        name,
        permitted: false,
        attempt,
    }
}

/// Everything that was not as it must be, by name.
fn judge_all(seen: &[(Trial, AttemptOutcome)]) -> Result<(), Trouble> {
    let wrong = |permitted| {
        let of_these = seen
            .iter()
            .filter(|(trial, _)| trial.permitted == permitted);
        let found: Vec<String> = of_these
            .filter_map(|(trial, seen)| judge(trial.name, permitted, seen).err())
            .collect();
        (!found.is_empty()).then(|| found.join("; "))
    };
    match (wrong(false), wrong(true)) {
        (Some(open), Some(shut)) => Err(Trouble::Surprise(format!("{open}; {shut}"))),
        (Some(open), None) => Err(Trouble::Surprise(open)),
        (None, Some(shut)) => Err(Trouble::Doubt(shut)),
        (None, None) => Ok(()),
    }
}

fn judge(name: &str, permitted: bool, seen: &AttemptOutcome) -> Result<(), String> {
    let errno = match seen {
        AttemptOutcome::Failed { errno, .. } => *errno,
        AttemptOutcome::Done | AttemptOutcome::Answered(_) | AttemptOutcome::Killed => None,
    };
    match (permitted, seen) {
        (true, AttemptOutcome::Done | AttemptOutcome::Answered(FROM_ORIGIN)) => Ok(()),
        (false, AttemptOutcome::Killed | AttemptOutcome::Answered(403)) => Ok(()),
        (false, AttemptOutcome::Failed { .. }) if errno == Some(libc::EPERM) => Ok(()),
        // A host without IPv6 has nothing to refuse there.
        (_, AttemptOutcome::Failed { .. }) if errno == Some(libc::EAFNOSUPPORT) => Ok(()),
        // Nothing went through, and nothing was refused: the forwarder has no time, as the permitted one shows.
        (false, AttemptOutcome::Failed { .. }) if name == REQUEST => Ok(()),
        (true, AttemptOutcome::Failed { error, .. }) => {
            Err(format!("a permitted {name} did not work: {error}"))
        }
        (true, AttemptOutcome::Killed) => Err(format!("a permitted {name} was killed")),
        (true, AttemptOutcome::Answered(status)) => Err(format!(
            "a permitted {name} was answered with {status}, and not by its destination"
        )),
        (false, AttemptOutcome::Failed { error, .. }) => Err(format!(
            "a forbidden {name} was not refused, it failed: {error}"
        )),
        (false, AttemptOutcome::Done) => Err(format!("a forbidden {name} went through")),
        (false, AttemptOutcome::Answered(status)) => Err(format!(
            "a forbidden {name} was answered with {status}, not 403"
        )),
    }
}

/// The process, and the daemon's end of the link. Dropped, it is nobody's, and ends.
struct Bird<'s> {
    enforce: &'s Enforce,
    child: Child,
    link: UnixStream,
    answers: BufReader<UnixStream>,
}

impl<'s> Bird<'s> {
    fn start(enforce: &'s Enforce, account: &Account) -> Result<Self, Trouble> {
        let (link, theirs) = UnixStream::pair()?;
        link.set_read_timeout(Some(LIMIT))?;
        let answers = BufReader::new(link.try_clone()?);
        let child = sys::spawn::unprivileged(account, &["canary"], vec![theirs.into()])
            .map_err(Trouble::lost)?;
        Ok(Self {
            enforce,
            child,
            link,
            answers,
        })
    }

    /// It waits for its orders, and has done nothing yet as nobody's process.
    fn label(&self, agent: AgentId) -> Result<(), Trouble> {
        let label = Label { agent, flags: 0 };
        lock(&self.enforce.kernel)
            .set_label(self.child.id(), label)
            .map_err(Trouble::lost)
    }

    fn tries(&mut self, trials: Vec<Trial>) -> Result<Vec<(Trial, AttemptOutcome)>, Trouble> {
        let attempts: Vec<&Attempt> = trials.iter().map(|trial| &trial.attempt).collect();
        canary::say(&mut self.link, &attempts)?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let seen: Vec<AttemptOutcome> = serde_json::from_str(&line).map_err(io::Error::from)?;
        if seen.len() == attempts.len() {
            Ok(trials.into_iter().zip(seen).collect())
        } else {
            Err(Trouble::lost("it did not try everything"))
        }
    }
}

impl Drop for Bird<'_> {
    fn drop(&mut self) {
        // Before its end: its tgid may be somebody else's at once.
        if let Err(error) = self.label(AgentId::NONE) {
            let error = error.message();
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
        let (any, request) = ("x", REQUEST);
        for (name, permitted, seen, good) in [
            (any, true, AttemptOutcome::Done, true),
            (any, true, failed(libc::EPERM), false),
            (any, true, failed(libc::EAFNOSUPPORT), true),
            (any, true, failed(libc::ECONNREFUSED), false),
            (any, true, AttemptOutcome::Killed, false),
            (any, false, failed(libc::EPERM), true),
            (any, false, failed(libc::EAFNOSUPPORT), true),
            (any, false, failed(libc::ETIMEDOUT), false),
            (any, false, failed(libc::ECONNREFUSED), false),
            (any, false, AttemptOutcome::Done, false),
            (any, false, AttemptOutcome::Killed, true),
            (request, true, AttemptOutcome::Answered(FROM_ORIGIN), true),
            (request, true, AttemptOutcome::Answered(403), false),
            (request, true, AttemptOutcome::Answered(502), false),
            (request, true, failed(libc::ETIMEDOUT), false),
            (request, false, AttemptOutcome::Answered(403), true),
            (request, false, AttemptOutcome::Answered(FROM_ORIGIN), false),
            (request, false, failed(libc::ETIMEDOUT), true),
        ] {
            assert_eq!(
                judge(name, permitted, &seen).is_ok(),
                good,
                "{name} {permitted} {seen:?}"
            );
        }
    }

    #[test]
    fn every_surprise_is_named_and_what_is_open_comes_first() {
        let trial = |name, permitted| Trial {
            name,
            permitted,
            attempt: Attempt::Exec,
        };
        let broken = failed(libc::EPERM);
        let both = [
            (trial("exec", true), broken.clone()),
            (trial("datagram", false), AttemptOutcome::Done),
        ];
        let Err(Trouble::Surprise(said)) = judge_all(&both) else {
            panic!("no surprise");
        };
        assert!(
            said.starts_with("a forbidden datagram went through; a permitted exec"),
            "{said}"
        );
        let [shut, _] = both;
        assert!(matches!(judge_all(&[shut]), Err(Trouble::Doubt(_))));
        assert!(judge_all(&[(trial("exec", false), broken)]).is_ok());
    }

    fn failed(errno: i32) -> AttemptOutcome {
        AttemptOutcome::Failed {
            errno: Some(errno),
            error: "x".into(),
            port: None,
        }
    }
}
