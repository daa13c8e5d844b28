//! The decision: default deny, forbid overrides, and whatever cannot be evaluated is refused.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::Entities;

use super::compile::{CompiledAgent, Entry};
use super::evaluate::{Asked, evaluate};
use super::facts::{Values, bounded};
use super::permit::Permit;
use super::refusal::{Refusal, detail};
use super::slice::{Class, Slice};
use super::{Action, Decision, Denial, HostName, Input, Policy, TlsMode, entity, schema};

/// What was found on the way to a decision.
pub(super) struct Judgement<'p> {
    pub agent: Option<&'p CompiledAgent>,
    pub class: Option<&'p Class>,
    /// `None` where the way ended before any policy was looked at.
    pub slice: Option<&'p Slice>,
    pub facts: BTreeMap<String, String>,
    pub outcome: Outcome,
}

pub(super) enum Outcome {
    /// Ids of the policies that permitted.
    Permitted(BTreeSet<String>),
    Refused(Refusal),
}

impl Policy {
    pub fn decide(&self, input: &Input<'_>) -> Decision {
        let judgement = self.judge(input);
        match judgement.outcome {
            Outcome::Permitted(policies) => Decision::Permit(Permit::new(
                input.agent,
                input.host.clone(),
                input.port,
                policies.into_iter().collect(),
                judgement.facts,
            )),
            Outcome::Refused(refusal) => Decision::Deny(Denial {
                reason: refusal.reason(),
                detail: detail(judgement.agent, input, &refusal),
                policies: refusal.policies(),
                facts: judgement.facts,
            }),
        }
    }

    /// The one way to every decision and explanation.
    pub(super) fn judge(&self, input: &Input<'_>) -> Judgement<'_> {
        let mut judgement = Judgement {
            agent: self.agents.get(&input.agent),
            class: None,
            slice: None,
            facts: BTreeMap::new(),
            outcome: Outcome::Refused(Refusal::UnknownAgent),
        };
        if let Action::Request { method, path, .. } = &input.action {
            judgement.facts.insert("method".into(), bounded(method));
            judgement
                .facts
                .insert("path".into(), bounded(path.as_str()));
        }
        let Some(agent) = judgement.agent else {
            return judgement;
        };
        let Some(class) = agent.classes.lookup(input.host, input.port) else {
            judgement.outcome = Outcome::Refused(Refusal::NoReach);
            return judgement;
        };
        let entry = &agent.reach[class.entry];
        judgement.class = Some(class);
        judgement.outcome = match (&input.action, entry.tls) {
            (Action::Connect, TlsMode::Passthrough) => {
                let slice = class.slice(schema::CONNECT);
                judgement.slice = Some(slice);
                self.judge_connect(agent, class, entry, slice, input)
            }
            (Action::Request { method, .. }, TlsMode::Terminate) => match schema::method(method) {
                Some(method) => {
                    let slice = class.slice(method);
                    judgement.slice = Some(slice);
                    self.judge_request(
                        agent,
                        class,
                        entry,
                        slice,
                        input,
                        method,
                        &mut judgement.facts,
                    )
                }
                None => Outcome::Refused(Refusal::UnknownMethod),
            },
            _ => Outcome::Refused(Refusal::WrongMode),
        };
        judgement
    }

    fn judge_connect(
        &self,
        agent: &CompiledAgent,
        class: &Class,
        entry: &Entry,
        slice: &Slice,
        input: &Input<'_>,
    ) -> Outcome {
        let asked = Asked {
            action: schema::CONNECT,
            scheme: "",
            path: None,
        };
        let mut permits: BTreeSet<String> = entry.connect.iter().cloned().collect();
        let entities = self.request_entities(class, slice, input.host, input.port, None);
        if let Err(refusal) = evaluate(agent, slice, input, &asked, entities.as_ref(), &mut permits)
        {
            return Outcome::Refused(refusal);
        }
        permitted(permits)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "each is a stage's result that the next one needs"
    )]
    fn judge_request(
        &self,
        agent: &CompiledAgent,
        class: &Class,
        entry: &Entry,
        slice: &Slice,
        input: &Input<'_>,
        method: &'static str,
        facts: &mut BTreeMap<String, String>,
    ) -> Outcome {
        let Action::Request {
            scheme,
            path,
            query,
            headers,
            ..
        } = &input.action
        else {
            return Outcome::Refused(Refusal::WrongMode);
        };
        let values = match Values::read(&slice.reads, *query, headers) {
            Ok(values) => values,
            Err(why) => return Outcome::Refused(Refusal::Ambiguous(why)),
        };
        values.record(facts);
        let entities = self.request_entities(class, slice, input.host, input.port, Some(&values));
        let mut all = BTreeSet::new();
        for reading in path.readings() {
            let mut permits: BTreeSet<String> = shorthand(entry, method, reading)
                .map(str::to_owned)
                .collect();
            let asked = Asked {
                action: method,
                scheme,
                path: Some(reading),
            };
            if let Err(refusal) =
                evaluate(agent, slice, input, &asked, entities.as_ref(), &mut permits)
            {
                return Outcome::Refused(refusal);
            }
            if permits.is_empty() {
                return Outcome::Refused(Refusal::NotPermitted);
            }
            all.extend(permits);
        }
        permitted(all)
    }

    /// The slice's entities with what only the request knows; `None` if the slice's own are all there is.
    pub(super) fn request_entities(
        &self,
        class: &Class,
        slice: &Slice,
        host: &HostName,
        port: u16,
        values: Option<&Values>,
    ) -> Option<Entities> {
        if slice.rules.is_empty() {
            return None;
        }
        let mut added = Vec::new();
        if !slice.has_host {
            added.push(if slice.reads.host {
                let host = super::host::HostPattern {
                    name: host.clone(),
                    below: false,
                    port,
                };
                entity::host(&host, &self.facts, &class.above)
            } else {
                entity::bare_host(&host.id(port), &class.above)
            });
        }
        if let Some(values) = values {
            if !slice.reads.query.is_empty() {
                added.push(entity::tags(entity::query_uid(), &values.query));
            }
            if !slice.reads.headers.is_empty() {
                added.push(entity::tags(entity::headers_uid(), &values.headers));
            }
        }
        if added.is_empty() {
            return None;
        }
        let entities = slice.entities.clone().add_entities(added, None);
        Some(entities.expect("the slice has no entity that a request brings"))
    }
}

/// Ids of the shorthand entries that permit the method and path.
pub(super) fn shorthand<'p>(
    entry: &'p Entry,
    method: &str,
    path: &str,
) -> impl Iterator<Item = &'p str> {
    entry
        .shorthand
        .matching(path)
        .into_iter()
        .filter(move |(_, allow)| allow.method.is_none_or(|only| only == method))
        .map(|(_, allow)| allow.id.as_str())
}

fn permitted(permits: BTreeSet<String>) -> Outcome {
    if permits.is_empty() {
        Outcome::Refused(Refusal::NotPermitted)
    } else {
        Outcome::Permitted(permits)
    }
}
