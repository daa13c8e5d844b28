//! What one agent may by itself: all readings of what it asks, by the shorthand and the rules that can apply.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use agentguard_common::abi::AgentId;
use agentguard_record::secret::without_tokens;
use cedar_policy::Entities;

use super::compile::{CompiledAgent, ReachEntry};
use super::context::AttributeName;
use super::evaluate::evaluate;
use super::facts::{SENT_PATH, Values, bounded};
use super::limit::Charge;
use super::prepare::{DecidedAt, JudgedReading, PreparedReading, RefusedReading};
use super::reading::{Reading, Readings};
use super::refusal::PolicyRefusal;
use super::slice::Class;
use super::task::outside;
use super::{Action, Input, Policy, entity};

/// What was found on the way to a decision.
pub(super) struct Judgement<'p> {
    pub agent: Option<&'p CompiledAgent>,
    pub class: Option<&'p Class>,
    pub facts: BTreeMap<String, String>,
    /// What the request does, as `context.scope` has it.
    pub does: BTreeSet<&'static str>,
    /// The reading by which it is refused, if that is not the request as it is written.
    pub read_as: Option<String>,
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

impl Policy {
    /// What the agent by itself may, on the tasks that it is held to.
    pub(super) fn judge_on_its_tasks(
        &self,
        agent: AgentId,
        input: &Input<'_>,
        readings: &Readings<'_>,
    ) -> Judgement<'_> {
        let mut judgement = self.judge_by_its_rules(agent, input, readings);
        if let Some(of) = judgement.agent
            && !judgement.outcome.is_final()
            && let Some(why) = outside(agent, of, input, readings, &judgement.does)
        {
            judgement.read_as = None;
            judgement.outcome = JudgeOutcome::Refused(PolicyRefusal::Outside(why));
        }
        judgement
    }

    /// What the agent by itself may, on whichever task.
    fn judge_by_its_rules(
        &self,
        agent: AgentId,
        input: &Input<'_>,
        readings: &Readings<'_>,
    ) -> Judgement<'_> {
        let mut judgement = Judgement {
            agent: self.agents.get(&agent),
            class: None,
            facts: BTreeMap::new(),
            does: BTreeSet::new(),
            read_as: None,
            outcome: JudgeOutcome::Refused(PolicyRefusal::UnknownAgent),
        };
        let facts = &mut judgement.facts;
        if let Action::Request { method, path, .. } = &input.action {
            facts.insert("method".into(), bounded(method));
            let shown = self.shown(input, None).path;
            facts.insert("path".into(), bounded(&shown));
            let written = path.written().map(without_tokens);
            if let (Some(Cow::Borrowed(written)), Cow::Borrowed(_)) = (written, &shown) {
                facts.insert(SENT_PATH.into(), bounded(written));
            }
        }
        for (name, value) in &readings.facts {
            facts.insert(name.clone(), bounded(value));
        }
        let Some(agent) = judgement.agent else {
            return judgement;
        };
        judgement.class = agent.classes.lookup(input.host, input.port);
        let judged = self.prepare(agent, input, readings).and_then(|prepared| {
            self.judge_every_reading(agent, input, readings, &prepared, &mut judgement)
        });
        judgement.outcome = judged.unwrap_or_else(|refused| {
            let failed = |refusal: &PolicyRefusal| matches!(refusal, PolicyRefusal::Unknown(_));
            let mut lookups = input
                .context
                .lookups
                .iter()
                .filter(|_| failed(&refused.refusal));
            if let Some(failed) = lookups.find_map(|(_, answer)| answer.as_ref().err()) {
                let detail = bounded(failed.detail());
                judgement.facts.insert("lookup_failed".into(), detail);
            }
            if let Some(read_as) = self.shown(input, refused.read_as.as_deref()).read_as {
                judgement.facts.insert("read_as".into(), bounded(read_as));
            }
            judgement.read_as = refused.read_as;
            JudgeOutcome::Refused(refused.refusal)
        });
        judgement
    }

    /// What the agent may of an act, whichever of its readings it is.
    fn judge_every_reading(
        &self,
        agent: &CompiledAgent,
        input: &Input<'_>,
        readings: &Readings<'_>,
        prepared: &[PreparedReading<'_>],
        found: &mut Judgement<'_>,
    ) -> Result<JudgeOutcome, RefusedReading> {
        // What the request itself has counts in the record.
        for one in prepared.iter().rev() {
            one.values.record(&mut found.facts);
        }
        let scopes = prepared.iter().flat_map(|one| &one.scope);
        found.does = scopes.copied().collect();
        let mut slices = prepared.iter().map(|one| one.at.slice);
        let by_rules = slices.any(|slice| slice.reads.has(AttributeName::Scope));
        if by_rules || input.context.narrows_by_scope() {
            let scopes: Vec<_> = found.does.iter().copied().collect();
            found.facts.insert("scope".into(), scopes.join(", "));
        }
        let judged = prepared.iter().flat_map(|one| one.judged(input));
        self.judge_with_approvals(agent, input, readings, judged.collect())
    }

    /// The policies' answer to all readings together, and whether people could change it.
    fn judge_with_approvals(
        &self,
        agent: &CompiledAgent,
        input: &Input<'_>,
        readings: &Readings<'_>,
        judged: Vec<JudgedReading<'_>>,
    ) -> Result<JudgeOutcome, RefusedReading> {
        let (ids, read_as) = match self.permits_of_all(agent, readings, &judged) {
            Ok(ids) => {
                let charges = self.charges(agent, input, &judged);
                let charges = charges.map_err(|refusal| RefusedReading {
                    refusal,
                    read_as: None,
                })?;
                return Ok(JudgeOutcome::Permitted { ids, charges });
            }
            Err(RefusedReading {
                refusal: PolicyRefusal::Forbidden(ids),
                read_as,
            }) => (ids, read_as),
            Err(refused) => return Err(refused),
        };
        let roles = ids.iter().map(|id| self.approver(id));
        let Some(roles) = roles.collect::<Option<BTreeSet<&str>>>() else {
            return Err(RefusedReading {
                refusal: PolicyRefusal::Forbidden(ids),
                read_as,
            });
        };
        let roles: BTreeSet<String> = roles.into_iter().map(str::to_owned).collect();
        let held = roles.union(input.context.approved_by()).cloned().collect();
        let approved: Vec<_> = judged.into_iter().map(|one| one.approved(&held)).collect();
        let would = self.permits_of_all(agent, readings, &approved);
        let refusal = match would {
            Ok(_) => PolicyRefusal::Approval { ids, roles },
            Err(_) => PolicyRefusal::Forbidden(ids),
        };
        Err(RefusedReading { refusal, read_as })
    }

    /// The permits of all readings. Of forbids, those of every reading, unless nobody can lift one.
    fn permits_of_all(
        &self,
        agent: &CompiledAgent,
        readings: &Readings<'_>,
        judged: &[JudgedReading<'_>],
    ) -> Result<BTreeSet<String>, RefusedReading> {
        let (mut all, mut forbids) = (BTreeSet::new(), BTreeSet::new());
        let mut by: Option<&JudgedReading<'_>> = None;
        for one in judged {
            let refused = |refusal| RefusedReading {
                refusal,
                read_as: one.read_as(readings),
            };
            match evaluate(agent, one, &one.facts) {
                Ok(_) if one.lenient.is_some() => {}
                Ok(permits) if permits.is_empty() && one.shorthand.is_empty() => {
                    return Err(refused(PolicyRefusal::NotPermitted));
                }
                Ok(permits) => {
                    all.extend(permits);
                    all.extend(one.shorthand.iter().map(|id| (*id).to_owned()));
                }
                Err(PolicyRefusal::Forbidden(ids))
                    if ids.iter().all(|id| self.approver(id).is_some()) =>
                {
                    by.get_or_insert(one);
                    forbids.extend(ids);
                }
                Err(refusal) => return Err(refused(refusal)),
            }
        }
        match by {
            None => Ok(all),
            Some(by) => Err(RefusedReading {
                refusal: PolicyRefusal::Forbidden(forbids),
                read_as: by.read_as(readings),
            }),
        }
    }

    /// The role that can lift a rule.
    fn approver(&self, id: &str) -> Option<&str> {
        self.rules[*self.by_id.get(id)?].approve.as_deref()
    }

    /// The slice's entities with what only the request knows; `None` if the slice's own are all there is.
    pub(super) fn request_entities(
        &self,
        at: &DecidedAt<'_>,
        reading: &Reading<'_>,
        values: &Values,
    ) -> Option<Entities> {
        let DecidedAt {
            class,
            slice,
            method,
            ..
        } = at;
        if slice.rules.is_empty() {
            return None;
        }
        let mut added = Vec::new();
        if !slice.has_host {
            added.push(if slice.reads.host {
                let host = super::host::HostPattern {
                    name: reading.host.clone().into_owned(),
                    below: false,
                    port: reading.port,
                };
                entity::host(&host, &self.facts, &class.above)
            } else {
                entity::bare_host(&reading.host.id(reading.port), &class.above)
            });
        }
        let is_request = reading.path.is_some();
        if is_request && !slice.reads.query.is_empty() {
            added.push(entity::tags(entity::query_uid(), &values.query));
        }
        if is_request && !slice.reads.headers.is_empty() {
            added.push(entity::tags(entity::headers_uid(), &values.headers));
        }
        if added.is_empty() {
            return None;
        }
        if is_request && slice.in_group {
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
