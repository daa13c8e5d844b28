//! Cedar's part of a decision: one reading of a request against the rules of a slice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use cedar_policy::{
    AuthorizationError, Authorizer, Context, Decision as Answer, Entities, PolicySet, Request,
    Response, RestrictedExpression,
};

use super::body::Value;
use super::compile::CompiledAgent;
use super::path::segment_count;
use super::refusal::Refusal;
use super::slice::Slice;
use super::{AgentSituation, Input, Moment, Tasks, entity, schema};

static AUTHORIZER: LazyLock<Authorizer> = LazyLock::new(Authorizer::new);

/// What one reading of a request meets.
#[derive(Clone)]
pub(super) struct Asked<'a> {
    pub action: &'a str,
    pub scheme: &'a str,
    /// `None`: a connection whose bytes are passed.
    pub path: Option<&'a str>,
    pub body: &'a BTreeMap<String, Value>,
    pub lookup: &'a BTreeMap<String, Value>,
    pub scope: BTreeSet<&'static str>,
    pub approvals: &'a BTreeSet<String>,
    /// Ids of the limits that have room.
    pub limits: &'a BTreeSet<String>,
}

/// The body of what has none, and what is looked up where nothing is.
pub(super) static NO_FIELDS: BTreeMap<String, Value> = BTreeMap::new();

impl<'a> Asked<'a> {
    /// A connection whose bytes are passed.
    pub fn connection(approvals: &'a BTreeSet<String>, limits: &'a BTreeSet<String>) -> Self {
        Self {
            action: schema::CONNECT,
            scheme: "",
            path: None,
            body: &NO_FIELDS,
            lookup: &NO_FIELDS,
            scope: BTreeSet::new(),
            approvals,
            limits,
        }
    }
}

/// Evaluates the slice's rules, and answers with the ids of those that permit.
pub(super) fn evaluate(
    agent: &CompiledAgent,
    slice: &Slice,
    input: &Input<'_>,
    asked: &Asked<'_>,
    entities: Option<&Entities>,
) -> Result<Vec<String>, Refusal> {
    if slice.rules.is_empty() {
        return Ok(Vec::new());
    }
    let answer = answer(
        agent,
        slice,
        &slice.set,
        input,
        asked,
        entities.unwrap_or(&slice.entities),
    );
    let failed: BTreeMap<_, _> = answer.diagnostics().errors().map(failure).collect();
    let decided = answer
        .diagnostics()
        .reason()
        .map(|id| AsRef::<str>::as_ref(id).to_owned());
    match answer.decision() {
        // Cedar alone would skip a forbid that cannot be evaluated.
        _ if !failed.is_empty() => Err(Refusal::Failed(failed)),
        Answer::Allow => Ok(decided.collect()),
        Answer::Deny => {
            let forbids: BTreeSet<_> = decided.collect();
            if forbids.is_empty() {
                Ok(Vec::new())
            } else {
                Err(Refusal::Forbidden(forbids))
            }
        }
    }
}

/// Whether the conditions of a policy of the slice hold, which is in `alone`; `Err`: why that cannot be told.
pub(super) fn evaluate_one(
    agent: &CompiledAgent,
    slice: &Slice,
    alone: &PolicySet,
    input: &Input<'_>,
    asked: &Asked<'_>,
    entities: &Entities,
) -> Result<bool, String> {
    let answer = answer(agent, slice, alone, input, asked, entities);
    let failed = answer.diagnostics().errors().map(failure).next();
    match failed {
        Some((_, why)) => Err(why),
        None => Ok(answer.diagnostics().reason().next().is_some()),
    }
}

fn answer(
    agent: &CompiledAgent,
    slice: &Slice,
    set: &PolicySet,
    input: &Input<'_>,
    asked: &Asked<'_>,
    entities: &Entities,
) -> Response {
    let routes = |path: &str| {
        let matching = slice.routes.matching(path).into_iter();
        matching.map(|(route, ())| route.as_str()).collect()
    };
    let has = |attribute: &str| slice.reads.has(attribute);
    AUTHORIZER.is_authorized(&request(agent, input, asked, has, routes), set, entities)
}

/// The policy that cannot be evaluated, and Cedar's message.
fn failure(error: &AuthorizationError) -> (String, String) {
    match error {
        AuthorizationError::PolicyEvaluationError(error) => {
            (error.policy_id().to_string(), error.to_string())
        }
    }
}

