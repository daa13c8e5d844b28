//! Policies through the command line: apply switches live agents at once, show says what holds, explain says why.

use agentguard_tests::bundle::reach;
use agentguard_tests::client::{Subject, dialer};
use agentguard_tests::{Bundle, Guard, Nginx, Site};

#[test]
fn apply_switches_what_runs() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let policy = |version: &str| {
        reach(
            "origin.test",
            origin.port,
            &[&*format!("GET /{version}/**")],
        )
    };
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy("v1")));
    let mut agent = dialer(&guard.agent("probe"));
    let get = |path: &str| format!("get {}", origin.url(path));
    assert_eq!(agent.tries(&get("/v1/x")), "ok 200");
    assert_eq!(agent.tries(&get("/v2/x")), "ok 403");

    apply(
        &site,
        &Bundle::new(2)
            .agent("probe", &policy("v2"))
            .agent("second", &policy("v2")),
    );
    assert_eq!(agent.tries(&get("/v1/x")), "ok 403");
    assert_eq!(agent.tries(&get("/v2/x")), "ok 200");
    let mut second = dialer(&guard.agent("second"));
    assert_eq!(second.tries(&get("/v2/x")), "ok 200");

    let shown = guard.cli(["policy", "show", "--json"]).ok().json();
    assert_eq!(
        (&shown["name"], &shown["serial"]),
        (&"test".into(), &2.into()),
        "{shown}"
    );
    assert_eq!(shown["digest"].as_str().map(str::len), Some(64), "{shown}");
    let last = guard.requests().pop().expect("a record");
    assert_eq!(last.0["bundle"]["digest"], shown["digest"]);

    // An agent that the bundle no longer has keeps its label and may do nothing.
    apply(&site, &Bundle::new(3).agent("second", &policy("v2")));
    assert!(agent.tries(&get("/v2/x")).starts_with("error"));
    assert_eq!(
        agent.tries(&format!("tcp 127.0.0.1 {}", origin.port)),
        "error EPERM"
    );
    assert_eq!(second.tries(&get("/v2/x")), "ok 200");
}

#[test]
fn what_was_applied_holds_after_a_restart() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let policy = |version: &str| {
        reach(
            "origin.test",
            origin.port,
            &[&*format!("GET /{version}/**")],
        )
    };
    let mut guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy("v1")));
    apply(&site, &Bundle::new(2).agent("probe", &policy("v2")));
    guard.stop();
    guard.restart();
    let mut agent = dialer(&guard.agent("probe"));
    assert_eq!(
        agent.tries(&format!("get {}", origin.url("/v1/x"))),
        "ok 403"
    );
    assert_eq!(
        agent.tries(&format!("get {}", origin.url("/v2/x"))),
        "ok 200"
    );
}

#[test]
fn a_connection_that_is_open_is_judged_by_the_new_policy() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let policy = |routes: &[&str]| reach("origin.test", origin.port, routes);
    let guard = Guard::start(
        &site,
        &Bundle::new(1).agent("probe", &policy(&["GET /v1/**"])),
    );
    let code = format!(
        r#"
import http.client, ssl
connection = http.client.HTTPSConnection("origin.test", {}, context=ssl.create_default_context())
for line in iter(sys.stdin.readline, ""):
    try:
        connection.request("GET", "/v1/x"); answer = connection.getresponse(); answer.read()
        print("status", answer.status, flush=True)
    except (OSError, http.client.HTTPException) as error:
        print("status", type(error).__name__, flush=True)
        connection.close()
"#,
        origin.port
    );
    let mut client = guard.agent("probe").python(&code).spawn();
    client.say("go");
    assert_eq!(client.after("status "), "200");
    apply(
        &site,
        &Bundle::new(2).agent("probe", &policy(&["GET /v2/**"])),
    );
    client.say("go");
    assert_ne!(
        client.after("status "),
        "200",
        "on the connection from before"
    );
    client.say("go");
    assert_eq!(client.after("status "), "403", "on a new one");
}

