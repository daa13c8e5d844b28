//! What a host's file says of its requests: which fields of their bodies rules may read, which facts of them are looked up,
//! and what they do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::body::{BodyBlock, Value};
use super::context::{AttributeName, scope_of};
use super::glob::PathPattern;
use super::lookup::Lookup;
use super::reading::{Exact, PathReading};
use super::reads::Reads;

/// What is known of the requests to one host.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// The first that fits a request alone counts.
    pub body: Vec<BodyBlock>,
    /// Of those that fit a request, the first that has a fact is where it comes from.
    pub lookups: Vec<Arc<Lookup>>,
    pub scope: Vec<ScopeEntry>,
    pub exact: Exact,
}

/// One reading of a request, before the file of its host.
#[derive(Clone, Copy)]
pub(super) struct RequestAt<'p, 'r> {
    pub requests: &'p Requests,
    pub reads: &'p Reads,
    pub method: &'static str,
    pub path: &'r str,
    pub query: Option<&'r str>,
    /// The path is a lenient server's, which compares folded patterns.
    pub lenient: bool,
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

/// What some rule needs of a request, whichever of the `readings` it is. `scope`: what the request does has to be known,
/// whatever rules read.
///
/// # Errors
/// Says what the readings need differently.
pub(super) fn needed<'p>(
    readings: &[RequestAt<'p, '_>],
    scope: bool,
) -> Result<RequestNeeds<'p>, String> {
    let Some((first, others)) = readings.split_first() else {
        return Ok(RequestNeeds::default());
    };
    let mut needed = first.needs(scope);
    for other in others {
        let needs = other.needs(scope);
        needed.body = NeededBody::both(needed.body, needs.body);
        if needed.body.is_some() && !first.has_block_of(other) {
            return Err(two_ways("different fields of the body are declared"));
        }
        let alike = |lookup: &&Arc<Lookup>| {
            lookup.is_alike(first.path, other.path) && first.query == other.query
        };
        if needed.lookups != needs.lookups || !needed.lookups.iter().all(alike) {
            return Err(two_ways("different things are looked up"));
        }
    }
    Ok(needed)
}

fn two_ways(what: &str) -> String {
    format!("servers can read it as two, for which {what}")
}

impl<'p> RequestAt<'p, '_> {
    /// Whether what forbids read of it is the same however lenient a server is. `forbids`: what they read.
    ///
    /// # Errors
    /// Says what is not, and which path it has to be sent with.
    pub(crate) fn same_for(&self, lenient: &[PathReading], forbids: &Reads) -> Result<(), String> {
        let own = self.needs(false);
        for reading in lenient {
            let other = RequestAt {
                reads: forbids,
                path: &reading.path,
                lenient: true,
                ..*self
            };
            let needs = other.needs(false);
            let as_path = || format!("some servers take its path for `{}`", reading.path);
            if needs.body.is_some() && !self.has_block_of(&other) {
                return Err(format!("{}, of which the body is read", as_path()));
            }
            if needs.lookups.iter().any(|it| !own.lookups.contains(it)) {
                return Err(format!("{}, of which something is looked up", as_path()));
            }
        }
        Ok(())
    }

    fn has_block_of(&self, other: &RequestAt<'_, '_>) -> bool {
        self.block().map(std::ptr::from_ref) == other.block().map(std::ptr::from_ref)
    }

    fn needs(&self, scope: bool) -> RequestNeeds<'p> {
        let mut known = BTreeSet::new();
        let mut lookups = Vec::new();
        if self.reads.has(AttributeName::Lookup) {
            for lookup in &self.requests.lookups {
                if !self.fits(lookup.method, &lookup.path) {
                    continue;
                }
                let facts = lookup.fields().keys();
                let new: Vec<_> = facts.filter(|name| known.insert(*name)).collect();
                if new.iter().any(|name| self.reads.lookup.has(name)) {
                    lookups.push(lookup);
                }
            }
        }
        RequestNeeds {
            body: self.body(scope, &lookups),
            lookups,
        }
    }

    fn body(&self, scope: bool, lookups: &[&Arc<Lookup>]) -> Option<NeededBody<'p>> {
        let reads = self.reads;
        let asked_with = |name: &String| {
            let mut asked = lookups.iter().flat_map(|lookup| lookup.body_fields());
            asked.any(|field| field == name)
        };
        let scope = scope || reads.has(AttributeName::Scope);
        if !reads.has(AttributeName::Body) && !scope && lookups.is_empty() {
            return None;
        }
        let block = self.block()?;
        let read = |name: &String| reads.body.has(name);
        let scoped = |name: &String| {
            let mut entries = self.requests.scope.iter().filter(|_| scope);
            entries.any(|entry| {
                entry.conditions.contains_key(name) && self.fits(entry.method, &entry.path)
            })
        };
        let names = block.fields.keys();
        let fields = names.filter(|name| read(name) || scoped(name) || asked_with(name));
        let fields: BTreeSet<&str> = fields.map(String::as_str).collect();
        (!fields.is_empty()).then_some(NeededBody { block, fields })
    }

    fn block(&self) -> Option<&'p BodyBlock> {
        let mut blocks = self.requests.body.iter();
        blocks.find(|block| self.fits(block.method, &block.path))
    }

    /// What the request does: what the entries that fit it say together, or what its method alone tells.
    pub(crate) fn scope(&self, fields: &BTreeMap<String, Value>) -> BTreeSet<&'static str> {
        let holds = |(name, values): (&String, &BTreeSet<String>)| match fields.get(name) {
            Some(Value::String(value)) => values.contains(value),
            _ => false,
        };
        let entries = self.requests.scope.iter().filter(|entry| {
            self.fits(entry.method, &entry.path) && entry.conditions.iter().all(holds)
        });
        let said: BTreeSet<_> = entries.flat_map(|entry| entry.is.iter().copied()).collect();
        if said.is_empty() {
            [scope_of(self.method)].into()
        } else {
            said
        }
    }

    fn fits(&self, only: Option<&str>, pattern: &PathPattern) -> bool {
        let pattern = match self.lenient {
            true => pattern.lenient(),
            false => pattern,
        };
        only.is_none_or(|only| only == self.method) && pattern.matches(self.path)
    }
}

impl Requests {
    /// Whether some pattern of the file is another one once it is folded.
    pub(crate) fn folds(&self) -> bool {
        let body = self.body.iter().map(|block| &block.path);
        let lookups = self.lookups.iter().map(|lookup| &lookup.path);
        let scope = self.scope.iter().map(|entry| &entry.path);
        let mut patterns = body.chain(lookups).chain(scope);
        patterns.any(|pattern| pattern.lenient() != pattern)
    }
}
