//! A request's readings with everything that rules read of them, before any rule is asked.

use std::collections::BTreeSet;

use cedar_policy::{Entities, PolicySet};

use super::body::BodyFault;
use super::compile::{CompiledAgent, ReachEntry};
use super::context::{ActFacts, AttributeName, WrittenPath};
use super::facts::Values;
use super::judge::shorthand;
use super::reading::{PathReading, Reading, Readings, lenient};
use super::refusal::PolicyRefusal;
use super::requests::{RequestAt, needed};
use super::slice::{Class, Slice};
use super::{Action, Input, Policy, TlsMode, schema};

/// Where a reading is decided: by which rules and entries of an agent's file.
#[derive(Clone, Copy)]
pub(super) struct DecidedAt<'a> {
    pub class: &'a Class,
    pub entry: &'a ReachEntry,
    pub slice: &'a Slice,
    pub method: &'static str,
}

/// One that a request stands for, and what is known of it.
pub(super) struct PreparedReading<'a> {
    pub reading: &'a Reading<'a>,
    pub at: DecidedAt<'a>,
    pub values: Values,
    pub scope: BTreeSet<&'static str>,
    entities: Option<Entities>,
    /// Ids of the limits that have room.
    limits: BTreeSet<String>,
    /// How lenient servers compare its path, where a forbid can meet that, and what it does then.
    lenient: Vec<(PathReading, BTreeSet<&'static str>)>,
}

/// What rules are asked about: a reading, or how a lenient server compares its path.
pub(super) struct JudgedReading<'a> {
    pub of: &'a PreparedReading<'a>,
    pub facts: ActFacts<'a>,
    pub lenient: Option<&'a PathReading>,
    /// Ids of the entries that permit it.
    pub shorthand: Vec<&'a str>,
}

/// Why not, and of which reading if that is not the request as it is written.
pub(super) struct RefusedReading {
    pub refusal: PolicyRefusal,
    pub read_as: Option<String>,
}

impl<'a> JudgedReading<'a> {
    pub(super) fn set(&self) -> &'a PolicySet {
        let slice = self.of.at.slice;
        match (self.lenient, &slice.lenient) {
            (Some(_), Some(lenient)) => &lenient.set,
            (None, _) | (_, None) => &slice.set,
        }
    }

    pub(super) fn entities(&self) -> &'a Entities {
        let own = self.of.entities.as_ref();
        own.unwrap_or(&self.of.at.slice.entities)
    }

    /// As a sentence has it; `None`: it is the request as it is written.
    pub(super) fn read_as(&self, readings: &Readings<'_>) -> Option<String> {
        let reading = self.of.reading;
        let is_written = self.lenient.is_none() && reading.is_written();
        (!is_written).then(|| reading.shown(self.lenient, readings.written()))
    }

    pub(super) fn approved(self, approvals: &'a BTreeSet<String>) -> Self {
        let facts = ActFacts {
            approvals,
            ..self.facts
        };
        Self { facts, ..self }
    }
}

impl<'a> PreparedReading<'a> {
    /// What rules are asked about it: all of them about itself, and forbids about it as lenient servers take it.
    pub(super) fn judged(
        &'a self,
        input: &'a Input<'_>,
    ) -> impl Iterator<Item = JudgedReading<'a>> {
        let DecidedAt {
            entry,
            slice,
            method,
            ..
        } = self.at;
        let path = self.reading.path.as_deref();
        let facts = move |path, written: Option<WrittenPath<'a>>, scope: &BTreeSet<_>| ActFacts {
            action: method,
            scheme: self.reading.scheme,
            path,
            written,
            slice,
            body: &self.values.body,
            lookup: &self.values.lookup,
            scope: scope.clone(),
            approvals: input.context.approved_by(),
            limits: &self.limits,
            context: input.context,
        };
        let itself = JudgedReading {
            of: self,
            facts: facts(path, None, &self.scope),
            lenient: None,
            shorthand: match path {
                Some(path) => shorthand(entry, method, path).collect(),
                None => entry.connect.iter().map(String::as_str).collect(),
            },
        };
        let written = path.map(|path| WrittenPath {
            path,
            scope: &self.scope,
        });
        let lenient = self
            .lenient
            .iter()
            .map(move |(reading, scope)| JudgedReading {
                of: self,
                facts: facts(Some(&reading.path), written, scope),
                lenient: Some(reading),
                shorthand: Vec::new(),
            });
        std::iter::once(itself).chain(lenient)
    }
}

