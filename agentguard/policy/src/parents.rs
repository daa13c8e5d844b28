//! What an agent and everyone it acts for may: the agent's own judgement, and that of each one above it.

use std::cell::LazyCell;
use std::collections::BTreeSet;

use agentguard_common::abi::AgentId;

use super::compile::CompiledAgent;
use super::context::{Approvals, Context};
use super::explain::why;
use super::facts::bounded;
use super::judge::{JudgeOutcome, Judgement};
use super::reading::Readings;
use super::refusal::PolicyRefusal;
use super::{Input, Policy};

impl Policy {
    /// What the agent may, and everyone it acts for.
    pub(super) fn judge_with_parents(
        &self,
        input: &Input<'_>,
        readings: &Readings<'_>,
    ) -> Judgement<'_> {
        let mut judgement = self.judge_on_its_tasks(input.agent, input, readings);
        let needs = LazyCell::new(|| self.needs(input));
        let read = |name| needs.has(name);
        input.context.facts(read, &mut judgement.facts);
        let above: Vec<_> = self
            .above(input.agent)
            .iter()
            .filter_map(|id| Some((*id, self.agents.get(id)?)))
            .collect();
        if above.is_empty() {
            return judgement;
        }
        let names: Vec<&str> = above.iter().map(|(_, of)| of.agent.name.as_str()).collect();
        judgement.facts.insert("parents".into(), names.join(", "));
        for (id, parent) in &above {
            if judgement.outcome.is_final() {
                return judgement;
            }
            let theirs = self.judge_on_its_tasks(*id, input, readings);
            self.take_in(&mut judgement, parent, input, &theirs);
        }
        if let JudgeOutcome::Refused(PolicyRefusal::Approval { ids, roles }) = &judgement.outcome
            && !self.is_lifted_by(roles, above.iter().map(|(id, _)| *id), input, readings)
        {
            judgement.outcome = JudgeOutcome::Refused(PolicyRefusal::Forbidden(ids.clone()));
        }
        judgement
    }

    /// Takes the judgement of one whom the agent acts for into the agent's own, which is not final.
    fn take_in(
        &self,
        judgement: &mut Judgement<'_>,
        parent: &CompiledAgent,
        input: &Input<'_>,
        theirs: &Judgement<'_>,
    ) {
        // What was read is the request's own, and the same for everyone.
        for (name, value) in &theirs.facts {
            let known = judgement.facts.entry(name.clone());
            known.or_insert_with(|| value.clone());
        }
        match &theirs.outcome {
            JudgeOutcome::Permitted { .. } => {}
            JudgeOutcome::Refused(PolicyRefusal::Approval { .. })
                if judgement.read_as.is_some() => {}
            JudgeOutcome::Refused(_) => judgement.read_as.clone_from(&theirs.read_as),
        }
        match &theirs.outcome {
            JudgeOutcome::Permitted { charges: more, .. } => judgement.outcome.takes_too(more),
            JudgeOutcome::Refused(PolicyRefusal::Approval { ids, roles }) => {
                judgement.outcome.needs_too(ids, roles);
            }
            // A limit is told as it is when it is charged.
            JudgeOutcome::Refused(refusal @ PolicyRefusal::Forbidden(ids))
                if self.are_limits(ids) =>
            {
                judgement.outcome = JudgeOutcome::Refused(refusal.clone());
            }
            // What is wrong with the request itself is told as such.
            JudgeOutcome::Refused(refusal @ PolicyRefusal::Unknown(_)) => {
                judgement.outcome = JudgeOutcome::Refused(refusal.clone());
            }
            JudgeOutcome::Refused(refusal) => {
                let why = why(parent, input, theirs);
                let by_rules = refusal.is_the_rules();
                let parent = parent.agent.name.clone();
                let refused = format!("{parent}: {why}");
                judgement
                    .facts
                    .insert("parent_refused".into(), bounded(&refused));
                judgement.outcome = JudgeOutcome::Refused(PolicyRefusal::Delegation {
                    parent,
                    why,
                    by_rules,
                });
            }
        }
    }

    /// Whether the roles lift every forbid: each by itself would be lifted by its own roles, and all of them together have to
    /// lift all.
    fn is_lifted_by(
        &self,
        roles: &BTreeSet<String>,
        above: impl Iterator<Item = AgentId>,
        input: &Input<'_>,
        readings: &Readings<'_>,
    ) -> bool {
        let given = input.context.approved_by();
        let context = Context {
            approvals: Some(Approvals {
                roles: given.union(roles).cloned().collect(),
            }),
            ..input.context.clone()
        };
        let approved = Input {
            context: &context,
            ..*input
        };
        let permits = |id| {
            let outcome = self.judge_on_its_tasks(id, &approved, readings).outcome;
            matches!(outcome, JudgeOutcome::Permitted { .. })
        };
        above.chain([input.agent]).all(permits)
    }
}
