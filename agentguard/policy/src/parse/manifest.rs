//! `bundle.toml`.

use agentguard_record::guarantee::GuaranteeId;
use jiff::Timestamp;

use super::table::{Keys, Table};
use super::{MODES, OBSERVE, check_name, document, time};
use crate::diagnostic::Report;
use crate::time::Calendar;

/// What `bundle.toml` says.
pub(crate) struct Manifest {
    pub name: String,
    pub serial: u64,
    pub require: Vec<GuaranteeId>,
    pub expires: Option<Timestamp>,
    /// What would be denied is let through, unless the agent's file says otherwise.
    pub observe: bool,
    pub calendar: Option<Calendar>,
}

const KEYS: Keys = Keys {
    known: &["name", "serial", "expires", "mode", "require", "time"],
    later: &[],
};

pub(crate) fn manifest(report: &mut Report<'_>, file: u32) -> Option<Manifest> {
    let text = report.text(file);
    let document = document(report, file, text)?;
    let root = Table::root(file, &document);
    root.check_keys(report, &KEYS);
    let mode = root.choice(report, "mode", &MODES);
    let mut require = Vec::new();
    for wanted in root.strings(report, "require") {
        match wanted.value.parse::<GuaranteeId>() {
            Ok(id) => require.push(id),
            Err(unknown) => report.error_help(
                wanted.at,
                format!("unknown guarantee `{}` in `require`", wanted.value),
                unknown.hint(),
            ),
        }
    }
    let expires = root.moment(report, "expires");
    let time = root.table(report, "time", "[time]");
    let calendar = time.and_then(|table| time::calendar(report, &table));
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
        calendar,
        name: name?.value,
        serial: serial?.value,
        require,
        expires,
        observe: mode.is_some_and(|mode| mode.value == OBSERVE),
    })
}
