//! `@approve`: a forbid that people of one role can lift, written so that who does not know the annotation denies.

use cedar_policy::{Effect, Policy};
use serde_json::Value;

use crate::diagnostic::{Place, Report};
use crate::host::show;

/// The role that the policy's annotation names, if it has one. `None`: it is not usable, which has been reported.
#[expect(clippy::option_option, reason = "no annotation is no error")]
pub(super) fn role(report: &mut Report<'_>, at: Place, policy: &Policy) -> Option<Option<String>> {
    let Some(role) = policy.annotation("approve") else {
        return Some(None);
    };
    if policy.effect() == Effect::Permit {
        report.error_help(
            at,
            "`@approve` is on a permit, which would hold without anybody's approval",
            "write it on a forbid, with `unless { context.approvals.contains(\"…\") }`",
        );
        return None;
    }
    if !is_role(role) {
        report.error_help(
            at,
            format!("`{}` is not usable as a role", show(role)),
            "use one role of 1 to 63 lower-case letters, digits and `-`, starting with a letter; a second role is a second forbid",
        );
        return None;
    }
    let json = policy.to_json().unwrap_or_default();
    let conditions = json["conditions"].as_array();
    let lifted = conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["kind"] == "unless" && is_lifted(&condition["body"], role));
    if !lifted {
        report.error_help(
            at,
            format!("`@approve(\"{role}\")` is on a forbid that no approval lifts"),
            format!("add `unless {{ context.approvals.contains(\"{role}\") }}`, and join what else lifts it with `||`"),
        );
        return None;
    }
    Some(Some(role.to_owned()))
}

fn is_role(role: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    role.starts_with(|c: char| c.is_ascii_lowercase())
        && role.chars().all(plain)
        && role.len() <= 63
}

/// Whether the approval alone makes the expression true, in Cedar's JSON form.
fn is_lifted(body: &Value, role: &str) -> bool {
    if let Some(either) = body.get("||") {
        return is_lifted(&either["left"], role) || is_lifted(&either["right"], role);
    }
    let asked = &body["contains"];
    let of = &asked["left"]["."];
    of["left"]["Var"] == "context" && of["attr"] == "approvals" && asked["right"]["Value"] == role
}
