//! Which rules can apply to one agent, by the hosts of their heads.

use std::collections::{BTreeSet, HashMap};

use super::host::HostPattern;
use super::rules::{CedarRule, HostScope};

/// Rules by the agent of their heads.
pub(super) struct RulesByAgent<'b> {
    rules: &'b [CedarRule],
    anyone: Vec<usize>,
    named: HashMap<&'b str, Vec<usize>>,
}

impl<'b> RulesByAgent<'b> {
    pub(crate) fn new(rules: &'b [CedarRule]) -> Self {
        let mut found = Self {
            rules,
            anyone: Vec::new(),
            named: HashMap::new(),
        };
        for (index, rule) in rules.iter().enumerate() {
            match &rule.agent {
                None => found.anyone.push(index),
                Some(name) => found.named.entry(name).or_default().push(index),
            }
        }
        found
    }

    fn of(&self, agent: &str) -> impl Iterator<Item = (usize, &'b CedarRule)> {
        let named = self.named.get(agent).into_iter().flatten();
        let found = self.anyone.iter().chain(named);
        found.map(|index| (*index, &self.rules[*index]))
    }
}

/// The rules that can apply to one agent, by the host of their heads.
pub(super) struct Candidates<'b> {
    everywhere: Vec<usize>,
    at: HashMap<&'b HostPattern, Vec<usize>>,
    /// Hosts and patterns that they name anywhere.
    pub named: BTreeSet<&'b HostPattern>,
}

impl<'b> Candidates<'b> {
    pub(crate) fn new(rules: &RulesByAgent<'b>, agent: &str) -> Self {
        let mut found = Self {
            everywhere: Vec::new(),
            at: HashMap::new(),
            named: BTreeSet::new(),
        };
        for (index, rule) in rules.of(agent) {
            match &rule.host {
                HostScope::Any => found.everywhere.push(index),
                HostScope::Is(host) => {
                    found.named.insert(host);
                    found.at.entry(host).or_default().push(index);
                }
            }
            found
                .named
                .extend(rule.literals.hosts.iter().map(|(_, host)| host));
        }
        found
    }

    /// The rules whose heads fit the hosts of a class, ascending.
    pub(crate) fn fitting(&self, class: &HostPattern) -> Vec<usize> {
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
