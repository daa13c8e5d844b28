//! Decisions one by one.

use super::*;

const SEND_AND_SYNC: fn() = || {
    fn check<T: Send + Sync>() {}
    check::<Policy>();
};

fn first(policy: &Policy) -> AgentId {
    *policy.agents.keys().next().unwrap()
}

fn denial(policy: &Policy, asked: &Asked) -> Denial {
    match policy.decide(&asked.input(first(policy))) {
        Decision::Deny(denial) => denial,
        permitted => panic!("{permitted:?}"),
    }
}

#[test]
fn what_cannot_be_evaluated_is_refused() {
    SEND_AND_SYNC();
    let rules = "@id(\"all\") permit (principal, action, resource);
@id(\"overflows\") forbid (principal, action, resource) when { context.segments * 9223372036854775807 > 1 };";
    let policy = compile(&bundle("[[reach]]\nhost = \"h\"\n", rules));
    let one = Asked::new("GET https://h/a", &[]);
    assert_eq!(
        answer(&policy, &one.input(first(&policy))),
        Err(vec!["policy-denied".into(), "overflows".into()])
    );
    // Two segments: the product is not a number any more, and Cedar alone would skip the forbid.
    let two = Asked::new("GET https://h/a/b", &[]);
    let denial = denial(&policy, &two);
    assert_eq!(
        (denial.reason, denial.policies),
        (DenyReason::PolicyDenied, vec!["overflows".to_owned()])
    );
    assert!(
        denial.detail.contains("could not be evaluated"),
        "{}",
        denial.detail
    );
    let none = Asked::new("GET https://h/", &[]);
    assert!(answer(&policy, &none.input(first(&policy))).is_ok());
}

#[test]
fn agents_and_methods_that_no_policy_knows_are_refused() {
    let policy = compile(&bundle(
        "[[reach]]\nhost = \"h\"\nallow = [\"ANY /**\"]\n",
        "",
    ));
    let asked = Asked::new("GET https://h/a", &[]);
    assert_eq!(
        answer(&policy, &asked.input(AgentId(99))),
        Err(vec!["agent-suspended".into()])
    );
    for method in ["FROB", "get", "connect", "request", "CONNECT", "GET\0"] {
        let asked = Asked::new(&format!("{method} https://h/a"), &[]);
        assert_eq!(
            answer(&policy, &asked.input(first(&policy))),
            Err(vec!["policy-denied".into()]),
            "{method:?}"
        );
    }
    assert!(answer(&policy, &asked.input(first(&policy))).is_ok());
}

#[test]
fn the_most_specific_reach_entry_alone_counts() {
    let agent = "[[reach]]\nhost = \"*.h.t\"\nallow = [\"GET /**\"]\n[[reach]]\nhost = \"a.h.t\"\nallow = [\"POST /**\"]\n[[reach]]\nhost = \"b.h.t\"\ntls = \"passthrough\"\n";
    let policy = compile(&bundle(agent, ""));
    let cases = [
        ("GET https://x.h.t/", true),
        ("GET https://a.h.t/", false),
        ("POST https://a.h.t/", true),
        ("GET https://y.a.h.t/", true),
        ("GET https://b.h.t/", false),
        ("GET https://h.t/", false),
        ("GET https://x.h.t:8443/", false),
    ];
    for (line, expected) in cases {
        let asked = Asked::new(line, &[]);
        assert_eq!(
            answer(&policy, &asked.input(first(&policy))).is_ok(),
            expected,
            "{line}"
        );
    }
}

#[test]
fn an_encoded_slash_must_be_permitted_under_both_readings() {
    let rules = "@id(\"no-admin\") forbid (principal, action, resource) when { context.routes.contains(\"/admin/**\") };";
    let policy = compile(&bundle(
        "[[reach]]\nhost = \"h\"\nallow = [\"GET /*\", \"GET /files/**\"]\n",
        rules,
    ));
    let cases: [(&str, Result<(), &str>); 5] = [
        ("/files/a%2Fb", Ok(())),
        ("/a%2Fb", Err("policy-denied")),
        ("/admin%2Fusers", Err("no-admin")),
        ("/admin%2fusers", Err("no-admin")),
        ("/files/..%2Fadmin", Err("")),
    ];
    for (path, expected) in cases {
        if CanonicalPath::parse(path).is_err() {
            assert_eq!(expected, Err(""), "{path}");
            continue;
        }
        let asked = Asked::new(&format!("GET https://h{path}"), &[]);
        let said = answer(&policy, &asked.input(first(&policy))).map(drop);
        let said = said
            .as_ref()
            .map_err(|said| said.last().map_or("", String::as_str));
        assert_eq!(said.copied(), expected, "{path}");
    }
}

#[test]
fn facts_are_what_rules_read_and_hold_no_secret() {
    let rules = "@id(\"p\") permit (principal, action == Action::\"GET\", resource)
when { context.query.hasTag(\"page\") && context.headers.hasTag(\"authorization\") && context.headers.hasTag(\"x-a\") };
@id(\"q\") permit (principal, action == Action::\"PUT\", resource) when { context.headers.hasTag(principal.owner) };";
    let policy = compile(&bundle("[[reach]]\nhost = \"h\"\n", rules));
    let headers = [
        ("Authorization", "Bearer s3cret"),
        ("X-A", "1"),
        ("X-B", "2"),
        ("Cookie", "s3cret"),
    ];
    let facts = |method: &str| {
        denial_or_facts(
            &policy,
            &Asked::new(
                &format!("{method} https://h/p?page=3&token=s3cret"),
                &headers,
            ),
        )
    };
    let keys = |facts: &BTreeMap<String, String>| facts.keys().cloned().collect::<Vec<_>>();
    let get = facts("GET");
    assert_eq!(
        keys(&get),
        [
            "header.authorization",
            "header.x-a",
            "method",
            "path",
            "query.page"
        ]
    );
    assert_eq!(get["query.page"], "3");
    let put = facts("PUT");
    assert_eq!(
        keys(&put),
        [
            "header.authorization",
            "header.cookie",
            "header.x-a",
            "header.x-b",
            "method",
            "path"
        ]
    );
    assert_eq!(keys(&facts("POST")), ["method", "path"]);
    for value in get.values().chain(put.values()) {
        assert!(!value.contains("s3cret"), "{value}");
    }
}

fn denial_or_facts(policy: &Policy, asked: &Asked) -> BTreeMap<String, String> {
    match policy.decide(&asked.input(first(policy))) {
        Decision::Permit(permit) => permit.facts().clone(),
        Decision::Deny(denial) => denial.facts,
        Decision::Owing(owing) => panic!("{owing:?}"),
    }
}

#[test]
fn a_decision_meets_only_the_policies_that_can_apply() {
    let mut agent = String::new();
    let mut rules = String::new();
    for host in 0..60 {
        agent.push_str(&format!("[[reach]]\nhost = \"h{host}.t\"\n"));
        for method in ["GET", "POST"] {
            rules.push_str(&format!(
                "@id(\"{method}{host}\") permit (principal, action == Action::\"{method}\", resource == Host::\"h{host}.t\") when {{ context.path == \"/\" }};\n"
            ));
        }
    }
    rules.push_str("@id(\"everywhere\") forbid (principal, action, resource) when { context.path == \"/x\" };\n");
    let policy = compile(&bundle(&agent, &rules));
    for (line, count) in [
        ("GET https://h7.t/", 2),
        ("PUT https://h7.t/", 1),
        ("GET https://other.t/", 0),
    ] {
        let asked = Asked::new(line, &[]);
        let input = asked.input(first(&policy));
        let readings = policy.readings(&input);
        let agent = &policy.agents[&first(&policy)];
        let prepared = policy.prepare(agent, &input, &readings);
        let met = prepared.map_or(0, |prepared| prepared[0].at.slice.rules.len());
        assert_eq!(met, count, "{line}");
    }
}

#[test]
fn addresses_are_hosts_of_their_own() {
    let agent = "[[reach]]\nhost = \"10.0.0.1:8443\"\nallow = [\"GET /**\"]\n[[reach]]\nhost = \"[2001:db8::1]\"\nallow = [\"GET /**\"]\n";
    let rules = "@id(\"v6\") permit (principal, action == Action::\"PUT\", resource == Host::\"[2001:db8::1]\");";
    let policy = compile(&bundle(agent, rules));
    let cases = [
        ("GET https://10.0.0.1:8443/", true),
        ("GET https://10.0.0.1/", false),
        ("GET https://[::ffff:10.0.0.1]:8443/", true),
        ("GET https://[2001:DB8::1]/", true),
        ("PUT https://[2001:db8:0::1]/", true),
        ("PUT https://10.0.0.1:8443/", false),
    ];
    for (line, expected) in cases {
        let asked = Asked::new(line, &[]);
        assert_eq!(
            answer(&policy, &asked.input(first(&policy))).is_ok(),
            expected,
            "{line}"
        );
    }
}
