//! Which rules can apply to one agent, by the hosts of their heads.

use std::collections::{BTreeSet, HashMap};

use super::host::HostPattern;
use super::rules::{HostScope, Rule};

/// The rules that can apply to one agent, by the host of their heads.
pub(super) struct Candidates<'b> {
    everywhere: Vec<usize>,
    at: HashMap<&'b HostPattern, Vec<usize>>,
    /// Hosts and patterns that they name anywhere.
    pub named: BTreeSet<&'b HostPattern>,
}

impl<'b> Candidates<'b> {
    pub fn new(rules: &'b [Rule], agent: &str) -> Self {
        let mut found = Self {
            everywhere: Vec::new(),
            at: HashMap::new(),
            named: BTreeSet::new(),
        };
        for (index, rule) in rules.iter().enumerate() {
            if rule.agent.as_deref().is_some_and(|name| name != agent) {
                continue;
            }
            match &rule.host {
                HostScope::Any => found.everywhere.push(index),
                HostScope::Is(host) => found.at.entry(host).or_default().push(index),
            }
            found
                .named
                .extend(rule.literals.hosts.iter().map(|(_, host)| host));
        }
        found
    }

    /// The rules whose heads fit the hosts of a class, ascending.
    pub fn fitting(&self, class: &HostPattern) -> Vec<usize> {
        let above = patterns_above(class);
        let mut found: Vec<_> = std::iter::once(class)
            .chain(&above)
            .filter_map(|host| self.at.get(host))
            .flatten()
            .chain(&self.everywhere)
            .copied()
            .collect();
        found.sort_unstable();
        found
    }
}

/// Every pattern that could cover the host or pattern, but itself.
pub(super) fn patterns_above(host: &HostPattern) -> Vec<HostPattern> {
    host.parents()
        .filter_map(|parent| HostPattern::below(parent, host.port))
        .collect()
}
