//! `[time]` of bundle.toml: the zone whose clocks count, and windows that rules can ask for.

use jiff::civil::{Date, Time};

use super::is_name;
use super::table::{Keys, Table};
use crate::diagnostic::{Report, did_you_mean};
use crate::host::show;
use crate::time::{Calendar, DAYS, Window, zone};

const TIME: Keys = Keys {
    known: &["zone", "window"],
    later: &[],
};
const WINDOW: Keys = Keys {
    known: &["name", "days", "from", "to", "first", "last"],
    later: &[],
};

pub(super) fn calendar(report: &mut Report<'_>, table: &Table<'_>) -> Option<Calendar> {
    table.check_keys(report, &TIME);
    let mut windows = Vec::new();
    for window in table.tables(report, "window", "[[time.window]]") {
        windows.extend(self::window(report, &window));
    }
    let name = table.required(report, "zone")?;
    match zone(&name.value) {
        Ok(zone) => Some(Calendar { zone, windows }),
        Err(near) => {
            let help = near.map_or_else(
                || "use a name of the IANA time zone database, such as `Europe/Vienna`".to_owned(),
                |near| format!("did you mean `{near}`?"),
            );
            let message = format!("there is no time zone `{}`", show(&name.value));
            report.error_help(name.at, message, help);
            None
        }
    }
}

/// `None` after an error: half a window would hold when nobody meant it.
fn window(report: &mut Report<'_>, table: &Table<'_>) -> Option<Window> {
    table.check_keys(report, &WINDOW);
    let before = report.count();
    let name = table.required(report, "name")?;
    if !is_name(&name.value) {
        let message = format!("window name `{}` is not usable", show(&name.value));
        let help = "use 1 to 63 lower-case letters, digits, `-`, `_` and `.`";
        report.error_help(name.at, message, help);
    }
    let days = table.has("days").then(|| days(report, table));
    let (from, to) = (time(report, table, "from"), time(report, table, "to"));
    let (first, last) = (date(report, table, "first"), date(report, table, "last"));
    if from.is_some() && from == to {
        report.error(
            table.key_place("to"),
            "`from` and `to` are the same time: the window is empty",
        );
    }
    if first.zip(last).is_some_and(|(first, last)| last < first) {
        report.error(
            table.key_place("last"),
            "`last` is before `first`: the window is empty",
        );
    }
    if ["days", "from", "to", "first", "last"]
        .iter()
        .all(|key| !table.has(key))
    {
        report.error_help(
            table.at,
            "[[time.window]] has no key and would always hold",
            "add `days`, `from` and `to`, or `first` and `last`",
        );
    }
    (report.count() == before).then_some(Window {
        name: name.value,
        days,
        from,
        to,
        first,
        last,
    })
}

fn days(report: &mut Report<'_>, table: &Table<'_>) -> [bool; 7] {
    let mut found = [false; 7];
    let before = report.count();
    for day in table.strings(report, "days") {
        match DAYS.iter().position(|known| *known == day.value) {
            Some(index) => found[index] = true,
            None => {
                let message = format!("`{}` is no day", show(&day.value));
                let help = did_you_mean(&day.value, DAYS)
                    .unwrap_or_else(|| format!("write one of {}", DAYS.join(", ")));
                report.error_help(day.at, message, help);
            }
        }
    }
    if found == [false; 7] && report.count() == before {
        report.error(
            table.key_place("days"),
            "`days` names no day: the window is empty",
        );
    }
    found
}

fn time(report: &mut Report<'_>, table: &Table<'_>, key: &str) -> Option<Time> {
    let text = table.string(report, key)?;
    let shape = |text: &str| text.len() == 5 && text.as_bytes()[2] == b':';
    let time = text.value.parse().ok().filter(|_| shape(&text.value));
    if time.is_none() {
        let message = format!(
            "`{key}` is `{}`, which is no time of day",
            show(&text.value)
        );
        report.error_help(text.at, message, "write for example \"09:00\" or \"17:30\"");
    }
    time
}

fn date(report: &mut Report<'_>, table: &Table<'_>, key: &str) -> Option<Date> {
    let text = table.string(report, key)?;
    let shape = |text: &str| text.len() == 10;
    let date = text.value.parse().ok().filter(|_| shape(&text.value));
    if date.is_none() {
        let message = format!("`{key}` is `{}`, which is no date", show(&text.value));
        report.error_help(text.at, message, "write for example \"2026-12-18\"");
    }
    date
}
