//! `[exec]`: what an agent may execute.

use agentguard_common::abi::PATH_LEN;

use super::table::{Keys, Located, Table, TableEntry};
use crate::diagnostic::Report;
use crate::glob::check_file_glob;
use crate::host::show;
use crate::{ExecPattern, ExecPolicy};

const EXEC: Keys = Keys {
    known: &["default", "allow", "deny", "arguments"],
    later: &[],
};

const FILE: Keys = Keys {
    known: &["path", "sha256"],
    later: &[],
};

/// `None` after an error: half a list would allow or refuse what nobody wrote.
pub(super) fn table(report: &mut Report<'_>, table: &Table<'_>) -> Option<ExecPolicy> {
    table.check_keys(report, &EXEC);
    if !table.has("default") {
        report.error_help(
            table.at,
            "[exec] has no `default`",
            "add `default = \"deny\"` and list in `allow` what may be executed, or `default = \"allow\"`",
        );
    }
    let default = table.choice(report, "default", &["allow", "deny"]);
    let arguments = table.choice(report, "arguments", &["record", "private"]);
    let allow = files(report, table, "allow");
    let deny = files(report, table, "deny");
    let default_allow = default?.value == "allow";
    let (allow, deny) = (allow?, deny?);
    if default_allow && !allow.is_empty() {
        report.error_help(
            table.key_place("allow"),
            "`allow` in [exec] says nothing where `default` is `allow`",
            "remove it, or write `default = \"deny\"`",
        );
        return None;
    }
    Some(ExecPolicy {
        default_allow,
        allow,
        deny,
        private_arguments: arguments.is_none_or(|arguments| arguments.value == "private"),
    })
}

fn files(report: &mut Report<'_>, table: &Table<'_>, key: &str) -> Option<Vec<ExecPattern>> {
    let items = table.entries(report, key, "the entry");
    let mut found: Vec<ExecPattern> = Vec::new();
    let mut whole = true;
    for item in items {
        let Some((pattern, sha256)) = item.and_then(|item| entry(report, &item)) else {
            whole = false;
            continue;
        };
        // The kernel's copy ends with a NUL.
        if let Err(why) = check_file_glob(&pattern.value, PATH_LEN - 1) {
            report.error(pattern.at, why);
            whole = false;
        } else if found.iter().any(|file| file.pattern == pattern.value) {
            let message = format!("`{}` is in `{key}` twice", show(&pattern.value));
            report.error(pattern.at, message);
            whole = false;
        } else {
            found.push(ExecPattern {
                pattern: pattern.value,
                sha256,
            });
        }
    }
    whole.then_some(found)
}

/// A path alone, or a table with a path and digests.
fn entry(
    report: &mut Report<'_>,
    item: &TableEntry<'_>,
) -> Option<(Located<String>, Vec<[u8; 32]>)> {
    let table = match item {
        TableEntry::String(pattern) => return Some((pattern.clone(), Vec::new())),
        TableEntry::Table(table) => table,
    };
    table.check_keys(report, &FILE);
    let path = table.required(report, "path");
    if !table.has("sha256") {
        return path.map(|path| (path, Vec::new()));
    }
    let written = table.string_or_strings(report, "sha256");
    let read: Vec<[u8; 32]> = written.iter().filter_map(|it| digest(report, it)).collect();
    if written.is_empty() {
        report.error_help(
            table.key_place("sha256"),
            "`sha256` is an empty list",
            "write the path alone for a file of whatever content",
        );
    }
    // One that could not be read must not leave an entry that means every content.
    let is_whole = !read.is_empty() && read.len() == written.len();
    path.filter(|_| is_whole).map(|path| (path, read))
}

/// 64 hexadecimal digits.
fn digest(report: &mut Report<'_>, written: &Located<String>) -> Option<[u8; 32]> {
    const DIGITS: usize = 64;
    let text = &written.value;
    let shown = show(text);
    let why = match text.chars().find(|c| !c.is_ascii_hexdigit()) {
        Some(c) => format!(
            "`{shown}` is no SHA-256: `{}` is not a hexadecimal digit",
            c.escape_debug()
        ),
        None if text.len() != DIGITS => format!(
            "`{shown}` is no SHA-256: it has {} digits, not {DIGITS}",
            text.len()
        ),
        None => {
            let mut digest = [0; 32];
            for (byte, digits) in digest.iter_mut().zip(text.as_bytes().chunks(2)) {
                let digits = std::str::from_utf8(digits).ok()?;
                *byte = u8::from_str_radix(digits, 16).ok()?;
            }
            return Some(digest);
        }
    };
    report.error_help(written.at, why, "write what `sha256sum FILE` says");
    None
}
