//! The decision: default deny, forbid overrides, and whatever cannot be evaluated is refused.

use std::collections::{BTreeMap, BTreeSet};

use agentguard_record::{DecidedBy, DenyReason};

use super::judge::{JudgeOutcome, Judgement};
use super::permit::{Owed, Permit};
use super::reading::Readings;
use super::refusal::{PolicyRefusal, detail, who_and_what};
use super::task::{Outside, outside};
use super::{Decision, Denial, Input, Policy};

impl Policy {
    pub fn decide(&self, input: &Input<'_>) -> Decision {
        let readings = self.readings(input);
        let judgement = self.judge(input, &readings);
        let permit = |ids: BTreeSet<String>, facts| {
            let tasks = input.context.tasks.as_ref();
            let covered = tasks.map(|tasks| tasks.covered(input, &readings, &judgement.does));
            Permit::new(
                input.agent,
                input.host.clone(),
                input.port,
                ids.into_iter().collect(),
                facts,
                covered.unwrap_or_default(),
            )
        };
        let is_observed = judgement.is_observed();
        match judgement.outcome {
            JudgeOutcome::Permitted { ids, charges } => {
                let permit = permit(ids, judgement.facts);
                if charges.is_empty() {
                    return Decision::Permit(permit);
                }
                let agent = judgement.agent;
                let (who, tried) = who_and_what(agent, input, &self.shown(input, None));
                Decision::Owing(Box::new(permit.owing(Owed {
                    charges,
                    observed: agent.is_some_and(|agent| agent.agent.observe),
                    whose: format!("A limit on {tried} in the policy of {who}"),
                })))
            }
            JudgeOutcome::Refused(refusal) => {
                let denial = Denial {
                    reason: self.reason(&refusal),
                    decided_by: self.decided_by(&refusal),
                    detail: detail(
                        judgement.agent,
                        input,
                        &self.shown(input, judgement.read_as.as_deref()),
                        &refusal,
                    ),
                    policies: refusal.policies(),
                    approval: refusal.approval(),
                    facts: judgement.facts,
                };
                if is_observed {
                    let permit = permit(BTreeSet::new(), BTreeMap::new());
                    return Decision::Permit(permit.observed(denial));
                }
                Decision::Deny(denial)
            }
        }
    }

    /// What the refusal is called: as its forbids say, if they all say the same.
    pub(super) fn reason(&self, refusal: &PolicyRefusal) -> DenyReason {
        let PolicyRefusal::Forbidden(ids) = refusal else {
            return refusal.reason();
        };
        if self.are_limits(ids) {
            return DenyReason::RateLimited;
        }
        let of = |id: &String| self.rules[*self.by_id.get(id)?].reason;
        let mut reasons = ids.iter().map(of);
        let first = reasons.next().flatten();
        let first = first.filter(|first| reasons.all(|other| other == Some(*first)));
        first.unwrap_or_else(|| refusal.reason())
    }

    /// What the refusal came from.
    fn decided_by(&self, refusal: &PolicyRefusal) -> DecidedBy {
        match refusal {
            PolicyRefusal::UnknownAgent
            | PolicyRefusal::NoReach
            | PolicyRefusal::WrongMode
            | PolicyRefusal::UnknownMethod => DecidedBy::Reach,
            PolicyRefusal::Unknown(_) => DecidedBy::Facts,
            PolicyRefusal::Forbidden(ids) if self.are_limits(ids) => DecidedBy::Limit,
            PolicyRefusal::Forbidden(_)
            | PolicyRefusal::NotPermitted
            | PolicyRefusal::Approval { .. }
            | PolicyRefusal::NoAmount { .. }
            | PolicyRefusal::Failed(_) => DecidedBy::Rules,
            PolicyRefusal::Outside(_) => DecidedBy::Task,
            PolicyRefusal::Delegation { .. } => DecidedBy::Parent,
        }
    }

    /// The one way to every decision and explanation.
    pub(super) fn judge(&self, input: &Input<'_>, readings: &Readings<'_>) -> Judgement<'_> {
        let mut judgement = self.judge_with_parents(input, readings);
        // What a supervisor has narrowed is narrow for an agent that policy only observes, too.
        if judgement.is_observed()
            && let Some(why) = self.narrowed(input, readings, &judgement.does)
        {
            judgement.outcome = JudgeOutcome::Refused(PolicyRefusal::Outside(why));
        }
        judgement
    }

    /// How a task that is open keeps the agent, or one that it acts for, from it, whatever rules say.
    fn narrowed(
        &self,
        input: &Input<'_>,
        readings: &Readings<'_>,
        does: &BTreeSet<&str>,
    ) -> Option<Outside> {
        let everyone = std::iter::once(&input.agent).chain(self.above(input.agent));
        let mut whys =
            everyone.filter_map(|id| outside(*id, self.agents.get(id)?, input, readings, does));
        whys.find(|why| *why != Outside::None)
    }
}
