//! What a test runner has said, taken at its word only if all of it fits together, and what the table says it should be.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};

use super::machine::Step;
use super::table::Kernel;

/// libtest's exit status when a test fails.
const FAILED: i32 = 101;
const MESSAGE_LINES: usize = 40;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    Failed,
    Ignored,
}

pub(super) struct Test {
    pub outcome: Outcome,
    /// What it wrote; empty for one that passed, unless the runner was to show it.
    pub output: String,
}

/// By `program::module::name`.
pub(super) type Tests = BTreeMap<String, Test>;

/// # Errors
/// Lines that are missing or contradict each other or the exit status.
pub(super) fn read(step: &Step) -> anyhow::Result<Tests> {
    let mut tests = Tests::new();
    let mut announced = None;
    let mut closing = None;
    let mut section: Option<String> = None;
    for line in &step.lines {
        if let Some(name) = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.strip_suffix(" stdout ----"))
        {
            section = Some(full_name(step, name));
        } else if let Some(rest) = line.strip_prefix("test result: ") {
            closing = Some(
                Counts::of(rest).with_context(|| format!("not the runner's last line: {line}"))?,
            );
            section = None;
        } else if line == "failures:" || line == "successes:" {
            section = None;
        } else if let Some(test) = section.as_ref().and_then(|name| tests.get_mut(name)) {
            test.output.push_str(line);
            test.output.push('\n');
        } else if let Some(count) = line.strip_prefix("running ") {
            announced = count
                .split(' ')
                .next()
                .and_then(|count| count.parse::<usize>().ok());
        } else if let Some((name, outcome)) = outcome(line) {
            let test = Test {
                outcome,
                output: String::new(),
            };
            ensure!(
                tests.insert(full_name(step, name), test).is_none(),
                "{name} has run twice"
            );
        }
    }
    let closing = closing.context("the runner has not come to its last line")?;
    let count = |outcome| {
        tests
            .values()
            .filter(|test| test.outcome == outcome)
            .count()
    };
    let counted = Counts {
        passed: count(Outcome::Passed),
        failed: count(Outcome::Failed),
        ignored: count(Outcome::Ignored),
    };
    ensure!(
        announced == Some(tests.len()),
        "{announced:?} tests were announced, {} have run",
        tests.len()
    );
    ensure!(
        counted == closing,
        "the runner counts {closing:?}, its lines are {counted:?}"
    );
    let status = if counted.failed == 0 { 0 } else { FAILED };
    if step.status != status {
        bail!(
            "{} tests failed, and the exit status is {}",
            counted.failed,
            step.status
        );
    }
    Ok(tests)
}

/// What is not as the table says. `is_all`: every test was to run.
pub(super) fn surprises(kernel: &Kernel, tests: &Tests, is_all: bool) -> Vec<String> {
    let mut surprises = Vec::new();
    for (name, test) in tests {
        let known = kernel.differs.iter().find(|known| known.test == *name);
        let said = || last_lines(&test.output);
        match (&test.outcome, known.map(|known| &known.fails)) {
            (Outcome::Passed, None) | (Outcome::Ignored, Some(None)) => {}
            (Outcome::Failed, Some(Some(words))) if test.output.contains(words.as_str()) => {}
            (Outcome::Passed, Some(_)) => {
                surprises.push(format!("{name} passes: take it from the table"))
            }
            (Outcome::Ignored, _) => surprises.push(format!("{name} is skipped")),
            (Outcome::Failed, None | Some(None)) => {
                surprises.push(format!("{name} fails:\n{}", said()))
            }
            (Outcome::Failed, Some(Some(words))) => {
                surprises.push(format!(
                    "{name} fails, but does not say `{words}`:\n{}",
                    said()
                ));
            }
        }
    }
    if is_all {
        let gone = kernel
            .differs
            .iter()
            .filter(|known| !tests.contains_key(&known.test));
        surprises
            .extend(gone.map(|known| format!("{} is in the table and nowhere else", known.test)));
    }
    surprises
}

