//! What limits count of which requests, and what is refused of how they are written.

use sha2::{Digest as _, Sha256};

use super::*;
use crate::context::{AskedContext, AskedLimits};
use crate::question::Question;

const HOST: &str = "[host]\nname = \"h\"\n[[body]]\non = \"POST /orders\"
amount = { type = \"decimal\", at = \"/amount\" }\norder = { type = \"string\", at = \"/order\" }\nurgent = { type = \"bool\", at = \"/urgent\" }\n";

const RULES: &str = r#"
@id("rate") @limit("2/minute per host")
forbid (principal, action == Action::"POST", resource)
when { context.path == "/orders" }
unless { context.limits.contains("rate") };

@id("spend") @budget("1000.00/day of amount key body.order")
forbid (principal == Agent::"a", action == Action::"POST", resource == Host::"h")
when { context.path == "/orders" }
unless { (context.body has urgent && context.body.urgent) || context.limits.contains("spend") };

@id("owner") @approve("owner")
forbid (principal, action == Action::"POST", resource == Host::"h")
when { context.path == "/asked" }
unless { context.approvals.contains("owner") };

@id("all") @limit("5/hour per rule")
forbid (principal, action == Action::"POST", resource == Host::"h")
when { context.path == "/asked" || context.path == "/shared" }
unless { context.limits.contains("all") };
"#;

fn limited(rules: &str) -> Sources {
    let reach = "[[reach]]\nhost = \"h\"\nallow = [\"POST /**\", \"GET /**\"]\n[[reach]]\nhost = \"i\"\nallow = [\"POST /orders\"]\n";
    let mut sources = bundle(reach, rules);
    let child = format!(
        "[agent]\nname = \"b\"\nowner = \"o@example.com\"\nrisk = \"low\"\nparent = \"a\"\n{reach}"
    );
    let files = [
        ("agents/b.toml", child),
        ("hosts/h.toml", HOST.to_owned()),
        (
            "bundle.toml",
            "name = \"b\"\nserial = 1\n[time]\nzone = \"Europe/Vienna\"\n".to_owned(),
        ),
    ];
    for (name, text) in files {
        sources.files.insert(name.to_owned(), text);
    }
    sources
}

fn decide(policy: &Policy, agent: AgentId, request: &str, body: &str) -> Decision {
    let mut asked = Asked::new(request, &[("content-type", "application/json")]);
    let needed = policy.needs(&asked.input(agent)).body;
    let read = needed.map(|needed| needed.block.read(&asked.headers, body.as_bytes(), 1 << 20));
    asked.context.body = read.unwrap_or_default();
    asked.context.body_sha256 = Some(Sha256::digest(body).into());
    policy.decide(&asked.input(agent))
}

/// `-`, the reason, or rule, agent, host and amount of each charge.
fn takes(policy: &Policy, agent: AgentId, request: &str, body: &str) -> String {
    match decide(policy, agent, request, body) {
        Decision::Permit(_) => "-".to_owned(),
        Decision::Deny(denial) => format!("{} {}", denial.reason.slug(), denial.policies.join(",")),
        Decision::Owing(owing) => {
            let shown = owing.charges().iter().map(|charge| {
                let of = &charge.counter;
                let agent = of.agent.as_deref().unwrap_or("*");
                let host = of.host.as_deref().unwrap_or("");
                let key = if charge.key.is_some() { " keyed" } else { "" };
                format!("{} {agent}@{host} {}{key}", of.rule, charge.amount)
            });
            shown.collect::<Vec<_>>().join("; ")
        }
    }
}

#[test]
fn a_request_takes_of_the_limits_that_it_needs() {
    let sources = limited(RULES);
    let (policy, ids) = (compile(&sources), ids(&sources));
    let orders = "POST https://h/orders";
    let cases = [
        ("a", "GET https://h/orders", "", "-"),
        (
            "a",
            orders,
            r#"{"amount": 0.1}"#,
            "rate a@h 1; spend a@ 1000",
        ),
        (
            "a",
            orders,
            r#"{"amount": 400.5, "order": "x"}"#,
            "rate a@h 1; spend a@ 4005000 keyed",
        ),
        // Something else lifts it, so that it counts nothing.
        (
            "a",
            orders,
            r#"{"amount": 1, "urgent": true}"#,
            "rate a@h 1",
        ),
        ("a", "POST https://i/orders", "{}", "rate a@i 1"),
        ("a", "POST https://i/other", "{}", "policy-denied "),
        // What adds up has to be known.
        ("a", orders, "{}", "policy-denied spend"),
        ("a", orders, r#"{"amount": -1}"#, "policy-denied spend"),
        ("a", orders, r#"{"amount": "1"}"#, "body-unreadable "),
        ("a", orders, r#"{"amount": 0}"#, "rate a@h 1; spend a@ 0"),
        // Nothing is taken of what needs an approval.
        ("a", "POST https://h/asked", "{}", "approval-required owner"),
        ("a", "POST https://h/shared", "{}", "all *@ 1"),
        // Whom it acts for is charged too, what is counted in one place once.
        (
            "b",
            orders,
            r#"{"amount": 2}"#,
            "rate b@h 1; rate a@h 1; spend a@ 20000",
        ),
        ("b", "POST https://h/shared", "{}", "all *@ 1"),
        ("b", orders, "{}", "delegation-exceeded "),
    ];
    for (agent, request, body, expected) in cases {
        let found = takes(&policy, ids[agent], request, body);
        assert_eq!(found, expected, "{agent} {request} {body}");
    }
}

#[test]
fn a_request_is_the_same_again_but_for_what_tells_attempts_apart() {
    let sources = limited(RULES);
    let (policy, ids) = (compile(&sources), ids(&sources));
    let key = |url: &str, headers: &[(&str, &str)], body: &str| {
        let json = [("content-type", "application/json")];
        let mut asked = Asked::new(url, &[&json[..], headers].concat());
        let needed = policy.needs(&asked.input(ids["a"])).body.unwrap();
        asked.context.body = needed.block.read(&asked.headers, body.as_bytes(), 1 << 20);
        asked.context.body_sha256 = Some(Sha256::digest(body).into());
        match policy.decide(&asked.input(ids["a"])) {
            Decision::Owing(owing) => {
                let key = owing.charges().iter().find_map(|charge| charge.key);
                key.expect("it has one").request
            }
            other => panic!("{other:?}"),
        }
    };
    let (url, body) = ("POST https://h/orders", r#"{"amount": 2, "order": "x"}"#);
    let first = key(url, &[("authorization", "one"), ("x-b3-spanid", "1")], body);
    let again = [
        ("x-request-id", "7"),
        ("authorization", "one"),
        ("date", "now"),
    ];
    assert_eq!(key(url, &again, body), first);
    let other = r#"{"amount": 2, "order": "x", "for": "me"}"#;
    for (url, headers, body) in [
        (url, &[("authorization", "two")][..], body),
        (url, &[("authorization", "one"), ("account", "b")], body),
        (
            url,
            &[("authorization", "one"), ("authorization", "b")],
            body,
        ),
        (
            "POST https://h/orders?to=b",
            &[("authorization", "one")],
            body,
        ),
        (url, &[("authorization", "one")], other),
    ] {
        assert_ne!(key(url, headers, body), first, "{url} {headers:?} {body}");
    }
}

#[test]
fn only_an_answer_makes_a_permit() {
    let sources = limited(RULES);
    let (policy, ids) = (compile(&sources), ids(&sources));
    let ask = |policy: &Policy| match decide(
        policy,
        ids["a"],
        "POST https://h/orders",
        r#"{"amount": 2}"#,
    ) {
        Decision::Owing(owing) => *owing,
        other => panic!("{other:?}"),
    };
    let permit = ask(&policy).answered(&Room::Taken(vec![2, 1_305_000]));
    let permit = permit.unwrap();
    assert_eq!(permit.facts()["limit.rate"], "2 of 2/minute per host");
    assert_eq!(
        permit.facts()["limit.spend"],
        "130.50 of 1000.00/day of amount key body.order"
    );
    let full = Room::Full {
        charge: 1,
        used: 9_990_000,
        until: Some(1_795_474_800_000),
    };
    let denial = ask(&policy).answered(&full).unwrap_err();
    assert_eq!(denial.reason, DenyReason::RateLimited);
    assert_eq!(denial.policies, ["spend"]);
    assert!(
        denial.detail.contains("until 2026-11-23T23:00:00Z"),
        "{}",
        denial.detail
    );
    assert!(!denial.detail.contains("1000"), "{}", denial.detail);
    assert!(denial.facts["limit.spend"].starts_with("999.00 of "));
    for room in [
        Room::Reused { charge: 1 },
        Room::Unavailable("the disk is full".into()),
    ] {
        let denial = ask(&policy).answered(&room).unwrap_err();
        assert_eq!(denial.reason, DenyReason::RateLimited, "{room:?}");
        assert!(!denial.detail.contains("disk"), "{}", denial.detail);
        let why = denial.facts.get("limit_failed").map(String::as_str);
        let expected = matches!(room, Room::Unavailable(_)).then_some("the disk is full");
        assert_eq!(why, expected, "{room:?}");
    }
    let long = Room::Unavailable("x".repeat(10_000));
    let denial = ask(&policy).answered(&long).unwrap_err();
    assert!(denial.facts["limit_failed"].len() < 400);
    let mut observed = sources;
    let manifest = observed.files.get_mut("bundle.toml").unwrap();
    manifest.insert_str(0, "mode = \"observe\"\n");
    let policy = compile(&observed);
    let permit = ask(&policy).answered(&full).unwrap();
    assert_eq!(
        permit.would_deny().map(|denial| denial.reason),
        Some(DenyReason::RateLimited)
    );
    let unknown = Room::Unavailable(String::new());
    assert!(ask(&policy).answered(&unknown).is_err());
}

#[test]
fn cases_say_what_has_no_room() {
    let policy = compile(&limited(RULES));
    let answer = |exhausted: &[&str]| {
        let answer = policy.answer(&Question {
            agent: "a".into(),
            method: "POST".into(),
            url: "https://h/orders".into(),
            headers: Vec::new(),
            body: Some(r#"{"amount": 5}"#.into()),
            lookup: None,
            context: AskedContext {
                limits: AskedLimits {
                    exhausted: exhausted.iter().map(|id| (*id).to_owned()).collect(),
                },
                ..AskedContext::default()
            },
        });
        let answer = answer.unwrap();
        (
            answer.reason.map_or("allow", DenyReason::slug),
            answer.policies,
        )
    };
    assert_eq!(answer(&[]).0, "allow");
    assert_eq!(answer(&["all"]).0, "allow");
    let expected = ("rate-limited", vec!["rate".to_owned()]);
    assert_eq!(answer(&["rate"]), expected);
}

#[test]
fn times_end_where_they_should() {
    let policy = compile(&limited(RULES));
    let charge = |month: bool| Charge {
        counter: Counter {
            agent: None,
            rule: "r".into(),
            unit: "u".into(),
            host: None,
            task: None,
        },
        span: if month { Span::Month } else { Span::Day },
        zone: Some("Europe/Vienna".into()),
        text: String::new(),
        most: 1,
        amount: 1,
        key: None,
    };
    assert!(policy.limit("rate").is_some_and(|limit| !limit.is_budget()));
    let at = |text: &str| text.parse::<Timestamp>().unwrap().as_millisecond();
    for (now, month, end) in [
        ("2026-11-23T22:59:59Z", false, "2026-11-23T23:00:00Z"),
        ("2026-11-23T23:00:00Z", false, "2026-11-24T23:00:00Z"),
        // 25 hours.
        ("2026-10-24T22:00:00Z", false, "2026-10-25T23:00:00Z"),
        ("2026-10-31T22:30:00Z", true, "2026-10-31T23:00:00Z"),
        ("2026-10-31T23:00:00Z", true, "2026-11-30T23:00:00Z"),
    ] {
        assert_eq!(charge(month).until(at(now)), Some(at(end)), "{now}");
    }
    let rolling = Charge {
        span: Span::Rolling(60_000),
        ..charge(false)
    };
    for now in [0, 1, 999, 1_000, 59_999, 1_795_474_800_123] {
        let until = rolling.until(now).unwrap();
        assert!(until > now + 60_000 && until <= now + 61_000, "{now}");
    }
}

#[test]
fn what_is_written_otherwise_is_refused() {
    let forbid = |annotation: &str, rest: &str| {
        format!("@id(\"l\")\n{annotation}\nforbid (principal, action, resource) {rest};")
    };
    let lifted = "unless { context.limits.contains(\"l\") }";
    let cases = [
        (forbid("@limit(\"20/minute\")", ""), "2:1: `@limit` is on a forbid that room in its own limit alone does not lift"),
        (forbid("@limit(\"20/minute\")", "unless { context.limits.contains(\"m\") }"), "2:1: `@limit` is on a forbid that room"),
        (forbid("@limit(\"20/minute\")", "unless { context.limits.contains(\"l\") && context.segments > 1 }"), "2:1: `@limit` is on a forbid that room"),
        (forbid("@limit(\"20/minute\")", "when { context.limits.contains(\"l\") }"), "2:1: `@limit` is on a forbid that room"),
        (forbid("@limit(\"20/minute\")", &format!("when {{ context.limits.contains(\"m\") }} {lifted}")), "2:1: `@limit` is on a forbid that room"),
        (forbid("", lifted), "3:47: policy reads `context.limits` and sets no limit"),
        (forbid("@limit(\"20/minute\") @budget(\"1/day of amount\")", lifted), "2:1: policy has both `@limit` and `@budget`"),
        (forbid("@limit(\"20/minute\") @reason(\"outside-hours\")", lifted), "2:1: policy has both `@limit` and `@reason`"),
        (forbid("@limit(\"20/minute\") @approve(\"owner\")", "unless { context.limits.contains(\"l\") || context.approvals.contains(\"owner\") }"), "2:1: policy has both `@limit` and `@approve`"),
        (forbid("@limit(\"20\")", lifted), "2:1: `@limit`: `20` is no limit"),
        (forbid("@limit(\"0/minute\")", lifted), "2:1: `@limit`: `0` is no number of requests"),
        (forbid("@limit(\"+5/minute\")", lifted), "2:1: `@limit`: `+5` is no number of requests"),
        (forbid("@limit(\"5/fortnight\")", lifted), "2:1: `@limit`: `fortnight` is no time"),
        (forbid("@limit(\"5/minute  per host\")", lifted), "2:1: `@limit`: "),
        (forbid("@limit(\"5/minute per day\")", lifted), "2:1: `@limit`: nothing is counted per `day`"),
        (forbid("@limit(\"5/minute per\")", lifted), "2:1: `@limit`: nothing follows `per`"),
        (forbid("@limit(\"5/minute per host per host\")", lifted), "2:1: `@limit`: `per` is there more than once"),
        (forbid("@limit(\"5/minute of amount\")", lifted), "2:1: `@limit`: `of` is a budget's"),
        (forbid("@limit(\"5/minute key header.x-key\")", lifted), "2:1: `@limit`: `key` is a budget's"),
        (forbid("@budget(\"5/day of amount key header.X-Key\")", lifted), "2:1: `@budget`: `header.X-Key` is no key"),
        (forbid("@budget(\"5/day\")", lifted), "2:1: `@budget`: it does not say what adds up"),
        (forbid("@budget(\"5/hour of amount\")", lifted), "2:1: `@budget`: `hour` is no time of a budget"),
        (forbid("@budget(\"-5/day of amount\")", lifted), "2:1: `@budget`: `-5` is no amount above 0"),
        (forbid("@budget(\"0.00001/day of amount\")", lifted), "2:1: `@budget`: `0.00001` is no amount above 0"),
        (forbid("@budget(\"5/day of urgent\")", lifted), "1:1: field `urgent` of the bodies at `h` is not a number"),
        (forbid("@budget(\"5/day of amount key body.urgent\")", lifted), "1:1: field `urgent` of the bodies at `h` is not a key"),
        (forbid("@budget(\"5/day of amuont\")", lifted), "1:1: no [[body]] of a host that the rule fits declares the field `amuont`"),
        ("@id(\"l\")\n@limit(\"20/minute\")\npermit (principal, action, resource) when { context.limits.contains(\"l\") };".to_owned(), "2:1: `@limit` is on a permit"),
    ];
    for (rules, expected) in cases {
        let sources = limited(&rules);
        let Err(found) = Policy::compile(&sources, &ids(&sources)) else {
            panic!("{rules}");
        };
        let said: Vec<_> = found
            .iter()
            .map(|it| {
                let (line, column) = (it.line.unwrap(), it.column.unwrap());
                format!("{line}:{column}: {}", it.message)
            })
            .collect();
        assert!(
            said.iter().any(|it| it.starts_with(expected)),
            "{rules}\n{said:#?}"
        );
    }
    let mut sources = limited(RULES);
    sources
        .files
        .insert("bundle.toml".into(), "name = \"b\"\nserial = 1\n".into());
    let Err(found) = Policy::compile(&sources, &ids(&sources)) else {
        panic!("a budget without a zone");
    };
    assert!(
        found
            .iter()
            .any(|it| it.message.contains("no zone for them")),
        "{found:?}"
    );
}
