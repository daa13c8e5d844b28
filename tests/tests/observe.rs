//! `mode = "observe"`: what policy would deny is let through and recorded; what is no decision of policy stays refused.

use agentguard_tests::bundle::reach;
use agentguard_tests::client::dialer;
use agentguard_tests::{Bundle, Guard, Nginx, Record, Site};

const RULES: &str = r#"
@id("no-secrets")
forbid (principal, action, resource) when { context.path like "/v1/secret*" };
@id("breaks")
permit (principal, action, resource) when { context.path like "/deep/*" && context.segments * 9223372036854775807 > 0 };
"#;

#[test]
fn what_policy_would_deny_is_let_through_and_recorded() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let other = Nginx::start_as(&site, &site.ca().issue(&["other.test"]));
    site.configure(|config| {
        let hosts = config["upstream"]["hosts"].as_table_mut().expect("a table");
        hosts.insert("other.test".into(), "127.0.0.1".into());
        hosts.insert("inner.test".into(), "10.255.255.1".into());
    });
    let body = reach("origin.test", origin.port, &["GET /v1/**"]);
    let strict = format!("[agent]\nname = \"strict\"\nowner = \"o\"\nmode = \"enforce\"\n{body}");
    let bundle = Bundle::new(1)
        .file(
            "bundle.toml",
            "name = \"test\"\nserial = 1\nmode = \"observe\"\n",
        )
        .agent("probe", &body)
        .file("agents/strict.toml", strict)
        .rules("all", RULES);
    let guard = Guard::start(&site, &bundle);
    let elsewhere = format!("https://other.test:{}/any", other.port);
    let get = |url: &str| format!("get {url}");
    let mut agent = dialer(&guard.agent("probe"));
    let mut strict = dialer(&guard.agent("strict"));
    for path in ["/v1/x", "/v2/x", "/v1/secret"] {
        assert_eq!(agent.tries(&get(&origin.url(path))), "ok 200", "{path}");
        let expected = if path == "/v1/x" { "ok 200" } else { "ok 403" };
        assert_eq!(strict.tries(&get(&origin.url(path))), expected, "{path}");
    }
    assert_eq!(agent.tries(&get(&elsewhere)), "ok 200");
    assert!(strict.tries(&get(&elsewhere)).starts_with("error"));

    // No decision of policy, or none that can be taken.
    assert_eq!(
        agent.tries(&get(&origin.url("/deep/x"))),
        "ok 403",
        "a rule that fails"
    );
    let inside = agent.tries(&get("https://inner.test/"));
    assert!(
        inside.starts_with("error"),
        "an address of the inside: {inside}"
    );
    assert_eq!(agent.tries("udp 127.0.0.1 9"), "error EPERM");
    assert_eq!(agent.tries("socket inet raw 1"), "error EPERM");
    guard.cli(["kill", "probe"]).ok();
    assert!(agent.tries(&get(&origin.url("/v1/x"))).starts_with("error"));

    let records = guard.audit();
    let of = |path: &str| {
        let found = records
            .iter()
            .find(|it| it.is_request() && it.agent() == "probe" && it.path() == path);
        let record: &Record = found.unwrap_or_else(|| panic!("no record of {path}"));
        (
            record.outcome(),
            record.0["reason"].as_str(),
            record.0["policies"][0].as_str(),
        )
    };
    assert_eq!(of("/v1/x").0, "allow");
    assert_eq!(of("/v2/x"), ("observed", Some("policy-denied"), None));
    assert_eq!(
        of("/v1/secret"),
        ("observed", Some("policy-denied"), Some("no-secrets"))
    );
    assert_eq!(of("/any"), ("observed", Some("policy-denied"), None));
    assert_eq!(
        of("/deep/x"),
        ("deny", Some("policy-denied"), Some("breaks"))
    );
    let asked = |agent: &str| {
        let dns = records
            .iter()
            .filter(|it| it.action() == "dns" && it.resource() == "other.test");
        dns.filter(|it| it.agent() == agent)
            .map(Record::outcome)
            .next()
    };
    assert_eq!(
        (asked("probe"), asked("strict")),
        (Some("observed"), Some("deny"))
    );

    // Loudly.
    let alarms = guard.cli(["status", "--json"]).ok().json()["alarms"].to_string();
    assert!(
        alarms.contains("only observed") && alarms.contains("let through: probe\""),
        "{alarms}"
    );
    let doctor = guard.cli(["doctor"]).stdout;
    assert!(doctor.contains("only observed"), "{doctor}");
    let check = site
        .cli(["policy", "check"])
        .arg(site.path("policies"))
        .run()
        .ok();
    assert!(
        check.stdout.contains("agent `probe` is only observed"),
        "{check:?}"
    );
}
