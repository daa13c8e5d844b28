//! What other services are asked of a request, and what a decision makes of their answers.

use std::sync::Arc;

use http::header::CONTENT_TYPE;

use super::*;
use crate::lookup::{Lookup, LookupAnswer, LookupQuestion};
use crate::question::Question;

const HOST: &str = r#"[host]
name = "h"
[[body]]
on = "POST /v1/customers/*"
kind = { type = "string", at = "/kind" }
[[lookup]]
on = "ANY /v1/customers/{record}/**"
url = "https://t.example/open?record={path.record}&agent={agent}"
open = { type = "bool", at = "/open" }
by = { type = "string", at = "/by", private = true }
[[lookup]]
on = "POST /v1/customers/{record}"
url = "http://t.example:8080/{path.record}/{body.kind}/{query.why}?o={owner}&r={header.x-r}"
level = { type = "long", at = "/a/level" }
open = { type = "bool", at = "/also" }
"#;

const RULES: &str = r#"
@id("read") permit (principal, action == Action::"GET", resource == Host::"h")
when { context.lookup has open && context.lookup.open };
@id("write") permit (principal, action == Action::"POST", resource == Host::"h")
when { context.lookup has level && context.lookup.level > 3 };
@id("other") permit (principal, action == Action::"PUT", resource);
"#;

fn policy(host: &str, rules: &str) -> Policy {
    let mut sources = bundle("[[reach]]\nhost = \"h\"\n[[reach]]\nhost = \"i\"\n", rules);
    sources.files.insert("hosts/h.toml".into(), host.into());
    compile(&sources)
}

fn agent(policy: &Policy) -> AgentId {
    *policy.agents.keys().next().unwrap()
}

/// The URLs, or why nobody can be asked.
fn urls(policy: &Policy, asked: &Asked) -> Vec<Result<String, String>> {
    let asks = policy.asks(&asked.input(agent(policy))).into_iter();
    asks.map(|(_, ask)| match ask {
        Ok(ask) => Ok(ask.url()),
        Err(why) => Err(why.detail().to_owned()),
    })
    .collect()
}

fn with_body(mut asked: Asked, policy: &Policy, body: &str) -> Asked {
    asked
        .headers
        .insert(CONTENT_TYPE, "application/json".parse().unwrap());
    let needed = policy.needs(&asked.input(agent(policy))).body;
    let needed = needed.expect("the body is needed");
    asked.context.body = needed.block.read(&asked.headers, body.as_bytes(), 1000);
    asked
}

#[test]
fn services_are_asked_only_where_a_rule_reads_what_they_know() {
    let policy = policy(HOST, RULES);
    let record = |id: &str| vec![Ok(format!("https://t.example/open?record={id}&agent=a"))];
    let cases = [
        ("GET https://h/v1/customers/7", record("7")),
        ("GET https://h/v1/customers/7/notes/x", record("7")),
        (
            "GET https://h/v1/customers/%C3%BC%20b&c=d",
            record("%C3%BC%20b%26c%3Dd"),
        ),
        ("GET https://h/v1/customers/a%40b", record("a%40b")),
        // Two readings: nothing is asked, and the request refused.
        ("GET https://h/v1/customers/a%2Fb", vec![]),
        ("GET https://h/v1//customers/./7", vec![]),
        ("GET https://h/v1/customers", vec![]),
        ("GET https://h/v1/orders/7", vec![]),
        ("PUT https://h/v1/customers/7", vec![]),
        ("GET https://i/v1/customers/7", vec![]),
        ("GET https://unknown/v1/customers/7", vec![]),
    ];
    for (request, expected) in cases {
        assert_eq!(
            urls(&policy, &Asked::new(request, &[])),
            expected,
            "{request}"
        );
    }
    let odd = Asked::new("GET https://h/v1/customers/a%2Fb", &[]);
    let said = answer(&policy, &odd.input(agent(&policy)));
    assert_eq!(said, Err(vec!["body-ambiguous".into()]));
}

