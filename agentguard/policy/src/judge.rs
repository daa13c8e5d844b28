//! What one agent may by itself: all readings of what it asks, by the shorthand and the rules that can apply.

use std::collections::{BTreeMap, BTreeSet};

use agentguard_common::abi::AgentId;
use cedar_policy::Entities;

use super::body::BodyFault;
use super::compile::{CompiledAgent, ReachEntry};
use super::context::{ActFacts, AttributeName};
use super::evaluate::evaluate;
use super::facts::{Values, bounded};
use super::limit::Charge;
use super::refusal::PolicyRefusal;
use super::slice::{Class, Slice};
use super::task::outside;
use super::{Action, Input, Policy, TlsMode, entity, schema};

/// What was found on the way to a decision.
pub(super) struct Judgement<'p> {
    pub agent: Option<&'p CompiledAgent>,
    pub class: Option<&'p Class>,
    /// `None` where the way ended before any policy was looked at.
    pub slice: Option<&'p Slice>,
    pub facts: BTreeMap<String, String>,
    /// What the request does, as `context.scope` has it.
    pub does: BTreeSet<&'static str>,
    pub outcome: JudgeOutcome,
}

impl Judgement<'_> {
    /// Whether it is refused by rules alone and let through, because its agent is only observed.
    pub(super) fn is_observed(&self) -> bool {
        let JudgeOutcome::Refused(refusal) = &self.outcome else {
            return false;
        };
        self.agent.is_some_and(|agent| agent.agent.observe) && refusal.is_the_rules()
    }
}

pub(super) enum JudgeOutcome {
    /// By the policies with these ids, if there is room for the charges.
    Permitted {
        ids: BTreeSet<String>,
        charges: Vec<Charge>,
    },
    Refused(PolicyRefusal),
}

impl JudgeOutcome {
    /// Whether nobody that the agent acts for can change it.
    pub(crate) fn is_final(&self) -> bool {
        !matches!(
            self,
            Self::Permitted { .. } | Self::Refused(PolicyRefusal::Approval { .. })
        )
    }

    /// Of one that is not final: this is charged as well, what is counted in the same place once.
    pub(crate) fn takes_too(&mut self, more: &[Charge]) {
        if let Self::Permitted { charges, .. } = self {
            for charge in more {
                if charges.iter().all(|known| known.counter != charge.counter) {
                    charges.push(charge.clone());
                }
            }
        }
    }

    /// Of one that is not final: these forbids stand against it as well.
    pub(crate) fn needs_too(&mut self, more: &BTreeSet<String>, of: &BTreeSet<String>) {
        let (mut ids, mut roles) = (more.clone(), of.clone());
        if let Self::Refused(PolicyRefusal::Approval { ids: i, roles: r }) = self {
            ids.append(i);
            roles.append(r);
        }
        *self = Self::Refused(PolicyRefusal::Approval { ids, roles });
    }
}

/// One way to read a request, and what the shorthand permits of it.
pub(super) struct PathReading<'a> {
    pub facts: ActFacts<'a>,
    shorthand: Vec<&'a str>,
}

impl<'a> PathReading<'a> {
    fn approved(self, approvals: &'a BTreeSet<String>) -> Self {
        Self {
            facts: ActFacts {
                approvals,
                ..self.facts
            },
            ..self
        }
    }
}

