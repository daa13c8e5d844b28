//! `hosts/*.toml`: what is known of a host.

mod lookup;
mod request;
mod settings;

use std::sync::Arc;

use self::lookup::lookups;
use self::request::{body_blocks, scope_entries};
use self::settings::settings;
use super::table::{Keys, Table};
use super::{RISKS, document};
use crate::body::BodyBlock;
use crate::diagnostic::{Place, Report};
use crate::glob::PathPattern;
use crate::host::HostPattern;
use crate::lookup::Lookup;
use crate::reading::Exact;
use crate::requests::ScopeEntry;
use crate::settings::HostSettings;

/// `risk` of what no file describes.
pub(crate) const UNKNOWN_RISK: &str = "unknown";

/// One host's facts.
pub(crate) struct HostFile {
    pub at: Place,
    pub host: HostPattern,
    pub risk: String,
    /// Sorted, without repetitions.
    pub data: Vec<String>,
    /// In the order of the file.
    pub body: Vec<BodyBlock>,
    pub lookups: Vec<Arc<Lookup>>,
    pub scope: Vec<ScopeEntry>,
    pub settings: HostSettings,
    /// Whose wildcards stand for what is not recorded.
    pub private_paths: Vec<PathPattern>,
    /// How its server does not read requests.
    pub exact: Exact,
}

const FILE: Keys = Keys {
    known: &["host", "body", "lookup", "scope"],
    later: &[],
};
const HOST: Keys = Keys {
    known: &[
        "name",
        "risk",
        "data",
        "reads_bodies",
        "timeouts",
        "upgrade",
        "max_judged_body",
        "http",
        "private_paths",
        "paths",
        "overrides",
        "parameters",
    ],
    later: &[],
};

pub(crate) fn host_file(report: &mut Report<'_>, file: u32) -> Option<HostFile> {
    let text = report.text(file);
    let document = document(report, file, text)?;
    let root = Table::root(file, &document);
    root.check_keys(report, &FILE);
    if !root.has("host") {
        report.error_help(
            root.at,
            "the file has no `[host]`",
            "add `[host]` and below it `name = \"…\"`",
        );
        return None;
    }
    let body = body_blocks(report, &root);
    let scope = scope_entries(report, &root, &body);
    let lookups = lookups(report, &root, &body);
    let table = root.table(report, "host", "[host]")?;
    table.check_keys(report, &HOST);
    let risk = table
        .choice(report, "risk", &RISKS)
        .map_or_else(|| UNKNOWN_RISK.to_owned(), |risk| risk.value);
    let mut data = Vec::new();
    for label in table.strings(report, "data") {
        let good = !label.value.is_empty()
            && label
                .value
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_'));
        if good {
            data.push(label.value);
        } else {
            report.error_help(
                label.at,
                format!(
                    "data label `{}` is not usable",
                    crate::host::show(&label.value)
                ),
                "use lower-case letters, digits, `-` and `_`",
            );
        }
    }
    data.sort_unstable();
    data.dedup();
    let settings = settings(report, &table);
    let private_paths = private_paths(report, &table);
    let mut is = |key, choices: [&str; 2]| {
        let chosen = table.choice(report, key, &choices);
        chosen.is_some_and(|it| it.value == choices[0])
    };
    let exact = Exact {
        paths: is("paths", ["exact", "lenient"]),
        overrides: is("overrides", ["ignored", "heeded"]),
        parameters: is("parameters", ["exact", "lenient"]),
    };
    let name = table.required(report, "name")?;
    match HostPattern::parse(&name.value) {
        Ok(host) => Some(HostFile {
            at: name.at,
            host,
            risk,
            data,
            body,
            lookups,
            scope,
            settings,
            private_paths,
            exact,
        }),
        Err(why) => {
            report.error(name.at, why);
            None
        }
    }
}

fn private_paths(report: &mut Report<'_>, table: &Table<'_>) -> Vec<PathPattern> {
    let mut patterns = Vec::new();
    for path in table.strings(report, "private_paths") {
        match PathPattern::parse(&path.value) {
            Ok(pattern) if pattern.can_hide() => patterns.push(pattern),
            Ok(pattern) => report.error_help(
                path.at,
                format!(
                    "`{}` does not say which segments are private",
                    pattern.as_str()
                ),
                "write `*` for each that is, and `**` at the end alone, for all that follow",
            ),
            Err(why) => report.error(path.at, why),
        }
    }
    patterns
}
