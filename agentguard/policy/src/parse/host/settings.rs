//! Keys of `[host]` that say how its server is spoken to.

use std::time::Duration;

use super::super::table::{Keys, Located, Table};
use crate::diagnostic::Report;
use crate::host::show;
use crate::settings::HostSettings;

const TIMEOUTS: Keys = Keys {
    known: &["head", "idle"],
    later: &[],
};
/// A day is more than any client waits.
const HEAD: (&str, &str) = ("1s", "24h");
/// No connection is kept for longer, whatever its host.
const IDLE: (&str, &str) = ("1s", "55s");
/// As `[forwarder] max_judged_body_bytes`.
const BODY: (&str, &str) = ("1KiB", "64MiB");

pub(super) fn settings(report: &mut Report<'_>, host: &Table<'_>) -> HostSettings {
    let mut settings = HostSettings {
        reads_bodies: host
            .boolean(report, "reads_bodies")
            .is_some_and(|it| it.value),
        upgrade: upgrade(report, host),
        max_judged_body: quantity(report, host, "max_judged_body", &BYTES, BODY)
            .and_then(|bytes| usize::try_from(bytes).ok()),
        http1_only: host
            .choice(report, "http", &["1.1", "2"])
            .is_some_and(|it| it.value == "1.1"),
        ..HostSettings::DEFAULT
    };
    if let Some(timeouts) = host.table(report, "timeouts", "[host.timeouts]") {
        timeouts.check_keys(report, &TIMEOUTS);
        let mut time = |key, range| {
            let found = quantity(report, &timeouts, key, &TIMES, range);
            found.map(Duration::from_millis)
        };
        settings.head_timeout = time("head", HEAD);
        settings.idle_timeout = time("idle", IDLE);
    }
    settings
}

fn upgrade(report: &mut Report<'_>, host: &Table<'_>) -> Vec<String> {
    let mut protocols = Vec::new();
    for protocol in host.strings(report, "upgrade") {
        match refused_upgrade(&protocol) {
            None => protocols.push(protocol.value.to_ascii_lowercase()),
            Some((why, help)) => {
                let message = format!("`{}` in `upgrade` {why}", show(&protocol.value));
                report.error_help(protocol.at, message, help);
            }
        }
    }
    protocols
}

/// Why a protocol is none that an operator can let through as it is.
fn refused_upgrade(protocol: &Located<String>) -> Option<(&'static str, &'static str)> {
    let name = protocol.value.to_ascii_lowercase();
    let mut parts = name.splitn(2, '/');
    let name = parts.next().unwrap_or_default();
    let is_token = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
    };
    if !is_token(name) || parts.next().is_some_and(|version| !is_token(version)) {
        return Some((
            "is no protocol (RFC 9110 section 7.8)",
            "write it as the client does, for example \"tcp\" or \"SPDY/3.1\"",
        ));
    }
    match name {
        "websocket" => Some((
            "is let through by every host",
            "remove it: a request for a WebSocket is judged as any other",
        )),
        "h2c" | "http" | "tls" => Some((
            "would carry requests that nobody judges",
            "remove it: such a request is answered over HTTP/1.1",
        )),
        _ => None,
    }
}

/// A unit and how many of the smallest it is; the smallest one first.
type Units = [(&'static str, u64)];

/// In milliseconds.
const TIMES: [(&str, u64); 4] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
const BYTES: [(&str, u64); 3] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20)];

/// A whole number with its unit, within a range of such.
fn quantity(
    report: &mut Report<'_>,
    table: &Table<'_>,
    key: &str,
    units: &Units,
    (least, most): (&str, &str),
) -> Option<u64> {
    let text = table.string(report, key)?;
    let within = |value: &u64| {
        let bound = |text| parse(text, units).expect("the bounds are quantities");
        (bound(least)..=bound(most)).contains(value)
    };
    match parse(&text.value, units) {
        Some(value) if within(&value) => Some(value),
        Some(_) => {
            let value = show(&text.value);
            let message = format!("`{key}` is `{value}`, not {least} to {most}");
            report.error(text.at, message);
            None
        }
        None => {
            let known: Vec<_> = units.iter().map(|(unit, _)| format!("`{unit}`")).collect();
            report.error_help(
                text.at,
                format!(
                    "`{key}` is `{}`, which is no number with a unit",
                    show(&text.value)
                ),
                format!(
                    "write a whole number and one of {}, as in `{key} = \"{most}\"`",
                    known.join(", ")
                ),
            );
            None
        }
    }
}

fn parse(text: &str, units: &Units) -> Option<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let (_, each) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*each)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantity_is_a_whole_number_and_its_unit() {
        for (text, expected) in [
            ("15m", Some(900_000)),
            ("90 s", Some(90_000)),
            ("1h", Some(3_600_000)),
            ("250ms", Some(250)),
            ("15", None),
            ("m", None),
            ("1.5h", None),
            ("-1s", None),
            ("1S", None),
            ("18446744073709551615h", None),
            ("99999999999999999999s", None),
        ] {
            assert_eq!(parse(text, &TIMES), expected, "{text}");
        }
        for (text, expected) in [
            ("8MiB", Some(8 << 20)),
            ("512KiB", Some(512 << 10)),
            ("1B", Some(1)),
            ("8MB", None),
        ] {
            assert_eq!(parse(text, &BYTES), expected, "{text}");
        }
    }
}
