//! `agentguard policy`: bundles, checked here and applied by the daemon.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use agentguard_bundle::pack;
use agentguard_bundle::store::{self, Trust};
use agentguard_control::api::{Bundle, InForce, Rollback};
use agentguard_control::client::{Client, ClientError};
use agentguard_daemon::config::Config;
use agentguard_policy::cases::TestedCase;
use agentguard_policy::explain::{AskedContext, AskedTask, Explanation, Question};
use agentguard_policy::{OpenedBy, Policy, Sources, Terms};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::policy_pack::{Keygen, Pack, Sign};
use super::policy_replay::Replay;
use super::status::short;
use super::table::{Colour, coloured};
use super::{
    Failure, policy_offline, policy_pack, policy_replay, policy_show, print, print_json, table,
};

/// A bundle that is not valid, or was refused.
pub(super) const INVALID: u8 = 3;
/// What the caller named cannot be used.
const USAGE: u8 = 2;

#[derive(Debug, Subcommand)]
pub(super) enum PolicyVerb {
    /// Everything that is wrong with a bundle (needs no daemon)
    Check {
        /// The bundle's folder, or the bundle packed
        bundle: PathBuf,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// What a bundle decides for its own cases, tests/*.toml (needs no daemon)
    Test {
        /// The bundle's folder, or the bundle packed
        bundle: PathBuf,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// What a bundle decides otherwise than another, over the cases of both (needs no daemon)
    Diff {
        /// The bundle to compare with
        old: PathBuf,
        /// The bundle that would come after it
        new: PathBuf,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Put a bundle in force, whole or not at all
    Apply {
        /// The bundle's folder, or the bundle packed
        bundle: PathBuf,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// The bundle in force, an earlier one, or what a packed one holds
    Show {
        /// A serial or the beginning of a digest that `policy history` lists, or a packed bundle's file
        #[arg(value_name = "SERIAL|DIGEST|FILE")]
        which: Option<String>,
        /// One JSON object, with the bundle's files
        #[arg(long)]
        json: bool,
        /// The text of one of its files
        #[arg(long, value_name = "PATH", conflicts_with = "json")]
        file: Option<String>,
    },
    /// Bundles that have been in force
    History {
        /// One JSON array
        #[arg(long)]
        json: bool,
    },
    /// Put a bundle in force again that has been
    Rollback {
        /// The newest of this serial; without, the one before the one in force
        serial: Option<u64>,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// What would be decided for a request, and by which policies
    Explain(Explain),
    /// What a bundle decides otherwise than was decided, over the audit log (needs no daemon)
    Replay(Replay),
    /// Make a pair of keys to sign bundles with (needs no daemon)
    Keygen(Keygen),
    /// Make one file of a bundle's folder (needs no daemon)
    Pack(Pack),
    /// Sign a packed bundle (needs no daemon)
    Sign(Sign),
}

#[derive(Debug, Args)]
pub(super) struct Explain {
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
    /// A limit, by its rule's id, that is taken to have no room; may be repeated
    #[arg(long = "exhausted", value_name = "RULE")]
    exhausted: Vec<String>,
    /// When, in the bundle's zone, as in 2026-11-23T09:00 [default: now]
    #[arg(long, value_name = "TIME")]
    time: Option<String>,
    /// What other services are taken to answer, as in '{"ticket_open": true}'; without, nobody answers
    #[arg(long, value_name = "JSON")]
    lookup: Option<String>,
    /// The intent of a task that it is taken to be on, opened by a supervisor
    #[arg(long, value_name = "INTENT")]
    task: Option<String>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(
    verb: &PolicyVerb,
    config: &Config,
    client: &Client,
) -> Result<ExitCode, Failure> {
    let keys = &config.paths.trust;
    match verb {
        PolicyVerb::Check { bundle, json } => check(bundle, keys, *json),
        PolicyVerb::Test { bundle, json } => test(bundle, keys, *json),
        PolicyVerb::Diff { old, new, json } => diff(old, new, keys, *json),
        PolicyVerb::Replay(arguments) => policy_replay::replay(arguments, &config.paths),
        PolicyVerb::Keygen(arguments) => policy_pack::keygen(arguments),
        PolicyVerb::Pack(arguments) => policy_pack::pack(arguments, keys),
        PolicyVerb::Sign(arguments) => policy_pack::sign(arguments),
        PolicyVerb::Apply { bundle, json } => apply(bundle, *json, client).await,
        PolicyVerb::Show { which, json, file } => {
            policy_show::show(which.as_deref(), *json, file.as_deref(), keys, client).await
        }
        PolicyVerb::History { json } => policy_show::history(*json, client).await,
        PolicyVerb::Rollback { serial, json } => {
            let wanted = Rollback { serial: *serial };
            let rolled = client.post("/v1/policy/rollback", &wanted).await?;
            applied(&rolled, *json)
        }
        PolicyVerb::Explain(explain) => ask(explain, client).await,
    }
}

fn check(bundle: &Path, keys: &Path, json: bool) -> Result<ExitCode, Failure> {
    let checked = policy_offline::check(bundle, keys).map_err(|e| Failure::new(INVALID, e))?;
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
fn test(bundle: &Path, keys: &Path, json: bool) -> Result<ExitCode, Failure> {
    let policy = valid(bundle, keys)?.policy;
    let tested: Vec<TestedCase<'_>> = policy.test().collect();
    let failed = tested.iter().filter(|one| !one.passed).count();
    if json {
        let cases: Vec<Value> = tested.iter().map(case_json).collect();
        print_json(&json!({ "passed": tested.len() - failed, "failed": failed, "cases": cases }))?;
    } else {
        print(&policy_offline::tested_text(&tested, table::is_coloured()))?;
    }
    Ok(ExitCode::from(u8::from(failed > 0)))
}

fn case_json(one: &TestedCase<'_>) -> Value {
    json!({
        "name": one.case.name,
        "at": one.case.at,
        "question": one.case.question,
        "expected": one.case.expected,
        "decided": one.answer,
        "passed": one.passed,
    })
}

fn diff(old: &Path, new: &Path, keys: &Path, json: bool) -> Result<ExitCode, Failure> {
    let (old, new) = (valid(old, keys)?.policy, valid(new, keys)?.policy);
    let (changes, asked) = old.diff(&new);
    if json {
        return print_json(&json!({ "cases": asked, "changes": changes }));
    }
    print(&policy_offline::changes_text(&changes, asked))
}

/// A bundle without an error.
pub(super) struct Valid {
    pub sources: Sources,
    pub policy: Policy,
}

pub(super) fn valid(bundle: &Path, keys: &Path) -> Result<Valid, Failure> {
    let checked = policy_offline::check(bundle, keys).map_err(|e| Failure::new(INVALID, e))?;
    let text = checked.text(false);
    let policy = checked.result.map_err(|_| refused(&text))?;
    Ok(Valid {
        sources: checked.sources,
        policy,
    })
}

/// What is wrong, each with its line, on stderr.
fn refused(text: &str) -> Failure {
    eprint!("{text}");
    Failure::silent(INVALID)
}

async fn apply(path: &Path, json: bool, client: &Client) -> Result<ExitCode, Failure> {
    let request = match store::packed(path).map_err(|e| Failure::new(INVALID, e))? {
        // The daemon alone says whose signature counts.
        Some(packed) => Bundle {
            packed: Some(packed),
            ..Bundle::default()
        },
        None => Bundle {
            files: store::read(path, Trust::Anyone)
                .map_err(|e| Failure::new(INVALID, e))?
                .files,
            ..Bundle::default()
        },
    };
    let applied: Result<InForce, ClientError> = client.post("/v1/policy", &request).await;
    let applied = match applied {
        Err(ClientError::Invalid { diagnostics, .. }) if !diagnostics.is_empty() => {
            if json {
                print_json(&json!({ "applied": false, "diagnostics": diagnostics }))?;
                return Ok(ExitCode::from(INVALID));
            }
            let sources = match &request.packed {
                Some(packed) => pack::look(packed).map(|(contents, _)| contents.sources),
                None => Ok(Sources {
                    files: request.files,
                }),
            };
            let sources = sources.unwrap_or_default();
            let text = policy_offline::diagnostics_text(&sources, &diagnostics, false);
            return Err(refused(&text));
        }
        Err(ClientError::Invalid { error, .. }) if request.packed.is_some() => {
            let why = format!("bundle `{}`: {error}", path.display());
            return Err(Failure::new(INVALID, why));
        }
        other => other?,
    };
    self::applied(&applied, json)
}

fn applied(applied: &InForce, json: bool) -> Result<ExitCode, Failure> {
    if json {
        return print_json(applied);
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

async fn ask(explain: &Explain, client: &Client) -> Result<ExitCode, Failure> {
    let body = match &explain.body {
        Some(path) => Some(request_body(path)?),
        None => None,
    };
    let mut context = AskedContext::default();
    context.approvals.approvals = explain.approvals.iter().cloned().collect();
    context.limits.exhausted = explain.exhausted.iter().cloned().collect();
    context.time.time = explain.time.clone();
    context.tasks.task = explain.task.as_ref().map(|intent| AskedTask {
        opened_by: OpenedBy::Supervisor,
        terms: Terms {
            intent: intent.clone(),
            ..Terms::default()
        },
    });
    let question = Question {
        agent: explain.agent.clone(),
        method: explain.method.clone(),
        url: explain.url.clone(),
        headers: explain.headers.clone(),
        body,
        lookup: explain.lookup.clone(),
        context,
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
