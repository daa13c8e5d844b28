//! `agentguard policy`: bundles, checked here and applied by the daemon.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::status::short;
use super::table::{Colour, coloured, fields};
use super::{Failure, policy_offline, print, print_json, table};
use crate::control::api::{Bundle, InForce};
use crate::control::client::{Client, ClientError};
use crate::policy::Policy;
use crate::policy::cases::Tested;
use crate::policy::explain::{Explanation, Question};
use crate::policy::store::{self, Trust};

/// A bundle that is not valid, or was refused.
const INVALID: u8 = 3;
/// What the caller named cannot be used.
const USAGE: u8 = 2;

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Everything that is wrong with a bundle (needs no daemon)
    Check {
        /// The bundle's folder
        dir: PathBuf,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// What a bundle decides for its own cases, tests/*.toml (needs no daemon)
    Test {
        /// The bundle's folder
        dir: PathBuf,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// What a bundle decides otherwise than another, over the cases of both (needs no daemon)
    Diff {
        /// The folder of the bundle to compare with
        old: PathBuf,
        /// The folder of the bundle that would come after it
        new: PathBuf,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Put a bundle in force, whole or not at all
    Apply {
        /// The bundle's folder
        dir: PathBuf,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// The bundle in force
    Show {
        /// One JSON object, with the bundle's files
        #[arg(long)]
        json: bool,
        /// The text of one of its files
        #[arg(long, value_name = "PATH", conflicts_with = "json")]
        file: Option<String>,
    },
    /// What would be decided for a request, and by which policies
    Explain(Explain),
}

#[derive(Debug, Args)]
pub struct Explain {
    #[arg(long, value_name = "NAME")]
    agent: String,
    /// GET, POST, …; `connect` for a host whose TLS is passed through
    method: String,
    /// https://host[:port]/path?query
    url: String,
    /// A request header; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// The request's body, JSON unless a header says otherwise; `-`: standard input
    #[arg(long, value_name = "FILE")]
    body: Option<PathBuf>,
    /// A role that is taken to have approved it; may be repeated
    #[arg(long = "approved-by", value_name = "ROLE")]
    approvals: Vec<String>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub async fn run(verb: &Verb, client: &Client) -> Result<ExitCode, Failure> {
    match verb {
        Verb::Check { dir, json } => check(dir, *json),
        Verb::Test { dir, json } => test(dir, *json),
        Verb::Diff { old, new, json } => diff(old, new, *json),
        Verb::Apply { dir, json } => apply(dir, *json, client).await,
        Verb::Show { json, file } => show(*json, file.as_deref(), client).await,
        Verb::Explain(explain) => ask(explain, client).await,
    }
}

fn check(dir: &Path, json: bool) -> Result<ExitCode, Failure> {
    let checked = policy_offline::check(dir).map_err(|e| Failure::new(INVALID, e))?;
    let valid = checked.result.is_ok();
    match (json, valid) {
        (true, _) => print_json(&checked.json())?,
        (false, true) => print(&checked.text(table::is_coloured()))?,
        (false, false) => return Err(refused(&checked.text(false))),
    };
    Ok(if valid {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(INVALID)
    })
}

/// A case that does not hold is a failed verification: 1. A bundle that is not valid has no cases to test: 3.
fn test(dir: &Path, json: bool) -> Result<ExitCode, Failure> {
    let policy = valid(dir)?;
    let tested: Vec<Tested<'_>> = policy.test().collect();
    let failed = tested.iter().filter(|one| !one.passed).count();
    if json {
        let cases: Vec<Value> = tested.iter().map(case_json).collect();
        print_json(&json!({ "passed": tested.len() - failed, "failed": failed, "cases": cases }))?;
    } else {
        print(&policy_offline::tested_text(&tested, table::is_coloured()))?;
    }
    Ok(ExitCode::from(u8::from(failed > 0)))
}

fn case_json(one: &Tested<'_>) -> Value {
    json!({
        "name": one.case.name,
        "at": one.case.at,
        "question": one.case.question,
        "expected": one.case.expected,
        "decided": one.answer,
        "passed": one.passed,
    })
}

fn diff(old: &Path, new: &Path, json: bool) -> Result<ExitCode, Failure> {
    let (old, new) = (valid(old)?, valid(new)?);
    let (changes, asked) = old.diff(&new);
    if json {
        return print_json(&json!({ "cases": asked, "changes": changes }));
    }
    print(&policy_offline::changes_text(&changes, asked))
}

fn valid(dir: &Path) -> Result<Policy, Failure> {
    let checked = policy_offline::check(dir).map_err(|e| Failure::new(INVALID, e))?;
    let text = checked.text(false);
    checked.result.map_err(|_| refused(&text))
}

/// What is wrong, each with its line, on stderr.
fn refused(text: &str) -> Failure {
    eprint!("{text}");
    Failure::silent(INVALID)
}

async fn apply(dir: &Path, json: bool, client: &Client) -> Result<ExitCode, Failure> {
    let sources = store::read(dir, Trust::Anyone).map_err(|e| Failure::new(INVALID, e))?;
    let request = Bundle {
        files: sources.files.clone(),
    };
    let applied: Result<InForce, ClientError> = client.post("/v1/policy", &request).await;
    let applied = match applied {
        Err(ClientError::Invalid { diagnostics, .. }) if !diagnostics.is_empty() => {
            if json {
                print_json(&json!({ "applied": false, "diagnostics": diagnostics }))?;
                return Ok(ExitCode::from(INVALID));
            }
            let text = policy_offline::diagnostics_text(&sources, &diagnostics, false);
            return Err(refused(&text));
        }
        other => other?,
    };
    if json {
        return print_json(&applied);
    }
    for warning in &applied.warnings {
        eprintln!("{}: {warning}", coloured("warning", Colour::Yellow));
    }
    let what = if applied.unchanged {
        "in force already"
    } else {
        "in force"
    };
    print(&format!(
        "{} serial {} ({}) {what}, generation {}\n",
        applied.meta.name,
        applied.meta.serial,
        short(&applied.meta.digest),
        applied.generation
    ))
}

async fn show(json: bool, file: Option<&str>, client: &Client) -> Result<ExitCode, Failure> {
    let shown: InForce = client.get("/v1/policy").await?;
    if json {
        return print_json(&shown);
    }
    if let Some(file) = file {
        let known = || shown.files.keys().cloned().collect::<Vec<_>>().join(", ");
        let unknown = || {
            Failure::new(
                1,
                format!("the bundle has no file `{file}`; it has {}", known()),
            )
        };
        return print(shown.files.get(file).ok_or_else(unknown)?);
    }
    let files: Vec<String> = shown.files.keys().cloned().collect();
    print(&fields(&[
        ("bundle", shown.meta.name.clone()),
        ("serial", shown.meta.serial.to_string()),
        ("digest", shown.meta.digest.clone()),
        ("generation", shown.generation.to_string()),
        ("applied", shown.applied_at.to_string()),
        ("agents", shown.agents.join(" ")),
        ("files", files.join(" ")),
    ]))
}

async fn ask(explain: &Explain, client: &Client) -> Result<ExitCode, Failure> {
    let body = match &explain.body {
        Some(path) => Some(request_body(path)?),
        None => None,
    };
    let question = Question {
        agent: explain.agent.clone(),
        method: explain.method.clone(),
        url: explain.url.clone(),
        headers: explain.headers.clone(),
        body,
        approvals: explain.approvals.iter().cloned().collect(),
    };
    let answer: Explanation = client.post("/v1/policy/explain", &question).await?;
    if explain.json {
        return print_json(&answer);
    }
    print(&policy_offline::explanation_text(
        &answer,
        table::is_coloured(),
    ))
}

fn request_body(path: &Path) -> Result<String, Failure> {
    let read = if path == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(path)
    };
    read.map_err(|error| Failure::new(USAGE, format!("{}: {error}", path.display())))
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("`NAME: VALUE` is expected")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_split_at_the_first_colon() {
        assert_eq!(header("a: b:c").unwrap(), ("a".into(), "b:c".into()));
        assert!(header("ab").is_err());
    }
}
