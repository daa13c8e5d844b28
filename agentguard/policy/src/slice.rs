//! The rules that can apply, gathered before any request comes: a [`Class`] for each host or pattern that an agent's reach
//! entries or any policy tell apart, and in it a [`Slice`] per method that policies tell apart.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use cedar_policy::{Entities, Entity, EntityUid, PolicySet};

use super::bundle::ParsedBundle;
use super::candidates::{Candidates, patterns_above};
use super::entity::{self, HostFacts};
use super::glob::{PathPattern, RouteTable};
use super::host::{HostMap, HostPattern};
use super::parse::AgentFile;
use super::reads::Reads;
use super::requests::Requests;
use super::rules::CedarRule;
use super::{TlsMode, schema};

/// Hosts that are alike to every policy that can apply to the agent.
#[derive(Debug)]
pub(super) struct Class {
    /// Index of the most specific reach entry.
    pub entry: usize,
    /// Patterns that policies name and that cover these hosts.
    pub above: Vec<EntityUid>,
    pub requests: Arc<Requests>,
    by_action: HashMap<&'static str, Arc<Slice>>,
    other_methods: Arc<Slice>,
}

impl Class {
    /// Indices of every rule that can apply to some action.
    pub(crate) fn rules(&self) -> impl Iterator<Item = usize> {
        let slices = self.by_action.values().chain([&self.other_methods]);
        slices.flat_map(|slice| slice.rules.iter().copied())
    }

    pub(crate) fn slice(&self, action: &str) -> &Slice {
        self.by_action.get(action).unwrap_or(&self.other_methods)
    }
}

/// The rules that can apply to one agent's action at one class of hosts, ready to evaluate.
#[derive(Debug, Default)]
pub(super) struct Slice {
    /// Indices into [`Policy::rules`], ascending.
    pub rules: Vec<usize>,
    pub set: PolicySet,
    /// Everything but what a request brings.
    pub entities: Entities,
    /// The same without most methods: less to put together with what a request brings.
    pub few: Entities,
    /// Whether some rule asks for the group of all methods, which the request's own has to be known for.
    pub in_group: bool,
    /// Whether `entities` has the host itself, which it cannot for a class of many.
    pub has_host: bool,
    pub reads: Reads,
    pub routes: RouteTable<()>,
    /// `None`: no forbid is by path.
    pub lenient: Option<LenientSlice>,
}

/// The forbids of a slice that lenient servers' readings of a path can meet.
#[derive(Debug)]
pub(super) struct LenientSlice {
    pub set: PolicySet,
    pub routes: RouteTable<()>,
    pub reads: Reads,
    /// Something that they compare with is folded.
    pub folds: bool,
}

/// Makes the classes of one agent.
pub(super) struct Slicer<'a> {
    pub bundle: &'a ParsedBundle,
    /// Its agents by name.
    pub files: &'a HashMap<&'a str, &'a AgentFile>,
    pub facts: &'a HostMap<HostFacts>,
    pub candidates: &'a Candidates<'a>,
    pub file: &'a AgentFile,
}