impl Policy {
    /// What the agent by itself may, on the tasks that it is held to.
    pub(super) fn judge_on_its_tasks(&self, agent: AgentId, input: &Input<'_>) -> Judgement<'_> {
        let mut judgement = self.judge_by_its_rules(agent, input);
        if let Some(of) = judgement.agent
            && !judgement.outcome.is_final()
            && let Some(why) = outside(agent, of, input, &judgement.does)
        {
            judgement.outcome = JudgeOutcome::Refused(PolicyRefusal::Outside(why));
        }
        judgement
    }

    /// What the agent by itself may at the host, on whichever task.
    fn judge_by_its_rules(&self, agent: AgentId, input: &Input<'_>) -> Judgement<'_> {
        let mut judgement = Judgement {
            agent: self.agents.get(&agent),
            class: None,
            slice: None,
            facts: BTreeMap::new(),
            does: BTreeSet::new(),
            outcome: JudgeOutcome::Refused(PolicyRefusal::UnknownAgent),
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
            judgement.outcome = JudgeOutcome::Refused(PolicyRefusal::NoReach);
            return judgement;
        };
        let entry = &agent.reach[class.entry];
        judgement.class = Some(class);
        let outcome = match (&input.action, entry.tls) {
            (Action::Connect, TlsMode::Passthrough) => {
                let slice = class.slice(schema::CONNECT);
                judgement.slice = Some(slice);
                let shorthand = entry.connect.iter().map(String::as_str).collect();
                let limits = self.with_room(slice, input);
                let facts = ActFacts::connection(slice, input.context, &limits);
                let entities = self.request_entities(class, slice, input, None);
                let readings = vec![PathReading { facts, shorthand }];
                let values = Values::default();
                self.judge_with_approvals(agent, slice, input, readings, &values, entities.as_ref())
            }
            (Action::Request { method, .. }, TlsMode::Terminate) => match schema::method(method) {
                Some(method) => {
                    let slice = class.slice(method);
                    judgement.slice = Some(slice);
                    self.judge_every_reading(
                        agent,
                        class,
                        entry,
                        slice,
                        input,
                        method,
                        &mut judgement,
                    )
                }
                None => JudgeOutcome::Refused(PolicyRefusal::UnknownMethod),
            },
            (Action::Connect, TlsMode::Terminate)
            | (Action::Request { .. }, TlsMode::Passthrough) => {
                JudgeOutcome::Refused(PolicyRefusal::WrongMode)
            }
        };
        judgement.outcome = outcome;
        judgement
    }

    /// What the agent may of a request that its host's way is for, however its path is read.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a stage's result that the next one needs"
    )]
    fn judge_every_reading(
        &self,
        agent: &CompiledAgent,
        class: &Class,
        entry: &ReachEntry,
        slice: &Slice,
        input: &Input<'_>,
        method: &'static str,
        found: &mut Judgement<'_>,
    ) -> JudgeOutcome {
        let Action::Request { scheme, path, .. } = &input.action else {
            return JudgeOutcome::Refused(PolicyRefusal::WrongMode);
        };
        let values = match values(class, slice, input) {
            Ok(values) => values,
            Err(fault) => {
                let mut failed = input.context.lookups.iter();
                let failed = failed.find_map(|(_, answer)| answer.as_ref().err());
                if let Some(failed) = failed {
                    found
                        .facts
                        .insert("lookup_failed".into(), bounded(failed.detail()));
                }
                return JudgeOutcome::Refused(PolicyRefusal::Unknown(fault));
            }
        };
        values.record(&mut found.facts);
        let entities = self.request_entities(class, slice, input, Some((method, &values)));
        let scoped = slice.reads.has(AttributeName::Scope) || input.context.tasks.is_some();
        let scope = |path: &str| class.requests.scope(method, path, &values.body);
        let limits = self.with_room(slice, input);
        let readings = path.readings().map(|path| PathReading {
            facts: ActFacts {
                action: method,
                scheme,
                path: Some(path),
                slice,
                body: &values.body,
                lookup: &values.lookup,
                scope: if scoped { scope(path) } else { BTreeSet::new() },
                approvals: input.context.approved_by(),
                limits: &limits,
                context: input.context,
            },
            shorthand: shorthand(entry, method, path).collect(),
        });
        let readings: Vec<_> = readings.collect();
        let scopes = readings.iter().flat_map(|reading| &reading.facts.scope);
        found.does = scopes.copied().collect();
        if slice.reads.has(AttributeName::Scope) || input.context.narrows_by_scope() {
            let scopes: Vec<_> = found.does.iter().copied().collect();
            found.facts.insert("scope".into(), scopes.join(", "));
        }
        self.judge_with_approvals(agent, slice, input, readings, &values, entities.as_ref())
    }

