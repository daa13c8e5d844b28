//! `[[lookup]]` of a host's file: facts of its requests that another service knows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use http::uri::PathAndQuery;

use super::super::reach::{Method, request_line};
use super::super::table::{Located, Table};
use super::request::{field, is_plain, same_type};
use crate::body::{BodyBlock, BodyField, FieldType, Form};
use crate::diagnostic::{Report, did_you_mean, nearest};
use crate::facts::{SECRET_HEADERS, SECRET_PARAMETERS};
use crate::glob::PathPattern;
use crate::host::{HostName, parse_port, show, split_port};
use crate::lookup::{Lookup, Service, TargetPiece, ValueSource};

/// Keys that are no facts.
const OWN: [&str; 4] = ["on", "url", "cache_s", "deadline_ms"];
/// `[[lookup]]` of one host.
const MAX_LOOKUPS: usize = 16;
const CACHE_S: (u64, u64) = (0, 3600);
const DEADLINE_MS: (u64, u64) = (1, 10_000);
const DEFAULT_CACHE_S: u64 = 0;
const DEFAULT_DEADLINE_MS: u64 = 1000;

pub(super) fn lookups(
    report: &mut Report<'_>,
    root: &Table<'_>,
    body: &[BodyBlock],
) -> Vec<Arc<Lookup>> {
    let mut found: Vec<Arc<Lookup>> = Vec::new();
    for (index, table) in root
        .tables(report, "lookup", "[[lookup]]")
        .iter()
        .enumerate()
    {
        if index == MAX_LOOKUPS {
            let message = format!("the host has more than {MAX_LOOKUPS} [[lookup]]");
            report.error(table.at, message);
            break;
        }
        if let Some(lookup) = lookup(report, table, body) {
            let others: Vec<_> = found.iter().map(|other| other.fields()).collect();
            same_type(report, table, lookup.fields(), &others);
            found.push(Arc::new(lookup));
        }
    }
    found
}

fn lookup(report: &mut Report<'_>, table: &Table<'_>, body: &[BodyBlock]) -> Option<Lookup> {
    let on = on(report, table);
    let segments = on.as_ref().map(|(.., segments)| segments);
    let asked = asked(report, table, segments, body);
    let cache = within(report, table, "cache_s", CACHE_S, DEFAULT_CACHE_S);
    let deadline = within(
        report,
        table,
        "deadline_ms",
        DEADLINE_MS,
        DEFAULT_DEADLINE_MS,
    );
    let fields = facts(report, table);
    let (method, path, segments) = on?;
    let ServiceAddress {
        tls,
        host,
        port,
        target,
    } = asked?;
    Some(Lookup {
        method,
        path,
        segments,
        target,
        service: Arc::new(Service {
            tls,
            host,
            port,
            fields: fields?,
            cache: Duration::from_secs(cache?),
            deadline: Duration::from_millis(deadline?),
        }),
    })
}

fn within(
    report: &mut Report<'_>,
    table: &Table<'_>,
    key: &str,
    (least, most): (u64, u64),
    default: u64,
) -> Option<u64> {
    if !table.has(key) {
        return Some(default);
    }
    let found = table.unsigned(report, key)?;
    if (least..=most).contains(&found.value) {
        return Some(found.value);
    }
    let message = format!("`{key}` is {}, not {least} to {most}", found.value);
    report.error(found.at, message);
    None
}

fn facts(report: &mut Report<'_>, table: &Table<'_>) -> Option<BTreeMap<String, BodyField>> {
    let mut fields = BTreeMap::new();
    let mut whole = true;
    for (name, fact) in table.others(&OWN, "a fact of [[lookup]]") {
        if let (None, Some(near)) = (&fact, nearest(&name.value, OWN)) {
            whole = false;
            let message = format!("unknown key `{}` in [[lookup]]", show(&name.value));
            report.error_help(name.at, message, format!("did you mean `{near}`?"));
            continue;
        }
        match field(report, &name, fact) {
            Some((Form::Json, field)) => drop(fields.insert(name.value, field)),
            Some((Form::Fields, _)) => {
                whole = false;
                report.error_help(
                    name.at,
                    format!("`at` of `{}` is no JSON Pointer", name.value),
                    "an answer is JSON: write a pointer, which starts with `/`",
                );
            }
            None => whole = false,
        }
    }
    if fields.is_empty() && whole {
        report.error_help(
            table.at,
            "[[lookup]] has no fact",
            "add one, as in `ticket_open = { type = \"bool\", at = \"/open\" }`",
        );
        whole = false;
    }
    whole.then_some(fields)
}