#[test]
fn rules_read_path_query_headers_and_methods() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let host = origin.host();
    let rules = format!(
        r#"
@id("by-query")
permit (principal == Agent::"probe", action == Action::"GET", resource == Host::"{host}")
when {{ context.path == "/query" && context.query.hasTag("kind") && context.query.getTag("kind") == "open" }};
@id("by-header")
permit (principal == Agent::"probe", action in [Action::"GET", Action::"PUT"], resource == Host::"{host}")
when {{ context.path like "/header/*" && context.headers.hasTag("x-team") && context.headers.getTag("x-team") == "red" }};
@id("by-segments")
permit (principal, action == Action::"GET", resource == Host::"{host}") when {{ context.segments == 5 }};
@id("never")
forbid (principal, action, resource) when {{ context.path like "*secret*" }};
"#
    );
    let bundle = Bundle::new(1)
        .agent("probe", &format!("[[reach]]\nhost = \"{host}\"\n"))
        .rules("all", &rules);
    let guard = Guard::start(&site, &bundle);
    let agent = guard.agent("probe");
    let call = |words: &[&str], path: &str| {
        let client = agent
            .client("curl".as_ref())
            .args(["--silent", "--output", "/dev/null"]);
        let client = client
            .args(["--write-out", "%{http_code}"])
            .args(words)
            .arg(origin.url(path));
        client.run().ok().stdout
    };
    let cases: [(&[&str], &str, &str, &str); 12] = [
        (&[], "/query?kind=open", "200", "by-query"),
        (&[], "/query?kind=closed", "403", ""),
        (&[], "/query", "403", ""),
        (&[], "/query?kind=open&kind=closed", "403", ""),
        (&["-H", "X-Team: red"], "/header/a", "200", "by-header"),
        (
            &["-H", "X-Team: red", "-X", "PUT"],
            "/header/a",
            "200",
            "by-header",
        ),
        (&["-H", "X-Team: red", "-X", "POST"], "/header/a", "403", ""),
        (&["-H", "X-Team: blue"], "/header/a", "403", ""),
        (
            &["-H", "X-Team: red", "-H", "X-Team: blue"],
            "/header/a",
            "403",
            "",
        ),
        (&[], "/1/2/3/4/5", "200", "by-segments"),
        (&[], "/1/2/3/4/secret", "403", "never"),
        (&[], "/1/2/3/4", "403", ""),
    ];
    for (words, path, status, policy) in cases {
        assert_eq!(call(words, path), status, "{words:?} {path}");
        let record = guard.requests().pop().expect("a record");
        let expected: &[&str] = if policy.is_empty() { &[] } else { &[policy] };
        assert_eq!(
            record.0["policies"],
            serde_json::json!(expected),
            "{words:?} {path}: {record:?}"
        );
    }
    let ambiguous = guard
        .requests()
        .iter()
        .filter(|record| record.reason() == "body-ambiguous")
        .count();
    assert_eq!(ambiguous, 2, "a repeated fact");
}

#[test]
fn explain_names_what_decided() {
    let site = Site::new();
    let bundle = Bundle::new(1)
        .agent("probe", &reach("api.test", 443, &["GET /v1/**"]))
        .rules(
            "all",
            "@id(\"never\")\nforbid (principal, action, resource) when { context.path like \"*secret*\" };\n",
        );
    let guard = Guard::start(&site, &bundle);
    let explain = |method: &str, url: &str| {
        let words = [
            "policy", "explain", "--json", "--agent", "probe", method, url,
        ];
        guard.cli(words).ok().json()
    };
    let allowed = explain("GET", "https://api.test/v1/a/../b");
    assert_eq!(allowed["permitted"], true, "{allowed}");
    assert_eq!(allowed["readings"][0]["path"], "/v1/b", "{allowed}");
    assert_eq!(
        allowed["readings"][0]["policies"][0]["verdict"], "permits",
        "{allowed}"
    );
    let place = allowed["readings"][0]["policies"][0]["at"].to_string();
    assert!(
        place.contains("agents/probe.toml:8"),
        "the shorthand is named by its place: {allowed}"
    );
    let forbidden = explain("GET", "https://api.test/v1/secret");
    assert_eq!(forbidden["permitted"], false, "{forbidden}");
    assert_eq!(forbidden["reason"], "policy-denied", "{forbidden}");
    assert!(
        forbidden["why"].to_string().contains("never"),
        "{forbidden}"
    );
    assert_eq!(
        explain("DELETE", "https://api.test/v1/a")["permitted"],
        false
    );
    let nowhere = explain("GET", "https://elsewhere.test/");
    assert_eq!(
        (&nowhere["permitted"], &nowhere["reach"]),
        (&false.into(), &serde_json::Value::Null),
        "{nowhere}"
    );
    assert!(guard.requests().is_empty(), "explaining is not deciding");
}

