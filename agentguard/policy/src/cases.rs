//! A bundle's own cases: requests with the decisions that its author expects, taken by the decision's own way.

use std::collections::BTreeSet;

use agentguard_record::DenyReason;
use serde::{Deserialize, Serialize};

use super::Policy;
use super::explain::why;
use super::judge::JudgeOutcome;
use super::question::{ParsedQuestion, Question};
use super::refusal::PolicyRefusal;

/// What a case asks and what its author expects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    pub name: String,
    /// `file:line`.
    pub at: String,
    pub question: Question,
    pub expected: Expectation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CaseOutcome {
    Allow,
    Deny,
    /// Denied until people approve it.
    ApprovalRequired,
}

impl CaseOutcome {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::ApprovalRequired => "approval-required",
        }
    }
}

/// What is not said may be anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Expectation {
    pub outcome: CaseOutcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<DenyReason>,
    /// Ids of exactly the rules that decide.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policies: Option<BTreeSet<String>>,
}

impl Expectation {
    pub fn is_met(&self, answer: &CaseAnswer, rules: &BTreeSet<&str>) -> bool {
        let decided = || {
            let ids = answer.policies.iter().map(String::as_str);
            ids.filter(|id| rules.contains(id)).collect::<BTreeSet<_>>()
        };
        self.outcome == answer.outcome
            && (self.reason.is_none() || self.reason == answer.reason)
            && self
                .policies
                .as_ref()
                .is_none_or(|ids| ids.iter().map(String::as_str).eq(decided()))
    }
}

/// The decision on a [`Question`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CaseAnswer {
    pub outcome: CaseOutcome,
    pub reason: Option<DenyReason>,
    /// Ids of the policies that decided, entries of `allow` among them.
    pub policies: Vec<String>,
    /// For the people who write policies.
    pub why: String,
}

/// A case and what the bundle makes of it.
pub struct TestedCase<'p> {
    pub case: &'p Case,
    pub answer: CaseAnswer,
    pub passed: bool,
}

/// A case that two bundles answer differently. `None`: that bundle has no such agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CaseChange {
    pub case: String,
    /// `file:line` in the bundle that has it, in the new one if both have.
    pub at: String,
    pub agent: String,
    pub request: String,
    pub old: Option<CaseAnswer>,
    pub new: Option<CaseAnswer>,
}

impl Policy {
    pub fn cases(&self) -> &[Case] {
        &self.cases
    }

    pub fn test(&self) -> impl Iterator<Item = TestedCase<'_>> {
        let rules: BTreeSet<&str> = self.rules.iter().map(|rule| rule.id.as_str()).collect();
        self.cases.iter().map(move |case| {
            let answer = self
                .answer(&case.question)
                .expect("a compiled bundle's cases name its agents and parse");
            TestedCase {
                case,
                passed: case.expected.is_met(&answer, &rules),
                answer,
            }
        })
    }

    /// # Errors
    /// What in the question is no agent, host, path or header.
    pub fn answer(&self, question: &Question) -> Result<CaseAnswer, String> {
        let (agent, compiled) = self.agent_named(&question.agent)?;
        let mut parsed = ParsedQuestion::new(question, self.calendar.as_ref())?;
        drop(parsed.gather(self, agent));
        let input = parsed.input(agent);
        let judgement = self.judge(&input, &self.readings(&input));
        let why = why(compiled, &input, &judgement);
        Ok(match judgement.outcome {
            JudgeOutcome::Permitted { ids, .. } => CaseAnswer {
                outcome: CaseOutcome::Allow,
                reason: None,
                policies: ids.into_iter().collect(),
                why,
            },
            JudgeOutcome::Refused(refusal) => CaseAnswer {
                outcome: match refusal {
                    PolicyRefusal::Approval { .. } => CaseOutcome::ApprovalRequired,
                    PolicyRefusal::UnknownAgent
                    | PolicyRefusal::NoReach
                    | PolicyRefusal::WrongMode
                    | PolicyRefusal::UnknownMethod
                    | PolicyRefusal::Unknown(_)
                    | PolicyRefusal::NotPermitted
                    | PolicyRefusal::Forbidden(_)
                    | PolicyRefusal::Outside(_)
                    | PolicyRefusal::NoAmount { .. }
                    | PolicyRefusal::Failed(_)
                    | PolicyRefusal::Delegation { .. } => CaseOutcome::Deny,
                },
                reason: Some(self.reason(&refusal)),
                policies: refusal.policies(),
                why,
            },
        })
    }

    /// What `new` decides otherwise than this bundle, over the cases of both, in the new one's order; and how many cases
    /// were asked.
    pub fn diff(&self, new: &Self) -> (Vec<CaseChange>, usize) {
        // A case is what it asks: both bundles may have it under other names.
        let asked: BTreeSet<_> = new.cases.iter().map(|case| &case.question).collect();
        let only_old = self.cases.iter();
        let only_old = only_old.filter(|case| !asked.contains(&case.question));
        let cases: Vec<&Case> = new.cases.iter().chain(only_old).collect();
        let changes = cases.iter().filter_map(|case| {
            let old_answer = self.answer(&case.question).ok();
            let new_answer = new.answer(&case.question).ok();
            // What an agent can tell apart; that other policies decide the same is no change.
            let decision = |answer: &Option<CaseAnswer>| {
                let answer = answer.as_ref()?;
                Some((answer.outcome, answer.reason))
            };
            let changed = decision(&old_answer) != decision(&new_answer);
            changed.then(|| CaseChange {
                case: case.name.clone(),
                at: case.at.clone(),
                agent: case.question.agent.clone(),
                request: format!("{} {}", case.question.method, case.question.url),
                old: old_answer,
                new: new_answer,
            })
        });
        (changes.collect(), cases.len())
    }
}
