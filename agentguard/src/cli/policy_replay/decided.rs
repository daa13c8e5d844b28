//! Of a record: what rules decided, whatever became of it.

use std::collections::BTreeMap;

use agentguard_forwarder::{CUT, OVER};
use agentguard_policy::Policy;
use agentguard_policy::replay::{Missing, Outcome, Then};
use agentguard_record::DenyReason;

use super::Line;

/// What rules decided, whatever became of it.
pub struct Decided<'l> {
    pub outcome: Outcome,
    pub reason: Option<&'l str>,
    pub then: Then,
    /// Limits that had no room.
    pub exhausted: &'l [String],
}

pub fn decided<'l>(
    line: &'l Line<'_>,
    facts: &BTreeMap<String, String>,
    old: Option<&Policy>,
) -> Result<Decided<'l>, &'static str> {
    const NOT_BY_RULES: &str = "not decided by rules";
    let permitted = Decided {
        outcome: Outcome::Allow,
        reason: None,
        then: Then::All,
        exhausted: &[],
    };
    let detail = line.detail.as_deref();
    let cut = detail == Some(CUT) || detail == Some(OVER);
    let outcome = match line.outcome.as_ref() {
        "allow" if line.policies.is_empty() => return Err(NOT_BY_RULES),
        "allow" => return Ok(permitted),
        "killed" | "error" => return ended(line, old).map(|()| permitted),
        "deny" if cut => return ended(line, old).map(|()| permitted),
        "deny" => Outcome::Deny,
        "approval-required" => Outcome::ApprovalRequired,
        "observed" => Outcome::Observed,
        _ => return Err(NOT_BY_RULES),
    };
    let reason = line.reason.as_deref();
    let slug = |reason: DenyReason| Some(reason.slug());
    let unread = [
        DenyReason::BodyAmbiguous,
        DenyReason::BodyUnreadable,
        DenyReason::BodyTooLarge,
        DenyReason::AttributeUnavailable,
    ];
    let by_rules = [
        DenyReason::PolicyDenied,
        DenyReason::ApprovalRequired,
        DenyReason::OutsideHours,
        DenyReason::UntrustedNetwork,
    ];
    // Everyone has been asked before anything is counted; without a rule, nothing could be.
    let by_limit = reason == slug(DenyReason::RateLimited) && !line.policies.is_empty();
    // A task that leaves it out is nothing that rules decide.
    let by_forbid = reason == slug(DenyReason::OutsideTask) && !line.policies.is_empty();
    // What has been judged has its path among its facts; a connection has none.
    let judged = line.request.is_none() || facts.contains_key("path");
    let then = if unread.into_iter().map(slug).any(|it| it == reason) {
        Then::Nobody
    } else if by_limit {
        Then::All
    } else if (by_forbid || by_rules.into_iter().map(slug).any(|it| it == reason)) && judged
        // Operators stop agents for the same reasons.
        || reason == slug(DenyReason::AgentSuspended) && facts.contains_key("path")
        || reason == slug(DenyReason::DelegationExceeded) && facts.contains_key("parent_refused")
    {
        Then::Own
    } else {
        return Err(NOT_BY_RULES);
    };
    Ok(Decided {
        outcome,
        reason,
        then,
        exhausted: if by_limit { &line.policies } else { &[] },
    })
}

