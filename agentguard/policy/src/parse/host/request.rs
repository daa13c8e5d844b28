//! `[[body]]` and `[[scope]]` of a host's file: what rules read of its requests' bodies, and what its requests do.

use std::collections::{BTreeMap, BTreeSet};

use super::super::reach::{Method, request_line};
use super::super::table::{Keys, Located, Table};
use crate::body::{BodyBlock, BodyField, FieldType, Form};
use crate::context::SCOPES;
use crate::diagnostic::{Report, did_you_mean};
use crate::glob::PathPattern;
use crate::host::show;
use crate::requests::ScopeEntry;

const FIELD: Keys = Keys {
    known: &["type", "at", "private"],
    later: &[],
};
const SCOPE: Keys = Keys {
    known: &["is", "on", "where"],
    later: &[],
};

/// Words that Cedar does not take for an attribute's name.
const RESERVED: [&str; 10] = [
    "true", "false", "if", "then", "else", "in", "is", "like", "has", "__cedar",
];

pub(super) fn body_blocks(report: &mut Report<'_>, root: &Table<'_>) -> Vec<BodyBlock> {
    let mut blocks: Vec<BodyBlock> = Vec::new();
    for table in root.tables(report, "body", "[[body]]") {
        let Some(block) = body_block(report, &table) else {
            continue;
        };
        let others: Vec<_> = blocks.iter().map(|other| &other.fields).collect();
        same_type(report, &table, &block.fields, &others);
        let mut same = blocks.iter();
        if same.any(|other| (other.method, &other.path) == (block.method, &block.path)) {
            report.error_help(
                table.key_place("on"),
                "the requests already have a [[body]] above",
                "put the fields into one",
            );
        }
        blocks.push(block);
    }
    blocks
}

/// A name stands for one type, wherever it is declared.
pub(super) fn same_type(
    report: &mut Report<'_>,
    table: &Table<'_>,
    fields: &BTreeMap<String, BodyField>,
    others: &[&BTreeMap<String, BodyField>],
) {
    for (name, field) in fields {
        let mut others = others.iter().filter_map(|other| other.get(name));
        if let Some(other) = others.find(|other| other.kind != field.kind) {
            report.error_help(
                table.key_place(name),
                format!(
                    "field `{name}` is of the type {} here and of the type {} above",
                    field.kind.cedar(),
                    other.kind.cedar()
                ),
                "a rule reads it by its name alone: give one of them another name",
            );
        }
    }
}

fn body_block(report: &mut Report<'_>, table: &Table<'_>) -> Option<BodyBlock> {
    let on = on(report, table);
    let mut fields = BTreeMap::new();
    let mut forms = BTreeSet::new();
    let mut whole = true;
    for (name, table) in table.others(&["on"], "a field of [[body]]") {
        match field(report, &name, table) {
            Some((form, field)) => {
                forms.insert(form == Form::Json);
                fields.insert(name.value, field);
            }
            None => whole = false,
        }
    }
    if fields.is_empty() && whole {
        report.error_help(
            table.at,
            "[[body]] has no field",
            "add one, as in `amount = { type = \"decimal\", at = \"/amount\" }`",
        );
        return None;
    }
    if forms.len() > 1 {
        report.error_help(
            table.at,
            "[[body]] has fields of JSON and of forms",
            "write every `at` as a JSON Pointer, which starts with `/`, or every one as the name of a form's field",
        );
        return None;
    }
    let (method, path) = on?;
    Some(BodyBlock {
        method,
        path,
        form: if forms.contains(&true) {
            Form::Json
        } else {
            Form::Fields
        },
        fields,
    })
}

/// What can be an attribute's name in Cedar.
pub(super) fn is_plain(name: &str) -> bool {
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    starts && plain && name.len() <= 63 && !RESERVED.contains(&name)
}

