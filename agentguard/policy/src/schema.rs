//! The Cedar schema, generated from the bundle: what a rule can speak of.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::body::FieldType;
use super::context;

/// Action of a connection whose bytes are passed.
pub(super) const CONNECT: &str = "connect";
/// The group that every HTTP method is in.
pub(super) const REQUEST: &str = "request";

/// HTTP methods that can be decided: IANA's registry without `CONNECT`, `PRI` and `*`, which are the forwarder's own matter.
pub(super) const METHODS: [&str; 38] = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "PATCH",
    "DELETE",
    "OPTIONS",
    "TRACE",
    "QUERY",
    "ACL",
    "BASELINE-CONTROL",
    "BIND",
    "CHECKIN",
    "CHECKOUT",
    "COPY",
    "LABEL",
    "LINK",
    "LOCK",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MKREDIRECTREF",
    "MKWORKSPACE",
    "MOVE",
    "ORDERPATCH",
    "PROPFIND",
    "PROPPATCH",
    "REBIND",
    "REPORT",
    "SEARCH",
    "UNBIND",
    "UNCHECKOUT",
    "UNLINK",
    "UNLOCK",
    "UPDATE",
    "UPDATEREDIRECTREF",
    "VERSION-CONTROL",
];

/// The method as a decision knows it; methods are case-sensitive (RFC 9110 section 9.1).
pub(super) fn method(name: &str) -> Option<&'static str> {
    METHODS.iter().copied().find(|known| *known == name)
}

/// Whether rules are checked against requests only, or against passed connections too, which have no path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scope {
    Requests,
    RequestsAndConnections,
}

/// Fields by name, and their types.
pub(super) type FieldTypes = BTreeMap<String, FieldType>;

/// What rules can read of the requests to a host that its file declares.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shape {
    pub body: FieldTypes,
    pub lookup: FieldTypes,
}

/// `named`: the methods that some rule names. All others are alike to every rule, so one stands for them.
pub(super) fn text(named: &BTreeSet<&str>, scope: Scope, shape: &Shape) -> String {
    let mut methods = named.clone();
    methods.extend(METHODS.iter().copied().find(|known| !named.contains(known)));
    let list = methods
        .iter()
        .map(|method| format!("\"{method}\""))
        .collect::<Vec<_>>()
        .join(", ");
    let mut text = format!(
        "entity Agent {{ owner: String, risk: String }};
entity Host in [Host] {{ name: String, port: Long, risk: String, data: Set<String> }};
entity Query tags String;
entity Headers tags String;
action \"{REQUEST}\";
action {list} in [\"{REQUEST}\"] appliesTo {{
  principal: [Agent],
  resource: [Host],
  context: {{ {} }},
}};
",
        context::schema(false, shape)
    );
    if scope == Scope::RequestsAndConnections {
        let _ = writeln!(
            text,
            "action \"{CONNECT}\" appliesTo {{ principal: [Agent], resource: [Host], context: {{ {} }} }};",
            context::schema(true, shape)
        );
    }
    text
}