/// Of what was ended or failed: whether it had been permitted. Of an agent that was only observed the record does not tell.
fn ended(line: &Line<'_>, old: Option<&Policy>) -> Result<(), &'static str> {
    if line.policies.is_empty() {
        return Err("it ended before it was decided");
    }
    let old = old.ok_or(Missing::Bundle.why())?;
    let mut agents = old.agents();
    let agent = agents.find(|agent| line.agent.as_deref() == Some(&*agent.name));
    match agent.is_some_and(|agent| agent.observe) {
        true => Err("it was observed, and ended before its record was whole"),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::policy_offline;
    use agentguard_policy::Sources;

    #[test]
    fn only_what_rules_decided_is_taken_again() {
        let by = [r#""policies":["p"]"#, r#""policies":[]"#];
        let cases = [
            (r#""outcome":"allow""#, by[0], r#"{}"#, "allow All"),
            (r#""outcome":"allow""#, by[1], r#"{}"#, "-"),
            (
                r#""outcome":"killed","reason":"agent-killed""#,
                by[0],
                "{}",
                "allow All",
            ),
            (
                r#""outcome":"killed","reason":"agent-killed""#,
                by[1],
                "{}",
                "-",
            ),
            (
                r#""outcome":"error","reason":"upstream-tls""#,
                by[0],
                "{}",
                "allow All",
            ),
            (r#""outcome":"error","detail":"aborted""#, by[1], "{}", "-"),
            (
                r#""outcome":"deny","reason":"policy-denied""#,
                by[1],
                r#"{"path":"/"}"#,
                "deny Own",
            ),
            (
                r#""outcome":"deny","reason":"policy-denied""#,
                by[1],
                "{}",
                "-",
            ),
            (
                r#""outcome":"observed","reason":"policy-denied""#,
                by[0],
                r#"{"path":"/"}"#,
                "observed Own",
            ),
            (
                r#""outcome":"approval-required","reason":"approval-required""#,
                by[0],
                r#"{"path":"/"}"#,
                "approval-required Own",
            ),
            (
                r#""outcome":"deny","reason":"rate-limited""#,
                by[0],
                r#"{"path":"/"}"#,
                "deny All",
            ),
            // Nothing could be counted.
            (
                r#""outcome":"deny","reason":"rate-limited""#,
                by[1],
                r#"{"path":"/"}"#,
                "-",
            ),
            (
                r#""outcome":"deny","reason":"body-too-large""#,
                by[1],
                "{}",
                "deny Nobody",
            ),
            (
                r#""outcome":"deny","reason":"agent-suspended""#,
                by[1],
                "{}",
                "-",
            ),
            (
                r#""outcome":"deny","reason":"delegation-exceeded""#,
                by[1],
                r#"{"path":"/"}"#,
                "-",
            ),
            (
                r#""outcome":"deny","reason":"delegation-exceeded""#,
                by[1],
                r#"{"path":"/","parent_refused":"p"}"#,
                "deny Own",
            ),
            (
                r#""outcome":"deny","reason":"protocol-refused""#,
                by[1],
                "{}",
                "-",
            ),
        ];
        let enforced = bundle("");
        for (outcome, policies, facts, expected) in cases {
            let text = line(outcome, policies, facts);
            assert_eq!(taken(&text, Some(&enforced)), expected, "{text}");
        }
        for (reason, detail) in [("policy-denied", CUT), ("outside-task", OVER)] {
            let cut = format!(r#""outcome":"deny","reason":"{reason}","detail":"{detail}""#);
            let cut = line(&cut, by[0], r#"{"path":"/"}"#);
            assert_eq!(taken(&cut, Some(&enforced)), "allow All");
            // What was let through and cut may have been observed.
            assert_eq!(taken(&cut, None), "-");
            assert_eq!(taken(&cut, Some(&bundle("mode = \"observe\"\n"))), "-");
        }
    }

    fn bundle(mode: &str) -> Policy {
        let agent = format!("[agent]\nname = \"a\"\nowner = \"o\"\nrisk = \"low\"\n{mode}");
        let files = [
            ("bundle.toml", "name = \"b\"\nserial = 1\n"),
            ("agents/a.toml", &*agent),
        ];
        let sources = Sources {
            files: files.map(|(path, text)| (path.into(), text.into())).into(),
        };
        policy_offline::compile(&sources, &BTreeMap::new()).unwrap()
    }

    fn line(outcome: &str, policies: &str, facts: &str) -> String {
        format!(
            r#"{{"time":"2026-11-23T09:00:00Z","decision":"d","agent":"a","action":"GET","resource":"h","request":{{"scheme":"https","host":"h","port":443,"method":"GET","path":"/"}},"facts":{facts},{policies},{outcome}}}"#
        )
    }

    fn taken(text: &str, old: Option<&Policy>) -> String {
        let line: Line<'_> = serde_json::from_str(text).unwrap();
        let facts = line.facts.as_ref().unwrap();
        decided(&line, facts, old).map_or("-".to_owned(), |decided| {
            format!("{} {:?}", decided.outcome.name(), decided.then)
        })
    }
}
