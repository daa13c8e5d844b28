//! Broken bundles: `policy check` says which file, where in it and what, with status 3; `policy apply` of one changes
//! nothing.

use agentguard_tests::bundle::reach;
use agentguard_tests::client::dialer;
use agentguard_tests::{Bundle, Guard, Nginx, Ran, Site};

struct Case {
    name: &'static str,
    file: &'static str,
    text: String,
    /// Each must be in what is said.
    says: &'static [&'static str],
}

fn case(
    name: &'static str,
    file: &'static str,
    text: impl Into<String>,
    says: &'static [&'static str],
) -> Case {
    Case {
        name,
        file,
        text: text.into(),
        says,
    }
}

fn agent(body: &str) -> String {
    format!("[agent]\nname = \"probe\"\nowner = \"o@example.com\"\nrisk = \"low\"\n{body}")
}

fn cases() -> Vec<Case> {
    let rule = |head: &str, when: &str| {
        format!(
            "{head}permit (principal == Agent::\"probe\", action == Action::\"GET\", resource == Host::\"api.test\")\n{when};\n"
        )
    };
    let id = "@id(\"one\")\n";
    vec![
        case(
            "truncated agent",
            "agents/probe.toml",
            "[agent]\nname = \"pro",
            &["agents/probe.toml:2"],
        ),
        case(
            "truncated rules",
            "rules/all.cedar",
            "@id(\"one\")\npermit (principal,",
            &["rules/all.cedar:2"],
        ),
        case(
            "truncated bundle.toml",
            "bundle.toml",
            "name = \"test\"\nserial =",
            &["bundle.toml:2"],
        ),
        case(
            "no serial",
            "bundle.toml",
            "name = \"test\"\n",
            &["bundle.toml", "serial"],
        ),
        case(
            "a negative serial",
            "bundle.toml",
            "name = \"test\"\nserial = -1\n",
            &["bundle.toml:2", "serial"],
        ),
        case(
            "unknown key",
            "agents/probe.toml",
            agent("onwer = \"x\"\n"),
            &["agents/probe.toml:5", "onwer", "owner"],
        ),
        case(
            "unknown table",
            "agents/probe.toml",
            agent("[[raech]]\nhost = \"a.test\"\n"),
            &["agents/probe.toml:5", "raech", "reach"],
        ),
        case(
            "unknown key in bundle.toml",
            "bundle.toml",
            "name = \"test\"\nserial = 1\nseriall = 2\n",
            &["bundle.toml:3", "seriall"],
        ),
        case(
            "unknown file",
            "agent/probe.toml",
            agent(""),
            &["agent/probe.toml"],
        ),
        case(
            "duplicate agent",
            "agents/twin.toml",
            agent(""),
            &["probe", "agents/twin.toml", "agents/probe.toml"],
        ),
        case(
            "bad port",
            "agents/probe.toml",
            agent("[[reach]]\nhost = \"a.test:99999\"\n"),
            &["agents/probe.toml:6", "99999"],
        ),
        case(
            "bad route",
            "agents/probe.toml",
            agent("[[reach]]\nhost = \"a.test\"\nallow = [\"/x\"]\n"),
            &["agents/probe.toml:7", "/x"],
        ),
        case(
            "bad network",
            "agents/probe.toml",
            agent("[[reach]]\nto = \"10.0.0.0/99:1\"\nproto = \"tcp\"\n"),
            &["agents/probe.toml:6", "10.0.0.0/99"],
        ),
        case(
            "bad proto",
            "agents/probe.toml",
            agent("[[reach]]\nto = \"10.0.0.0/8:1\"\nproto = \"sctp\"\n"),
            &["agents/probe.toml:7", "sctp"],
        ),
        case(
            "type error",
            "rules/all.cedar",
            rule(id, "when { context.path < 3 }"),
            &["rules/all.cedar:3"],
        ),
        case(
            "unknown attribute",
            "rules/all.cedar",
            rule(id, "when { context.colour == \"red\" }"),
            &["rules/all.cedar:3", "colour"],
        ),
        case(
            "unguarded optional",
            "rules/all.cedar",
            rule(id, "when { context.headers.getTag(\"x-a\") == \"b\" }"),
            &["rules/all.cedar:3"],
        ),
        case(
            "no id",
            "rules/all.cedar",
            rule("", ""),
            &["rules/all.cedar:1", "@id"],
        ),
        case(
            "repeated id",
            "rules/all.cedar",
            rule(id, "") + &rule(id, ""),
            &["rules/all.cedar", "one"],
        ),
        case(
            "unknown annotation",
            "rules/all.cedar",
            rule("@id(\"one\") @colour(\"red\")\n", ""),
            &["rules/all.cedar:1", "colour"],
        ),
        case(
            "unknown agent",
            "rules/all.cedar",
            rule(id, "").replace("\"probe\"", "\"prode\""),
            &["rules/all.cedar:2", "prode", "probe"],
        ),
        case(
            "unknown host",
            "rules/all.cedar",
            rule(id, "").replace("api.test", "apy.test"),
            &["rules/all.cedar:2", "apy.test"],
        ),
        case(
            "unknown action",
            "rules/all.cedar",
            rule(id, "").replace("\"GET\"", "\"GTE\""),
            &["rules/all.cedar:2", "GTE"],
        ),
        case(
            "never applies",
            "rules/all.cedar",
            rule(id, "when { false }"),
            &["rules/all.cedar:1"],
        ),
        case(
            "kernel-only destination",
            "rules/all.cedar",
            rule(id, "").replace("api.test", "10.0.0.0/24:5432"),
            &["rules/all.cedar:2"],
        ),
        // What this build does not enforce is not taken in silence.
        case(
            "an unknown mode",
            "bundle.toml",
            "name = \"test\"\nserial = 1\nmode = \"observed\"\n",
            &["bundle.toml:3", "mode", "did you mean `observe`?"],
        ),
        case(
            "expires",
            "bundle.toml",
            "name = \"test\"\nserial = 1\nexpires = \"2099-01-01\"\n",
            &["bundle.toml:3", "expires", "RFC 3339"],
        ),
        case(
            "require",
            "bundle.toml",
            "name = \"test\"\nserial = 1\nrequire = [\"tampr\"]\n",
            &["bundle.toml:3:12", "tampr", "tamper"],
        ),
        case(
            "exec",
            "agents/probe.toml",
            agent("[exec]\nallow = [\"/bin/sh\"]\n"),
            &["agents/probe.toml:5", "[exec]", "default"],
        ),
        case(
            "unix pattern",
            "agents/probe.toml",
            agent("[[unix]]\npath = \"/run/*\"\n"),
            &["agents/probe.toml:6", "pattern"],
        ),
        case(
            "parent",
            "agents/probe.toml",
            agent("parent = \"planner\"\n"),
            &["agents/probe.toml:5", "parent"],
        ),
        case(
            "body facts",
            "hosts/api.toml",
            "[host]\nname = \"api.test\"\n[[body]]\non = \"POST /x\"\n",
            &["hosts/api.toml:3", "body"],
        ),
        case(
            "credential",
            "rules/all.cedar",
            rule("@id(\"one\") @credential(\"x\")\n", ""),
            &["rules/all.cedar:1", "credential"],
        ),
        case(
            "approve",
            "rules/all.cedar",
            rule("@id(\"one\") @approve(\"owner\")\n", "").replace("permit", "forbid"),
            &["rules/all.cedar:1", "approve"],
        ),
        case(
            "limit",
            "rules/all.cedar",
            rule("@id(\"one\") @limit(\"1/minute\")\n", "").replace("permit", "forbid"),
            &["rules/all.cedar:1", "limit"],
        ),
    ]
}

