//! The bundle's TOML files, read into plain values with their positions. Checks each file alone.

mod agent;
mod case;
mod exec;
mod host;
mod manifest;
mod reach;
mod table;
mod time;
mod unix;

use toml::de::DeTable;

use super::diagnostic::{Place, Report};

pub(super) use agent::{AgentFile, agent_name};
pub(super) use case::{CaseEntry, case_file};
pub(super) use host::{HostFile, UNKNOWN_RISK};
pub(super) use manifest::manifest;
pub(super) use reach::{Allow, Method, Reach};
pub(super) use table::{Keys, Located, Table};

pub(super) use agent::agent_file;
pub(super) use host::host_file;

/// Values of `risk`.
const RISKS: [&str; 4] = ["low", "medium", "high", "critical"];

/// Values of `mode`.
const MODES: [&str; 2] = ["enforce", OBSERVE];
const OBSERVE: &str = "observe";

/// Parses one file; its syntax errors go to the report, and nothing else of it is then looked at.
fn document<'a>(report: &mut Report<'_>, file: u32, text: &'a str) -> Option<DeTable<'a>> {
    let (root, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Some(root.into_inner());
    }
    for error in errors {
        let offset = error.span().map_or(0, |span| span.start);
        report.error(Place::new(file, offset), error.message().trim());
    }
    None
}

/// A name of an agent or bundle: lower-case letters, digits, `-`, `_`, `.`; at most 63.
fn check_name(report: &mut Report<'_>, what: &str, name: &Located<String>) -> bool {
    let good = is_name(&name.value);
    if !good {
        report.error_help(
            name.at,
            format!("{what} name `{}` is not usable", super::host::show(&name.value)),
            "use 1 to 63 lower-case letters, digits, `-`, `_` and `.`, starting with a letter or digit",
        );
    }
    good
}

fn is_name(name: &str) -> bool {
    let starts_well = name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    let all_good = name
        .chars()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.'));
    starts_well && all_good && name.len() <= 63
}