impl Policy {
    /// Every request that a server may take the act for.
    pub(super) fn readings<'i>(&self, input: &Input<'i>) -> Readings<'i> {
        Readings::of(input, |host, port| {
            let facts = self.facts.lookup(host, port);
            facts.map_or_else(Default::default, |facts| facts.requests.exact)
        })
    }

    /// What the agent's rules read of each reading.
    pub(super) fn prepare<'a>(
        &'a self,
        agent: &'a CompiledAgent,
        input: &Input<'_>,
        readings: &'a Readings<'a>,
    ) -> Result<Vec<PreparedReading<'a>>, RefusedReading> {
        let mut places = Vec::with_capacity(1);
        for reading in readings.iter() {
            let at = decided_at(agent, reading).map_err(|refusal| RefusedReading {
                refusal,
                read_as: (!reading.is_written()).then(|| reading.shown(None, readings.written())),
            })?;
            places.push((reading, at));
        }
        if let Some(fault) = &readings.fault {
            return Err(unknown(fault.clone()));
        }
        let requests: Vec<_> = places
            .iter()
            .filter_map(|(it, at)| at.request(it))
            .collect();
        let needed = needed(&requests, input.context.narrows_by_scope());
        let needed = needed.map_err(|why| unknown(BodyFault::ambiguous(why)))?;
        let mut prepared = Vec::with_capacity(places.len());
        for (reading, at) in places {
            let DecidedAt { class, slice, .. } = at;
            let request = at.request(reading);
            let values = match (&input.action, request) {
                (Action::Request { headers, .. }, Some(_)) => Values::read(
                    &slice.reads,
                    reading.query.as_deref(),
                    class.requests.exact.parameters,
                    headers,
                    &needed,
                    input.context,
                )
                .map_err(unknown)?,
                _ => Values::default(),
            };
            let narrows = input.context.tasks.is_some();
            let scoped = request.filter(|_| narrows || slice.reads.has(AttributeName::Scope));
            let scope = scoped.map(|request| request.scope(&values.body));
            let lenient = match request {
                Some(request) => lenient_paths(at, request, &values).map_err(unknown)?,
                None => Vec::new(),
            };
            prepared.push(PreparedReading {
                entities: self.request_entities(&at, reading, &values),
                limits: self.with_room(slice, input),
                scope: scope.unwrap_or_default(),
                reading,
                at,
                values,
                lenient,
            });
        }
        Ok(prepared)
    }
}

fn unknown(fault: BodyFault) -> RefusedReading {
    RefusedReading {
        refusal: PolicyRefusal::Unknown(fault),
        read_as: None,
    }
}

/// By which of the agent's rules a reading is decided, or why by none.
pub(super) fn decided_at<'a>(
    agent: &'a CompiledAgent,
    reading: &Reading<'_>,
) -> Result<DecidedAt<'a>, PolicyRefusal> {
    let class = agent.classes.lookup(&reading.host, reading.port);
    let class = class.ok_or(PolicyRefusal::NoReach)?;
    let entry = &agent.reach[class.entry];
    let method = match (&reading.path, entry.tls) {
        (None, TlsMode::Passthrough) => schema::CONNECT,
        (Some(_), TlsMode::Terminate) => {
            schema::method(&reading.method).ok_or(PolicyRefusal::UnknownMethod)?
        }
        (None, TlsMode::Terminate) | (Some(_), TlsMode::Passthrough) => {
            return Err(PolicyRefusal::WrongMode);
        }
    };
    Ok(DecidedAt {
        class,
        entry,
        slice: class.slice(method),
        method,
    })
}

impl<'a> DecidedAt<'a> {
    /// As the file of its host sees it; `None`: a connection whose bytes are passed.
    pub(super) fn request<'r>(&self, reading: &'r Reading<'_>) -> Option<RequestAt<'a, 'r>> {
        Some(RequestAt {
            requests: &self.class.requests,
            reads: &self.slice.reads,
            method: self.method,
            path: reading.path.as_deref()?,
            query: reading.query.as_deref(),
            lenient: false,
        })
    }
}

fn lenient_paths(
    at: DecidedAt<'_>,
    request: RequestAt<'_, '_>,
    values: &Values,
) -> Result<Vec<(PathReading, BTreeSet<&'static str>)>, BodyFault> {
    let exact = at.class.requests.exact.paths;
    let Some(forbids) = at.slice.lenient.as_ref().filter(|_| !exact) else {
        return Ok(Vec::new());
    };
    let paths = lenient(request.path, forbids.folds);
    let same = request.same_for(&paths, &forbids.reads);
    same.map_err(BodyFault::ambiguous)?;
    let scoped = forbids.reads.has(AttributeName::Scope);
    let with_scope = paths.into_iter().map(|reading| {
        let request = RequestAt {
            path: &reading.path,
            lenient: true,
            ..request
        };
        let scope = scoped.then(|| request.scope(&values.body));
        (reading, scope.unwrap_or_default())
    });
    Ok(with_scope.collect())
}
