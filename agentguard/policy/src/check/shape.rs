//! Which bodies and look-ups the requests have that a rule can meet: it is validated against each of their shapes.

use std::collections::{BTreeMap, BTreeSet};

use super::super::body::{BodyField, FieldType};
use super::super::bundle::ParsedBundle;
use super::super::diagnostic::{Report, did_you_mean};
use super::super::host::{HostMap, HostPattern};
use super::super::limit::KeySource;
use super::super::parse::HostFile;
use super::super::reads::Names;
use super::super::rules::{CedarRule, HostScope};
use super::super::schema::Shape;

/// Every shape, each with one host that has it. `files`: the bundle's, by their hosts.
pub(super) fn shapes(
    bundle: &ParsedBundle,
    files: &HostMap<&HostFile>,
    rule: &CedarRule,
) -> BTreeMap<Shape, Option<String>> {
    let mut found = BTreeMap::new();
    if rule.reads.body.is_empty() && rule.reads.lookup.is_empty() {
        found.insert(Shape::default(), None);
        return found;
    }
    let mut add = |host: &HostPattern| {
        let shape = files.covering(host).copied().map(shape).unwrap_or_default();
        found.entry(shape).or_insert_with(|| Some(host.id()));
    };
    let described = bundle.hosts.iter().map(|file| &file.host);
    let reached = bundle.agents.iter().flat_map(|file| &file.reach);
    let hosts = described.chain(reached.map(|reach| &reach.host));
    match &rule.host {
        HostScope::Any => hosts.for_each(add),
        HostScope::Is(scope) => {
            add(scope);
            if scope.below {
                hosts.filter(|host| scope.covers(host)).for_each(add);
            }
        }
    }
    found
}

fn shape(file: &HostFile) -> Shape {
    let types = |(name, field): (&String, &BodyField)| (name.clone(), field.kind);
    Shape {
        body: file
            .body
            .iter()
            .flat_map(|block| &block.fields)
            .map(types)
            .collect(),
        lookup: file
            .lookups
            .iter()
            .flat_map(|lookup| lookup.fields())
            .map(types)
            .collect(),
    }
}

/// A field that nobody declares is never there, so that what asks for it is a mistake.
pub(super) fn check_fields(
    report: &mut Report<'_>,
    rule: &CedarRule,
    shapes: &BTreeMap<Shape, Option<String>>,
) {
    let body = shapes.keys().flat_map(|shape| shape.body.keys()).collect();
    check_names(report, rule, &rule.reads.body, ("[[body]]", "field"), &body);
    let lookup = shapes
        .keys()
        .flat_map(|shape| shape.lookup.keys())
        .collect();
    check_names(
        report,
        rule,
        &rule.reads.lookup,
        ("[[lookup]]", "fact"),
        &lookup,
    );
}

fn check_names(
    report: &mut Report<'_>,
    rule: &CedarRule,
    names: &Names,
    (table, what): (&str, &str),
    declared: &BTreeSet<&String>,
) {
    let Names::These(names) = names else {
        return;
    };
    for name in names.iter().filter(|name| !declared.contains(name)) {
        let help = did_you_mean(name, declared.iter().map(|known| known.as_str()));
        report.error_with(
            rule.at,
            format!("no {table} of a host that the rule fits declares the {what} `{name}`"),
            Some(help.unwrap_or_else(|| "declare it in the host's file, in hosts/".into())),
        );
    }
}

/// What adds up has to be a number, and a key one value, at every host that the rule fits.
pub(super) fn check_limit(
    report: &mut Report<'_>,
    rule: &CedarRule,
    shapes: &BTreeMap<Shape, Option<String>>,
) {
    let Some(limit) = &rule.limit else {
        return;
    };
    let key = match &limit.key {
        Some(KeySource::Field(name)) => Some(name),
        _ => None,
    };
    let number = [FieldType::Decimal, FieldType::Long];
    let one = [FieldType::String, FieldType::Long, FieldType::Decimal];
    let asked = [
        (limit.of.as_ref(), &number[..], "a number"),
        (key, &one[..], "a key"),
    ];
    for (name, fit, what) in asked {
        let Some(name) = name else { continue };
        for (shape, host) in shapes {
            if shape.body.get(name).is_some_and(|kind| !fit.contains(kind)) {
                let host = host.as_deref().unwrap_or_default();
                report.error_help(
                    rule.at,
                    format!("field `{name}` of the bodies at `{host}` is not {what}"),
                    format!(
                        "declare it as one of {}, or name another field",
                        fit.iter()
                            .map(|kind| format!("`{}`", kind.name()))
                            .collect::<Vec<_>>()
                            .join(", ")
                    ),
                );
            }
        }
    }
}
