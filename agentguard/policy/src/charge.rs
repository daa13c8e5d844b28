//! What a permitted request takes of the limits that its rules set: found by asking what would forbid it if there were
//! no room.

use std::collections::BTreeSet;

use http::HeaderName;
use sha2::{Digest as _, Sha256};

use super::body::{Value, units};
use super::compile::{CompiledAgent, CompiledRule};
use super::context::{ActFacts, AttributeName};
use super::evaluate::evaluate;
use super::facts::Values;
use super::limit::{Charge, Counter, KeySource, Limit, LimitKey, Per};
use super::prepare::JudgedReading;
use super::refusal::PolicyRefusal;
use super::slice::Slice;
use super::{Action, Input, OpenedBy, Policy, TaskSituation};

/// Headers that tell one attempt from the next; `…-` is the beginning of names.
const OF_AN_ATTEMPT: [&str; 15] = [
    "amz-sdk-request",
    "b3",
    "baggage",
    "date",
    "sentry-trace",
    "traceparent",
    "tracestate",
    "x-amzn-trace-id",
    "x-b3-",
    "x-cloud-trace-context",
    "x-correlation-id",
    "x-datadog-",
    "x-request-id",
    "x-retry-",
    "x-stainless-",
];

/// As if nothing had room.
static NONE: BTreeSet<String> = BTreeSet::new();

impl Policy {
    /// Ids of the slice's limits that are taken to have room: whether they have is known when they are charged.
    pub(super) fn with_room(&self, slice: &Slice, input: &Input<'_>) -> BTreeSet<String> {
        let limits = self.limits_of(slice).map(|(rule, _)| rule.id.clone());
        limits
            .filter(|id| !input.context.is_exhausted(id))
            .collect()
    }

    fn limits_of<'p>(
        &'p self,
        slice: &'p Slice,
    ) -> impl Iterator<Item = (&'p CompiledRule, &'p Limit)> {
        let read = slice.reads.has(AttributeName::Limits);
        let rules = slice.rules.iter().filter(move |_| read);
        rules.filter_map(|index| {
            let rule = &self.rules[*index];
            Some((rule, rule.limit.as_ref()?))
        })
    }

    /// Whether every one of the rules is a limit.
    pub(super) fn are_limits(&self, ids: &BTreeSet<String>) -> bool {
        !ids.is_empty() && ids.iter().all(|id| self.limit(id).is_some())
    }

    /// The limits that would forbid a reading if they had no room, and what it takes of each.
    pub(super) fn charges(
        &self,
        agent: &CompiledAgent,
        input: &Input<'_>,
        judged: &[JudgedReading<'_>],
    ) -> Result<Vec<Charge>, PolicyRefusal> {
        let mut charges = Vec::new();
        let mut counted = BTreeSet::new();
        for reading in judged {
            let slice = reading.of.at.slice;
            if self.limits_of(slice).next().is_none() {
                continue;
            }
            let facts = ActFacts {
                limits: &NONE,
                ..reading.facts.clone()
            };
            let without_room = match evaluate(agent, reading, &facts) {
                Ok(_) => continue,
                Err(PolicyRefusal::Forbidden(ids)) => ids,
                Err(refusal) => return Err(refusal),
            };
            for (rule, limit) in self.limits_of(slice) {
                if without_room.contains(&rule.id) && counted.insert(&rule.id) {
                    let values = &reading.of.values;
                    charges.push(self.charge(agent, rule, limit, input, values)?);
                }
            }
        }
        Ok(charges)
    }

    fn charge(
        &self,
        agent: &CompiledAgent,
        rule: &CompiledRule,
        limit: &Limit,
        input: &Input<'_>,
        values: &Values,
    ) -> Result<Charge, PolicyRefusal> {
        let amount = match &limit.of {
            None => 1,
            Some(field) => {
                amount(values.body.get(field)).map_err(|why| PolicyRefusal::NoAmount {
                    id: rule.id.clone(),
                    why: format!("its `{field}` {why}"),
                })?
            }
        };
        let name = agent.agent.name.clone();
        let host = input.host.id(input.port);
        // Tasks of its own an agent could open as often as it likes.
        let task = input.context.tasks.as_ref().and_then(TaskSituation::task);
        let task = task.filter(|task| task.opened_by == OpenedBy::Supervisor);
        let task = task.map(|task| task.id.to_string());
        let zone = self.calendar.as_ref();
        let zone = zone.and_then(|calendar| calendar.zone.iana_name());
        Ok(Charge {
            counter: Counter {
                agent: (limit.per != Per::Rule).then_some(name),
                rule: rule.id.clone(),
                unit: limit.unit(),
                host: (limit.per == Per::Host).then_some(host),
                task: task.filter(|_| limit.per == Per::Task),
            },
            span: limit.span,
            zone: zone.filter(|_| limit.is_budget()).map(str::to_owned),
            text: limit.text.clone(),
            most: limit.most,
            amount,
            key: limit.key.as_ref().and_then(|from| key(from, input, values)),
        })
    }
}

/// In ten-thousandths.
fn amount(value: Option<&Value>) -> Result<u64, &'static str> {
    let units = match value {
        None => return Err("is not there"),
        Some(Value::Decimal(text)) => units(text),
        Some(Value::Long(number)) => number.checked_mul(10_000),
        Some(Value::String(_) | Value::Bool(_) | Value::Strings(_)) => None,
    };
    let units = units.ok_or("is no amount that can be added up")?;
    u64::try_from(units).map_err(|_| "is below 0")
}

/// `None`: it has none, and so is no repetition of another.
fn key(from: &KeySource, input: &Input<'_>, values: &Values) -> Option<LimitKey> {
    let Action::Request {
        method,
        scheme,
        path,
        query,
        headers,
    } = &input.action
    else {
        return None;
    };
    let value = match from {
        KeySource::Header(name) => values.headers.get(name)?.clone(),
        KeySource::Field(name) => values.body.get(name)?.shown(),
    };
    let host = input.host.id(input.port);
    let mut request = Sha256::new();
    for part in [method, scheme, &*host, path.as_str(), query.unwrap_or("")] {
        request.update(part.len().to_be_bytes());
        request.update(part);
    }
    let of_an_attempt = |name: &str| {
        let mut known = OF_AN_ATTEMPT.iter();
        known.any(|known| *known == name || known.ends_with('-') && name.starts_with(known))
    };
    // Whose account it is, for one, may stand in any other.
    let names: BTreeSet<&str> = headers.keys().map(HeaderName::as_str).collect();
    for name in names.into_iter().filter(|name| !of_an_attempt(name)) {
        for value in headers.get_all(name) {
            for part in [name.as_bytes(), value.as_bytes()] {
                request.update(part.len().to_be_bytes());
                request.update(part);
            }
        }
    }
    request.update(input.context.body_sha256?);
    Some(LimitKey {
        value: Sha256::digest(value)[..16].try_into().ok()?,
        request: request.finalize()[..16].try_into().ok()?,
    })
}
