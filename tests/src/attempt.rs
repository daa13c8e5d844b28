//! A way around AgentGuard, as a real program that tries it: it must get through while AgentGuard is off and for who is no
//! agent, and must fail for an agent, as root and as another user, with one record and nothing on the wire.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::bundle::Bundle;
use crate::client::{Client, Subject as _};
use crate::field::Field;
use crate::guard::{Agent, Guard};
use crate::process::Ran;
use crate::site::Site;
use crate::standing::{Standing, Standings};
use crate::tools::CLIENT_PATH;

/// What the tests need of Python is in its standard library.
const PYTHON: &str = "/usr/bin/python3";
const PRELUDE: &str = include_str!("../tools/attempt/prelude.py");

/// The agent that tries, unless the attempt names another.
pub const AGENT: &str = "probe";

/// Without this, `run` takes away what the attempts of root need, and the hooks would go untried.
pub const KEEP: &str = "privileges = \"keep\"\n\n";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    Root,
    /// There on every host, and owns nothing.
    Nobody,
}

impl User {
    pub const ALL: [Self; 2] = [Self::Root, Self::Nobody];
    const NOBODY: u32 = 65534;

    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Nobody => "nobody",
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

/// Tries every attempt: off, as an agent, and as nobody's process beside the agents. Everything that is not as it must be
/// is told at once.
#[track_caller]
pub fn prove(attempts: &[Attempt], bundle: impl FnOnce(&Field) -> Bundle) {
    prove_on(Field::new(), attempts, bundle);
}

/// The same, on a field of the test's own.
#[track_caller]
pub fn prove_on(field: Field, attempts: &[Attempt], bundle: impl FnOnce(&Field) -> Bundle) {
    let site = Site::new();
    let mut trial = Trial {
        field,
        standings: Standings::of_this_kernel(),
        programs: Programs::new(),
        failures: String::new(),
    };
    let bundle = bundle(&trial.field);
    for attempt in attempts {
        trial.alone(attempt, "without AgentGuard");
    }
    let guard = Guard::start(&site, &bundle);
    for attempt in attempts {
        trial.as_agent(attempt, &guard);
    }
    for attempt in attempts {
        let before = guard.audit().len();
        trial.alone(attempt, "as no agent");
        if guard.audit().len() != before {
            trial.fail(
                attempt,
                User::Root,
                "somebody who is no agent is in the log",
            );
        }
    }
    assert!(trial.failures.is_empty(), "{}", trial.failures);
}

struct Trial {
    field: Field,
    standings: Standings,
    programs: Programs,
    failures: String,
}

impl Trial {
    fn alone(&mut self, attempt: &Attempt, when: &str) {
        for user in User::ALL {
            let words = self.words(attempt);
            let (said, arrived) = self.run(attempt, alone(&words).as_user(user));
            let standing = self.standings.of_attempt(&attempt.name, user);
            let held_by_kernel = attempt.root_only && user != User::Root;
            let right = match &*said {
                "through" => {
                    !held_by_kernel
                        && standing != Standing::Absent
                        && (arrived || attempt.evidence == Evidence::Word)
                }
                said if said.starts_with("refused ") => held_by_kernel,
                said if said.starts_with("absent ") => standing == Standing::Absent,
                _ => false,
            };
            if !right {
                let told = format!("{when}: {said} (arrived: {arrived}, {standing:?})");
                self.fail(attempt, user, &told);
            }
        }
    }

    fn as_agent(&mut self, attempt: &Attempt, guard: &Guard) {
        for user in User::ALL {
            let standing = self.standings.of_attempt(&attempt.name, user);
            if standing == Standing::Absent || attempt.root_only && user != User::Root {
                continue;
            }
            let before = guard.audit().len();
            let words = self.words(attempt);
            let agent = guard.agent(attempt.agent).user(user.name());
            let (said, arrived) = self.run(attempt, under(&agent, &words));
            let records: Vec<_> = guard
                .audit()
                .split_off(before)
                .into_iter()
                .filter(|record| record.outcome() != "allow")
                .collect();
            if standing == Standing::Open {
                if said != "through" || !records.is_empty() {
                    let told = format!("expected open, but {said}: {records:?}");
                    self.fail(attempt, user, &told);
                }
                continue;
            }
            let answer = said.strip_prefix("refused ").unwrap_or(&said);
            if !attempt.answers.contains(&answer) || arrived {
                self.fail(attempt, user, &format!("{said} (arrived: {arrived})"));
            }
            let told: Vec<_> = records
                .iter()
                .map(|r| (r.agent(), r.action(), r.reason(), r.outcome()))
                .collect();
            let (action, reason, outcome) = attempt.record;
            let wanted = [(attempt.agent, action, reason, outcome)];
            if told != wanted {
                self.fail(attempt, user, &format!("recorded as {records:#?}"));
            }
        }
    }

    fn words(&self, attempt: &Attempt) -> Vec<String> {
        match &attempt.program {
            Program::Python(code) => python(self.field.port(), self.field.open(), code),
            Program::C(name, arguments) => {
                let program = if attempt.set_user_id {
                    self.programs.set_user_id(name)
                } else {
                    self.programs.c(name)
                };
                [program.display().to_string(), self.field.port().to_string()]
                    .into_iter()
                    .chain(arguments.iter().cloned())
                    .collect()
            }
        }
    }

    /// What it says, and whether anything of it was seen.
    fn run(&mut self, attempt: &Attempt, client: Client) -> (String, bool) {
        self.field.seen();
        let Ran { stdout, stderr, .. } = client.run();
        let word = |line: &&str| {
            ["through", "refused ", "absent "]
                .iter()
                .any(|word| line.starts_with(word))
        };
        let said = stdout.lines().rev().find(word);
        let said = said.map_or_else(|| format!("{stdout}\n{stderr}"), str::to_owned);
        let seen = self.field.seen();
        let arrived = match attempt.evidence {
            Evidence::Anything => seen.anything,
            Evidence::Mark => seen.mark,
            Evidence::Word => false,
        };
        (said, arrived)
    }

    fn fail(&mut self, attempt: &Attempt, user: User, what: &str) {
        let (name, user) = (&attempt.name, user.name());
        writeln!(self.failures, "{name}, as {user}: {what}").expect("a string takes it");
    }
}

/// Words of the command that runs these statements.
pub fn python(port: u16, open: u16, code: &str) -> Vec<String> {
    let ports = [port.to_string(), open.to_string()];
    [PYTHON, "-I", "-S", "-c", PRELUDE]
        .map(str::to_owned)
        .into_iter()
        .chain(ports)
        .chain([code.to_owned()])
        .collect()
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
            User::Nobody => self.user(User::NOBODY),
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
