//! `bundle.toml`.

use super::table::{Keys, Table};
use super::{check_name, document};
use crate::policy::diagnostic::Report;

/// What `bundle.toml` says.
pub(in crate::policy) struct Manifest {
    pub name: String,
    pub serial: u64,
}

const KEYS: Keys = Keys {
    known: &["name", "serial", "mode", "require"],
    later: &["expires"],
};

pub(in crate::policy) fn manifest(report: &mut Report<'_>, file: u32) -> Option<Manifest> {
    let text = report.text(file);
    let document = document(report, file, text)?;
    let root = Table::root(file, &document);
    root.check_keys(report, &KEYS);
    let mode = root.choice(report, "mode", &["enforce", "observe"]);
    if let Some(mode) = mode.filter(|mode| mode.value == "observe") {
        report.error_help(
            mode.at,
            "`mode = \"observe\"` is not supported by this build",
            "remove it: this build enforces every bundle",
        );
    }
    if let Some(guarantee) = root.strings(report, "require").first() {
        report.error_help(
            guarantee.at,
            format!(
                "the guarantee `{}` in `require` is not checked by this build",
                guarantee.value
            ),
            "leave `require` empty: a bundle may not ask for what is not checked",
        );
    }
    let name = root.required(report, "name");
    let name = name.filter(|name| check_name(report, "bundle", name));
    if !root.has("serial") {
        report.error_help(
            root.at,
            "bundle.toml has no `serial`",
            "add `serial = 1`, and count it up with every change",
        );
    }
    let serial = root.unsigned(report, "serial");
    if let Some(zero) = serial.as_ref().filter(|serial| serial.value == 0) {
        report.error(zero.at, "`serial` is 0; it counts from 1");
    }
    Some(Manifest {
        name: name?.value,
        serial: serial?.value,
    })
}
