//! What a check tells of paths that can be spelt otherwise: where a forbid is all that stands against a broad permit, and where
//! a permit is never met.

use cedar_policy::Effect;

use super::bundle::ParsedBundle;
use super::context::AttributeName;
use super::diagnostic::Report;
use super::entity::HostFacts;
use super::host::{HostMap, HostPattern};
use super::lower;
use super::parse::{AgentFile, Method, Reach};
use super::rules::{CedarRule, HostScope};

pub(super) fn notes(
    report: &Report<'_>,
    bundle: &ParsedBundle,
    facts: &HostMap<HostFacts>,
) -> Vec<String> {
    let is_exact = |host: &HostPattern| {
        let facts = facts.covering(host);
        facts.is_some_and(|facts| facts.requests.exact.paths)
    };
    let forbids = bundle.rules.iter().filter(|rule| is_by_path(rule));
    let forbids = forbids.filter_map(|forbid| {
        let (file, reach, permit) = broad_permit(report, bundle, forbid)?;
        let host = reach.host.id();
        let but = match is_exact(&reach.host) {
            true => "whose file says `paths = \"exact\"`, so that no other spelling of the path is refused with it",
            false => "where other spellings of the path are refused with it, and another path to the same thing is not",
        };
        Some(format!(
            "{}: forbid `{}` is by path, and {permit} permits agent `{}` every path at `{host}`, {but}: permit what is meant",
            report.name(forbid.at),
            forbid.id,
            file.agent.name,
        ))
    });
    let reaches = bundle.agents.iter().flat_map(|file| &file.reach);
    let unmet = reaches.filter(|reach| !is_exact(&reach.host)).flat_map(|reach| {
        let unmet = reach.allow.iter().filter_map(|allow| {
            let (Method::Any(pattern) | Method::One(_, pattern)) = &allow.method else {
                return None;
            };
            let pieces = pattern.as_str().split('/');
            let without: Vec<_> = pieces.map(|it| it.split(';').next().unwrap_or(it)).collect();
            let without = without.join("/");
            let is_met = without == pattern.as_str()
                || reach.allow.iter().any(|other| match &other.method {
                    Method::Any(pattern) | Method::One(_, pattern) => pattern.matches(&without),
                    Method::Connect => false,
                });
            (!is_met).then(|| {
                format!(
                    "{}: `{}` is met only by what is permitted as `{without}` too, which servers make of it: permit both, or say \
                     `paths = \"exact\"` in the file of `{}` if its server does not",
                    report.name(allow.at),
                    pattern.as_str(),
                    reach.host.id(),
                )
            })
        });
        unmet.collect::<Vec<_>>()
    });
    forbids.chain(unmet).collect()
}

fn is_by_path(rule: &CedarRule) -> bool {
    let by = [AttributeName::Path, AttributeName::Routes];
    rule.effect == Effect::Forbid && by.into_iter().any(|attribute| rule.reads.has(attribute))
}

/// Someone whom the forbid is about, a host of theirs, and what permits them every path there.
fn broad_permit<'b>(
    report: &Report<'_>,
    bundle: &'b ParsedBundle,
    forbid: &CedarRule,
) -> Option<(&'b AgentFile, &'b Reach, String)> {
    let places = bundle.agents.iter().flat_map(|file| {
        let reach = file
            .reach
            .iter()
            .filter(move |reach| is_about(forbid, file, reach));
        reach.map(move |reach| (file, reach))
    });
    let mut found = places.filter_map(|(file, reach)| {
        let entry = reach.allow.iter().find(|allow| match &allow.method {
            Method::Any(pattern) => pattern.is_everything() && forbid.actions.has_requests(),
            Method::One(method, pattern) => {
                pattern.is_everything() && forbid.actions.has_method(method)
            }
            Method::Connect => false,
        });
        let entry = entry.map(|entry| lower::id(report, &file.agent.name, entry));
        let rules = || {
            let mut rules = bundle.rules.iter();
            let rule = rules.find(|rule| permits_every_path(rule) && is_about(rule, file, reach));
            rule.map(|rule| rule.id.clone())
        };
        let permit = entry.or_else(rules)?;
        Some((file, reach, format!("`{permit}`")))
    });
    found.next()
}

fn permits_every_path(rule: &CedarRule) -> bool {
    let narrows = [
        AttributeName::Path,
        AttributeName::Routes,
        AttributeName::Segments,
        AttributeName::Scope,
        AttributeName::Body,
        AttributeName::Lookup,
    ];
    rule.effect == Effect::Permit
        && rule.actions.has_requests()
        && !narrows
            .into_iter()
            .any(|attribute| rule.reads.has(attribute))
}

fn is_about(rule: &CedarRule, file: &AgentFile, reach: &Reach) -> bool {
    let agent = rule.agent.as_ref();
    let host = match &rule.host {
        HostScope::Any => true,
        HostScope::Is(host) => host.covers(&reach.host) || reach.host.covers(host),
    };
    host && agent.is_none_or(|name| *name == file.agent.name)
}
