//! What a request asks for: fields of its body, its scope, and whose approval it needs.

use super::*;
use crate::context::{AskedApprovals, AskedContext};
use crate::question::Question;

/// CONTRACT's sample, without the credential.
const ORDERS: &str = r#"
@id("orders")
permit (principal == Agent::"a", action == Action::"POST", resource == Host::"h")
when { context.path == "/v1/orders" && context.body has amount
  && context.body.amount.greaterThan(decimal("0.0")) && context.body.amount.lessThan(decimal("5000.0")) };

@id("orders-owner") @approve("owner")
forbid (principal == Agent::"a", action == Action::"POST", resource == Host::"h")
when { context.path == "/v1/orders" }
unless { context.approvals.contains("owner")
  || (context.body has amount && context.body.amount.lessThan(decimal("400.0"))) };
"#;

const HOST: &str = r#"[host]
name = "h"
[[body]]
on = "POST /v1/orders"
amount = { type = "decimal", at = "/amount" }
iban = { type = "string", at = "/iban", private = true }
"#;

fn with_host(host: &str, rules: &str) -> Sources {
    let mut sources = bundle("[[reach]]\nhost = \"h\"\n[[reach]]\nhost = \"i\"\n", rules);
    sources.files.insert("hosts/h.toml".into(), host.into());
    sources
}

/// `expect` as a case has it, and the policies that decided.
fn asked(policy: &Policy, request: &str, body: Option<&str>, approvals: &[&str]) -> String {
    let (method, url) = request.split_once(' ').unwrap();
    let answer = policy.answer(&Question {
        agent: "a".into(),
        method: method.into(),
        url: url.into(),
        headers: Vec::new(),
        body: body.map(str::to_owned),
        lookup: None,
        context: AskedContext {
            approvals: AskedApprovals {
                approvals: approvals.iter().map(|role| (*role).to_owned()).collect(),
            },
            ..AskedContext::default()
        },
    });
    let answer = answer.unwrap();
    let reason = answer.reason.map_or("", DenyReason::slug);
    format!(
        "{} {reason} {}",
        answer.outcome.name(),
        answer.policies.join(",")
    )
    .replace("  ", " ")
}

