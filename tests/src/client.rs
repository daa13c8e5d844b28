//! An unchanged program, started with an empty environment: as an agent, or without AgentGuard as the control.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::process::{Ran, Running};
use crate::tools::{self, node_modules, script};

/// Who makes the calls: [`Site`](crate::Site) directly, [`Agent`](crate::guard::Agent) under AgentGuard.
pub trait Subject {
    fn client(&self, program: &Path) -> Client;
}

/// A script of `tests/tools/`, in Python with the test packages.
pub fn python(subject: &dyn Subject, name: &str) -> Client {
    subject.client(&tools::python()).arg(script(name))
}

/// A script of `tests/tools/`, in Node with the test packages.
pub fn node(subject: &dyn Subject, name: &str) -> Client {
    subject
        .client(Path::new("node"))
        .arg(script(name))
        .env("NODE_PATH", node_modules())
}

/// [`dialer.py`](../tools/dialer.py), started and waiting for what to try.
pub fn dialer(subject: &dyn Subject) -> Dialer {
    let mut running = python(subject, "dialer.py").spawn();
    running.say("pid");
    let tgid = running.after("ok ").parse().expect("a process id");
    Dialer { running, tgid }
}

/// A process that tries one thing after another.
pub struct Dialer {
    running: Running,
    /// The one that tries, not what started it.
    pub tgid: u32,
}

impl Dialer {
    /// One that has been started in a way of its own.
    pub fn of(running: Running, tgid: u32) -> Self {
        Self { running, tgid }
    }

    /// `ok …` or `error NAME`.
    #[track_caller]
    pub fn tries(&mut self, what: &str) -> String {
        self.running.say(what);
        self.running
            .line(|line| line.starts_with("ok") || line.starts_with("error"))
            .trim()
            .to_owned()
    }
}

/// A command being put together.
#[must_use]
pub struct Client {
    command: Command,
    input: Option<String>,
    stdin: Option<OwnedFd>,
}

impl Client {
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.env_clear();
        Self {
            command,
            input: None,
            stdin: None,
        }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs as this user, in the group of the same number and in no other.
    pub fn user(mut self, uid: u32) -> Self {
        self.command.uid(uid).gid(uid);
        self
    }

    /// What it reads from standard input, which then ends.
    pub fn input(mut self, text: impl Into<String>) -> Self {
        self.input = Some(text.into());
        self
    }

    /// What its standard input is.
    pub fn input_from(mut self, stdin: OwnedFd) -> Self {
        self.stdin = Some(stdin);
        self
    }

    pub fn spawn(mut self) -> Running {
        let stdin = self.stdin.map_or_else(Stdio::piped, Stdio::from);
        let mut running = Running::spawn_from(&mut self.command, stdin);
        if let Some(input) = self.input {
            running.say(&input);
            running.close_stdin();
        }
        running
    }

    #[track_caller]
    pub fn run(self) -> Ran {
        self.spawn().finish()
    }
}
