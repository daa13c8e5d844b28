//! Agents that act for others: what they may, and what of their files is left.

use super::*;
use crate::context::{AskedApprovals, AskedContext};
use crate::question::Question;

/// A line of agents, the first above all others; each with the rest of its file.
fn line(agents: &[(&str, &str)], rules: &str) -> Sources {
    let mut files = vec![
        (
            "bundle.toml".to_owned(),
            "name = \"b\"\nserial = 1\n".to_owned(),
        ),
        ("rules/r.cedar".to_owned(), rules.to_owned()),
    ];
    let mut parent = String::new();
    for (name, rest) in agents {
        let head = format!("[agent]\nname = \"{name}\"\nowner = \"{name}@example.com\"\n{parent}");
        files.push((format!("agents/{name}.toml"), format!("{head}{rest}")));
        parent = format!("parent = \"{name}\"\n");
    }
    Sources {
        files: files.into_iter().collect(),
    }
}

fn decide(policy: &Policy, agent: &str, request: &str) -> Decision {
    let (id, _) = policy.agent_named(agent).unwrap();
    policy.decide(&Asked::new(request, &[]).input(id))
}

#[test]
fn what_anyone_above_may_not_is_refused_without_a_name() {
    let reach = |allow: &str| format!("[[reach]]\nhost = \"h\"\nallow = [\"{allow}\"]\n");
    let (top, middle, bottom) = (reach("GET /a/**"), reach("ANY /**"), reach("ANY /**"));
    let agents = [
        ("top", top.as_str()),
        ("middle", middle.as_str()),
        ("bottom", bottom.as_str()),
    ];
    let rules = "@id(\"guarded\") forbid (principal == Agent::\"middle\", action, resource) when { context.path == \"/a/b\" };";
    let policy = compile(&line(&agents, rules));
    for (agent, request, expected) in [
        ("top", "GET https://h/a", None),
        ("bottom", "GET https://h/a", None),
        ("top", "GET https://h/a/b", None),
        ("middle", "GET https://h/a/b", Some("policy-denied")),
        ("bottom", "GET https://h/a/b", Some("delegation-exceeded")),
        ("middle", "POST https://h/a", Some("delegation-exceeded")),
        ("bottom", "GET https://h/c", Some("delegation-exceeded")),
        ("bottom", "GET https://elsewhere/", Some("policy-denied")),
    ] {
        match decide(&policy, agent, request) {
            Decision::Permit(_) | Decision::Owing(_) => {
                assert_eq!(expected, None, "{agent} {request}")
            }
            Decision::Deny(denial) => {
                assert_eq!(expected, Some(denial.reason.slug()), "{agent} {request}");
                if denial.reason == DenyReason::DelegationExceeded {
                    assert!(denial.policies.is_empty(), "{denial:?}");
                    assert!(!denial.detail.contains("top"), "{denial:?}");
                    let middle = denial.detail.contains("middle");
                    assert_eq!(middle, agent == "middle", "{denial:?}");
                    // The record says who it was.
                    assert!(denial.facts.contains_key("parent_refused"), "{denial:?}");
                }
            }
        }
    }
    match decide(&policy, "bottom", "GET https://h/a") {
        Decision::Permit(permit) => assert_eq!(permit.facts()["parents"], "middle, top"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_rules_about_those_above_read_is_read_and_their_approvals_are_needed_too() {
    let reach = "[[reach]]\nhost = \"h\"\nallow = [\"POST /**\"]\n";
    let rules = r#"
@id("top-owner") @approve("owner") forbid (principal == Agent::"top", action, resource == Host::"h")
unless { context.approvals.contains("owner") || (context.body has amount && context.body.amount < 400) };
@id("bottom-finance") @approve("finance") forbid (principal == Agent::"bottom", action, resource == Host::"h")
unless { context.approvals.contains("finance") || (context.body has amount && context.body.amount < 1000) };
@id("not-both") forbid (principal == Agent::"top", action, resource == Host::"h")
when { context.approvals.contains("finance") && context.body has amount && context.body.amount > 5000 };
"#;
    let mut sources = line(&[("top", reach), ("bottom", reach)], rules);
    let host = "[host]\nname = \"h\"\n[[body]]\non = \"POST /**\"\namount = { type = \"long\", at = \"/amount\" }\n";
    sources.files.insert("hosts/h.toml".into(), host.into());
    let policy = compile(&sources);
    for (amount, approvals, expected) in [
        (399, &[][..], "allow"),
        (400, &[], "approval-required top-owner"),
        (400, &["owner"], "allow"),
        (2000, &[], "approval-required bottom-finance top-owner"),
        (2000, &["finance"], "approval-required top-owner"),
        (2000, &["finance", "owner"], "allow"),
        // Everyone's roles together lift nothing here.
        (6000, &[], "deny bottom-finance top-owner"),
    ] {
        let question = Question {
            agent: "bottom".into(),
            method: "POST".into(),
            url: "https://h/orders".into(),
            headers: Vec::new(),
            body: Some(format!("{{\"amount\":{amount}}}")),
            lookup: None,
            context: AskedContext {
                approvals: AskedApprovals {
                    approvals: approvals.iter().map(|role| (*role).to_owned()).collect(),
                },
                ..AskedContext::default()
            },
        };
        let answer = policy.answer(&question).unwrap();
        let decided = match answer.outcome.name() {
            "allow" => String::new(),
            _ => format!(" {}", answer.policies.join(" ")),
        };
        let found = format!("{}{decided}", answer.outcome.name());
        assert_eq!(found, expected, "{amount} {approvals:?}");
    }
}

#[test]
fn nobody_is_only_observed_who_acts_for_someone_that_is_not() {
    let agent =
        |mode: &str| format!("mode = \"{mode}\"\n[[reach]]\nhost = \"h\"\nallow = [\"GET /a\"]\n");
    for (top, bottom, observed) in [
        ("observe", "observe", true),
        ("enforce", "observe", false),
        ("observe", "enforce", false),
    ] {
        let (top, bottom) = (agent(top), agent(bottom));
        let policy = compile(&line(&[("top", &top), ("bottom", &bottom)], ""));
        let decision = decide(&policy, "bottom", "POST https://h/a");
        assert_eq!(
            matches!(&decision, Decision::Permit(permit) if permit.would_deny().is_some()),
            observed,
            "{decision:?}"
        );
    }
}

#[test]
fn hosts_and_names_are_those_that_everyone_reaches() {
    let host = |name: &str, more: &str| format!("[[reach]]\nhost = \"{name}\"\n{more}");
    let pass = "tls = \"passthrough\"\nallow = [\"connect\"]\n";
    let (top, bottom) = (
        host("both", "") + &host("judged", "allow = [\"ANY /**\"]\n"),
        host("both", "") + &host("own", "") + &host("judged", pass),
    );
    let policy = compile(&line(&[("top", &top), ("bottom", &bottom)], ""));
    let (bottom, _) = policy.agent_named("bottom").unwrap();
    for (name, expected) in [("both", true), ("own", false)] {
        let host = HostName::parse(name).unwrap();
        assert_eq!(policy.may_resolve(bottom, &host), expected, "{name}");
        assert_eq!(policy.reaches(bottom, &host, 443), expected, "{name}");
    }
    // Whose requests are judged for the parent do not pass unseen.
    let host = HostName::parse("judged").unwrap();
    let asked = Asked::new("GET https://judged/", &[]);
    let input = Input {
        host: &host,
        action: Action::Connect,
        ..asked.input(bottom)
    };
    assert_eq!(
        answer(&policy, &input),
        Err(vec!["delegation-exceeded".into()])
    );
}

#[test]
fn what_the_kernel_judges_is_narrowed() {
    let top = "privileges = \"keep\"\n[exec]\ndefault = \"deny\"\nallow = [\"/usr/bin/*\"]\n
[[reach]]\nto = \"10.0.0.0/8:5432\"\n[[unix]]\npath = \"/run/a\"\n";
    let bottom = "privileges = \"keep\"\n[[reach]]\nto = \"10.1.0.0/16:*\"\n[[reach]]\nto = \"192.0.2.1:1\"\n
[[reach]]\nhost = \"h\"\n[[unix]]\npath = \"/run/a\"\n[[unix]]\npath = \"/run/b\"\n[[listen]]\non = \"127.0.0.1:80\"\n";
    let policy = compile(&line(&[("top", top), ("bottom", bottom)], ""));
    let (id, _) = policy.agent_named("bottom").unwrap();
    let agent = policy.agent(id).unwrap();
    assert_eq!(
        agent.kernel,
        [KernelRule::Reach {
            proto: Proto::Tcp,
            net: "10.1.0.0/16".parse().unwrap(),
            port: Some(5432),
        }]
    );
    assert_eq!(agent.unix, ["/run/a"]);
    assert!(!agent.has_hosts && agent.keep_privileges);
    let allow = &agent.exec.as_ref().unwrap().allow;
    assert_eq!(allow.len(), 1);
    assert_eq!(allow[0].pattern, "/usr/bin/*");
    let notes = policy.notes().join("\n");
    for told in ["10.1.0.0/16", "192.0.2.1", "/run/b", "127.0.0.1"] {
        assert!(notes.contains(told), "{told}: {notes}");
    }
}

#[test]
fn cycles_and_lines_that_are_too_long_are_refused() {
    let found = |sources: &Sources| {
        let found = Policy::compile(sources, &ids(sources)).unwrap_err();
        assert_eq!(found.len(), 1, "{found:?}");
        let one = &found[0];
        (
            format!("{}:{}", one.file, one.line.unwrap()),
            one.message.clone(),
        )
    };
    let names: Vec<String> = (0..12).map(|at| format!("a{at:02}")).collect();
    let long: Vec<_> = names.iter().map(|name| (name.as_str(), "")).collect();
    compile(&line(&long[..9], ""));
    let (at, message) = found(&line(&long, ""));
    assert_eq!(at, "agents/a09.toml:4");
    assert!(message.contains("more than 8 agents above it"), "{message}");

    let mut cycle = line(&long[..4], "");
    let first = cycle.files.get_mut("agents/a00.toml").unwrap();
    first.push_str("parent = \"a02\"\n");
    let (at, message) = found(&cycle);
    assert_eq!(at, "agents/a00.toml:4");
    let cycle = "`a00` below `a02` below `a01` below `a00`";
    assert!(message.ends_with(cycle), "{message}");
}

#[test]
fn another_owner_holds_until_the_file_names_another() {
    let rules =
        "@id(\"p\") permit (principal, action, resource) when { principal.owner == \"bob\" };";
    let reach = "[[reach]]\nhost = \"h\"\n";
    let sources = line(&[("a", reach)], rules);
    let reassigned = |from: &str| Reassignment {
        from: from.to_owned(),
        to: "bob".to_owned(),
    };
    for (from, owner) in [
        ("a@example.com", "bob"),
        ("who@example.com", "a@example.com"),
    ] {
        let owners = [("a".to_owned(), reassigned(from))].into();
        let policy = Policy::compile_with(&sources, &ids(&sources), &owners).unwrap();
        assert_eq!(policy.agents().next().unwrap().owner, owner);
        let permitted = matches!(decide(&policy, "a", "GET https://h/"), Decision::Permit(_));
        assert_eq!(permitted, owner == "bob");
    }
}
