//! Of a record: what was decided by rules, whatever became of it. Only fields say so.

use agentguard_audit::line::Line;
use agentguard_policy::Policy;
use agentguard_policy::replay::{ReplayGap, ReplayOutcome, Then};
use agentguard_record::{self as record, ActionName, DecidedBy, DenyReason, Ended};

/// A decision of rules.
pub(super) struct RuleDecision<'l> {
    pub outcome: ReplayOutcome,
    pub reason: Option<DenyReason>,
    pub then: Then,
    /// Limits that had no room.
    pub exhausted: &'l [String],
}

const UNREADABLE: &str = "no record that this build can read";
const NOT_BY_RULES: &str = "not decided by rules";

impl<'l> RuleDecision<'l> {
    /// `old`: the bundle that decided.
    pub(super) fn of(line: &'l Line<'_>, old: Option<&Policy>) -> Result<Self, &'static str> {
        let told = line.decided_by.as_ref().zip(line.ended.as_ref());
        let (by, ended) = told.ok_or(ReplayGap::DecidedBy.why())?;
        let (by, ended) = by.known().zip(ended.known()).ok_or(UNREADABLE)?;
        let outcome = line.outcome.known().ok_or(UNREADABLE)?;
        if line.action_name() == Some(ActionName::Dns) {
            return Err("a name that was looked up");
        }
        let (then, exhausted) = match by {
            DecidedBy::Rules | DecidedBy::Reach | DecidedBy::Parent => (Then::Own, &[][..]),
            // Everyone has been asked before anything is counted.
            DecidedBy::Limit => (Then::All, &*line.policies),
            DecidedBy::Facts => (Then::Nobody, &[][..]),
            DecidedBy::Kernel => return Err("decided by the kernel"),
            DecidedBy::Undecided => return Err("it ended before it was decided"),
            DecidedBy::Task
            | DecidedBy::Stop
            | DecidedBy::Expiry
            | DecidedBy::Host
            | DecidedBy::Protocol
            | DecidedBy::OwnName => return Err(NOT_BY_RULES),
        };
        let decided = |outcome| Self {
            outcome,
            reason: line.reason.as_ref().and_then(|reason| reason.known()),
            then,
            exhausted,
        };
        match outcome {
            record::Outcome::Allow => Ok(Self::permitted()),
            record::Outcome::Observed => Ok(decided(ReplayOutcome::Observed)),
            record::Outcome::ApprovalRequired => Ok(decided(ReplayOutcome::ApprovalRequired)),
            record::Outcome::Deny if ended == Ended::Refused => Ok(decided(ReplayOutcome::Deny)),
            record::Outcome::Deny | record::Outcome::Killed | record::Outcome::Error => {
                was_enforced(line, old).map(|()| Self::permitted())
            }
        }
    }

    fn permitted() -> Self {
        Self {
            outcome: ReplayOutcome::Allow,
            reason: None,
            then: Then::All,
            exhausted: &[],
        }
    }
}

