//! `agentguard policy show` and `history`: what is in force, and what has been.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use agentguard_bundle::pack::{self, Signer};
use agentguard_bundle::store::{self, Trust};
use agentguard_control::api::{InForce, Past};
use agentguard_control::client::Client;
use serde_json::json;

use super::policy::INVALID;
use super::status::short;
use super::table::{fields, table};
use super::{Failure, print, print_json};

type Files = BTreeMap<String, String>;

/// `which` is a file's path where it has a slash or such a file is there, else it names a bundle of the daemon's.
pub(super) async fn show(
    which: Option<&str>,
    json: bool,
    file: Option<&str>,
    keys: &Path,
    client: &Client,
) -> Result<ExitCode, Failure> {
    match which {
        Some(path) if path.contains('/') || Path::new(path).is_file() => {
            packed(Path::new(path), json, file, keys)
        }
        Some(name) => {
            let past: Past = client.get(&format!("/v1/policy/history/{name}")).await?;
            if json {
                return print_json(&past);
            }
            one_or_all(
                file,
                &past.files,
                &[
                    ("bundle", past.entry.meta.name.clone()),
                    ("serial", past.entry.meta.serial.to_string()),
                    ("digest", past.entry.meta.digest.clone()),
                    (
                        "in force",
                        if past.in_force { "yes" } else { "no" }.to_owned(),
                    ),
                    (
                        "applied",
                        format!("{} by {}", past.entry.applied_at, past.user),
                    ),
                    ("signer", signer(past.entry.signer.as_ref())),
                    ("files", names(&past.files)),
                ],
            )
        }
        None => {
            let shown: InForce = client.get("/v1/policy").await?;
            if json {
                return print_json(&shown);
            }
            one_or_all(
                file,
                &shown.files,
                &[
                    ("bundle", shown.meta.name.clone()),
                    ("serial", shown.meta.serial.to_string()),
                    ("digest", shown.meta.digest.clone()),
                    ("generation", shown.generation.to_string()),
                    ("applied", shown.applied_at.to_string()),
                    (
                        "expires",
                        shown
                            .expires
                            .map_or("never".to_owned(), |at| at.to_string()),
                    ),
                    ("signer", signer(shown.signer.as_ref())),
                    ("agents", shown.agents.join(" ")),
                    ("files", names(&shown.files)),
                ],
            )
        }
    }
}

/// A packed bundle is shown whatever its signatures: showing is to look, not to trust.
fn packed(path: &Path, json: bool, file: Option<&str>, keys: &Path) -> Result<ExitCode, Failure> {
    let invalid = |error: String| Failure::new(INVALID, error);
    let text = store::packed(path).map_err(|e| invalid(e.to_string()))?;
    let Some(text) = text else {
        let why = format!(
            "`{}` is a folder, not a packed bundle; `policy check` looks at those",
            path.display()
        );
        return Err(invalid(why));
    };
    let about = |error| invalid(format!("bundle `{}`: {error}", path.display()));
    let (contents, signed_by) = pack::look(&text).map_err(about)?;
    let trusted = store::trusted_keys(keys, Trust::Anyone).map_err(|e| invalid(e.to_string()))?;
    let opened = pack::open(&text, &trusted);
    let by = opened.as_ref().ok().map(|(_, by)| by);
    let files = &contents.sources.files;
    if json {
        return print_json(&json!({
            "name": contents.meta.name,
            "serial": contents.meta.serial,
            "digest": contents.meta.digest,
            "signed_by": signed_by,
            "signer": by,
            "files": files,
        }));
    }
    let accepted = match &opened {
        Ok((_, by)) => signer(Some(by)),
        Err(error) => format!("not accepted here: {error}"),
    };
    one_or_all(
        file,
        files,
        &[
            ("bundle", contents.meta.name.clone()),
            ("serial", contents.meta.serial.to_string()),
            ("digest", contents.meta.digest.clone()),
            ("signed by", signed_by.join(" ")),
            ("signer", accepted),
            ("files", names(files)),
        ],
    )
}

pub(super) async fn history(json: bool, client: &Client) -> Result<ExitCode, Failure> {
    let all: Vec<Past> = client.get("/v1/policy/history").await?;
    if json {
        return print_json(&all);
    }
    let rows: Vec<Vec<String>> = all.iter().map(row).collect();
    let header = [
        "", "SERIAL", "NAME", "DIGEST", "SINCE", "HOW", "BY", "SIGNER",
    ];
    print(&table(&header, &rows))
}

fn row(past: &Past) -> Vec<String> {
    let entry = &past.entry;
    let since = entry.applied_at.strftime("%Y-%m-%dT%H:%M:%SZ");
    let how = serde_json::to_value(entry.origin).unwrap_or_default();
    vec![
        if past.in_force { "*" } else { "" }.to_owned(),
        entry.meta.serial.to_string(),
        entry.meta.name.clone(),
        short(&entry.meta.digest).to_owned(),
        since.to_string(),
        how.as_str().unwrap_or_default().to_owned(),
        past.user.clone(),
        entry
            .signer
            .as_ref()
            .map_or("-".to_owned(), |by| by.name.clone()),
    ]
}

fn one_or_all(
    file: Option<&str>,
    files: &Files,
    all: &[(&str, String)],
) -> Result<ExitCode, Failure> {
    let Some(file) = file else {
        return print(&fields(all));
    };
    let unknown = || {
        let known = files.keys().cloned().collect::<Vec<_>>().join(", ");
        Failure::new(
            1,
            format!("the bundle has no file `{file}`; it has {known}"),
        )
    };
    print(files.get(file).ok_or_else(unknown)?)
}

fn names(files: &Files) -> String {
    files.keys().cloned().collect::<Vec<_>>().join(" ")
}

fn signer(signer: Option<&Signer>) -> String {
    signer.map_or("none".to_owned(), |by| format!("{} ({})", by.name, by.key))
}