    /// The policies' answer to all readings together, and whether people could change it.
    fn judge_with_approvals<'a>(
        &self,
        agent: &CompiledAgent,
        slice: &Slice,
        input: &Input<'_>,
        readings: Vec<PathReading<'a>>,
        values: &Values,
        entities: Option<&Entities>,
    ) -> JudgeOutcome {
        let ids = match self.permits_of_all(agent, input, &readings, entities) {
            Ok(ids) => {
                let charges = self.charges(agent, slice, input, &readings, values, entities);
                return match charges {
                    Ok(charges) => JudgeOutcome::Permitted { ids, charges },
                    Err(refusal) => JudgeOutcome::Refused(refusal),
                };
            }
            Err(PolicyRefusal::Forbidden(ids)) => ids,
            Err(refusal) => return JudgeOutcome::Refused(refusal),
        };
        let roles = ids.iter().map(|id| self.approver(id));
        let Some(roles) = roles.collect::<Option<BTreeSet<&str>>>() else {
            return JudgeOutcome::Refused(PolicyRefusal::Forbidden(ids));
        };
        let roles: BTreeSet<String> = roles.into_iter().map(str::to_owned).collect();
        let held = roles.union(input.context.approved_by()).cloned().collect();
        let approved: Vec<_> = readings
            .into_iter()
            .map(|reading| reading.approved(&held))
            .collect();
        let would = self.permits_of_all(agent, input, &approved, entities);
        JudgeOutcome::Refused(match would {
            Ok(_) => PolicyRefusal::Approval { ids, roles },
            Err(_) => PolicyRefusal::Forbidden(ids),
        })
    }

    /// The permits of all readings. Of forbids, those of every reading, unless nobody can lift one.
    fn permits_of_all(
        &self,
        agent: &CompiledAgent,
        input: &Input<'_>,
        readings: &[PathReading<'_>],
        entities: Option<&Entities>,
    ) -> Result<BTreeSet<String>, PolicyRefusal> {
        let (mut all, mut forbids) = (BTreeSet::new(), BTreeSet::new());
        for reading in readings {
            let shorthand = &reading.shorthand;
            match evaluate(agent, input, &reading.facts, entities) {
                Ok(permits) if permits.is_empty() && shorthand.is_empty() => {
                    return Err(PolicyRefusal::NotPermitted);
                }
                Ok(permits) => {
                    all.extend(permits);
                    all.extend(shorthand.iter().map(|id| (*id).to_owned()));
                }
                Err(PolicyRefusal::Forbidden(ids))
                    if ids.iter().all(|id| self.approver(id).is_some()) =>
                {
                    forbids.extend(ids);
                }
                Err(refusal) => return Err(refusal),
            }
        }
        if forbids.is_empty() {
            Ok(all)
        } else {
            Err(PolicyRefusal::Forbidden(forbids))
        }
    }

    /// The role that can lift a rule.
    fn approver(&self, id: &str) -> Option<&str> {
        self.rules[*self.by_id.get(id)?].approve.as_deref()
    }

    /// The slice's entities with what only the request knows; `None` if the slice's own are all there is.
    pub(super) fn request_entities(
        &self,
        class: &Class,
        slice: &Slice,
        input: &Input<'_>,
        request: Option<(&str, &Values)>,
    ) -> Option<Entities> {
        if slice.rules.is_empty() {
            return None;
        }
        let mut added = Vec::new();
        if !slice.has_host {
            added.push(if slice.reads.host {
                let host = super::host::HostPattern {
                    name: input.host.clone(),
                    below: false,
                    port: input.port,
                };
                entity::host(&host, &self.facts, &class.above)
            } else {
                entity::bare_host(&input.host.id(input.port), &class.above)
            });
        }
        if let Some((_, values)) = request {
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
        if let Some((method, _)) = request.filter(|_| slice.in_group) {
            let method = entity::method(method);
            added.extend(slice.few.get(&method.uid()).is_none().then_some(method));
        }
        let entities = slice.few.clone().add_entities(added, None);
        Some(entities.expect("the slice has no entity that a request brings"))
    }
}

/// Ids of the shorthand entries that permit the method and path.
pub(super) fn shorthand<'p>(
    entry: &'p ReachEntry,
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

/// What the rules of the slice read of a request.
pub(super) fn values(class: &Class, slice: &Slice, input: &Input<'_>) -> Result<Values, BodyFault> {
    let Action::Request {
        method,
        path,
        query,
        headers,
        ..
    } = &input.action
    else {
        return Ok(Values::default());
    };
    let narrowed = input.context.narrows_by_scope();
    let needed = class.requests.needed(&slice.reads, narrowed, method, path);
    let needed = needed.map_err(BodyFault::ambiguous)?;
    Values::read(&slice.reads, *query, headers, &needed, input.context)
}