type On = (Option<&'static str>, PathPattern, BTreeMap<String, usize>);

/// A request line in which `{name}` stands for a segment, as `*` does.
fn on(report: &mut Report<'_>, table: &Table<'_>) -> Option<On> {
    let on = table.required(report, "on")?;
    let (method, path) = on.value.split_once(' ').unwrap_or(("", &on.value));
    let mut segments = BTreeMap::new();
    let mut plain = Vec::new();
    let mut open = false;
    for (index, segment) in path.trim_start().split('/').enumerate() {
        open |= segment == "**";
        let inner = segment
            .strip_prefix('{')
            .and_then(|it| it.strip_suffix('}'));
        let why = match inner {
            None if segment.contains(['{', '}']) => "has to be a whole segment",
            None => {
                plain.push(segment);
                continue;
            }
            Some(name) if !is_plain(name) => "needs a name of letters, digits and `_`",
            Some(_) if open => "cannot stand behind `**`, where no segment has a place of its own",
            Some(name) => {
                plain.push("*");
                // Counted from behind the first slash.
                if segments
                    .insert(name.to_owned(), index.saturating_sub(1))
                    .is_none()
                {
                    continue;
                }
                "is there twice"
            }
        };
        report.error(on.at, format!("`{}` in `on` {why}", show(segment)));
        return None;
    }
    let line = Located {
        at: on.at,
        value: format!("{method} {}", plain.join("/")),
    };
    match request_line(report, &line)? {
        Method::One(method, path) => Some((Some(method), path, segments)),
        Method::Any(path) => Some((None, path, segments)),
        Method::Connect => None,
    }
}

struct ServiceAddress {
    tls: bool,
    host: HostName,
    port: u16,
    target: Vec<TargetPiece>,
}

/// `segments`: `None` where `on` has been reported.
fn asked(
    report: &mut Report<'_>,
    table: &Table<'_>,
    segments: Option<&BTreeMap<String, usize>>,
    body: &[BodyBlock],
) -> Option<ServiceAddress> {
    const HELP: &str = "write it as in `https://tickets.example/api/open?record={path.record}`";
    let url = table.required(report, "url")?;
    let mut wrong = |why: String| report.error_help(url.at, format!("`url` {why}"), HELP);
    let (tls, rest) = if let Some(rest) = url.value.strip_prefix("https://") {
        (true, rest)
    } else if let Some(rest) = url.value.strip_prefix("http://") {
        (false, rest)
    } else {
        wrong("does not start with `https://` or `http://`".into());
        return None;
    };
    let (authority, target) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if authority.contains(['@', '{']) {
        wrong("has more than a host and a port in front of its path: who is asked is fixed".into());
        return None;
    }
    let place = split_port(authority).and_then(|(host, port)| {
        let default = if tls { 443 } else { 80 };
        Ok((
            HostName::parse(host)?,
            port.map_or(Ok(default), parse_port)?,
        ))
    });
    let (host, port) = match place {
        Ok(place) => place,
        Err(why) => {
            wrong(format!("names no host: {why}"));
            return None;
        }
    };
    let (pieces, raw) = match pieces(target) {
        Ok(found) => found,
        Err(why) => {
            wrong(why);
            return None;
        }
    };
    for name in &raw {
        if let Err((why, help)) = check(name, segments, body) {
            let message = format!("`{{{}}}` in `url` {why}", show(name));
            report.error_with(url.at, message, help);
            return None;
        }
    }
    Some(ServiceAddress {
        tls,
        host,
        port,
        target: pieces,
    })
}

/// The path and query, and what stands in braces in it.
fn pieces(target: &str) -> Result<(Vec<TargetPiece>, Vec<&str>), String> {
    if target.contains('#') {
        return Err("has a fragment, which is never sent".into());
    }
    let slash = if target.starts_with('/') { "" } else { "/" };
    let (mut pieces, mut raw) = (Vec::new(), Vec::new());
    let mut sample = slash.to_owned();
    let mut text = slash.to_owned();
    let mut rest = target;
    while let Some(open) = rest.find('{') {
        let (before, behind) = rest.split_at(open);
        let close = behind.find('}').ok_or("has a `{` without its `}`")?;
        text.push_str(before);
        sample.push_str(before);
        let name = &behind[1..close];
        let of = source(name).ok_or_else(|| {
            format!(
                "has `{{{}}}`, which is none of `{{path.NAME}}`, `{{query.NAME}}`, `{{header.NAME}}`, `{{body.NAME}}`, `{{agent}}` and `{{owner}}`",
                show(name)
            )
        })?;
        pieces.push(TargetPiece::Text(std::mem::take(&mut text)));
        let in_path = !sample.contains('?');
        pieces.push(TargetPiece::Value { of, in_path });
        sample.push('x');
        raw.push(name);
        rest = &behind[close + 1..];
    }
    text.push_str(rest);
    sample.push_str(rest);
    pieces.push(TargetPiece::Text(text));
    let written = sample
        .bytes()
        .all(|b| b.is_ascii_graphic() && b != b'}' && b != b'\\');
    if !written || PathAndQuery::try_from(sample.as_str()).is_err() {
        return Err("has characters that have to be percent-encoded".into());
    }
    Ok((pieces, raw))
}

fn source(name: &str) -> Option<ValueSource> {
    match name.split_once('.') {
        None if name == "agent" => Some(ValueSource::Agent),
        None if name == "owner" => Some(ValueSource::Owner),
        Some((_, "")) | None => None,
        Some(("path", name)) => Some(ValueSource::Path(name.into())),
        Some(("query", name)) => Some(ValueSource::Query(name.into())),
        Some(("header", name)) => Some(ValueSource::Header(name.into())),
        Some(("body", name)) => Some(ValueSource::Body(name.into())),
        Some(_) => None,
    }
}

/// Whether there is what the service is to be asked with, and it may be told.
fn check(
    name: &str,
    segments: Option<&BTreeMap<String, usize>>,
    body: &[BodyBlock],
) -> Result<(), (&'static str, Option<String>)> {
    let credential = "is a credential, which nobody else is told";
    match source(name) {
        Some(ValueSource::Path(name))
            if segments.is_some_and(|known| !known.contains_key(&name)) =>
        {
            let known = segments.into_iter().flat_map(BTreeMap::keys);
            let help = did_you_mean(&name, known.map(String::as_str));
            let help = help.unwrap_or_else(|| format!("write `{{{name}}}` for a segment in `on`"));
            Err(("is no segment of `on`", Some(help)))
        }
        Some(ValueSource::Query(name))
            if SECRET_PARAMETERS.contains(&name.to_ascii_lowercase().as_str()) =>
        {
            Err((credential, None))
        }
        Some(ValueSource::Header(name))
            if SECRET_HEADERS.contains(&name.to_ascii_lowercase().as_str()) =>
        {
            Err((credential, None))
        }
        // Parsed, a name is in lower case.
        Some(ValueSource::Header(name))
            if !name
                .parse::<HeaderName>()
                .is_ok_and(|parsed| parsed.as_str() == name) =>
        {
            Err((
                "is no header's name",
                Some("header names are lower-case".into()),
            ))
        }
        Some(ValueSource::Body(name)) => {
            let mut declared = body.iter().filter_map(|block| block.fields.get(&name));
            match declared.next() {
                Some(field) if field.kind != FieldType::Strings => Ok(()),
                Some(_) => Err(("is a set: a service is asked with one value", None)),
                None => {
                    let names = body.iter().flat_map(|block| block.fields.keys());
                    let help = did_you_mean(&name, names.map(String::as_str));
                    let help =
                        help.unwrap_or_else(|| "declare it in a [[body]] of this file".into());
                    Err((
                        "is no field that a [[body]] of this host declares",
                        Some(help),
                    ))
                }
            }
        }
        _ => Ok(()),
    }
}
