//! What a host's file says of its requests: which fields of their bodies rules may read, and what they do.

use std::collections::{BTreeMap, BTreeSet};

use super::body::{Block, Value};
use super::glob::PathPattern;
use super::reads::Reads;
use super::{CanonicalPath, schema};

/// What is known of the requests to one host.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// The first that fits a request alone counts.
    pub body: Vec<Block>,
    pub scope: Vec<ScopeEntry>,
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
    /// The block of the body, if some rule needs it; `Err`: the path's readings have different ones.
    pub fn needed(
        &self,
        reads: &Reads,
        method: &str,
        path: &CanonicalPath,
    ) -> Result<Option<&Block>, String> {
        if self.body.is_empty() || !reads.has("body") && !reads.has("scope") {
            return Ok(None);
        }
        let mut readings = path
            .readings()
            .map(|reading| self.of(reads, method, reading));
        let first = readings.next().flatten();
        let same =
            |other: Option<&Block>| other.map(std::ptr::from_ref) == first.map(std::ptr::from_ref);
        if readings.all(same) {
            return Ok(first);
        }
        Err(
            "its path can be read as two, for which different fields of the body are declared"
                .into(),
        )
    }

    fn of(&self, reads: &Reads, method: &str, path: &str) -> Option<&Block> {
        let mut blocks = self.body.iter();
        let block = blocks.find(|block| fits(block.method, &block.path, method, path))?;
        let read = |name: &String| reads.body.has(name);
        let scoped = |name: &String| {
            let mut entries = self.scope.iter().filter(|_| reads.has("scope"));
            entries.any(|entry| {
                entry.conditions.contains_key(name) && fits(entry.method, &entry.path, method, path)
            })
        };
        let needed = block.fields.keys().any(|name| read(name) || scoped(name));
        needed.then_some(block)
    }

    /// What the request does: what the entries that fit it say together, or what its method alone tells.
    pub fn scope(
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
            [schema::scope_of(method)].into()
        } else {
            said
        }
    }
}

fn fits(of: Option<&str>, pattern: &PathPattern, method: &str, path: &str) -> bool {
    of.is_none_or(|only| only == method) && pattern.matches(path)
}