fn good() -> Bundle {
    Bundle::new(1).agent("probe", &reach("api.test", 443, &["GET /v1/**"]))
}

#[test]
fn check_says_where_and_what() {
    let site = Site::new();
    let check = |bundle: &Bundle| -> Ran {
        let dir = site.path("candidate");
        bundle.write(&dir);
        site.cli(["policy", "check"]).arg(dir).run()
    };
    check(&good()).ok();
    let mut wrong = Vec::new();
    for Case {
        name,
        file,
        text,
        says,
    } in cases()
    {
        let ran = check(&good().file(file, text));
        let complete = ran.code() == 3 && says.iter().all(|part| ran.stderr.contains(part));
        if !complete {
            wrong.push(format!(
                "{name}: wants 3 and {says:?}, got {} and: {}",
                ran.code(),
                ran.stderr
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn check_of_what_is_not_a_bundle() {
    let site = Site::new();
    let missing = site
        .cli(["policy", "check"])
        .arg(site.path("nowhere"))
        .run();
    assert!([1, 2, 3].contains(&missing.code()), "{missing:#?}");
    assert!(missing.stderr.contains("nowhere"), "{missing:#?}");
    std::fs::create_dir(site.path("empty")).expect("made");
    let empty = site.cli(["policy", "check"]).arg(site.path("empty")).run();
    assert_eq!(empty.code(), 3, "{empty:#?}");
    assert!(empty.stderr.contains("bundle.toml"), "{empty:#?}");
}

#[test]
fn apply_of_a_broken_bundle_changes_nothing() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let old = Bundle::new(7).agent("probe", &reach("origin.test", origin.port, &["GET /v1/**"]));
    let guard = Guard::start(&site, &old);
    let mut agent = dialer(&guard.agent("probe"));
    let v1 = format!("get {}", origin.url("/v1/x"));
    let v2 = format!("get {}", origin.url("/v2/x"));
    assert_eq!(
        (agent.tries(&v1), agent.tries(&v2)),
        ("ok 200".to_owned(), "ok 403".to_owned())
    );
    let before = guard.cli(["policy", "show", "--json"]).ok().json();

    let new = Bundle::new(8)
        .agent("probe", &reach("origin.test", origin.port, &["GET /v2/**"]))
        .rules(
            "all",
            "@id(\"x\") permit (principal, action, resource) when { context.path < 3 };",
        );
    let stale = Bundle::new(7).agent("probe", &reach("origin.test", origin.port, &["GET /v2/**"]));
    for (name, bundle) in [
        ("a type error", new),
        ("a serial that does not grow", stale),
    ] {
        let dir = site.path("candidate");
        bundle.write(&dir);
        let ran = site.cli(["policy", "apply"]).arg(&dir).run();
        assert_eq!(ran.code(), 3, "{name}: {ran:#?}");
        assert!(!ran.stderr.is_empty(), "{name}");
        assert_eq!(
            guard.cli(["policy", "show", "--json"]).ok().json(),
            before,
            "{name}"
        );
        assert_eq!(
            (agent.tries(&v1), agent.tries(&v2)),
            ("ok 200".to_owned(), "ok 403".to_owned()),
            "{name}"
        );
        let refused = guard
            .audit()
            .into_iter()
            .any(|record| record.action() == "policy-apply" && record.outcome() == "deny");
        assert!(refused, "{name}: it is recorded: {:#?}", guard.audit());
    }
}

#[test]
fn a_daemon_does_not_start_with_a_broken_bundle() {
    let site = Site::new();
    site.install(&good().file("agents/probe.toml", "[agent]\nname = \"pro"));
    let ran = site.cli(["daemon"]).run();
    assert_eq!(ran.code(), 3, "{ran:#?}");
    assert!(ran.stderr.contains("agents/probe.toml:2"), "{ran:#?}");
    assert!(!site.pins().exists(), "it left pins");
}

#[test]
fn a_folder_that_others_may_write_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let site = Site::new();
    site.install(&good());
    let file = site.path("policies/agents/probe.toml");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).expect("set");
    let ran = site.cli(["daemon"]).run();
    assert!([2, 3].contains(&ran.code()), "{ran:#?}");
    assert!(ran.stderr.contains("probe.toml"), "{ran:#?}");
}
