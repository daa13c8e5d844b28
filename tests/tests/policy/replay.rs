//! `policy replay`: what was decided, against the bundle that decided (no difference) and against others.

use std::path::Path;

use agentguard_tests::bundle::reach;
use agentguard_tests::client::{Client, dialer};
use agentguard_tests::tools::agentguard;
use agentguard_tests::{Bundle, Guard, Nginx, Site};
use serde_json::Value;

#[test]
fn the_logs_decisions_are_taken_again() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let rules = |kind: &str| {
        format!(
            "@id(\"kind\")\npermit (principal, action == Action::\"GET\", resource == Host::\"{}\")\nwhen {{ context.path == \"/q\" && context.query.hasTag(\"kind\") && context.query.getTag(\"kind\") == \"{kind}\" }};\n",
            origin.host()
        )
    };
    let bundle = |serial, version: &str, kind: &str| {
        let allow = format!("GET /{version}/**");
        Bundle::new(serial)
            .agent("probe", &reach("origin.test", origin.port, &[&*allow]))
            .rules("all", &rules(kind))
    };
    let guard = Guard::start(&site, &bundle(1, "v1", "one two"));
    let mut agent = dialer(&guard.agent("probe"));
    for (path, status) in [
        ("/v1/a", 200),
        ("/v1/b", 200),
        ("/v2/a", 403),
        ("/q?kind=one+two", 200),
        ("/q?kind=three", 403),
        ("/q", 403),
    ] {
        let got = agent.tries(&format!("get {}", origin.url(path)));
        assert_eq!(got, format!("ok {status}"), "{path}");
    }
    agent.tries("udp 127.0.0.1 9");
    // What has been decided is on disk when this returns.
    assert_eq!(guard.requests().len(), 6);

    let replay = |bundle: Bundle| -> Value {
        let dir = site.path("next");
        bundle.write(&dir);
        let words = ["policy", "replay", "--since", "1h", "--json"];
        site.cli(words).arg(&dir).run().ok().json()
    };
    let same = replay(bundle(1, "v1", "one two"));
    assert_eq!(
        (&same["replayed"], &same["changed"]),
        (&6.into(), &0.into()),
        "{same}"
    );
    assert!(
        same["not_replayed"]["decided by the kernel"].as_u64() >= Some(1),
        "{same}"
    );

    let other = replay(bundle(2, "v2", "three"));
    assert_eq!(
        (&other["replayed"], &other["changed"]),
        (&6.into(), &5.into()),
        "{other}"
    );
    let first = &other["changes"][0];
    assert_eq!(
        (&first["count"], &first["agent"]),
        (&2.into(), &"probe".into()),
        "{other}"
    );
    assert_eq!(first["old"]["outcome"], "allow");
    assert_eq!(first["new"]["reason"], "policy-denied");

    // A header that the rules then did not read is in no record.
    let header = "@id(\"team\")\nforbid (principal, action, resource) when { context.headers.hasTag(\"x-team\") };\n";
    let reads_more = replay(bundle(2, "v1", "one two").rules("team", header));
    assert_eq!(reads_more["replayed"], 0, "{reads_more}");
    let why = "the new rules read a parameter or header that the old ones did not";
    assert_eq!(reads_more["not_replayed"][why], 6, "{reads_more}");
    // An agent that there is no more.
    let gone = replay(Bundle::new(2).agent("other", ""));
    assert_eq!(gone["changed"], 6, "{gone}");

    // Observed, what is denied would go through.
    let observe = "name = \"test\"\nserial = 2\nmode = \"observe\"\n";
    let observed = replay(bundle(2, "v1", "one two").file("bundle.toml", observe));
    assert_eq!(observed["changed"], 3, "{observed}");
    let outcomes = ["old", "new"].map(|side| observed["changes"][0][side]["outcome"].clone());
    assert_eq!(outcomes, ["deny", "observed"], "{observed}");
    // Asked for, what was allowed waits for a person.
    let ask = "@id(\"ask\") @approve(\"owner\") forbid (principal, action, resource) unless { context.approvals.contains(\"owner\") };\n";
    let asked = replay(bundle(2, "v1", "one two").rules("ask", ask));
    assert_eq!(asked["changed"], 3, "{asked}");
    assert_eq!(asked["changes"][0]["new"]["outcome"], "approval-required");

    bundle(2, "v2", "three").write(&site.path("next"));
    let text = site
        .cli(["policy", "replay", "--since", "1h"])
        .arg(site.path("next"))
        .run()
        .ok();
    assert!(
        text.stdout.contains("6 replayed, 5 decided otherwise"),
        "{text:?}"
    );
    let none = site.cli([
        "policy",
        "replay",
        "--since",
        "2099-01-01T00:00:00Z",
        "--json",
    ]);
    let none = none.arg(site.path("next")).run().ok().json();
    assert_eq!(none["decisions"], 0, "{none}");

    let terminal = on_a_terminal(&site.config(), &site.path("next"));
    assert!(terminal.contains("100 % of"), "{terminal:?}");
    assert!(
        terminal.contains("6 replayed, 5 decided otherwise"),
        "{terminal:?}"
    );
    Bundle::new(2)
        .rules("all", "permit (nobody);")
        .write(&site.path("next"));
    let invalid = site.cli(["policy", "replay"]).arg(site.path("next")).run();
    assert_eq!(invalid.code(), 3, "{invalid:?}");
    assert!(invalid.stderr.contains("rules/all.cedar"), "{invalid:?}");
    let absent = site
        .cli(["policy", "replay"])
        .arg(site.path("absent"))
        .run();
    assert_eq!(absent.code(), 3, "{absent:?}");
}

/// What a person sees of it.
fn on_a_terminal(config: &Path, bundle: &Path) -> String {
    let command = format!(
        "{} policy replay --config {} --since 1h {}",
        agentguard().display(),
        config.display(),
        bundle.display()
    );
    let words = ["--quiet", "--return", "--command", &command, "/dev/null"];
    Client::new("script").args(words).run().ok().stdout
}