impl Slicer<'_> {
    /// The class of the hosts that `node` stands for; `entry`: the index of their reach entry.
    pub(crate) fn class(&self, node: &HostPattern, entry: usize, tls: TlsMode) -> Class {
        let fitting = self.candidates.fitting(node);
        let above: Vec<EntityUid> = patterns_above(node)
            .iter()
            .chain(node.below.then_some(node))
            .filter(|pattern| self.candidates.named.contains(pattern))
            .map(|pattern| entity::host_uid(&pattern.id()))
            .collect();
        let rules = &self.bundle.rules;
        let known = self.facts.covering(node);
        let requests = known.map_or_else(Arc::default, |facts| facts.requests.clone());
        let mut made: HashMap<Vec<usize>, Arc<Slice>> = HashMap::new();
        let mut make = |fits: &dyn Fn(&CedarRule) -> bool| {
            let chosen: Vec<_> = fitting
                .iter()
                .copied()
                .filter(|index| fits(&rules[*index]))
                .collect();
            made.entry(chosen)
                .or_insert_with_key(|chosen| {
                    Arc::new(self.slice(node, &above, chosen, requests.folds()))
                })
                .clone()
        };
        let mut by_action = HashMap::new();
        let other_methods = match tls {
            TlsMode::Terminate => {
                let named: BTreeSet<_> = fitting
                    .iter()
                    .flat_map(|index| rules[*index].literals.methods.iter())
                    .collect();
                for method in named {
                    by_action.insert(*method, make(&|rule| rule.actions.has_method(method)));
                }
                make(&|rule| rule.actions.has_every_method())
            }
            TlsMode::Passthrough => {
                by_action.insert(schema::CONNECT, make(&|rule| rule.actions.has_connect()));
                make(&|_| false)
            }
        };
        Class {
            entry,
            above,
            requests: requests.clone(),
            by_action,
            other_methods,
        }
    }

    /// `folds`: whether the file about the hosts has patterns that fold.
    fn slice(
        &self,
        node: &HostPattern,
        above: &[EntityUid],
        chosen: &[usize],
        folds: bool,
    ) -> Slice {
        let mut slice = Slice {
            rules: chosen.to_vec(),
            lenient: self.lenient(chosen, folds),
            has_host: !node.below,
            ..Slice::default()
        };
        if chosen.is_empty() {
            return slice;
        }
        let mut entities = EntityStore::default();
        entities.add(entity::agent(&self.file.agent));
        if !node.below {
            entities.add(entity::host(node, self.facts, above));
        }
        let mut routes = BTreeMap::new();
        for index in chosen {
            let rule = &self.bundle.rules[*index];
            slice
                .set
                .add(rule.policy.clone())
                .expect("ids of rules are checked to be different");
            slice.reads.add(&rule.reads);
            routes.extend(&rule.routes);
            slice.in_group |= rule.literals.request_group;
            for method in &rule.literals.methods {
                entities.add(entity::method(method));
            }
            for (_, host) in &rule.literals.hosts {
                entities.add_host(host, self.facts, self.candidates);
            }
            for (_, name) in &rule.literals.agents {
                if let Some(named) = self.files.get(name.as_str()) {
                    entities.add(entity::agent(&named.agent));
                }
            }
        }
        for (_, pattern) in routes {
            slice.routes.insert(pattern.clone(), ());
        }
        slice.few = entities.finish();
        if slice.in_group {
            entities.extend(entity::actions());
        }
        slice.entities = entities.finish();
        slice
    }

    fn lenient(&self, chosen: &[usize], folds: bool) -> Option<LenientSlice> {
        let rules = chosen.iter().map(|index| &self.bundle.rules[*index]);
        let forbids = rules.filter_map(|rule| Some((rule, rule.lenient.as_ref()?)));
        let mut found: Option<LenientSlice> = None;
        let mut routes = BTreeMap::new();
        for (rule, forbid) in forbids {
            let slice = found.get_or_insert_with(|| LenientSlice {
                set: PolicySet::default(),
                routes: RouteTable::default(),
                reads: Reads::default(),
                folds,
            });
            slice
                .set
                .add(forbid.policy.clone())
                .expect("ids of rules are checked to be different");
            slice.reads.add(&rule.reads);
            slice.folds |= forbid.folds;
            let patterns = rule.routes.values().map(PathPattern::lenient);
            routes.extend(patterns.map(|pattern| (pattern.as_str(), pattern)));
        }
        if let Some(slice) = &mut found {
            for pattern in routes.into_values() {
                slice.routes.insert(pattern.clone(), ());
            }
        }
        found
    }
}

/// Entities without repetition.
#[derive(Default)]
struct EntityStore {
    entities: HashMap<EntityUid, Entity>,
}

impl EntityStore {
    fn add(&mut self, entity: Entity) {
        self.entities.entry(entity.uid()).or_insert(entity);
    }

    fn extend(&mut self, entities: Vec<Entity>) {
        entities.into_iter().for_each(|entity| self.add(entity));
    }

    fn add_host(
        &mut self,
        host: &HostPattern,
        facts: &HostMap<HostFacts>,
        candidates: &Candidates<'_>,
    ) {
        if self.entities.contains_key(&entity::host_uid(&host.id())) {
            return;
        }
        let above = patterns_above(host);
        let above = above
            .iter()
            .filter(|pattern| candidates.named.contains(pattern));
        let above: Vec<_> = above
            .map(|pattern| entity::host_uid(&pattern.id()))
            .collect();
        self.add(entity::host(host, facts, &above));
    }

    fn finish(&self) -> Entities {
        // The hierarchy of hosts follows their names, so it has no cycle.
        Entities::from_entities(self.entities.values().cloned(), None)
            .expect("different entities without cycles")
    }
}
