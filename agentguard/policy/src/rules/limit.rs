//! `@limit` and `@budget`: a forbid that holds while there is no room, written so that who does not know the annotation
//! denies.

use cedar_policy::{Effect, Policy};
use serde_json::Value;

use crate::diagnostic::{Place, Report};
use crate::lex;
use crate::lex::{CedarToken, Use};
use crate::limit::{KeySource, Limit};
use crate::reads::Reads;

const NAMES: [&str; 2] = ["limit", "budget"];

/// What the policy's annotation says, if it has one, and what has to be read for it. `None`: it is not usable, which has
/// been reported.
#[expect(clippy::option_option, reason = "no annotation is no error")]
pub(super) fn limit(
    report: &mut Report<'_>,
    at: Place,
    policy: &Policy,
    tokens: &[CedarToken<'_>],
    reads: &mut Reads,
) -> Option<Option<Limit>> {
    let asked: Vec<Place> = lex::context_uses(tokens)
        .into_iter()
        .filter(|(_, found)| *found == Use::Plain("limits"))
        .map(|(offset, _)| Place::new(at.file, offset))
        .collect();
    let annotations = lex::annotations(tokens).into_iter();
    let mut annotations = annotations.filter(|(_, name)| NAMES.contains(name));
    let Some((offset, name)) = annotations.next() else {
        let Some(asked) = asked.first() else {
            return Some(None);
        };
        report.error_help(
            *asked,
            "policy reads `context.limits` and sets no limit",
            "write `@limit(\"20/minute\")` in front of it, or leave it out: a limit is read by its own policy alone",
        );
        return None;
    };
    let at = Place::new(at.file, offset);
    if annotations.next().is_some() {
        report.error_help(
            at,
            "policy has both `@limit` and `@budget`",
            "make two forbids of it, each with one",
        );
        return None;
    }
    if policy.effect() == Effect::Permit {
        report.error_help(
            at,
            format!("`@{name}` is on a permit, which would hold without any room"),
            "write it on a forbid, with `unless { context.limits.contains(\"<its id>\") }`",
        );
        return None;
    }
    if let Some(other) = ["approve", "reason"]
        .into_iter()
        .find(|other| policy.annotation(other).is_some())
    {
        report.error_help(
            at,
            format!("policy has both `@{name}` and `@{other}`"),
            "make two forbids of it, each with one",
        );
        return None;
    }
    let text = policy.annotation(name).unwrap_or_default();
    let parsed = match name {
        "limit" => Limit::rate(text),
        _ => Limit::budget(text),
    };
    let limit = match parsed {
        Ok(limit) => limit,
        Err(why) => {
            report.error(at, format!("`@{name}`: {why}"));
            return None;
        }
    };
    let id = policy.annotation("id").unwrap_or_default();
    let json = policy.to_json().unwrap_or_default();
    let conditions = json["conditions"].as_array();
    let lifted = conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["kind"] == "unless" && is_lifted(&condition["body"], id));
    if !lifted || asked.len() != 1 {
        report.error_help(
            at,
            format!("`@{name}` is on a forbid that room in its own limit alone does not lift"),
            format!("add `unless {{ context.limits.contains(\"{id}\") }}`, join what else lifts it with `||`, and read `context.limits` nowhere else in it"),
        );
        return None;
    }
    if let Some(field) = &limit.of {
        reads.note_body(field);
    }
    match &limit.key {
        None => {}
        Some(KeySource::Header(name)) => reads.note_header(name),
        Some(KeySource::Field(name)) => reads.note_body(name),
    }
    Some(Some(limit))
}

/// Whether room alone makes the expression true, in Cedar's JSON form.
fn is_lifted(body: &Value, id: &str) -> bool {
    if let Some(either) = body.get("||") {
        return is_lifted(&either["left"], id) || is_lifted(&either["right"], id);
    }
    let asked = &body["contains"];
    let of = &asked["left"]["."];
    of["left"]["Var"] == "context" && of["attr"] == "limits" && asked["right"]["Value"] == id
}
