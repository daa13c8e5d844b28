//! Which bodies the requests have that a rule can meet: it is validated against each of their shapes.

use std::collections::BTreeMap;

use super::super::bundle::Bundle;
use super::super::diagnostic::{Report, did_you_mean};
use super::super::host::{HostMap, HostPattern};
use super::super::parse::HostFile;
use super::super::reads::Names;
use super::super::rules::{HostScope, Rule};
use super::super::schema::BodyShape;

/// Every shape, each with one host that has it.
pub(super) fn shapes(bundle: &Bundle, rule: &Rule) -> BTreeMap<BodyShape, Option<String>> {
    let mut found = BTreeMap::new();
    if rule.reads.body.is_empty() {
        found.insert(BodyShape::new(), None);
        return found;
    }
    let mut files = HostMap::default();
    for file in &bundle.hosts {
        files.insert(&file.host, file);
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

fn shape(file: &HostFile) -> BodyShape {
    let fields = file.body.iter().flat_map(|block| &block.fields);
    fields
        .map(|(name, field)| (name.clone(), field.kind))
        .collect()
}

/// A field that nobody declares is never there, so that what asks for it is a mistake.
pub(super) fn check_fields(
    report: &mut Report<'_>,
    rule: &Rule,
    shapes: &BTreeMap<BodyShape, Option<String>>,
) {
    let Names::These(names) = &rule.reads.body else {
        return;
    };
    let declared = || shapes.keys().flat_map(BodyShape::keys).map(String::as_str);
    for name in names {
        if declared().any(|known| known == name) {
            continue;
        }
        let help = did_you_mean(name, declared());
        report.error_with(
            rule.at,
            format!("no [[body]] of a host that the rule fits declares the field `{name}`"),
            Some(help.unwrap_or_else(|| "declare it in the host's file, in hosts/".into())),
        );
    }
}