fn apply(site: &Site, bundle: &Bundle) {
    let dir = site.path("candidate");
    bundle.write(&dir);
    site.cli(["policy", "apply"]).arg(&dir).run().ok();
}

const CASES: &str = r#"
[[case]]
name    = "version one is read"
agent   = "probe"
request = "GET https://origin.test/v1/x"
expect  = "allow"

[[case]]
name    = "version two is not"
agent   = "probe"
request = "GET https://origin.test/v2/x"
expect  = "deny"
reason  = "policy-denied"
"#;

#[test]
fn a_bundles_cases_are_tested_without_a_daemon() {
    let site = Site::new();
    let bundle = |version: &str| {
        let allow = format!("GET /{version}/**");
        Bundle::new(1)
            .agent("probe", &reach("origin.test", 443, &[&*allow]))
            .file("tests/versions.toml", CASES)
    };
    let write = |bundle: Bundle, name: &str| {
        let dir = site.path(name);
        bundle.write(&dir);
        dir.to_str().expect("UTF-8").to_owned()
    };
    let good = write(bundle("v1"), "good");
    let test = |dir: &str, json: bool| {
        let words = ["policy", "test", dir, "--json"];
        site.cli(&words[..if json { 4 } else { 3 }]).run()
    };
    assert_eq!(test(&good, false).ok().stdout, "2 cases: all hold");
    assert_eq!(test(&good, true).ok().json()["passed"], 2);

    let bad = write(bundle("v2"), "bad");
    let said = test(&bad, false);
    assert_eq!(said.code(), 1, "{said:?}");
    for part in [
        "AT                     CASE                 EXPECTED            DECIDED\n",
        "tests/versions.toml:3  version one is read  allow               deny policy-denied\n",
        "tests/versions.toml:3: probe GET https://origin.test/v1/x\n  no policy permits it\n",
        "2 cases: 2 do not hold",
    ] {
        assert!(said.stdout.contains(part), "{part}\n{}", said.stdout);
    }
    let json = test(&bad, true).json();
    assert_eq!((&json["passed"], &json["failed"]), (&0.into(), &2.into()));
    assert_eq!(json["cases"][0]["decided"]["outcome"], "deny");

    let diff = site.cli(["policy", "diff", &good, &bad]).run().ok();
    assert!(
        diff.stdout.contains("2 cases: 2 decided otherwise")
            && diff
                .stdout
                .starts_with("probe GET https://origin.test/v1/x\n  old  allow by probe/")
            && diff.stdout.contains("\n  new  deny policy-denied\n"),
        "{}",
        diff.stdout
    );
    let same = site.cli(["policy", "diff", &good, &good, "--json"]).run();
    let same = same.ok().json();
    assert_eq!(
        (&same["cases"], &same["changes"]),
        (&2.into(), &serde_json::json!([]))
    );

    let broken = bundle("v1").file("tests/x.toml", "[[cases]]\n");
    let broken = test(&write(broken, "broken"), false);
    assert_eq!(broken.code(), 3, "{broken:?}");
    assert!(broken.stderr.contains("did you mean `case`?"), "{broken:?}");
}
