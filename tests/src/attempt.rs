//! A way around AgentGuard, as a real program that tries it: it must get through while AgentGuard is off and for who is no
//! agent, and must fail for an agent, as root and as another user, with one record and nothing on the wire.

mod trial;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::client::{Client, Subject as _};
use crate::guard::Agent;
use crate::tools::CLIENT_PATH;

pub use self::trial::{prove, prove_on};

/// How many processes a fork bomb has, where a machine of a test's cannot do with the number that is written here.
const PROCESSES_VARIABLE: &str = "AGENTGUARD_TEST_PROCESSES";
const PROCESSES: u32 = 50_000;

/// What the tests need of Python is in its standard library.
const PYTHON: &str = "/usr/bin/python3";
const PRELUDE: &str = include_str!("../tools/attempt/prelude.py");

/// The agent that tries, unless the attempt names another.
pub const AGENT: &str = "probe";

/// Without this, `run` takes away what the attempts of root need, and the hooks would go untried.
pub const KEEP: &str = "privileges = \"keep\"\n\n";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum User {
    Root,
    /// By number: a host need not have such an account.
    Ordinary,
}

impl User {
    pub const ALL: [Self; 2] = [Self::Root, Self::Ordinary];
    const ORDINARY: u32 = 1000;

    /// As `run --user` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Ordinary => "1000",
        }
    }
}

/// What shows that an attempt got through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Evidence {
    /// Anything of it on the wire.
    Anything,
    /// The mark on the wire.
    Mark,
    /// The program's word.
    Word,
}

#[derive(Clone, Debug)]
enum Program {
    /// Statements behind `tools/attempt/prelude.py`; an `OSError` is a refusal.
    Python(String),
    /// `tools/attempt/NAME.c`, and its arguments behind the field's port.
    C(&'static str, Vec<String>),
}

#[derive(Clone, Debug)]
pub struct Attempt {
    /// In the table of standings, and in messages.
    pub name: String,
    program: Program,
    agent: &'static str,
    /// What the agent's program says, behind `refused `.
    answers: &'static [&'static str],
    /// Action, reason and outcome of the one record.
    record: (&'static str, &'static str, &'static str),
    evidence: Evidence,
    root_only: bool,
    set_user_id: bool,
}

impl Attempt {
    fn new(name: impl Into<String>, program: Program) -> Self {
        Self {
            name: name.into(),
            program,
            agent: AGENT,
            answers: &["EPERM"],
            record: ("connect", "policy-denied", "deny"),
            evidence: Evidence::Anything,
            root_only: false,
            set_user_id: false,
        }
    }

    pub fn python(name: impl Into<String>, code: impl Into<String>) -> Self {
        Self::new(name, Program::Python(code.into()))
    }

    pub fn c(name: impl Into<String>, source: &'static str, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|&argument| argument.to_owned());
        Self::new(name, Program::C(source, arguments.collect()))
    }

    /// Tried by this agent of the bundle's.
    pub fn by(mut self, agent: &'static str) -> Self {
        self.agent = agent;
        self
    }

    /// One of these, where it is not `EPERM`; `through` if only the wire can tell.
    pub fn answers(mut self, answers: &'static [&'static str]) -> Self {
        self.answers = answers;
        self
    }

    /// The one record, where it is not of a connect that no rule allows.
    pub fn leaves(mut self, action: &'static str, reason: &'static str) -> Self {
        self.record = (action, reason, "deny");
        self
    }

    /// It does not come to a request: the one record is of a connection that ended in an error.
    pub fn ends_without_a_decision(mut self) -> Self {
        self.record = ("connect", "", "error");
        self
    }

    /// Getting through sends nothing by itself: the program's word has to do.
    pub fn sends_nothing(mut self) -> Self {
        self.evidence = Evidence::Word;
        self
    }

    /// Something may get to the field, but not what carries the mark.
    pub fn marked(mut self) -> Self {
        self.evidence = Evidence::Mark;
        self
    }

    /// The kernel alone keeps everybody else from it.
    pub fn root_only(mut self) -> Self {
        self.root_only = true;
        self
    }

    /// The program is root's, whoever starts it.
    pub fn set_user_id(mut self) -> Self {
        self.set_user_id = true;
        self
    }
}

/// Of a fork bomb.
pub fn processes() -> u32 {
    let told = std::env::var(PROCESSES_VARIABLE);
    told.map_or(PROCESSES, |number| number.parse().expect("a number"))
}

/// Words of the command that runs these statements.
pub fn python(port: u16, open: u16, code: &str) -> Vec<String> {
    let mut words = python_server(port, open);
    words.push(code.to_owned());
    words
}

/// Words of the command that runs statements line by line of its standard input, in hexadecimal, each in a child of its own.
fn python_server(port: u16, open: u16) -> Vec<String> {
    let ports = [port.to_string(), open.to_string()];
    let python = [PYTHON, "-I", "-S", "-c", PRELUDE].map(str::to_owned);
    python.into_iter().chain(ports).collect()
}

/// A command as nobody's.
pub fn alone(words: &[String]) -> Client {
    Client::new(&words[0])
        .args(&words[1..])
        .env("PATH", CLIENT_PATH)
}

/// A command as an agent's.
pub fn under(agent: &Agent<'_>, words: &[String]) -> Client {
    agent.client(Path::new(&words[0])).args(&words[1..])
}

impl Client {
    /// Whom a command of nobody's runs as.
    pub fn as_user(self, user: User) -> Self {
        match user {
            User::Root => self,
            User::Ordinary => self.user(User::ORDINARY),
        }
    }
}

/// Programs in C, compiled when they are first needed, where everybody may execute them.
pub struct Programs {
    folder: TempDir,
}

impl Programs {
    pub fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("agentguard-attempts-")
            .permissions(std::fs::Permissions::from_mode(0o755))
            .tempdir()
            .expect("a folder");
        Self { folder }
    }

    /// The executable made of `tools/attempt/NAME.c`, or the one of that name in `AGENTGUARD_TEST_PROGRAMS`.
    pub fn c(&self, name: &str) -> PathBuf {
        if let Some(made) = std::env::var_os("AGENTGUARD_TEST_PROGRAMS") {
            return Path::new(&made).join(name);
        }
        let program = self.folder.path().join(name);
        if !program.exists() {
            let source = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("tools/attempt")
                .join(format!("{name}.c"));
            let made = Command::new("cc")
                .args(["-static", "-O1", "-Wall", "-Wextra", "-Werror", "-o"])
                .args([&program, &source])
                .status()
                .expect("a C compiler");
            assert!(made.success(), "{} does not compile", source.display());
        }
        program
    }

    /// The same, for a program that is to be its owner's whoever starts it.
    fn set_user_id(&self, name: &str) -> PathBuf {
        let program = self.folder.path().join(format!("{name}.setuid"));
        std::fs::copy(self.c(name), &program).expect("copied");
        let mode = std::fs::Permissions::from_mode(0o4755);
        std::fs::set_permissions(&program, mode).expect("set");
        program
    }
}

impl Default for Programs {
    fn default() -> Self {
        Self::new()
    }
}