/// What has ended otherwise had been permitted, unless its agent was only observed: of that the record tells how it ended, and
/// not what would have been denied.
fn was_enforced(line: &Line<'_>, old: Option<&Policy>) -> Result<(), &'static str> {
    let old = old.ok_or(ReplayGap::Bundle.why())?;
    let mut agents = old.agents();
    let agent = agents.find(|agent| line.agent.as_deref() == Some(&*agent.name));
    match agent.is_some_and(|agent| agent.observe) {
        true => Err("it was observed, and ended before its record was whole"),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::cli::policy_offline;
    use agentguard_policy::Sources;

    #[test]
    fn only_what_rules_decided_is_taken_again() {
        let cases = [
            ("allow", "rules", "whole", "", "allow All"),
            // A tunnel that broke off had been permitted like any.
            ("allow", "rules", "broke-off", "", "allow All"),
            ("allow", "own-name", "whole", "", "-"),
            ("allow", "kernel", "whole", "", "-"),
            ("killed", "rules", "stopped", "agent-killed", "allow All"),
            ("killed", "undecided", "stopped", "agent-killed", "-"),
            (
                "error",
                "rules",
                "upstream-failed",
                "upstream-tls",
                "allow All",
            ),
            ("error", "rules", "aborted", "", "allow All"),
            ("error", "rules", "client-gone", "", "allow All"),
            ("error", "undecided", "aborted", "", "-"),
            ("error", "undecided", "client-gone", "protocol-refused", "-"),
            ("deny", "rules", "refused", "policy-denied", "deny Own"),
            ("deny", "reach", "refused", "policy-denied", "deny Own"),
            ("deny", "kernel", "refused", "policy-denied", "-"),
            (
                "deny",
                "rules",
                "not-permitted",
                "policy-denied",
                "allow All",
            ),
            ("deny", "rules", "task-over", "outside-task", "allow All"),
            (
                "observed",
                "rules",
                "whole",
                "policy-denied",
                "observed Own",
            ),
            ("observed", "limit", "whole", "rate-limited", "observed All"),
            (
                "approval-required",
                "rules",
                "refused",
                "approval-required",
                "approval-required Own",
            ),
            ("deny", "limit", "refused", "rate-limited", "deny All"),
            // Nothing could be counted.
            ("deny", "host", "refused", "rate-limited", "-"),
            ("deny", "facts", "refused", "body-too-large", "deny Nobody"),
            // The bundle did not have the agent, or an operator has stopped it.
            ("deny", "reach", "refused", "agent-suspended", "deny Own"),
            ("deny", "stop", "refused", "agent-suspended", "-"),
            (
                "deny",
                "parent",
                "refused",
                "delegation-exceeded",
                "deny Own",
            ),
            ("deny", "stop", "refused", "delegation-exceeded", "-"),
            // A forbid says so, or a task leaves it out.
            ("deny", "rules", "refused", "outside-task", "deny Own"),
            ("deny", "task", "refused", "outside-task", "-"),
            ("deny", "protocol", "refused", "protocol-refused", "-"),
            ("deny", "expiry", "refused", "policy-stale", "-"),
        ];
        let enforced = bundle("");
        for (outcome, by, ended, reason, expected) in cases {
            let text = line(outcome, by, ended, reason);
            assert_eq!(taken(&text, Some(&enforced)), expected, "{text}");
        }
    }

    #[test]
    fn what_was_let_through_and_cut_may_have_been_observed() {
        for ended in ["not-permitted", "task-over"] {
            let cut = line("deny", "rules", ended, "policy-denied");
            assert_eq!(taken(&cut, Some(&bundle(""))), "allow All");
            assert_eq!(taken(&cut, None), "-");
            assert_eq!(taken(&cut, Some(&bundle("mode = \"observe\"\n"))), "-");
        }
    }

    #[test]
    fn what_a_record_does_not_tell_is_not_guessed() {
        let whole = line("allow", "rules", "whole", "");
        let earlier = whole.replace(r#""decided_by":"rules","ended":"whole","#, "");
        assert_ne!(earlier, whole);
        let why = |text: &str| {
            let line = Line::parse(text.as_bytes()).unwrap();
            RuleDecision::of(&line, None).err()
        };
        assert_eq!(why(&earlier), Some(ReplayGap::DecidedBy.why()));
        assert_eq!(why(&whole.replace("rules", "oracle")), Some(UNREADABLE));
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

    fn line(outcome: &str, by: &str, ended: &str, reason: &str) -> String {
        let reason = match reason {
            "" => "null".to_owned(),
            reason => format!("\"{reason}\""),
        };
        format!(
            r#"{{"time":"2026-11-23T09:00:00Z","seq":1,"decision":"0197f6a0-0000-7000-8000-000000000001","agent":"a","action":"GET","resource":"h","request":{{"scheme":"https","host":"h","port":443,"method":"GET","path":"/","status":0}},"facts":{{}},"outcome":"{outcome}","decided_by":"{by}","ended":"{ended}","policies":["p"],"reason":{reason}}}"#
        )
    }

    fn taken(text: &str, old: Option<&Policy>) -> String {
        let line = Line::parse(text.as_bytes()).unwrap();
        RuleDecision::of(&line, old).map_or("-".to_owned(), |decided| {
            format!("{} {:?}", decided.outcome.name(), decided.then)
        })
    }
}