#[test]
fn the_contracts_sample_decides_as_it_says() {
    let policy = compile(&with_host(HOST, ORDERS));
    let owner = "approval-required approval-required orders-owner";
    let cases = [
        (r#"{"amount":399.99}"#, "allow orders"),
        (r#"{"amount":400}"#, owner),
        (r#"{"amount":1200}"#, owner),
        (r#"{"amount":12e2}"#, owner),
        (r#"{"amount":4999.9999}"#, owner),
        (r#"{"amount":5000}"#, "deny policy-denied orders-owner"),
        (r#"{"amount":50000}"#, "deny policy-denied orders-owner"),
        (r#"{"amount":-1}"#, "deny policy-denied "),
        (r#"{"amount":0}"#, "deny policy-denied "),
        ("{}", "deny policy-denied orders-owner"),
        (r#"{"amount":399.999999}"#, "deny body-unreadable "),
        (r#"{"amount":"399"}"#, "deny body-unreadable "),
        (r#"{"amount":null}"#, "deny body-unreadable "),
        (r#"{"amount":1,"amount":2}"#, "deny body-ambiguous "),
        (r#"{"amount":1,"iban":7}"#, "deny body-unreadable "),
        ("amount=399", "deny body-unreadable "),
    ];
    let url = "POST https://h/v1/orders";
    for (body, expected) in cases {
        assert_eq!(asked(&policy, url, Some(body), &[]), expected, "{body}");
    }
    assert_eq!(
        asked(&policy, url, None, &[]),
        "deny policy-denied orders-owner"
    );
    let approved = [
        (r#"{"amount":1200}"#, &["owner"][..], "allow orders"),
        (r#"{"amount":1200}"#, &["finance"], owner),
        (r#"{"amount":50000}"#, &["owner"], "deny policy-denied "),
        ("{}", &["owner"], "deny policy-denied "),
    ];
    for (body, roles, expected) in approved {
        assert_eq!(
            asked(&policy, url, Some(body), roles),
            expected,
            "{body} {roles:?}"
        );
    }
}

#[test]
fn an_approval_is_offered_only_where_it_would_help() {
    let permit = "@id(\"p\") permit (principal, action, resource == Host::\"h\") when { context.segments < 3 };";
    let owner = "@id(\"o\") @approve(\"owner\") forbid (principal, action, resource) unless { context.approvals.contains(\"owner\") };";
    let finance = "@id(\"f\") @approve(\"finance\") forbid (principal, action, resource) when { context.segments == 2 } unless { context.approvals.contains(\"finance\") };";
    let never = "@id(\"n\") forbid (principal, action, resource) when { context.path == \"/no\" };";
    let fails = "@id(\"x\") forbid (principal, action, resource) when { context.path == \"/x\" && context.segments * 9223372036854775807 + 1 > 1 };";
    let late = "@id(\"l\") forbid (principal, action, resource) when { context.path == \"/late\" && context.approvals.contains(\"owner\") };";
    let policy = compile(&with_host(
        HOST,
        &[permit, owner, finance, never, fails, late].join("\n"),
    ));
    let held = |ids: &str| format!("approval-required approval-required {ids}");
    let cases = [
        ("/a", &[][..], held("o")),
        ("/a/b", &[], held("f,o")),
        ("/a/b", &["owner"], held("f")),
        ("/a/b", &["owner", "finance"], "allow p".into()),
        ("/a/b/c", &[], "deny policy-denied o".into()),
        ("/a/b/c", &["owner"], "deny policy-denied ".into()),
        ("/no", &[], "deny policy-denied n,o".into()),
        ("/no", &["owner"], "deny policy-denied n".into()),
        ("/x", &[], "deny policy-denied x".into()),
        ("/late", &[], "deny policy-denied o".into()),
        // Both readings have to be approved, and to be permitted then.
        ("/a%2Fb", &[], held("f,o")),
        ("/a/b%2Fc", &[], "deny policy-denied f,o".into()),
    ];
    for (path, roles, expected) in cases {
        let url = format!("GET https://h{path}");
        assert_eq!(
            asked(&policy, &url, None, roles),
            expected,
            "{path} {roles:?}"
        );
    }
    assert_eq!(
        asked(&policy, "GET https://i/a", None, &[]),
        "deny policy-denied o"
    );
}

#[test]
fn refusals_say_whose_approval_is_needed_and_hide_private_fields() {
    let rules = ORDERS.replace(
        " context.path ==",
        " context.body has iban && context.path ==",
    );
    let policy = compile(&with_host(HOST, &rules));
    let mut asked = Asked::new(
        "POST https://h/v1/orders",
        &[("content-type", "application/json")],
    );
    let agent = *policy.agents.keys().next().unwrap();
    let body = br#"{"amount":1200,"iban":"DE02","more":1}"#;
    let needed = policy.needs(&asked.input(agent)).body.unwrap();
    asked.context.body = needed.block.read(&asked.headers, body, 100);
    let Decision::Deny(denial) = policy.decide(&asked.input(agent)) else {
        panic!("permitted");
    };
    assert_eq!(denial.reason, DenyReason::ApprovalRequired);
    assert_eq!(denial.approval, ["owner"]);
    assert!(denial.detail.contains("`owner`"), "{}", denial.detail);
    assert_eq!(denial.facts["body.amount"], "1200.0");
    assert!(denial.facts["body.iban"].starts_with("sha256:"));
    assert!(!denial.facts.contains_key("body.more"));
    let without = compile(&with_host(HOST, ORDERS));
    let Decision::Deny(unread) = without.decide(&asked.input(agent)) else {
        panic!("permitted");
    };
    assert_eq!(unread.facts["body.amount"], "1200.0");
    assert!(!unread.facts.contains_key("body.iban"), "no rule reads it");
    // Nobody has read it: a rule that needs it refuses.
    asked.context.body = Body::Unread;
    let Decision::Deny(denial) = policy.decide(&asked.input(agent)) else {
        panic!("permitted");
    };
    assert_eq!(denial.reason, DenyReason::BodyUnreadable);
}

#[test]
fn bodies_are_needed_only_where_a_rule_reads_them() {
    let policy = compile(&with_host(HOST, ORDERS));
    let agent = *policy.agents.keys().next().unwrap();
    let needs = |request: &str| {
        policy
            .needs(&Asked::new(request, &[]).input(agent))
            .body
            .is_some()
    };
    assert!(needs("POST https://h/v1/orders"));
    // Read as two, of which one has no fields: it is refused, whatever is in it.
    assert!(!needs("POST https://h/x/../v1//orders"));
    for other in [
        "GET https://h/v1/orders",
        "PUT https://h/v1/orders",
        "POST https://h/v1/other",
        "POST https://i/v1/orders",
    ] {
        assert!(!needs(other), "{other}");
    }
    // Two readings of the path of which one has a body: refused, whatever it says.
    let rules = "@id(\"p\") permit (principal, action, resource) when { context.body has amount };";
    let policy = compile(&with_host(HOST, rules));
    let odd = asked(
        &policy,
        "POST https://h/v1%2Forders",
        Some("{\"amount\":1}"),
        &[],
    );
    assert_eq!(odd, "deny body-ambiguous ");
}

#[test]
fn the_scope_is_what_the_hosts_file_says() {
    let host = r#"[host]
name = "h"
[[body]]
on = "POST /**"
kind = { type = "string", at = "/kind" }
[[scope]]
is = "read"
on = "POST /search"
[[scope]]
is = ["money", "write"]
on = "ANY /pay/**"
[[scope]]
is = "export"
on = "GET /pay/report"
[[scope]]
is = "admin"
on = "POST /jobs"
where = { kind = ["grant", "revoke"] }
"#;
    let scopes = [
        "read",
        "write",
        "money",
        "infrastructure",
        "export",
        "admin",
    ];
    let rules = scopes.map(|scope| format!("@id(\"{scope}\") permit (principal, action, resource) when {{ context.scope.contains(\"{scope}\") }};"));
    let policy = compile(&with_host(host, &rules.join("\n")));
    let cases = [
        ("GET https://h/x", None, "allow read"),
        ("HEAD https://h/x", None, "allow read"),
        ("OPTIONS https://i/x", None, "allow read"),
        ("QUERY https://h/x", None, "allow write"),
        ("DELETE https://i/x", None, "allow write"),
        ("POST https://h/search", None, "allow read"),
        ("POST https://h/pay/x", None, "allow money,write"),
        ("GET https://h/pay/report", None, "allow export,money,write"),
        ("POST https://h/jobs", Some("{}"), "allow write"),
        ("POST https://h/jobs", None, "allow write"),
        (
            "POST https://h/jobs",
            Some("{\"kind\":\"list\"}"),
            "allow write",
        ),
        (
            "POST https://h/jobs",
            Some("{\"kind\":\"grant\"}"),
            "allow admin",
        ),
        (
            "POST https://h/jobs",
            Some("{\"kind\":\"\\u0067rant\"}"),
            "allow admin",
        ),
        (
            "POST https://h/jobs",
            Some("{\"kind\":7}"),
            "deny body-unreadable ",
        ),
        // Nothing depends on its body.
        ("POST https://h/search", Some("no JSON"), "allow read"),
    ];
    for (request, body, expected) in cases {
        assert_eq!(
            asked(&policy, request, body, &[]),
            expected,
            "{request} {body:?}"
        );
    }
}

#[test]
fn a_rule_is_validated_at_every_host_that_it_fits() {
    let found = |host: &str, rules: &str| match Policy::compile(
        &with_host(host, rules),
        &ids(&with_host(host, rules)),
    ) {
        Ok(_) => Vec::new(),
        Err(found) => found.into_iter().map(|one| one.message).collect(),
    };
    let guarded = "@id(\"p\") permit (principal, action, resource) when { context.body has amount && context.body.amount.lessThan(decimal(\"1.0\")) };";
    assert_eq!(found(HOST, guarded), Vec::<String>::new());
    let open = "@id(\"p\") permit (principal, action, resource == Host::\"h\") when { context.body.amount.lessThan(decimal(\"1.0\")) };";
    let messages = found(HOST, open);
    assert!(
        messages.len() == 1 && messages[0].contains("amount"),
        "{messages:?}"
    );
    let mistyped = guarded.replace("amount", "amuont");
    let messages = found(HOST, &mistyped);
    assert!(
        messages
            .iter()
            .any(|m| m.contains("declares the field `amuont`")),
        "{messages:?}"
    );
    let other = "[host]\nname = \"h\"\n[[body]]\non = \"POST /a\"\namount = { type = \"string\", at = \"/a\" }\n";
    let messages = found(other, guarded);
    assert!(
        !messages.is_empty() && messages.iter().all(|m| m.contains("`h`")),
        "{messages:?}"
    );
}
