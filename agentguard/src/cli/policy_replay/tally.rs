//! What came of a replay: what changed, in groups, and what could not be replayed.

use std::collections::BTreeMap;

use agentguard_audit::line::Line;
use agentguard_policy::replay::{RecordedAct, ReplayOutcome, ReplayedDecision};
use agentguard_record::DenyReason;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;

use crate::cli::table::table;

/// Kinds of changes that are told apart.
const MAX_GROUPS: usize = 10_000;

/// Decisions that change in the same way.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct ChangedDecisions {
    agent: String,
    action: String,
    resource: String,
    old: Side,
    new: Side,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Side {
    outcome: &'static str,
    reason: Option<&'static str>,
    policies: Vec<String>,
}

#[derive(Clone)]
struct Group {
    count: u64,
    /// The first that was found.
    decision: String,
    path: String,
}

#[derive(Default)]
pub(super) struct Tally {
    pub records: u64,
    replayed: u64,
    changed: u64,
    changes: BTreeMap<ChangedDecisions, Group>,
    /// Changes of so many kinds that they are only counted.
    ungrouped: u64,
    skipped: BTreeMap<&'static str, u64>,
}

impl Tally {
    pub(super) fn skip(&mut self, why: &'static str) {
        *self.skipped.entry(why).or_default() += 1;
    }

    pub(super) fn compare(
        &mut self,
        line: &Line<'_>,
        recorded: &RecordedAct<'_>,
        old: (ReplayOutcome, Option<DenyReason>),
        new: ReplayedDecision,
    ) {
        self.replayed += 1;
        if old == (new.outcome, new.reason) {
            return;
        }
        self.changed += 1;
        let side = |outcome: ReplayOutcome, reason: Option<DenyReason>, policies| Side {
            outcome: outcome.name(),
            reason: reason.map(DenyReason::slug),
            policies,
        };
        let change = ChangedDecisions {
            agent: recorded.agent.to_owned(),
            action: recorded.method.to_owned(),
            resource: line.resource.to_string(),
            old: side(old.0, old.1, line.policies.clone()),
            new: side(new.outcome, new.reason, new.policies),
        };
        let group = Group {
            count: 1,
            decision: line.decision.to_string(),
            path: recorded.path.to_owned(),
        };
        self.group(change, group);
    }

    fn group(&mut self, change: ChangedDecisions, group: Group) {
        if let Some(known) = self.changes.get_mut(&change) {
            known.count += group.count;
        } else if self.changes.len() < MAX_GROUPS {
            self.changes.insert(change, group);
        } else {
            self.ungrouped += group.count;
        }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.records += other.records;
        self.replayed += other.replayed;
        self.changed += other.changed;
        self.ungrouped += other.ungrouped;
        for (change, group) in other.changes {
            self.group(change, group);
        }
        for (why, count) in other.skipped {
            *self.skipped.entry(why).or_default() += count;
        }
    }

    /// Most frequent first.
    fn sorted(&self) -> Vec<(&ChangedDecisions, &Group)> {
        let mut all: Vec<_> = self.changes.iter().collect();
        all.sort_by_key(|(_, group)| std::cmp::Reverse(group.count));
        all
    }

    pub(super) fn json(&self, since: Timestamp) -> serde_json::Value {
        let changes = self.sorted().into_iter().map(|(change, group)| {
            json!({
                "count": group.count,
                "agent": change.agent,
                "action": change.action,
                "resource": change.resource,
                "old": change.old,
                "new": change.new,
                "example": { "decision": group.decision, "path": group.path },
            })
        });
        json!({
            "since": since,
            "decisions": self.records,
            "replayed": self.replayed,
            "changed": self.changed,
            "changes": changes.collect::<Vec<_>>(),
            "ungrouped": self.ungrouped,
            "not_replayed": self.skipped,
        })
    }

    pub(super) fn text(&self, since: Timestamp) -> String {
        let mut text = String::new();
        if !self.changes.is_empty() {
            let rows = self.sorted().into_iter().map(|(change, group)| {
                vec![
                    group.count.to_string(),
                    change.agent.clone(),
                    format!("{} {}{}", change.action, change.resource, group.path),
                    change.old.shown(),
                    change.new.shown(),
                ]
            });
            let header = ["COUNT", "AGENT", "FOR EXAMPLE", "OLD", "NEW"];
            text = table(&header, &rows.collect::<Vec<_>>()) + "\n";
        }
        if self.ungrouped > 0 {
            text.push_str(&format!("{} more of yet other kinds\n", self.ungrouped));
        }
        text.push_str(&format!(
            "{} decisions since {since:.0}: {} replayed, {} decided otherwise\n",
            self.records, self.replayed, self.changed
        ));
        for (why, count) in &self.skipped {
            text.push_str(&format!("  {count} cannot be replayed: {why}\n"));
        }
        text
    }
}

impl Side {
    fn shown(&self) -> String {
        let by = match self.policies.is_empty() {
            true => String::new(),
            false => format!(" by {}", self.policies.join(", ")),
        };
        let reason = self.reason.filter(|it| *it != self.outcome);
        let reason = reason.map_or(String::new(), |reason| format!(": {reason}"));
        format!("{}{reason}{by}", self.outcome)
    }
}
