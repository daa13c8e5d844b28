//! What `policy test` and `policy diff` print.

use std::fmt::Write as _;

use agentguard_policy::cases::{CaseAnswer, CaseChange, Expectation, TestedCase};

use super::layout::{WIDTH, blanked, clip, count, paint, wrap};
use crate::cli::table::table;

/// Every case that does not hold, then one line that sums up.
pub fn tested_text(tested: &[TestedCase<'_>], colour: bool) -> String {
    let failed: Vec<&TestedCase<'_>> = tested.iter().filter(|one| !one.passed).collect();
    if tested.is_empty() {
        return "the bundle has no cases; write them as [[case]] in tests/*.toml\n".to_owned();
    }
    if failed.is_empty() {
        let what = count(tested.len(), "case");
        return format!("{what}: {}\n", paint(colour, "1;32", "all hold"));
    }
    let rows: Vec<Vec<String>> = failed
        .iter()
        .map(|one| {
            vec![
                one.case.at.clone(),
                one.case.name.clone(),
                expected(&one.case.expected),
                answered(Some(&one.answer)),
            ]
        })
        .collect();
    let mut text = table(&["AT", "CASE", "EXPECTED", "DECIDED"], &rows);
    for one in &failed {
        let question = &one.case.question;
        let asked = format!("{} {} {}", question.agent, question.method, question.url);
        let _ = writeln!(text, "\n{}: {}", one.case.at, blanked(&asked));
        for line in wrap("  ", &blanked(&one.answer.why), "  ") {
            let _ = writeln!(text, "{line}");
        }
    }
    let what = count(tested.len(), "case");
    let red = paint(colour, "1;31", &format!("{} do not hold", failed.len()));
    let _ = writeln!(text, "\n{what}: {red}");
    text
}

pub fn changes_text(changes: &[CaseChange], asked: usize) -> String {
    if changes.is_empty() {
        return format!("{}: none is decided otherwise\n", count(asked, "case"));
    }
    let mut text = String::new();
    for change in changes {
        let asked = format!("{} {}", change.agent, change.request);
        for line in wrap("", &blanked(&asked), "  ") {
            let _ = writeln!(text, "{line}");
        }
        for (which, answer) in [("old", &change.old), ("new", &change.new)] {
            let line = format!("  {which}  {}", answered(answer.as_ref()));
            let _ = writeln!(text, "{}", clip(&line, WIDTH));
        }
    }
    let what = count(asked, "case");
    let _ = writeln!(text, "\n{what}: {} decided otherwise", changes.len());
    text
}

fn expected(expected: &Expectation) -> String {
    let mut text = expected.outcome.name().to_owned();
    if let Some(reason) = expected.reason {
        let _ = write!(text, " {}", reason.slug());
    }
    if let Some(policies) = &expected.policies {
        let _ = write!(text, " by {}", listed(policies));
    }
    text
}

fn answered(answer: Option<&CaseAnswer>) -> String {
    let Some(answer) = answer else {
        return "no such agent".to_owned();
    };
    let mut text = answer.outcome.name().to_owned();
    if let Some(reason) = answer.reason {
        let _ = write!(text, " {}", reason.slug());
    }
    if !answer.policies.is_empty() {
        let _ = write!(text, " by {}", listed(&answer.policies));
    }
    text
}

fn listed<'i>(ids: impl IntoIterator<Item = &'i String>) -> String {
    let ids: Vec<&str> = ids.into_iter().map(String::as_str).collect();
    if ids.is_empty() {
        "no rule".to_owned()
    } else {
        ids.join(", ")
    }
}
