//! Bundles as text, of few hosts, paths and conditions, so that they meet each other often.

use std::collections::HashSet;

use proptest::prelude::*;

use super::super::*;

const HOSTS: [&str; 7] = [
    "*.x.t", "a.x.t", "*.b.x.t", "c.b.x.t", "*.x.t:80", "d.t", "10.0.0.1",
];
pub(super) const NAMES: [(&str, u16); 9] = [
    ("a.x.t", 443),
    ("z.x.t", 443),
    ("c.b.x.t", 443),
    ("e.b.x.t", 443),
    ("b.x.t", 443),
    ("a.x.t", 80),
    ("d.t", 443),
    ("10.0.0.1", 443),
    ("q.t", 443),
];
const ROUTES: [&str; 7] = ["/**", "/p/*", "/p/**", "/p/q", "/*/q", "/p%2Fq", "/p/q*"];
pub(super) const PATHS: [&str; 14] = [
    "/", "/p", "/p/", "/p/q", "/p/q/r", "/x/q", "/p%2Fq", "/p/a%2Fq", "/p/q%40", "/P/Q", "/p/q.r",
    "/p;x/q", "/p/q%20", "/X/q/",
];
pub(super) const BODIES: [&str; 5] = [
    "",
    r#"{"amount": 12.5, "region": "eu"}"#,
    r#"{"amount": -3, "urgent": true}"#,
    r#"{"region": "us", "amount": 5000.0001, "servers": 7}"#,
    r#"{"servers": 2, "other": [1]}"#,
];
const METHODS: [&str; 5] = ["GET", "POST", "PUT", "ANY", "LOCK"];
const PRINCIPALS: [&str; 4] = [
    "principal",
    "principal == Agent::\"a\"",
    "principal in Agent::\"b\"",
    "principal is Agent",
];
const ACTIONS: [&str; 8] = [
    "action",
    "action == Action::\"GET\"",
    "action in [Action::\"GET\", Action::\"POST\"]",
    "action in Action::\"request\"",
    "action == Action::\"connect\"",
    "action in [Action::\"connect\", Action::\"PUT\"]",
    "action in [Action::\"request\"]",
    "action in [Action::\"request\", Action::\"connect\"]",
];
/// Of connections too.
const SITUATIONS: [&str; 10] = [
    "true",
    "resource.risk == \"high\"",
    "resource.data.contains(\"d\")",
    "principal.risk == \"low\"",
    "context.approvals.contains(\"owner\")",
    "context.approvals.isEmpty()",
    "context.time.within.contains(\"hours\")",
    "context.time.hour < 12 && context.time.weekday == \"mon\"",
    "context.network.trusted",
    "context.host.labels.contains(\"prod\")",
];
const CONDITIONS: [&str; 28] = [
    "context.path == \"/p/q\"",
    "context.path like \"/p/*\"",
    "context.routes.contains(\"/p/**\")",
    "context.routes.contains(\"/*/q\") || context.segments > 2",
    "context.query.hasTag(\"q\") && context.query.getTag(\"q\") == \"1\"",
    "context.headers.hasTag(\"x-h\")",
    "context.headers.hasTag(principal.risk)",
    "resource in Host::\"*.b.x.t\"",
    "Host::\"a.x.t\".risk == \"high\"",
    "context.scheme == \"https\"",
    "resource.name like \"*.x.t\"",
    "context.segments * 9223372036854775807 > 1",
    "Agent::\"b\".owner == principal.owner",
    "action in Action::\"request\"",
    "context.body has amount && context.body.amount.lessThan(decimal(\"100.0\"))",
    "context.body has amount && context.body.amount.greaterThanOrEqual(decimal(\"12.5\"))",
    "context.body has region && context.body.region == \"eu\"",
    "context.body has urgent && context.body.urgent",
    "context.body has servers && context.body.servers * 4611686018427387904 > 7",
    "context.scope.contains(\"money\")",
    "context.scope.contains(\"write\")",
    "context.scope.containsAny([\"read\", \"export\"])",
    "context.query.getTag(\"q\") == \"1\"",
    "!context.network.trusted && context.path like \"*q\"",
    "context.path == \"/P/q\"",
    "context.routes.contains(\"/X/**\")",
    "context.path like \"/P/*\" && context.segments == 2",
    "[\"/p\", \"/P/q\"].contains(context.path)",
];
const BLOCKS: [&str; 4] = [
    "",
    "[[body]]\non = \"ANY /**\"\namount = { type = \"decimal\", at = \"/amount\" }\nregion = { type = \"string\", at = \"/region\" }\nurgent = { type = \"bool\", at = \"/urgent\" }\nservers = { type = \"long\", at = \"/servers\" }\n[[scope]]\nis = \"money\"\non = \"ANY /p/**\"\nwhere = { region = \"eu\" }\n[[scope]]\nis = [\"export\", \"read\"]\non = \"GET /x/*\"\n",
    "[[body]]\non = \"POST /p/*\"\namount = { type = \"decimal\", at = \"/amount\" }\nregion = { type = \"string\", at = \"/region\" }\n[[body]]\non = \"ANY /p/**\"\nservers = { type = \"long\", at = \"/servers\" }\n",
    "[[scope]]\nis = \"money\"\non = \"PUT /**\"\n",
];

