//! What Cedar sees of agents, hosts and requests.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, LazyLock};

use cedar_policy::{Entity, EntityId, EntityTypeName, EntityUid, RestrictedExpression};

use super::Agent;
use super::glob::PathPattern;
use super::host::{HostMap, HostPattern};
use super::parse::UNKNOWN_RISK;
use super::requests::Requests;
use super::schema;
use super::settings::HostSettings;

static AGENT: LazyLock<EntityTypeName> = LazyLock::new(|| type_name("Agent"));
static HOST: LazyLock<EntityTypeName> = LazyLock::new(|| type_name("Host"));
static ACTION: LazyLock<EntityTypeName> = LazyLock::new(|| type_name("Action"));
static QUERY: LazyLock<EntityUid> = LazyLock::new(|| uid(&type_name("Query"), "request"));
static HEADERS: LazyLock<EntityUid> = LazyLock::new(|| uid(&type_name("Headers"), "request"));

/// What `hosts/*.toml` knows of a host.
#[derive(Clone, Debug)]
pub(super) struct HostFacts {
    pub risk: String,
    pub data: Vec<String>,
    pub requests: Arc<Requests>,
    pub settings: HostSettings,
    /// Whose wildcards stand for what is not recorded.
    pub private_paths: Vec<PathPattern>,
}

impl HostFacts {
    pub(crate) fn unknown() -> Self {
        Self {
            risk: UNKNOWN_RISK.to_owned(),
            data: Vec::new(),
            requests: Arc::default(),
            settings: HostSettings::DEFAULT,
            private_paths: Vec::new(),
        }
    }
}

pub(super) fn agent_uid(name: &str) -> EntityUid {
    uid(&AGENT, name)
}

pub(super) fn host_uid(id: &str) -> EntityUid {
    uid(&HOST, id)
}

pub(super) fn action_uid(name: &str) -> EntityUid {
    uid(&ACTION, name)
}

pub(super) fn query_uid() -> EntityUid {
    QUERY.clone()
}

pub(super) fn headers_uid() -> EntityUid {
    HEADERS.clone()
}

pub(super) fn agent(agent: &Agent) -> Entity {
    let attributes = [("owner", &agent.owner), ("risk", &agent.risk)].map(|(name, value)| {
        (
            name.to_owned(),
            RestrictedExpression::new_string(value.clone()),
        )
    });
    entity(
        agent_uid(&agent.name),
        HashMap::from(attributes),
        HashSet::new(),
    )
}

/// A host or pattern; `above`: the patterns that cover it.
pub(super) fn host(host: &HostPattern, facts: &HostMap<HostFacts>, above: &[EntityUid]) -> Entity {
    let unknown = HostFacts::unknown();
    let facts = facts.covering(host).unwrap_or(&unknown);
    let star = if host.below { "*." } else { "" };
    let data = facts
        .data
        .iter()
        .map(|label| RestrictedExpression::new_string(label.clone()));
    let attributes = HashMap::from([
        (
            "name".to_owned(),
            RestrictedExpression::new_string(format!("{star}{}", host.name)),
        ),
        (
            "port".to_owned(),
            RestrictedExpression::new_long(host.port.into()),
        ),
        (
            "risk".to_owned(),
            RestrictedExpression::new_string(facts.risk.clone()),
        ),
        ("data".to_owned(), RestrictedExpression::new_set(data)),
    ]);
    entity(
        host_uid(&host.id()),
        attributes,
        above.iter().cloned().collect(),
    )
}

/// A host of which nobody reads an attribute.
pub(super) fn bare_host(id: &str, above: &[EntityUid]) -> Entity {
    Entity::new_no_attrs(host_uid(id), above.iter().cloned().collect())
}

/// A method in the group of all.
pub(super) fn method(name: &str) -> Entity {
    let group = action_uid(schema::REQUEST);
    entity(action_uid(name), HashMap::new(), HashSet::from([group]))
}

/// Every method, the group of all, and the passed connection.
pub(super) fn actions() -> Vec<Entity> {
    let group = action_uid(schema::REQUEST);
    schema::METHODS
        .iter()
        .map(|name| method(name))
        .chain([
            entity(group, HashMap::new(), HashSet::new()),
            entity(action_uid(schema::CONNECT), HashMap::new(), HashSet::new()),
        ])
        .collect()
}

/// A request's query parameters or headers.
pub(super) fn tags(of: EntityUid, tags: &BTreeMap<String, String>) -> Entity {
    let tags = tags.iter().map(|(name, value)| {
        (
            name.clone(),
            RestrictedExpression::new_string(value.clone()),
        )
    });
    Entity::new_with_tags(of, [], [], tags).expect("strings are always good tags")
}

fn entity(
    uid: EntityUid,
    attributes: HashMap<String, RestrictedExpression>,
    parents: HashSet<EntityUid>,
) -> Entity {
    Entity::new(uid, attributes, parents)
        .expect("strings, numbers and sets of strings are always good attributes")
}

fn uid(of: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(of.clone(), EntityId::new(id))
}

fn type_name(name: &str) -> EntityTypeName {
    name.parse().expect("a plain word is a type name")
}
