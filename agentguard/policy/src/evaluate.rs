//! Cedar's part of a decision: one reading of an act against the rules of a slice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use cedar_policy::{
    AuthorizationError, Authorizer, Decision as Answer, PolicySet, Request, Response,
};

use super::compile::CompiledAgent;
use super::context::{self, ActFacts};
use super::entity;
use super::prepare::JudgedReading;
use super::refusal::PolicyRefusal;

static AUTHORIZER: LazyLock<Authorizer> = LazyLock::new(Authorizer::new);

/// Evaluates the rules that are asked about the reading, and answers with the ids of those that permit. `facts`: what they
/// read of it.
pub(super) fn evaluate(
    agent: &CompiledAgent,
    reading: &JudgedReading<'_>,
    facts: &ActFacts<'_>,
) -> Result<Vec<String>, PolicyRefusal> {
    let set = reading.set();
    if set.is_empty() {
        return Ok(Vec::new());
    }
    let answer = ask_cedar(agent, set, reading, facts);
    let failed: BTreeMap<_, _> = answer.diagnostics().errors().map(failure).collect();
    let decided = answer
        .diagnostics()
        .reason()
        .map(|id| AsRef::<str>::as_ref(id).to_owned());
    match answer.decision() {
        // Cedar alone would skip a forbid that cannot be evaluated.
        _ if !failed.is_empty() => Err(PolicyRefusal::Failed(failed)),
        Answer::Allow => Ok(decided.collect()),
        Answer::Deny => {
            let forbids: BTreeSet<_> = decided.collect();
            if forbids.is_empty() {
                Ok(Vec::new())
            } else {
                Err(PolicyRefusal::Forbidden(forbids))
            }
        }
    }
}

/// Whether the conditions of a policy that is asked about the reading hold, which is in `alone`; `Err`: why that cannot be
/// told.
pub(super) fn evaluate_one(
    agent: &CompiledAgent,
    alone: &PolicySet,
    reading: &JudgedReading<'_>,
) -> Result<bool, String> {
    let answer = ask_cedar(agent, alone, reading, &reading.facts);
    let failed = answer.diagnostics().errors().map(failure).next();
    match failed {
        Some((_, why)) => Err(why),
        None => Ok(answer.diagnostics().reason().next().is_some()),
    }
}

fn ask_cedar(
    agent: &CompiledAgent,
    set: &PolicySet,
    reading: &JudgedReading<'_>,
    facts: &ActFacts<'_>,
) -> Response {
    let of = reading.of.reading;
    let request = Request::new(
        agent.uid.clone(),
        entity::action_uid(facts.action),
        entity::host_uid(&of.host.id(of.port)),
        context::cedar(facts, |name| facts.slice.reads.has(name)),
        None,
    )
    .expect("without a schema every request is one");
    AUTHORIZER.is_authorized(&request, set, reading.entities())
}

/// The policy that cannot be evaluated, and Cedar's message.
fn failure(error: &AuthorizationError) -> (String, String) {
    match error {
        AuthorizationError::PolicyEvaluationError(error) => {
            (error.policy_id().to_string(), error.to_string())
        }
    }
}
