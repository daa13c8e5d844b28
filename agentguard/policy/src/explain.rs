//! Why a request gets the answer it gets: the decision's own way, told policy by policy.

use std::collections::BTreeMap;

use agentguard_common::abi::AgentId;
use agentguard_record::DenyReason;
use cedar_policy::{Effect, PolicySet};
use serde::{Deserialize, Serialize};

use super::compile::CompiledAgent;
use super::context::ActFacts;
pub use super::context::{AskedContext, AskedTask};
use super::diagnostic::nearest;
use super::evaluate::evaluate_one;
use super::facts::Values;
use super::judge::{JudgeOutcome, Judgement, shorthand, values};
use super::question::ParsedQuestion;
pub use super::question::Question;
use super::refusal::PolicyRefusal;
use super::slice::{Class, Slice};
use super::{Action, Input, Policy, TlsMode};

/// The answer to a [`Question`], and how it came about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    pub agent: String,
    pub action: String,
    /// The host's id.
    pub resource: String,
    pub permitted: bool,
    /// Refused by its rules, and let through all the same: the agent is only observed.
    #[serde(default)]
    pub observed: bool,
    /// The slug that an agent would be told.
    pub reason: Option<DenyReason>,
    /// For the people who write policies.
    pub why: String,
    /// The reach entry that counts.
    pub reach: Option<ReachedHost>,
    /// One for each path that a server may read in the request; one without a path for `connect`.
    pub readings: Vec<ExplainedPath>,
    /// What rules read.
    pub facts: BTreeMap<String, String>,
    /// Roles of the people who could lift the refusal.
    #[serde(default)]
    pub approval: Vec<String>,
    /// What other services would be asked.
    #[serde(default)]
    pub lookups: Vec<String>,
    /// What it takes of which limits, whether or not they have room: `1 of 20/minute`, by the rule's id.
    #[serde(default)]
    pub limits: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReachedHost {
    pub host: String,
    /// Whether bytes are passed as they are.
    pub passthrough: bool,
    /// `file:line`.
    pub at: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedPath {
    pub path: Option<String>,
    /// Every policy that can apply to the agent, host and action.
    pub policies: Vec<ApplicablePolicy>,
}

/// A policy that can apply, and whether it did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplicablePolicy {
    pub id: String,
    /// `file:line`.
    pub at: String,
    pub verdict: RuleEffect,
    /// Why it could not be evaluated.
    pub error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleEffect {
    Forbids,
    Failed,
    Permits,
    /// Its conditions do not hold.
    Silent,
}

impl Policy {
    /// # Errors
    /// What in the question is no agent, host, path or header.
    pub fn explain(&self, question: &Question) -> Result<Explanation, String> {
        let (agent, compiled) = self.agent_named(&question.agent)?;
        let mut parsed = ParsedQuestion::new(question, self.calendar.as_ref())?;
        let lookups = parsed.gather(self, agent);
        let input = parsed.input(agent);
        let judgement = self.judge(&input);
        let readings = match (judgement.class, judgement.slice) {
            (Some(class), Some(slice)) => self.readings(compiled, class, slice, &input),
            _ => Vec::new(),
        };
        let reach = judgement.class.map(|class| {
            let entry = &compiled.reach[class.entry];
            ReachedHost {
                host: entry.host.id(),
                passthrough: entry.tls == TlsMode::Passthrough,
                at: entry.at.clone(),
            }
        });
        let charges = match &judgement.outcome {
            JudgeOutcome::Permitted { charges, .. } => &charges[..],
            JudgeOutcome::Refused(_) => &[],
        };
        let limits = charges.iter().map(|charge| {
            let rule = charge.counter.rule.clone();
            (rule, charge.used(charge.amount))
        });
        let limits = limits.collect();
        let (reason, approval) = match &judgement.outcome {
            JudgeOutcome::Permitted { .. } => (None, Vec::new()),
            JudgeOutcome::Refused(refusal) => (Some(self.reason(refusal)), refusal.approval()),
        };
        Ok(Explanation {
            agent: question.agent.clone(),
            action: question.method.clone(),
            resource: input.host.id(input.port),
            permitted: reason.is_none(),
            observed: judgement.is_observed(),
            reason,
            approval,
            limits,
            why: why(compiled, &input, &judgement),
            reach,
            readings,
            facts: judgement.facts,
            lookups,
        })
    }

    pub(super) fn agent_named(&self, name: &str) -> Result<(AgentId, &CompiledAgent), String> {
        let found = self
            .agents
            .iter()
            .find(|(_, agent)| agent.agent.name == name);
        found.map(|(id, agent)| (*id, agent)).ok_or_else(|| {
            let near = nearest(name, self.agents().map(|agent| agent.name.as_str()));
            let near = near.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
            format!(
                "the bundle has no agent `{}`{near}",
                super::host::show(name)
            )
        })
    }

    fn readings(
        &self,
        agent: &CompiledAgent,
        class: &Class,
        slice: &Slice,
        input: &Input<'_>,
    ) -> Vec<ExplainedPath> {
        let entry = &agent.reach[class.entry];
        let permits = |id: &str| ApplicablePolicy {
            id: id.to_owned(),
            at: shorthand_place(id),
            verdict: RuleEffect::Permits,
            error: None,
        };
        let limits = self.with_room(slice, input);
        let Action::Request {
            method,
            scheme,
            path,
            ..
        } = &input.action
        else {
            let facts = ActFacts::connection(slice, input.context, &limits);
            let mut policies: Vec<_> = entry.connect.iter().map(|id| permits(id)).collect();
            policies.extend(self.rules_met(agent, class, slice, input, &facts, None));
            return vec![ExplainedPath {
                path: None,
                policies,
            }];
        };
        // What cannot be known has no values, and was refused before any policy was looked at.
        let Ok(values) = values(class, slice, input) else {
            return Vec::new();
        };
        let reading = |path: &str| {
            let facts = ActFacts {
                action: method,
                scheme,
                path: Some(path),
                slice,
                body: &values.body,
                lookup: &values.lookup,
                scope: class.requests.scope(method, path, &values.body),
                approvals: input.context.approved_by(),
                limits: &limits,
                context: input.context,
            };
            let mut policies: Vec<_> = shorthand(entry, method, path).map(permits).collect();
            policies.extend(self.rules_met(
                agent,
                class,
                slice,
                input,
                &facts,
                Some((*method, &values)),
            ));
            ExplainedPath {
                path: Some(path.to_owned()),
                policies,
            }
        };
        path.readings().map(reading).collect()
    }

    fn rules_met(
        &self,
        agent: &CompiledAgent,
        class: &Class,
        slice: &Slice,
        input: &Input<'_>,
        facts: &ActFacts<'_>,
        values: Option<(&str, &Values)>,
    ) -> Vec<ApplicablePolicy> {
        let entities = self.request_entities(class, slice, input, values);
        let entities = entities.as_ref().unwrap_or(&slice.entities);
        let met = slice.rules.iter().map(|index| {
            let rule = &self.rules[*index];
            let alone = PolicySet::from_policies([rule.policy.clone()])
                .expect("one static policy is a set");
            let (verdict, error) = match evaluate_one(agent, &alone, input, facts, entities) {
                Ok(false) => (RuleEffect::Silent, None),
                Ok(true) if rule.effect == Effect::Permit => (RuleEffect::Permits, None),
                Ok(true) => (RuleEffect::Forbids, None),
                Err(error) => (RuleEffect::Failed, Some(error)),
            };
            ApplicablePolicy {
                id: rule.id.clone(),
                at: rule.at.clone(),
                verdict,
                error,
            }
        });
        met.collect()
    }
}

/// `file:line` of a shorthand entry's id, `agent/file:line:column`.
fn shorthand_place(id: &str) -> String {
    let place = id.split_once('/').map_or(id, |(_, place)| place);
    place
        .rsplit_once(':')
        .map_or(place, |(place, _)| place)
        .to_owned()
}

pub(super) fn why(agent: &CompiledAgent, input: &Input<'_>, judgement: &Judgement<'_>) -> String {
    let listed = |ids: &mut dyn Iterator<Item = &String>| {
        ids.map(|id| format!("`{id}`"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let refusal = match &judgement.outcome {
        JudgeOutcome::Permitted { ids, .. } => {
            return format!("permitted by {}", listed(&mut ids.iter()));
        }
        JudgeOutcome::Refused(refusal) => refusal,
    };
    match refusal {
        PolicyRefusal::UnknownAgent => "the bundle does not have the agent".to_owned(),
        PolicyRefusal::NoReach => {
            let id = input.host.id(input.port);
            let ids: Vec<_> = agent.reach.iter().map(|entry| entry.host.id()).collect();
            let same_name = agent.reach.iter().find(|entry| entry.host.name == *input.host).map(|entry| entry.host.id());
            let near = same_name.or_else(|| nearest(&id, ids.iter().map(String::as_str)).map(str::to_owned));
            let near = near.map_or(String::new(), |near| format!("; the nearest is `{near}`"));
            format!("no [[reach]] of the agent covers `{id}`{near}")
        }
        PolicyRefusal::WrongMode if matches!(input.action, Action::Connect) => {
            "the [[reach]] terminates TLS, so requests are decided there and not `connect`".to_owned()
        }
        PolicyRefusal::WrongMode => "the [[reach]] says `tls = \"passthrough\"`, so no request is seen there; only `connect` is decided".to_owned(),
        PolicyRefusal::UnknownMethod => "the method is none that policies know".to_owned(),
        PolicyRefusal::Unknown(fault) => fault.why.clone(),
        PolicyRefusal::Approval { ids, roles } => format!(
            "forbidden by {} until {} approved it",
            listed(&mut ids.iter()),
            super::refusal::listed(roles)
        ),
        PolicyRefusal::NoAmount { id, why } => format!("`{id}` counts it, and {why}"),
        PolicyRefusal::NotPermitted => "no policy permits it".to_owned(),
        PolicyRefusal::Forbidden(ids) => format!("forbidden by {}", listed(&mut ids.iter())),
        PolicyRefusal::Delegation { parent, why, .. } => format!("its parent `{parent}` may not: {why}"),
        PolicyRefusal::Outside(outside) => format!("policy permits it, but {outside}"),
        PolicyRefusal::Failed(errors) => format!("cannot be evaluated: {}", listed(&mut errors.keys())),
    }
}
