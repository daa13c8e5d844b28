//! Why a request gets the answer it gets: the decision's own way, told policy by policy.

use std::collections::BTreeMap;

use agentguard_common::abi::AgentId;
use agentguard_record::DenyReason;
use cedar_policy::{Effect, PolicySet};
use serde::{Deserialize, Serialize};

use super::compile::CompiledAgent;
pub use super::context::{AskedContext, AskedTask};
use super::diagnostic::nearest;
use super::evaluate::evaluate_one;
use super::judge::{JudgeOutcome, Judgement};
use super::prepare::JudgedReading;
use super::question::ParsedQuestion;
pub use super::question::Question;
use super::reading::Readings;
use super::refusal::PolicyRefusal;
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
    /// One for each request that a server may take it for; one without a path for `connect`.
    pub readings: Vec<ExplainedReading>,
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

/// One request that a server may take it for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedReading {
    pub path: Option<String>,
    /// Method, path and host as they are read, and by what; `None`: as it is written.
    #[serde(default)]
    pub read_as: Option<String>,
    /// Only what forbids counts: lenient servers alone read it so.
    #[serde(default)]
    pub forbids_only: bool,
    /// The refusal comes from this reading.
    #[serde(default)]
    pub decides: bool,
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
        let readings = self.readings(&input);
        let judgement = self.judge(&input, &readings);
        let explained = self.explain_readings(compiled, &input, &readings, &judgement);
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
            readings: explained,
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

    fn explain_readings(
        &self,
        agent: &CompiledAgent,
        input: &Input<'_>,
        readings: &Readings<'_>,
        judgement: &Judgement<'_>,
    ) -> Vec<ExplainedReading> {
        // What cannot be known has no values, and was refused before any policy was looked at.
        let Ok(prepared) = self.prepare(agent, input, readings) else {
            return Vec::new();
        };
        let permits = |id: &str| ApplicablePolicy {
            id: id.to_owned(),
            at: shorthand_place(id),
            verdict: RuleEffect::Permits,
            error: None,
        };
        let refused = matches!(judgement.outcome, JudgeOutcome::Refused(_));
        let judged = prepared.iter().flat_map(|one| one.judged(input));
        let explained = judged.map(|reading| {
            let by_entries = reading.shorthand.iter().map(|id| permits(id));
            let read_as = reading.read_as(readings);
            ExplainedReading {
                path: reading.facts.path.map(str::to_owned),
                forbids_only: reading.lenient.is_some(),
                decides: refused && read_as == judgement.read_as,
                read_as,
                policies: by_entries.chain(self.rules_met(agent, &reading)).collect(),
            }
        });
        explained.collect()
    }

    fn rules_met(
        &self,
        agent: &CompiledAgent,
        reading: &JudgedReading<'_>,
    ) -> Vec<ApplicablePolicy> {
        let rules = reading.of.at.slice.rules.iter();
        let met = rules.filter_map(|index| {
            let rule = &self.rules[*index];
            let policy = match reading.lenient {
                Some(_) => rule.lenient.clone()?,
                None => rule.policy.clone(),
            };
            let alone = PolicySet::from_policies([policy]).expect("one static policy is a set");
            let (verdict, error) = match evaluate_one(agent, &alone, reading) {
                Ok(false) => (RuleEffect::Silent, None),
                Ok(true) if rule.effect == Effect::Permit => (RuleEffect::Permits, None),
                Ok(true) => (RuleEffect::Forbids, None),
                Err(error) => (RuleEffect::Failed, Some(error)),
            };
            Some(ApplicablePolicy {
                id: rule.id.clone(),
                at: rule.at.clone(),
                verdict,
                error,
            })
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
    let why = why_of_rules(agent, input, judgement);
    match &judgement.read_as {
        Some(read_as) => format!("{why}, read as {read_as}"),
        None => why,
    }
}

fn why_of_rules(agent: &CompiledAgent, input: &Input<'_>, judgement: &Judgement<'_>) -> String {
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
