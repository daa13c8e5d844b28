//! `[exec]`: what an agent may execute.

use agentguard_common::abi::PATH_LEN;

use super::table::{Keys, Table};
use crate::policy::Exec;
use crate::policy::diagnostic::Report;
use crate::policy::glob::check_file_glob;
use crate::policy::host::show;

const EXEC: Keys = Keys {
    known: &["default", "allow", "deny", "arguments"],
    later: &["sha256"],
};

/// `None` after an error: half a list would allow or refuse what nobody wrote.
pub(super) fn table(report: &mut Report<'_>, table: &Table<'_>) -> Option<Exec> {
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
    let allow = patterns(report, table, "allow");
    let deny = patterns(report, table, "deny");
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
    Some(Exec {
        default_allow,
        allow,
        deny,
        private_arguments: arguments.is_some_and(|arguments| arguments.value == "private"),
    })
}

fn patterns(report: &mut Report<'_>, table: &Table<'_>, key: &str) -> Option<Vec<String>> {
    let items = table.paths(report, key);
    let mut found: Vec<String> = Vec::new();
    let mut whole = true;
    for item in items {
        let Some(pattern) = item else {
            whole = false;
            continue;
        };
        // The kernel's copy ends with a NUL.
        if let Err(why) = check_file_glob(&pattern.value, PATH_LEN - 1) {
            report.error(pattern.at, why);
            whole = false;
        } else if found.contains(&pattern.value) {
            let message = format!("`{}` is in `{key}` twice", show(&pattern.value));
            report.error(pattern.at, message);
            whole = false;
        } else {
            found.push(pattern.value);
        }
    }
    whole.then_some(found)
}
