//! The Cedar schema, generated from the bundle: what a rule can speak of.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::body::FieldType;

/// Action of a connection whose bytes are passed.
pub(super) const CONNECT: &str = "connect";
/// The group that every HTTP method is in.
pub(super) const REQUEST: &str = "request";

/// Attributes of a request's `context`.
pub(super) const CONTEXT: [&str; 16] = [
    "scheme",
    "path",
    "segments",
    "routes",
    "query",
    "headers",
    "body",
    "lookup",
    "scope",
    "approvals",
    "limits",
    "time",
    "network",
    "host",
    "task",
    "agent",
];

/// What a request does, as `context.scope` has it.
pub(super) const SCOPES: [&str; 6] = [
    "read",
    "write",
    "money",
    "infrastructure",
    "export",
    "admin",
];

/// What a request does of which nothing is said.
pub(super) fn scope_of(method: &str) -> &'static str {
    match method {
        "GET" | "HEAD" | "OPTIONS" => "read",
        _ => "write",
    }
}

/// Attributes of a passed connection's `context`.
pub(super) const CONNECT_CONTEXT: [&str; 7] = [
    "approvals",
    "limits",
    "time",
    "network",
    "host",
    "task",
    "agent",
];

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
    let fields = |types: &FieldTypes| {
        let fields = types.iter();
        let fields = fields.map(|(name, kind)| format!("{name}?: {}", kind.cedar()));
        fields.collect::<Vec<_>>().join(", ")
    };
    let (body, lookup) = (fields(&shape.body), fields(&shape.lookup));
    let mut text = format!(
        "type Time = {{ hour: Long, minute: Long, weekday: String, date: String, within: Set<String> }};
type Network = {{ trusted: Bool }};
type HostSituation = {{ labels: Set<String> }};
type Task = {{ open: Bool, id: String, intent: String, opened_by: String }};
type AgentSituation = {{ uptime_s: Long, attended: Bool }};
entity Agent {{ owner: String, risk: String }};
entity Host in [Host] {{ name: String, port: Long, risk: String, data: Set<String> }};
entity Query tags String;
entity Headers tags String;
action \"{REQUEST}\";
action {list} in [\"{REQUEST}\"] appliesTo {{
  principal: [Agent],
  resource: [Host],
  context: {{ scheme: String, path: String, segments: Long, routes: Set<String>, query: Query, headers: Headers, body: {{ {body} }}, lookup: {{ {lookup} }}, scope: Set<String>, approvals: Set<String>, limits: Set<String>, time: Time, network: Network, host: HostSituation, task: Task, agent: AgentSituation }},
}};
"
    );
    if scope == Scope::RequestsAndConnections {
        let _ = writeln!(
            text,
            "action \"{CONNECT}\" appliesTo {{ principal: [Agent], resource: [Host], context: {{ approvals: Set<String>, limits: Set<String>, time: Time, network: Network, host: HostSituation, task: Task, agent: AgentSituation }} }};"
        );
    }
    text
}