/// Cedar's request; of the context the attributes that `has` tells.
pub(super) fn request<'r>(
    agent: &CompiledAgent,
    input: &Input<'_>,
    asked: &Asked<'_>,
    has: impl Fn(&str) -> bool,
    routes: impl Fn(&str) -> Vec<&'r str>,
) -> Request {
    let text = |value: &str| RestrictedExpression::new_string(value.to_owned());
    // Without a path nothing is read that has to do with one.
    let path = asked.path.unwrap_or_default();
    let value = |name| match name {
        "scheme" => text(asked.scheme),
        "path" => text(path),
        "segments" => {
            RestrictedExpression::new_long(i64::try_from(segment_count(path)).unwrap_or(i64::MAX))
        }
        "routes" => RestrictedExpression::new_set(routes(path).into_iter().map(text)),
        "query" => RestrictedExpression::new_entity_uid(entity::query_uid()),
        "approvals" => RestrictedExpression::new_set(asked.approvals.iter().map(|role| text(role))),
        "limits" => RestrictedExpression::new_set(asked.limits.iter().map(|id| text(id))),
        "scope" => RestrictedExpression::new_set(asked.scope.iter().map(|scope| text(scope))),
        "body" => fields(asked.body),
        "lookup" => fields(asked.lookup),
        "time" => time(input.gathered.time.as_ref()),
        "task" => task(input.gathered.tasks.as_ref()),
        "network" => {
            let trusted = input.gathered.trusted_network;
            record("trusted", trusted.map(RestrictedExpression::new_bool))
        }
        "host" => {
            let labels = input.gathered.host_labels.as_ref();
            let labels = labels.map(|labels| labels.iter().map(|label| text(label)));
            record("labels", labels.map(RestrictedExpression::new_set))
        }
        "agent" => situation(input.gathered.agent),
        _ => RestrictedExpression::new_entity_uid(entity::headers_uid()),
    };
    let known = match asked.path {
        None => &schema::CONNECT_CONTEXT[..],
        Some(_) => &schema::CONTEXT,
    };
    let read = known.iter().copied().filter(|name| has(name));
    let pairs = read.map(|name| (name.to_owned(), value(name)));
    let context =
        Context::from_pairs(pairs).expect("the names are different and the values are plain");
    Request::new(
        agent.uid.clone(),
        entity::action_uid(asked.action),
        entity::host_uid(&input.host.id(input.port)),
        context,
        None,
    )
    .expect("without a schema every request is one")
}

fn fields(values: &BTreeMap<String, Value>) -> RestrictedExpression {
    let pairs = values
        .iter()
        .map(|(name, value)| (name.clone(), field(value)));
    RestrictedExpression::new_record(pairs).expect("the names of a map are different")
}

fn field(value: &Value) -> RestrictedExpression {
    match value {
        Value::String(text) => RestrictedExpression::new_string(text.clone()),
        Value::Decimal(text) => RestrictedExpression::new_decimal(text),
        Value::Long(number) => RestrictedExpression::new_long(*number),
        Value::Bool(value) => RestrictedExpression::new_bool(*value),
        Value::Strings(texts) => {
            let texts = texts.iter().cloned();
            RestrictedExpression::new_set(texts.map(RestrictedExpression::new_string))
        }
    }
}

fn record(name: &str, value: Option<RestrictedExpression>) -> RestrictedExpression {
    let pairs = value.into_iter().map(|value| (name.to_owned(), value));
    RestrictedExpression::new_record(pairs).expect("there is one name")
}

/// As [`time`].
fn situation(agent: Option<AgentSituation>) -> RestrictedExpression {
    let pairs = agent.map(|agent| {
        let uptime = i64::try_from(agent.uptime_s).unwrap_or(i64::MAX);
        [
            ("uptime_s", RestrictedExpression::new_long(uptime)),
            ("attended", RestrictedExpression::new_bool(agent.attended)),
        ]
    });
    let pairs = pairs.into_iter().flatten();
    let pairs = pairs.map(|(name, value)| (name.to_owned(), value));
    RestrictedExpression::new_record(pairs).expect("the names are different")
}

/// What nobody has gathered has nothing that a rule could read: its evaluation fails, and the request is refused.
fn time(moment: Option<&Moment>) -> RestrictedExpression {
    let pairs = moment.map(|moment| {
        let text = |value: &str| RestrictedExpression::new_string(value.to_owned());
        let within = moment.within.iter().map(|name| text(name));
        [
            ("hour", RestrictedExpression::new_long(moment.hour)),
            ("minute", RestrictedExpression::new_long(moment.minute)),
            ("weekday", text(moment.weekday)),
            ("date", text(&moment.date)),
            ("within", RestrictedExpression::new_set(within)),
        ]
    });
    let pairs = pairs.into_iter().flatten();
    RestrictedExpression::new_record(pairs.map(|(name, value)| (name.to_owned(), value)))
        .expect("the names are different")
}

/// Of tasks that nobody has gathered a rule can read nothing, as of [`time`].
fn task(tasks: Option<&Tasks>) -> RestrictedExpression {
    let text = |value: String| RestrictedExpression::new_string(value);
    let pairs = tasks.map(|tasks| {
        let task = tasks.task();
        let id = task.map_or(String::new(), |task| task.id.to_string());
        let intent = task.map_or(String::new(), |task| task.intent.clone());
        let opened_by = task.map_or("", |task| task.opened_by.name());
        [
            ("open", RestrictedExpression::new_bool(task.is_some())),
            ("id", text(id)),
            ("intent", text(intent)),
            ("opened_by", text(opened_by.into())),
        ]
    });
    let pairs = pairs.into_iter().flatten();
    RestrictedExpression::new_record(pairs.map(|(name, value)| (name.to_owned(), value)))
        .expect("the names are different")
}