#[derive(Debug, PartialEq, Eq)]
struct Counts {
    passed: usize,
    failed: usize,
    ignored: usize,
}

impl Counts {
    /// `ok. 3 passed; 0 failed; 1 ignored; 0 measured; …`
    fn of(text: &str) -> Option<Self> {
        let (_, counts) = text.split_once(". ")?;
        let count = |what: &str| {
            counts
                .split("; ")
                .find_map(|part| part.strip_suffix(what)?.trim().parse().ok())
        };
        Some(Self {
            passed: count("passed")?,
            failed: count("failed")?,
            ignored: count("ignored")?,
        })
    }
}

fn outcome(line: &str) -> Option<(&str, Outcome)> {
    let (name, outcome) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let name = name.strip_suffix(" - should panic").unwrap_or(name);
    match outcome.split(',').next()? {
        "ok" => Some((name, Outcome::Passed)),
        "FAILED" => Some((name, Outcome::Failed)),
        "ignored" => Some((name, Outcome::Ignored)),
        _ => None,
    }
}

fn full_name(step: &Step, test: &str) -> String {
    format!("{}::{test}", step.name)
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    let from = lines.len().saturating_sub(MESSAGE_LINES);
    lines[from..]
        .iter()
        .map(|line| format!("    {line}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(text: &str, status: i32) -> Step {
        Step {
            name: "suite".into(),
            lines: text.lines().map(str::to_owned).collect(),
            status,
            seconds: 1.0,
        }
    }

    const TEXT: &str = "\nrunning 3 tests
test a::one ... ok
test two ... FAILED
test three ... ignored, no need

failures:

---- two stdout ----
thread 'two' panicked at x.rs:1:1:
no such hook

failures:
    two

test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s
";

    fn kernel(differs: &str) -> Kernel {
        toml::from_str(&format!("name = 'k'\nsuites = []\nlsm = true\n{differs}")).unwrap()
    }

    #[test]
    fn a_run_is_read_and_compared() {
        let tests = read(&step(TEXT, 101)).unwrap();
        assert_eq!(tests["suite::a::one"].outcome, Outcome::Passed);
        assert!(tests["suite::two"].output.contains("no such hook"));
        assert_eq!(surprises(&kernel(""), &tests, true).len(), 2);
        let known = "[[differs]]\ntest = 'suite::two'\nfails = 'no such hook'\nbecause = 'x'
            [[differs]]\ntest = 'suite::three'\nbecause = 'x'\n";
        assert_eq!(surprises(&kernel(known), &tests, true), [] as [&str; 0]);
        let other = known.replace("no such hook", "another");
        assert_eq!(surprises(&kernel(&other), &tests, true).len(), 1);
        let gone = format!("{known}[[differs]]\ntest = 'suite::four'\nbecause = 'x'\n");
        assert_eq!(surprises(&kernel(&gone), &tests, true).len(), 1);
        assert_eq!(surprises(&kernel(&gone), &tests, false).len(), 0);
        let passes = known.replace("suite::two", "suite::a::one");
        assert_eq!(surprises(&kernel(&passes), &tests, true).len(), 2);
    }

    #[test]
    fn a_run_that_contradicts_itself_is_refused() {
        assert!(read(&step(TEXT, 0)).is_err(), "status");
        let closing = TEXT.find("test result").unwrap();
        assert!(read(&step(&TEXT[..closing], 101)).is_err(), "cut off");
        assert!(
            read(&step(&TEXT.replace("running 3", "running 4"), 101)).is_err(),
            "one is missing"
        );
        assert!(
            read(&step(&TEXT.replace("1 passed", "2 passed"), 101)).is_err(),
            "counted otherwise"
        );
        assert!(read(&step("", 0)).is_err(), "nothing");
    }
}