pub(super) fn field(
    report: &mut Report<'_>,
    name: &Located<String>,
    table: Option<Table<'_>>,
) -> Option<(Form, BodyField)> {
    let text = name.value.as_str();
    if !is_plain(text) {
        report.error_help(
            name.at,
            format!("field name `{}` is not usable", show(text)),
            "use 1 to 63 letters, digits and `_`, not starting with a digit, and no word of Cedar's; `at` may be anything",
        );
        return None;
    }
    let Some(table) = table else {
        report.error_help(
            name.at,
            format!("field `{text}` is not a table"),
            format!("write `{text} = {{ type = \"decimal\", at = \"/{text}\" }}`"),
        );
        return None;
    };
    table.check_keys(report, &FIELD);
    let private = table.boolean(report, "private");
    let kind = if table.has("type") {
        table.choice(report, "type", &FieldType::NAMES)
    } else {
        table.required(report, "type")
    };
    let at = table.required(report, "at")?;
    let (form, at) = match at.value.strip_prefix('/') {
        Some(pointer) => match unescaped(pointer) {
            Some(segments) => (Form::Json, segments),
            None => {
                report.error_help(
                    at.at,
                    format!("`{}` is not a JSON Pointer", show(&at.value)),
                    "`~` is written `~0` in one, and `/` in a key `~1` (RFC 6901)",
                );
                return None;
            }
        },
        None => (Form::Fields, vec![at.value]),
    };
    Some((
        form,
        BodyField {
            kind: FieldType::parse(&kind?.value)?,
            at,
            private: private.is_some_and(|private| private.value),
        },
    ))
}

fn unescaped(pointer: &str) -> Option<Vec<String>> {
    let segment = |raw: &str| {
        let mut tildes = raw.split('~').skip(1);
        let good = tildes.all(|behind| behind.starts_with(['0', '1']));
        good.then(|| raw.replace("~1", "/").replace("~0", "~"))
    };
    pointer.split('/').map(segment).collect()
}

pub(super) fn scope_entries(
    report: &mut Report<'_>,
    root: &Table<'_>,
    body: &[BodyBlock],
) -> Vec<ScopeEntry> {
    let tables = root.tables(report, "scope", "[[scope]]");
    let entries = tables.iter().filter_map(|table| {
        table.check_keys(report, &SCOPE);
        let on = on(report, table);
        let conditions = conditions(report, table, body);
        let is = scopes(report, table)?;
        let (method, path) = on?;
        Some(ScopeEntry {
            method,
            path,
            is,
            conditions: conditions?,
        })
    });
    entries.collect()
}

fn scopes(report: &mut Report<'_>, table: &Table<'_>) -> Option<BTreeSet<&'static str>> {
    let named = table.string_or_strings(report, "is");
    if named.is_empty() {
        if !table.has("is") {
            table.required(report, "is");
        }
        return None;
    }
    let mut found = BTreeSet::new();
    for name in named {
        let known = SCOPES.into_iter().find(|known| *known == name.value);
        let Some(known) = known else {
            let help = did_you_mean(&name.value, SCOPES)
                .unwrap_or_else(|| format!("scopes are {}", SCOPES.join(", ")));
            report.error_help(
                name.at,
                format!("there is no scope `{}`", show(&name.value)),
                help,
            );
            return None;
        };
        found.insert(known);
    }
    Some(found)
}

/// `where = { field = "value" }`, of declared fields that are strings.
fn conditions(
    report: &mut Report<'_>,
    table: &Table<'_>,
    body: &[BodyBlock],
) -> Option<BTreeMap<String, BTreeSet<String>>> {
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, value) in table.pairs(report, "where") {
        let mut declared = body.iter().filter_map(|block| block.fields.get(&name));
        match declared.next() {
            Some(field) if field.kind == FieldType::String => {
                found.entry(name).or_default().insert(value);
            }
            Some(_) => {
                report.error_help(
                    table.key_place("where"),
                    format!("field `{name}` is not a string"),
                    "`where` compares strings; name a field of the type `string`",
                );
                return None;
            }
            None => {
                let names = body.iter().flat_map(|block| block.fields.keys());
                let help = did_you_mean(&name, names.map(String::as_str));
                report.error_help(
                    table.key_place("where"),
                    format!(
                        "no [[body]] of this host declares a field `{}`",
                        show(&name)
                    ),
                    help.unwrap_or_else(|| "declare it in a [[body]] of this file".into()),
                );
                return None;
            }
        }
    }
    if table.has("where") && found.is_empty() {
        return None;
    }
    Some(found)
}

fn on(report: &mut Report<'_>, table: &Table<'_>) -> Option<(Option<&'static str>, PathPattern)> {
    let on = table.required(report, "on")?;
    match request_line(report, &on)? {
        Method::One(method, path) => Some((Some(method), path)),
        Method::Any(path) => Some((None, path)),
        Method::Connect => None,
    }
}
