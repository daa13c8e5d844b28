//! What a host's file says of its requests: which fields of their bodies rules may read, which facts of them are looked up,
//! and what they do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::CanonicalPath;
use super::body::{BodyBlock, Value};
use super::context::{AttributeName, scope_of};
use super::glob::PathPattern;
use super::lookup::Lookup;
use super::reads::Reads;

/// What is known of the requests to one host.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// The first that fits a request alone counts.
    pub body: Vec<BodyBlock>,
    /// Of those that fit a request, the first that has a fact is where it comes from.
    pub lookups: Vec<Arc<Lookup>>,
    pub scope: Vec<ScopeEntry>,
}

/// What some rule needs of a request besides its head.
#[derive(Default)]
pub(super) struct RequestNeeds<'r> {
    pub body: Option<NeededBody<'r>>,
    pub lookups: Vec<&'r Arc<Lookup>>,
}

/// What is to be read of a body, and what of that a rule reads: the rest is no record's business.
#[derive(Clone, Debug)]
pub struct NeededBody<'r> {
    pub block: &'r BodyBlock,
    pub(super) fields: BTreeSet<&'r str>,
}

impl NeededBody<'_> {
    /// What is read of the same body for two reasons.
    pub(super) fn both(one: Option<Self>, other: Option<Self>) -> Option<Self> {
        match (one, other) {
            (Some(mut one), Some(other)) => {
                one.fields.extend(other.fields);
                Some(one)
            }
            (one, other) => one.or(other),
        }
    }
}

/// One `[[scope]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ScopeEntry {
    /// `None`: every method.
    pub method: Option<&'static str>,
    pub path: PathPattern,
    pub is: BTreeSet<&'static str>,
    /// Fields that must have one of the values.
    pub conditions: BTreeMap<String, BTreeSet<String>>,
}

impl Requests {
    /// `Err`: the path's readings need different things. `scope`: what the request does has to be known, whatever rules read.
    pub(crate) fn needed(
        &self,
        reads: &Reads,
        scope: bool,
        method: &str,
        path: &CanonicalPath,
    ) -> Result<RequestNeeds<'_>, String> {
        let mut readings = path.readings();
        let first = readings.next().unwrap_or_default();
        let mut needed = self.of(reads, scope, method, first);
        let block = |path| self.block(method, path).map(std::ptr::from_ref);
        for reading in readings {
            let other = self.of(reads, scope, method, reading);
            needed.body = NeededBody::both(needed.body, other.body);
            if needed.body.is_some() && block(first) != block(reading) {
                return Err("its path can be read as two, for which different fields of the body are declared".into());
            }
            let alike = |lookup: &&Arc<Lookup>| lookup.is_alike(first, reading);
            if needed.lookups != other.lookups || !needed.lookups.iter().all(alike) {
                return Err(
                    "its path can be read as two, for which different things are looked up".into(),
                );
            }
        }
        Ok(needed)
    }

    fn of(&self, reads: &Reads, scope: bool, method: &str, path: &str) -> RequestNeeds<'_> {
        let mut known = BTreeSet::new();
        let mut lookups = Vec::new();
        if reads.has(AttributeName::Lookup) {
            for lookup in &self.lookups {
                if !fits(lookup.method, &lookup.path, method, path) {
                    continue;
                }
                let facts = lookup.fields().keys();
                let new: Vec<_> = facts.filter(|name| known.insert(*name)).collect();
                if new.iter().any(|name| reads.lookup.has(name)) {
                    lookups.push(lookup);
                }
            }
        }
        RequestNeeds {
            body: self.body_of(reads, scope, &lookups, method, path),
            lookups,
        }
    }

    fn body_of(
        &self,
        reads: &Reads,
        scope: bool,
        lookups: &[&Arc<Lookup>],
        method: &str,
        path: &str,
    ) -> Option<NeededBody<'_>> {
        let asked_with = |name: &String| {
            let mut asked = lookups.iter().flat_map(|lookup| lookup.body_fields());
            asked.any(|field| field == name)
        };
        let scope = scope || reads.has(AttributeName::Scope);
        if !reads.has(AttributeName::Body) && !scope && lookups.is_empty() {
            return None;
        }
        let block = self.block(method, path)?;
        let read = |name: &String| reads.body.has(name);
        let scoped = |name: &String| {
            let mut entries = self.scope.iter().filter(|_| scope);
            entries.any(|entry| {
                entry.conditions.contains_key(name) && fits(entry.method, &entry.path, method, path)
            })
        };
        let names = block.fields.keys();
        let fields = names.filter(|name| read(name) || scoped(name) || asked_with(name));
        let fields: BTreeSet<&str> = fields.map(String::as_str).collect();
        (!fields.is_empty()).then_some(NeededBody { block, fields })
    }

    fn block(&self, method: &str, path: &str) -> Option<&BodyBlock> {
        let mut blocks = self.body.iter();
        blocks.find(|block| fits(block.method, &block.path, method, path))
    }

    /// What the request does: what the entries that fit it say together, or what its method alone tells.
    pub(crate) fn scope(
        &self,
        method: &str,
        path: &str,
        fields: &BTreeMap<String, Value>,
    ) -> BTreeSet<&'static str> {
        let holds = |(name, values): (&String, &BTreeSet<String>)| match fields.get(name) {
            Some(Value::String(value)) => values.contains(value),
            _ => false,
        };
        let entries = self.scope.iter().filter(|entry| {
            fits(entry.method, &entry.path, method, path) && entry.conditions.iter().all(holds)
        });
        let said: BTreeSet<_> = entries.flat_map(|entry| entry.is.iter().copied()).collect();
        if said.is_empty() {
            [scope_of(method)].into()
        } else {
            said
        }
    }
}

fn fits(of: Option<&str>, pattern: &PathPattern, method: &str, path: &str) -> bool {
    of.is_none_or(|only| only == method) && pattern.matches(path)
}
