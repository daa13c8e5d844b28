//! Attributes of the act itself: what its head says, and the fields that hosts' files declare of it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use cedar_policy::RestrictedExpression;

use super::ActFacts;
use super::attribute::{Attribute, set, text};
use crate::body::Value;
use crate::entity;
use crate::path::segment_count;
use crate::schema::{FieldTypes, Shape};

pub(crate) struct SchemeAttribute;
pub(crate) struct PathAttribute;
pub(crate) struct SegmentsAttribute;
pub(crate) struct RoutesAttribute;
pub(crate) struct QueryAttribute;
pub(crate) struct HeadersAttribute;
pub(crate) struct BodyAttribute;
pub(crate) struct LookupAttribute;

const REQUEST: &[(&str, &str)] = &[("request", "the method, one space and the URL")];

impl Attribute for SchemeAttribute {
    const NAME: &'static str = "scheme";
    const CEDAR: &'static str = "String";
    const CONNECT: bool = false;
    const DOC: &'static str = "`https` or `http`.";
    const FACTS: &'static [&'static str] = &[];
    const KEYS: &'static [(&'static str, &'static str)] = REQUEST;

    fn cedar(facts: &ActFacts<'_>) -> RestrictedExpression {
        text(facts.scheme)
    }
}

impl Attribute for PathAttribute {
    const NAME: &'static str = "path";
    const CEDAR: &'static str = "String";
    const CONNECT: bool = false;
    const DOC: &'static str = "The path without the query: unreserved characters decoded, dot segments resolved, double slashes merged. A path that servers read in two ways is decided in each.";
    const FACTS: &'static [&'static str] = &["path"];
    const KEYS: &'static [(&'static str, &'static str)] = REQUEST;

    fn cedar(facts: &ActFacts<'_>) -> RestrictedExpression {
        text(facts.path.unwrap_or_default())
    }
}

impl Attribute for SegmentsAttribute {
    const NAME: &'static str = "segments";
    const CEDAR: &'static str = "Long";
    const CONNECT: bool = false;
    const DOC: &'static str = "How many segments the path has.";
    const FACTS: &'static [&'static str] = &["path"];
    const KEYS: &'static [(&'static str, &'static str)] = REQUEST;

    fn cedar(facts: &ActFacts<'_>) -> RestrictedExpression {
        let count = segment_count(facts.path.unwrap_or_default());
        RestrictedExpression::new_long(i64::try_from(count).unwrap_or(i64::MAX))
    }
}

impl Attribute for RoutesAttribute {
    const NAME: &'static str = "routes";
    const CEDAR: &'static str = "Set<String>";
    const CONNECT: bool = false;
    const DOC: &'static str =
        "The path patterns that the path matches: `context.routes.contains(\"/v1/catalog/**\")`.";
    const FACTS: &'static [&'static str] = &["path"];
    const KEYS: &'static [(&'static str, &'static str)] = REQUEST;

    fn cedar(facts: &ActFacts<'_>) -> RestrictedExpression {
        let path = facts.path.unwrap_or_default();
        let matching = facts.routes().matching(path).into_iter();
        set(matching.map(|(route, ())| route.as_str()))
    }
}

impl Attribute for QueryAttribute {
    const NAME: &'static str = "query";
    const CEDAR: &'static str = "Query";
    const CONNECT: bool = false;
    const DOC: &'static str = "The query's parameters, as tags: `context.query.getTag(\"page\")`.";
    const FACTS: &'static [&'static str] = &["query.NAME"];
    const KEYS: &'static [(&'static str, &'static str)] = REQUEST;

    fn cedar(_facts: &ActFacts<'_>) -> RestrictedExpression {
        RestrictedExpression::new_entity_uid(entity::query_uid())
    }
}

impl Attribute for HeadersAttribute {
    const NAME: &'static str = "headers";
    const CEDAR: &'static str = "Headers";
    const CONNECT: bool = false;
    const DOC: &'static str =
        "The headers by their lower-case names, as tags: `context.headers.hasTag(\"x-team\")`.";
    const FACTS: &'static [&'static str] = &["header.NAME"];
    const KEYS: &'static [(&'static str, &'static str)] =
        &[("headers", "a table of strings or lists of them")];

    fn cedar(_facts: &ActFacts<'_>) -> RestrictedExpression {
        RestrictedExpression::new_entity_uid(entity::headers_uid())
    }
}

impl Attribute for BodyAttribute {
    const NAME: &'static str = "body";
    const CEDAR: &'static str = "{ FIELD?: TYPE, … }";
    const CONNECT: bool = false;
    const DOC: &'static str =
        "The fields of the body that the host's file declares in `[[body]]`; write `has` first.";
    const FACTS: &'static [&'static str] = &["body.FIELD"];
    const KEYS: &'static [(&'static str, &'static str)] =
        &[("body", "a string, or a table or list that is sent as JSON")];

    fn schema(shape: &Shape) -> Cow<'static, str> {
        declared(&shape.body).into()
    }

    fn cedar(facts: &ActFacts<'_>) -> RestrictedExpression {
        fields(facts.body)
    }
}

impl Attribute for LookupAttribute {
    const NAME: &'static str = "lookup";
    const CEDAR: &'static str = "{ FACT?: TYPE, … }";
    const CONNECT: bool = false;
    const DOC: &'static str =
        "The facts that the host's file has looked up with `[[lookup]]`; write `has` first.";
    const FACTS: &'static [&'static str] = &["lookup.FACT"];
    const KEYS: &'static [(&'static str, &'static str)] =
        &[("lookup", "a table of the facts by their names")];

    fn schema(shape: &Shape) -> Cow<'static, str> {
        declared(&shape.lookup).into()
    }

    fn cedar(facts: &ActFacts<'_>) -> RestrictedExpression {
        fields(facts.lookup)
    }
}

fn declared(types: &FieldTypes) -> String {
    let fields = types
        .iter()
        .map(|(name, kind)| format!("{name}?: {}", kind.cedar()));
    format!("{{ {} }}", fields.collect::<Vec<_>>().join(", "))
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
        Value::Strings(texts) => set(texts.iter().map(String::as_str)),
    }
}
