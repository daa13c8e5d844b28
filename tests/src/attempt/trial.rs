//! The trial of attempts: without AgentGuard, as an agent, and as nobody beside the agents.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Attempt, Evidence, Program, Programs, User, alone, python_server, under};
use crate::audit::Record;
use crate::bundle::Bundle;
use crate::client::Client;
use crate::field::Field;
use crate::guard::Guard;
use crate::process::{Ran, Running};
use crate::site::Site;
use crate::standing::{Standing, Standings};

/// Tries every attempt: off, as an agent, and as nobody's process beside the agents. Everything that is not as it must be
/// is told at once.
#[track_caller]
pub fn prove(attempts: &[Attempt], bundle: impl FnOnce(&Field) -> Bundle) {
    tried_all(Field::new, attempts, bundle);
}

/// The same, where an attempt has to get to this port.
#[track_caller]
pub fn prove_on(port: u16, attempts: &[Attempt], bundle: impl FnOnce(&Field) -> Bundle) {
    tried_all(|| Field::on(port), attempts, bundle);
}

/// On a field that is there only once it is this test's turn: another test of this process may want the same port.
#[track_caller]
fn tried_all(
    field: impl FnOnce() -> Field,
    attempts: &[Attempt],
    bundle: impl FnOnce(&Field) -> Bundle,
) {
    let site = Site::new();
    let mut trial = Trial {
        field: field(),
        standings: Standings::of_this_kernel(),
        programs: Programs::new(),
        recorded: 0,
        nobodys: BTreeMap::new(),
        agents: BTreeMap::new(),
        failures: String::new(),
    };
    let bundle = bundle(&trial.field);
    for attempt in attempts {
        trial.alone(attempt, "without AgentGuard");
    }
    let guard = Guard::start(&site, &bundle);
    trial.recorded = guard.audit().len();
    for attempt in attempts {
        trial.as_agent(attempt, &guard);
    }
    trial.agents.clear();
    for attempt in attempts {
        trial.alone(attempt, "as no agent");
        let records = trial.records(&guard);
        if !records.is_empty() {
            let told = format!("who is no agent is in the log: {records:?}");
            trial.fail(attempt, User::Root, &told);
        }
    }
    assert!(trial.failures.is_empty(), "{}", trial.failures);
}

struct Trial {
    field: Field,
    standings: Standings,
    programs: Programs,
    /// How many records there have been.
    recorded: usize,
    /// Interpreters that run one attempt after another, by their users: of nobody, and of agents.
    nobodys: BTreeMap<User, Running>,
    agents: BTreeMap<(&'static str, User), Running>,
    failures: String,
}

impl Trial {
    fn alone(&mut self, attempt: &Attempt, when: &str) {
        for user in User::ALL {
            let (said, arrived) = self.tried(attempt, |trial| match trial.words(attempt) {
                Words::Program(words) => ran(alone(&words).as_user(user)),
                Words::Statements(code) => {
                    let words = python_server(trial.field.port(), trial.field.open());
                    let start = || alone(&words).as_user(user).spawn();
                    answer(trial.nobodys.entry(user).or_insert_with(start), code)
                }
            });
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
            let agent = guard.agent(attempt.agent).user(user.name());
            let (said, arrived) = self.tried(attempt, |trial| match trial.words(attempt) {
                Words::Program(words) => ran(under(&agent, &words)),
                Words::Statements(code) => {
                    let words = python_server(trial.field.port(), trial.field.open());
                    let start = || under(&agent, &words).spawn();
                    let key = (attempt.agent, user);
                    answer(trial.agents.entry(key).or_insert_with(start), code)
                }
            });
            let mut records = self.records(guard);
            records.retain(|record| record.outcome() != "allow");
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

    /// What is new in the log.
    fn records(&mut self, guard: &Guard) -> Vec<Record> {
        let mut all = guard.audit();
        let new = all.split_off(self.recorded);
        self.recorded += new.len();
        new
    }

    fn words<'attempt>(&self, attempt: &'attempt Attempt) -> Words<'attempt> {
        match &attempt.program {
            Program::Python(code) => Words::Statements(code),
            Program::C(name, arguments) => {
                let program = if attempt.set_user_id {
                    self.programs.set_user_id(name)
                } else {
                    self.programs.c(name)
                };
                let first = [program.display().to_string(), self.field.port().to_string()];
                Words::Program(first.into_iter().chain(arguments.iter().cloned()).collect())
            }
        }
    }

    /// What it says, and whether anything of it was seen.
    fn tried(
        &mut self,
        attempt: &Attempt,
        said: impl FnOnce(&mut Self) -> String,
    ) -> (String, bool) {
        self.field.seen();
        let said = said(self);
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

/// How an attempt is run.
enum Words<'attempt> {
    Program(Vec<String>),
    Statements(&'attempt str),
}

fn ran(client: Client) -> String {
    let Ran { stdout, stderr, .. } = client.run();
    word(stdout.lines()).unwrap_or_else(|| format!("{stdout}\n{stderr}"))
}

/// What comes of these statements in a child of the interpreter's.
fn answer(interpreter: &mut Running, code: &str) -> String {
    let line: String = code.bytes().map(|byte| format!("{byte:02x}")).collect();
    interpreter.say(&line);
    let mut said = Vec::new();
    loop {
        let line = interpreter.line(|_| true);
        if line == "ended" {
            break;
        }
        said.push(line);
    }
    word(said.iter().map(String::as_str)).unwrap_or_else(|| said.join("\n"))
}

/// The last that says what came of it.
fn word<'a>(lines: impl DoubleEndedIterator<Item = &'a str>) -> Option<String> {
    let is_word = |line: &&str| {
        ["through", "refused ", "absent "]
            .iter()
            .any(|word| line.starts_with(word))
    };
    lines.rev().find(is_word).map(str::to_owned)
}