fn pick(from: &'static [&'static str]) -> impl Strategy<Value = &'static str> {
    (0..from.len()).prop_map(move |index| from[index])
}

fn condition() -> impl Strategy<Value = String> {
    let one = || prop_oneof![pick(&SITUATIONS), pick(&CONDITIONS)];
    let two = (one(), prop_oneof![Just("&&"), Just("||")], one());
    prop_oneof![
        3 => one().prop_map(str::to_owned),
        1 => two.prop_map(|(left, sign, right)| format!("({left}) {sign} ({right})")),
    ]
}

prop_compose! {
    fn reach()(host in pick(&HOSTS), pass in 0..4, allow in prop::collection::btree_set((pick(&METHODS), pick(&ROUTES)), 0..6)) -> (&'static str, String) {
        let text = if pass == 0 {
            let allow = if allow.len() > 1 { "\nallow = [\"connect\"]" } else { "" };
            format!("[[reach]]\nhost = \"{host}\"\ntls = \"passthrough\"{allow}\n")
        } else {
            let allow: Vec<_> = allow.iter().map(|(method, route)| format!("\"{method} {route}\"")).collect();
            format!("[[reach]]\nhost = \"{host}\"\nallow = [{}]\n", allow.join(", "))
        };
        (host, text)
    }
}

prop_compose! {
    fn agent()(entries in prop::collection::vec(reach(), 3..9)) -> String {
        let mut seen = HashSet::new();
        entries.into_iter().filter(|(host, _)| seen.insert(*host)).map(|(_, text)| text).collect()
    }
}

/// What stands in front of a rule, and its effect.
fn effect() -> impl Strategy<Value = (&'static str, Option<&'static str>)> {
    prop_oneof![
        7 => Just(("permit", None)),
        1 => Just(("forbid", None)),
        1 => Just(("@reason(\"outside-hours\") forbid", None)),
        2 => Just(("@approve(\"owner\") forbid", Some("owner"))),
        1 => Just(("@approve(\"finance\") forbid", Some("finance"))),
    ]
}

prop_compose! {
    fn rule()((effect, role) in effect(), principal in pick(&PRINCIPALS), action in pick(&ACTIONS), host in pick(&HOSTS), on_host in 0..3, when in condition(), unless in prop::option::weighted(0.2, condition())) -> String {
        let resource = match on_host {
            0 => "resource".to_owned(),
            _ if host.starts_with('*') => format!("resource in Host::\"{host}\""),
            _ => format!("resource == Host::\"{host}\""),
        };
        let lifted = role.map(|role| format!("context.approvals.contains(\"{role}\")"));
        let unless: Vec<_> = lifted.into_iter().chain(unless.map(|it| format!("({it})"))).collect();
        let unless = if unless.is_empty() { String::new() } else { format!(" unless {{ {} }}", unless.join(" || ")) };
        format!("{effect} ({principal}, {action}, {resource}) when {{ {when} }}{unless};")
    }
}

const MANIFEST: &str = "name = \"b\"\nserial = 1\n[time]\nzone = \"Europe/Vienna\"\n[[time.window]]\nname = \"hours\"\ndays = [\"mon\"]\nfrom = \"08:00\"\nto = \"18:00\"\n";

prop_compose! {
    pub fn bundle_sources()(a in agent(), b in agent(), hosts in prop::collection::btree_map(pick(&HOSTS), pick(&BLOCKS), 1..5), rules in prop::collection::vec(rule(), 0..10)) -> Sources {
        let mut files = BTreeMap::from([("bundle.toml".to_owned(), MANIFEST.to_owned())]);
        for (name, reach) in [("a", a), ("b", b)] {
            files.insert(format!("agents/{name}.toml"), format!("[agent]\nname = \"{name}\"\nowner = \"o\"\nrisk = \"low\"\n{reach}"));
        }
        for (index, (host, blocks)) in hosts.into_iter().enumerate() {
            let facts = ["risk = \"high\"\n", "risk = \"low\"\ndata = [\"d\"]\n", ""][index % 3];
            files.insert(format!("hosts/h{index}.toml"), format!("[host]\nname = \"{host}\"\n{facts}{blocks}"));
        }
        for (index, rule) in rules.into_iter().enumerate() {
            files.insert(format!("rules/r{index}.cedar"), format!("@id(\"r{index}\") {rule}"));
        }
        Sources { files }
    }
}

/// Leaves out the rules that the bundle makes impossible.
pub(super) fn settle(mut sources: Sources) -> (Sources, Policy) {
    loop {
        match Policy::compile(&sources, &ids(&sources)) {
            Ok(policy) => return (sources, policy),
            Err(found) => {
                for one in found {
                    assert!(one.file.starts_with("rules/"), "{one:?}");
                    sources.files.remove(&one.file);
                }
            }
        }
    }
}
