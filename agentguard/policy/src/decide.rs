//! The decision: default deny, forbid overrides, and whatever cannot be evaluated is refused.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};

use agentguard_record::DenyReason;

use super::explain::why;
use super::facts::bounded;
use super::judge::{Judgement, Outcome};
use super::permit::{Limited, Permit};
use super::refusal::{Refusal, detail, who_and_what};
use super::task::{Outside, outside};
use super::{Decision, Denial, Input, Policy};

impl Policy {
    pub fn decide(&self, input: &Input<'_>) -> Decision {
        let judgement = self.judge(input);
        let permit = |ids: BTreeSet<String>, facts| {
            let tasks = input.gathered.tasks.as_ref();
            let covered = tasks.map(|tasks| tasks.covered(input, &judgement.does));
            Permit::new(
                input.agent,
                input.host.clone(),
                input.port,
                ids.into_iter().collect(),
                facts,
                covered.unwrap_or_default(),
            )
        };
        match judgement.outcome {
            Outcome::Permitted { ids, charges } => {
                let permit = permit(ids, judgement.facts);
                if charges.is_empty() {
                    return Decision::Permit(permit);
                }
                let agent = judgement.agent;
                let (who, tried) = who_and_what(agent, input);
                Decision::Limited(Box::new(Limited {
                    permit,
                    charges,
                    observed: agent.is_some_and(|agent| agent.agent.observe),
                    whose: format!("A limit on {tried} in the policy of {who}"),
                }))
            }
            Outcome::Refused(refusal) => {
                let denial = Denial {
                    reason: self.reason(&refusal),
                    detail: detail(judgement.agent, input, &refusal),
                    policies: refusal.policies(),
                    approval: refusal.approval(),
                    facts: judgement.facts,
                };
                let observed = judgement.agent.is_some_and(|agent| agent.agent.observe);
                if observed && refusal.is_the_rules() {
                    let permit = permit(BTreeSet::new(), BTreeMap::new());
                    return Decision::Permit(permit.observed(denial));
                }
                Decision::Deny(denial)
            }
        }
    }

    /// What the refusal is called: as its forbids say, if they all say the same.
    pub(super) fn reason(&self, refusal: &Refusal) -> DenyReason {
        let Refusal::Forbidden(ids) = refusal else {
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

    /// The one way to every decision and explanation.
    pub(super) fn judge(&self, input: &Input<'_>) -> Judgement<'_> {
        let mut judgement = self.judge_as_all(input);
        let observed = judgement.agent.is_some_and(|agent| agent.agent.observe);
        // What a supervisor has narrowed is narrow for an agent that policy only observes, too.
        if let Outcome::Refused(refusal) = &judgement.outcome
            && observed
            && refusal.is_the_rules()
            && let Some(why) = self.narrowed(input, &judgement.does)
        {
            judgement.outcome = Outcome::Refused(Refusal::Outside(why));
        }
        judgement
    }

    /// How a task that is open keeps the agent, or one that it acts for, from it, whatever rules say.
    fn narrowed(&self, input: &Input<'_>, does: &BTreeSet<&str>) -> Option<Outside> {
        let everyone = std::iter::once(&input.agent).chain(self.above(input.agent));
        let mut whys = everyone.filter_map(|id| outside(*id, self.agents.get(id)?, input, does));
        whys.find(|why| *why != Outside::None)
    }

    /// What the agent may, and everyone it acts for.
    fn judge_as_all(&self, input: &Input<'_>) -> Judgement<'_> {
        let mut judgement = self.judge_as(input.agent, input);
        let gathered = input.gathered;
        let needs = LazyCell::new(|| self.needs(input));
        let mut situation = |name: &str, value: Option<String>| {
            let attribute = name
                .split_once('.')
                .map_or(name, |(attribute, _)| attribute);
            if let Some(value) = value.filter(|_| needs.has(attribute)) {
                judgement.facts.insert(name.into(), bounded(&value));
            }
        };
        situation(
            "time",
            gathered.time.as_ref().map(|moment| moment.text.clone()),
        );
        situation(
            "network.trusted",
            gathered.trusted_network.map(|is| is.to_string()),
        );
        let labels = gathered.host_labels.as_ref();
        let labels = labels.map(|labels| labels.iter().cloned().collect::<Vec<_>>().join(", "));
        situation("host.labels", labels);
        let agent = gathered.agent;
        situation("agent.uptime_s", agent.map(|is| is.uptime_s.to_string()));
        situation("agent.attended", agent.map(|is| is.attended.to_string()));
        if let Some(tasks) = &gathered.tasks {
            judgement.facts.extend(tasks.facts());
        }
        let above = self.above(input.agent).iter();
        let above = above.filter_map(|id| Some((*id, self.agents.get(id)?)));
        let above: Vec<_> = above.collect();
        if above.is_empty() {
            return judgement;
        }
        let names: Vec<&str> = above.iter().map(|(_, of)| of.agent.name.as_str()).collect();
        judgement.facts.insert("parents".into(), names.join(", "));
        for (id, of) in &above {
            if judgement.outcome.is_final() {
                return judgement;
            }
            let theirs = self.judge_as(*id, input);
            // What was read is the request's own, and the same for everyone.
            for (name, value) in &theirs.facts {
                let known = judgement.facts.entry(name.clone());
                known.or_insert_with(|| value.clone());
            }
            match &theirs.outcome {
                Outcome::Permitted { charges: more, .. } => judgement.outcome.takes_too(more),
                Outcome::Refused(Refusal::Approval { ids, roles }) => {
                    judgement.outcome.needs_too(ids, roles);
                }
                // As it is told when they are charged.
                Outcome::Refused(refusal @ Refusal::Forbidden(ids)) if self.are_limits(ids) => {
                    judgement.outcome = Outcome::Refused(refusal.clone());
                }
                // What is wrong with the request itself is told as such.
                Outcome::Refused(refusal @ Refusal::Unknown(_)) => {
                    judgement.outcome = Outcome::Refused(refusal.clone());
                }
                Outcome::Refused(refusal) => {
                    let why = why(of, input, &theirs);
                    let by_rules = refusal.is_the_rules();
                    let parent = of.agent.name.clone();
                    let refused = format!("{parent}: {why}");
                    judgement
                        .facts
                        .insert("parent_refused".into(), bounded(&refused));
                    judgement.outcome = Outcome::Refused(Refusal::Delegation {
                        parent,
                        why,
                        by_rules,
                    });
                }
            }
        }
        if let Outcome::Refused(Refusal::Approval { ids, roles }) = &judgement.outcome {
            // Each by itself would be lifted by its own roles: all of them together have to lift all.
            let mut gathered = input.gathered.clone();
            gathered.approvals.extend(roles.iter().cloned());
            let approved = Input {
                gathered: &gathered,
                ..*input
            };
            let everyone = above.iter().map(|(id, _)| *id).chain([input.agent]);
            let permits = |id| {
                matches!(
                    self.judge_as(id, &approved).outcome,
                    Outcome::Permitted { .. }
                )
            };
            if !{ everyone }.all(permits) {
                judgement.outcome = Outcome::Refused(Refusal::Forbidden(ids.clone()));
            }
        }
        judgement
    }
}
