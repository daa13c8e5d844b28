//! `[[unix]]` of an agent's file: the sockets it may reach, by the names that it must write.

use agentguard_common::abi::UnixName;

use super::table::{Keys, Table};
use crate::diagnostic::Report;
use crate::host::show;

/// Entries of one agent.
const MAX_ENTRIES: usize = 256;

const UNIX: Keys = Keys {
    known: &["path"],
    later: &[],
};

pub(super) fn sockets(report: &mut Report<'_>, root: &Table<'_>) -> Vec<String> {
    let mut found = Vec::new();
    for table in root.tables(report, "unix", "[[unix]]") {
        table.check_keys(report, &UNIX);
        let Some(path) = table.required(report, "path") else {
            continue;
        };
        match check(&path.value) {
            Err((why, help)) => report.error_help(path.at, why, help),
            Ok(()) if found.contains(&path.value) => {
                report.error(path.at, "the entry repeats one above");
            }
            Ok(()) if found.len() == MAX_ENTRIES => {
                report.error(path.at, format!("more than {MAX_ENTRIES} [[unix]] entries"));
            }
            Ok(()) => found.push(path.value),
        }
    }
    found
}

/// Exactly what the kernel can compare with: one spelling of one socket.
fn check(path: &str) -> Result<(), (String, &'static str)> {
    const NO_PATTERN: &str =
        "name each socket: a pattern would let the agent make a link that matches";
    const SPELLING: &str =
        "write the absolute path as programs write it, without `.`, `..` or doubled `/`";
    let shown = show(path);
    let err = |why: String, help| Err((why, help));
    if path.len() >= UnixName::MAX {
        let why = format!("`{shown}` is longer than a socket's name can be");
        return err(why, "107 bytes at most");
    }
    if path.contains(char::is_control) {
        return err(format!("`{shown}` has a control character"), SPELLING);
    }
    if let Some(name) = path.strip_prefix('@') {
        return match name {
            "" => err(
                "`@` alone names no abstract socket".into(),
                "write `@` and its name",
            ),
            _ => Ok(()),
        };
    }
    if !path.starts_with('/') {
        let why = format!("`{shown}` is neither an absolute path nor an abstract name");
        return err(
            why,
            "write for example `/run/postgresql/.s.PGSQL.5432`, or `@name`",
        );
    }
    if path.contains(['*', '?', '[']) {
        return err(format!("`{shown}` is a pattern"), NO_PATTERN);
    }
    let mut segments = path.split('/').skip(1);
    if segments.any(|segment| matches!(segment, "" | "." | "..")) {
        return err(format!("`{shown}` is not a socket's plain path"), SPELLING);
    }
    Ok(())
}