#[test]
fn a_service_is_asked_with_what_the_request_has() {
    let policy = policy(HOST, RULES);
    let asks = |request: &str, headers: &[(&str, &str)], body: &str| {
        let asked = with_body(Asked::new(request, headers), &policy, body);
        let mut urls = urls(&policy, &asked);
        assert_eq!(urls.len(), 1, "`open` is not read of a POST: {urls:?}");
        urls.remove(0)
    };
    let line = "POST https://h/v1/customers/7?why=x%2Fy";
    let whole = [("x-r", "1&2")];
    assert_eq!(
        asks(line, &whole, r#"{"kind":"..k/l"}"#),
        Ok("http://t.example:8080/7/..k%2Fl/x%2Fy?o=o%40example.com&r=1%262".into())
    );
    let cases = [
        (
            line,
            &whole[..],
            "{}",
            "field `kind` of the body is not in the request",
        ),
        (
            line,
            &whole,
            r#"{"kind":""}"#,
            "field `kind` of the body of the request cannot",
        ),
        (
            line,
            &whole,
            r#"{"kind":".."}"#,
            "field `kind` of the body of the request cannot",
        ),
        (
            line,
            &whole,
            r#"{"kind":"../k"}"#,
            "field `kind` of the body of the request cannot",
        ),
        (
            line,
            &whole,
            r#"{"kind":"k/.."}"#,
            "field `kind` of the body of the request cannot",
        ),
        (
            line,
            &whole,
            r#"{"kind":"k\\.\\l"}"#,
            "field `kind` of the body of the request cannot",
        ),
        (
            line,
            &whole,
            r#"{"kind":"..;v=1/k"}"#,
            "field `kind` of the body of the request cannot",
        ),
        (
            line,
            &whole,
            r#"{"kind":7}"#,
            "field `kind` is not a string",
        ),
        (
            line,
            &[],
            r#"{"kind":"k"}"#,
            "header `x-r` is not in the request",
        ),
        (
            line,
            &[("x-r", "1"), ("x-r", "2")],
            r#"{"kind":"k"}"#,
            "more than once",
        ),
        (
            line,
            &[("x-r", "1"), ("x_r", "2")],
            r#"{"kind":"k"}"#,
            "can also be read as",
        ),
        (
            "POST https://h/v1/customers/7",
            &whole,
            r#"{"kind":"k"}"#,
            "query parameter `why` is not in",
        ),
        (
            "POST https://h/v1/customers/7?why=1&why=2",
            &whole,
            r#"{"kind":"k"}"#,
            "more than once",
        ),
    ];
    for (request, headers, body, expected) in cases {
        let why = asks(request, headers, body).unwrap_err();
        assert!(
            why.starts_with("t.example:8080: ") && why.contains(expected),
            "{why}"
        );
    }
    let long = format!("{line}{}", "x".repeat(5000));
    assert!(asks(&long, &whole, r#"{"kind":"k"}"#).is_err());
}

/// What the service's answer gets the request, as a slug and the policies.
fn answered(
    policy: &Policy,
    asked: &mut Asked,
    read: impl Fn(&LookupQuestion) -> LookupAnswer,
) -> Result<Vec<String>, Vec<String>> {
    let asks = policy.asks(&asked.input(agent(policy)));
    let answers = asks.into_iter().map(|(lookup, ask)| {
        let answer = ask.and_then(|ask| read(&ask));
        (lookup, answer)
    });
    asked.context.lookups = answers.collect::<Vec<(Arc<Lookup>, LookupAnswer)>>();
    answer(policy, &asked.input(agent(policy)))
}

#[test]
fn an_answer_is_read_strictly_or_the_request_refused() {
    let policy = policy(HOST, RULES);
    let get = |kind: &'static str, text: &str| {
        let mut asked = Asked::new("GET https://h/v1/customers/7", &[]);
        answered(&policy, &mut asked, |ask| {
            let headers = [(CONTENT_TYPE, kind.parse().unwrap())]
                .into_iter()
                .collect();
            ask.read(&headers, text.as_bytes())
        })
    };
    let json = "application/json";
    let unavailable = Err(vec!["attribute-unavailable".to_owned()]);
    let denied = Err(vec!["policy-denied".to_owned()]);
    assert_eq!(get(json, r#"{"open":true}"#), Ok(vec!["read".into()]));
    for text in [r#"{"open":false}"#, "{}", "[]", r#"{"opened":true}"#] {
        assert_eq!(get(json, text), denied, "{text}");
    }
    let bad = [
        (json, r#"{"open":null}"#),
        (json, r#"{"open":"true"}"#),
        (json, r#"{"open":1}"#),
        (json, r#"{"open":true,"open":false}"#),
        (json, r#"{"Open":true}"#),
        (json, r#"{"open":true,"by":7}"#),
        (json, r#"{"open":true"#),
        (json, r#"{"open":true} {}"#),
        (json, ""),
        ("text/html", r#"{"open":true}"#),
        ("application/json; charset=utf-16", r#"{"open":true}"#),
    ];
    for (kind, text) in bad {
        assert_eq!(get(kind, text), unavailable, "{kind} {text}");
    }
    // Nobody has asked: what is not known is not absent.
    let asked = Asked::new("GET https://h/v1/customers/7", &[]);
    assert_eq!(answer(&policy, &asked.input(agent(&policy))), unavailable);
}

#[test]
fn records_have_the_facts_and_agents_are_not_told_who_was_asked() {
    let policy = policy(HOST, RULES);
    let mut asked = Asked::new("GET https://h/v1/customers/7", &[]);
    let said = answered(&policy, &mut asked, |ask| {
        let headers = [(CONTENT_TYPE, "application/json".parse().unwrap())];
        let text = br#"{"open":false,"by":"Ada","more":1}"#;
        ask.read(&headers.into_iter().collect(), text)
    });
    assert!(said.is_err());
    let Decision::Deny(denial) = policy.decide(&asked.input(agent(&policy))) else {
        panic!("permitted");
    };
    assert_eq!(denial.facts["lookup.open"], "false");
    assert!(denial.facts["lookup.by"].starts_with("sha256:"));
    assert!(!denial.facts.contains_key("lookup.more"));

    let down = answered(&policy, &mut asked, |ask| {
        Err(ask.failed("it cannot be reached", "192.0.2.1:443: refused"))
    });
    assert_eq!(down, Err(vec!["attribute-unavailable".into()]));
    let Decision::Deny(denial) = policy.decide(&asked.input(agent(&policy))) else {
        panic!("permitted");
    };
    assert_eq!(
        denial.facts["lookup_failed"],
        "t.example: 192.0.2.1:443: refused"
    );
    for hidden in ["t.example", "192.0.2.1"] {
        assert!(!denial.detail.contains(hidden), "{}", denial.detail);
    }
    assert!(
        denial.detail.contains("it cannot be reached"),
        "{}",
        denial.detail
    );
}

#[test]
fn what_cannot_be_had_refuses_an_observed_agent_too() {
    let mut sources = bundle("mode = \"observe\"\n[[reach]]\nhost = \"h\"\n", RULES);
    sources.files.insert("hosts/h.toml".into(), HOST.into());
    let policy = compile(&sources);
    let mut asked = Asked::new("GET https://h/v1/customers/7", &[]);
    let down = answered(&policy, &mut asked, |ask| Err(ask.failed("no", "no")));
    assert_eq!(down, Err(vec!["attribute-unavailable".into()]));
    let closed = answered(&policy, &mut asked, |ask| {
        let headers = [(CONTENT_TYPE, "application/json".parse().unwrap())];
        ask.read(&headers.into_iter().collect(), b"{}")
    });
    assert!(closed.is_ok(), "denied by rules: let through, and recorded");
}

#[test]
fn the_first_lookup_that_has_a_fact_is_where_it_comes_from() {
    let rules = "@id(\"p\") permit (principal, action == Action::\"POST\", resource)
when { context.lookup has open && context.lookup.open && context.lookup has level };";
    let policy = policy(HOST, rules);
    let line = "POST https://h/v1/customers/7?why=y";
    let said = |first: &'static str, second: &'static str| {
        let asked = Asked::new(line, &[("x-r", "r")]);
        let mut asked = with_body(asked, &policy, r#"{"kind":"k"}"#);
        assert_eq!(urls(&policy, &asked).len(), 2);
        answered(&policy, &mut asked, |ask| {
            let headers = [(CONTENT_TYPE, "application/json".parse().unwrap())];
            let text = if ask.service.tls { first } else { second };
            ask.read(&headers.into_iter().collect(), text.as_bytes())
        })
    };
    let level = r#"{"a":{"level":1},"also":true}"#;
    assert!(said(r#"{"open":true}"#, level).is_ok());
    assert!(said(r#"{"open":false}"#, level).is_err());
    assert!(said("{}", level).is_err(), "absent in the first is absent");
}

#[test]
fn a_parents_rules_have_answers_too() {
    let mut sources = bundle("[[reach]]\nhost = \"h\"\n", RULES);
    let child = "[agent]\nname = \"c\"\nowner = \"x\"\nrisk = \"low\"\nparent = \"a\"\n[[reach]]\nhost = \"h\"\nallow = [\"GET /**\"]\n";
    sources.files.insert("agents/c.toml".into(), child.into());
    sources.files.insert("hosts/h.toml".into(), HOST.into());
    sources.files.insert(
        "rules/r.cedar".into(),
        RULES.replace("principal,", "principal == Agent::\"a\","),
    );
    let policy = compile(&sources);
    let child = ids(&sources)["c"];
    let asked = Asked::new("GET https://h/v1/customers/7", &[]);
    let asks = policy.asks(&asked.input(child));
    let urls: Vec<_> = asks
        .into_iter()
        .map(|(_, ask)| ask.unwrap().url())
        .collect();
    assert_eq!(urls, ["https://t.example/open?record=7&agent=c"]);
    assert_eq!(
        answer(&policy, &asked.input(child)),
        Err(vec!["attribute-unavailable".into()])
    );
}

#[test]
fn a_question_says_what_the_services_answer() {
    let policy = policy(HOST, RULES);
    let ask = |lookup: Option<&str>| {
        let question = Question {
            agent: "a".into(),
            method: "GET".into(),
            url: "https://h/v1/customers/7".into(),
            headers: Vec::new(),
            body: None,
            lookup: lookup.map(str::to_owned),
            ..Question::default()
        };
        let explained = policy.explain(&question).unwrap();
        assert_eq!(
            explained.lookups,
            ["https://t.example/open?record=7&agent=a"]
        );
        explained.reason.map_or("", DenyReason::slug)
    };
    assert_eq!(ask(Some("{\"open\": true}")), "");
    assert_eq!(ask(Some("{}")), "policy-denied");
    assert_eq!(ask(Some("{\"open\": 1}")), "attribute-unavailable");
    assert_eq!(ask(None), "attribute-unavailable");
}

#[test]
fn what_is_declared_is_checked() {
    let found = |lookup: &str, rules: &str| {
        let host = format!(
            "[host]\nname = \"h\"\n[[body]]\non = \"POST /**\"\ntags = {{ type = \"strings\", at = \"/t\" }}\nkind = {{ type = \"string\", at = \"/k\" }}\n[[lookup]]\n{lookup}"
        );
        let mut sources = bundle("[[reach]]\nhost = \"h\"\n", rules);
        sources.files.insert("hosts/h.toml".into(), host);
        match Policy::compile(&sources, &ids(&sources)) {
            Ok(_) => String::new(),
            Err(found) => {
                let messages = found.iter().map(|one| one.message.as_str());
                messages.collect::<Vec<_>>().join(" | ")
            }
        }
    };
    let with = |on: &str, url: &str, more: &str| {
        format!(
            "on = \"{on}\"\nurl = \"{url}\"\n{more}\nopen = {{ type = \"bool\", at = \"/o\" }}\n"
        )
    };
    let on = "GET /v1/{id}";
    let good = "https://t.example/{path.id}";
    assert_eq!(
        found(&with(on, good, "cache_s = 3600\ndeadline_ms = 10000"), ""),
        ""
    );
    for (on, url, more, expected) in [
        ("GET /v1/x{id}", good, "", "has to be a whole segment"),
        ("GET /v1/**/{id}", good, "", "cannot stand behind `**`"),
        ("GET /{id}/{id}", good, "", "is there twice"),
        ("GET /{i d}", good, "", "needs a name"),
        ("GOT /{id}", good, "", "`GOT` is not an HTTP method"),
        (on, "t.example/x", "", "does not start with `https://`"),
        (on, "https://u@t.example/x", "", "who is asked is fixed"),
        (
            on,
            "https://{path.id}.example/x",
            "",
            "who is asked is fixed",
        ),
        (on, "https://t..example/x", "", "names no host"),
        (on, "https://t.example:0/x", "", "names no host"),
        (on, "https://t.example/x#y", "", "has a fragment"),
        (
            on,
            "https://t.example/a b",
            "",
            "have to be percent-encoded",
        ),
        (
            on,
            "https://t.example/{path.id",
            "",
            "has a `{` without its `}`",
        ),
        (on, "https://t.example/{id}", "", "which is none of"),
        (
            on,
            "https://t.example/{path.ids}",
            "",
            "is no segment of `on`",
        ),
        (
            on,
            "https://t.example/{body.kin}",
            "",
            "is no field that a [[body]]",
        ),
        (on, "https://t.example/{body.tags}", "", "is a set"),
        (
            on,
            "https://t.example/?t={query.token}",
            "",
            "is a credential",
        ),
        (
            on,
            "https://t.example/?t={header.Authorization}",
            "",
            "is a credential",
        ),
        (
            on,
            "https://t.example/?t={header.X-A}",
            "",
            "is no header's name",
        ),
        (
            on,
            good,
            "cache_s = 3601",
            "`cache_s` is 3601, not 0 to 3600",
        ),
        (
            on,
            good,
            "deadline_ms = 0",
            "`deadline_ms` is 0, not 1 to 10000",
        ),
        (
            on,
            good,
            "method = \"POST\"",
            "field `method` is not a table",
        ),
        (on, good, "cache = 3", "unknown key `cache` in [[lookup]]"),
        (
            on,
            good,
            "x = { type = \"bool\", at = \"x\" }",
            "is no JSON Pointer",
        ),
    ] {
        let messages = found(&with(on, url, more), "");
        assert!(
            messages.contains(expected) && !messages.contains('|'),
            "{on} {url} {more}: {messages}"
        );
    }
    let none = found(&format!("on = \"{on}\"\nurl = \"{good}\"\n"), "");
    assert_eq!(none, "[[lookup]] has no fact");
    let rule = |condition: &str| {
        format!(
            "@id(\"p\") permit (principal, action, resource == Host::\"h\") when {{ {condition} }};"
        )
    };
    let lookup = with(on, good, "");
    assert_eq!(
        found(
            &lookup,
            &rule("context.lookup has open && context.lookup.open")
        ),
        ""
    );
    let mistyped = found(
        &lookup,
        &rule("context.lookup has opne && context.lookup.opne"),
    );
    assert!(mistyped.contains("declares the fact `opne`"), "{mistyped}");
    let unguarded = found(&lookup, &rule("context.lookup.open"));
    assert!(unguarded.contains("open"), "{unguarded}");
    let twice = format!(
        "{lookup}[[lookup]]\non = \"GET /x\"\nurl = \"https://t.example/\"\nopen = {{ type = \"long\", at = \"/o\" }}\n"
    );
    assert!(
        found(&twice, "").contains("field `open` is of the type Long here"),
        "{}",
        found(&twice, "")
    );
}
