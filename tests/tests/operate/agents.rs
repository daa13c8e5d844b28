//! Who agents are to operators: whose, in use or not, and for whom they act. What stops one reaches the kernel.

use agentguard_tests::bundle::reach;
use agentguard_tests::client::{Subject as _, dialer};
use agentguard_tests::{Bundle, Guard, Nginx, Record, Site, Tap};
use serde_json::Value;

fn state(guard: &Guard<'_>, agent: &str) -> String {
    let shown = guard.cli(["agents", "show", agent, "--json"]).ok().json();
    shown["state"].as_str().expect("a state").to_owned()
}

/// Records of what operators did to agents and owners: action, resource, detail.
fn operations(guard: &Guard<'_>) -> Vec<(String, String, String)> {
    let verbs = ["suspend", "activate", "retire", "reassign"];
    let records = guard.audit().into_iter();
    let done = records.filter(|it| it.0["operator"].is_object() && verbs.contains(&it.action()));
    done.map(|it| {
        let text = |at: &str| it.text(at).to_owned();
        (text("/action"), text("/resource"), text("/detail"))
    })
    .collect()
}

#[test]
fn an_inactive_owner_stops_all_of_their_agents_until_they_are_reassigned() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let policy = reach("origin.test", origin.port, &["GET /v1/**"]);
    let owned = |name: &str, owner: &str| {
        format!("[agent]\nname = \"{name}\"\nowner = \"{owner}\"\n\n{policy}")
    };
    let rules = format!(
        "@id(\"jane-only\") forbid (principal, action, resource == Host::\"{}\")
        when {{ context.path == \"/v1/owner\" }} unless {{ principal.owner == \"jane@example.com\" }};",
        origin.host()
    );
    let bundle = Bundle::new(1)
        .file("agents/first.toml", owned("first", "john@example.com"))
        .file("agents/second.toml", owned("second", "john@example.com"))
        .file("agents/other.toml", owned("other", "mary@example.com"))
        .rules("owner", &rules);
    let mut guard = Guard::start(&site, &bundle);
    let get = format!("get {}", origin.url("/v1/x"));
    let get_as_owner = format!("get {}", origin.url("/v1/owner"));
    let connect = format!("tcp 127.0.0.1 {}", origin.port);
    let mut first = dialer(&guard.agent("first"));
    let mut other = dialer(&guard.agent("other"));
    assert_eq!(first.tries(&get), "ok 200");
    assert_eq!(first.tries(&get_as_owner), "ok 403");

    let left = [
        "agents",
        "suspend",
        "--owner",
        "john@example.com",
        "--reason",
        "left",
        "--json",
    ];
    let said = guard.cli(left).ok().json();
    let states: Vec<&Value> = said["agents"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["state"])
        .collect();
    assert_eq!(states, ["orphaned", "orphaned"]);
    assert_eq!(first.tries(&connect), "error EPERM");
    assert_eq!(other.tries(&get), "ok 200", "another owner's");
    let refused = guard.agent("second").python_code("print(1)");
    assert_eq!(refused.code(), 125);
    assert!(
        refused.stderr.contains("reassign second OWNER"),
        "{refused:#?}"
    );

    guard.stop();
    guard.restart();
    assert_eq!(first.tries(&connect), "error EPERM", "after a restart");
    assert_eq!(state(&guard, "first"), "orphaned");
    let records = guard.audit();
    let denied = records
        .iter()
        .filter(|it| it.agent() == "first" && it.outcome() == "deny");
    let stopped = denied.filter(|it| !it.is_request());
    let reasons: Vec<&str> = stopped.map(|it| it.reason()).collect();
    let orphaned = |it: &&str| *it == "agent-orphaned";
    assert!(
        !reasons.is_empty() && reasons.iter().all(orphaned),
        "{reasons:?}"
    );

    // To somebody who is not active either, or to nobody: refused, and nothing has changed.
    let same = guard.cli(["agents", "reassign", "first", "john@example.com"]);
    assert_eq!(same.code(), 1, "{same:#?}");
    assert!(same.stderr.contains("not active"), "{same:#?}");
    guard
        .cli([
            "agents",
            "reassign",
            "first",
            "jane@example.com",
            "--reason",
            "takes over",
        ])
        .ok();
    assert_eq!(first.tries(&get), "ok 200");
    assert_eq!(
        first.tries(&get_as_owner),
        "ok 200",
        "rules see the new owner"
    );
    assert_eq!(state(&guard, "second"), "orphaned");
    let last = guard.requests().pop().expect("a record");
    assert_eq!(last.text("/owner"), "jane@example.com");

    // It is still hers with the next bundle, as long as the file says what it said.
    let next = bundle
        .clone()
        .file("bundle.toml", "name = \"test\"\nserial = 2\n");
    site.install(&next);
    let folder = site.path("policies");
    guard
        .cli(["policy", "apply", folder.to_str().unwrap()])
        .ok();
    assert_eq!(first.tries(&get_as_owner), "ok 200");
    let named = next
        .file("bundle.toml", "name = \"test\"\nserial = 3\n")
        .file(
            "agents/first.toml",
            owned("first", "john@example.com").replace("john", "mary"),
        );
    site.install(&named);
    guard
        .cli(["policy", "apply", folder.to_str().unwrap()])
        .ok();
    assert_eq!(
        first.tries(&get_as_owner),
        "ok 403",
        "its file names another"
    );
    // A bundle can also give an agent to an owner who is not active.
    site.install(
        &named
            .file("bundle.toml", "name = \"test\"\nserial = 4\n")
            .file(
                "agents/first.toml",
                owned("first", "john@example.com").replace("[agent]", "# again\n[agent]"),
            ),
    );
    guard
        .cli(["policy", "apply", folder.to_str().unwrap()])
        .ok();
    assert_eq!(
        first.tries(&connect),
        "error EPERM",
        "given to john by the bundle"
    );
    guard
        .cli(["agents", "activate", "--owner", "john@example.com"])
        .ok();
    assert_eq!(first.tries(&get), "ok 200");

    let done = operations(&guard);
    let of = |action: &str, resource: &str| {
        let mut found = done.iter().filter(|it| it.0 == action && it.1 == resource);
        found.next().map(|it| it.2.clone()).unwrap_or_default()
    };
    let left = "its owner john@example.com is not active: left";
    assert_eq!(of("suspend", "john@example.com"), left);
    assert_eq!(of("suspend", "second"), left);
    assert_eq!(of("reassign", "first"), "to jane@example.com: takes over");
}

#[test]
fn a_suspended_agent_does_nothing_until_it_is_activated_and_a_retired_one_never() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let file = std::fs::File::create(origin.files().join("endless")).expect("made");
    // Sparse: as long as the test wants, and no disk.
    file.set_len(1 << 40).expect("set");
    let policy = reach("origin.test", origin.port, &["GET /files/**", "GET /v1/**"]);
    let mut guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let get = format!("get {}", origin.url("/v1/x"));
    let connect = format!("tcp 127.0.0.1 {}", origin.port);
    let mut running = dialer(&guard.agent("probe"));
    let download = guard.agent("probe").client("curl".as_ref());
    let url = origin.url("/files/endless");
    let client = download
        .args(["--silent", "--output", "/dev/null"])
        .arg(url)
        .spawn();
    let mut tap = Tap::start();
    while tap.from_port(origin.port).bytes < 1 << 20 {}

    let said = guard
        .cli(["agents", "suspend", "probe", "--reason", "odd"])
        .ok();
    assert!(said.stdout.contains("probe is suspended"), "{said:#?}");
    assert_ne!(client.finish().code(), 0, "the download was cut");
    assert_eq!(running.tries(&connect), "error EPERM");
    let cut = guard
        .requests()
        .into_iter()
        .find(|it| it.path() == "/files/endless");
    let cut = cut.expect("a record");
    assert_eq!((cut.outcome(), cut.reason()), ("killed", "agent-suspended"));

    // Killed besides, it takes both to let it go on.
    guard.cli(["kill", "probe", "--reason", "test"]).ok();
    assert_eq!(state(&guard, "probe"), "killed");
    let revived = guard.cli(["revive", "probe"]).ok();
    assert!(
        revived.stdout.contains("has been suspended"),
        "{revived:#?}"
    );
    assert_eq!(running.tries(&connect), "error EPERM");
    guard.stop();
    guard.restart();
    assert_eq!(running.tries(&connect), "error EPERM", "after a restart");
    let said = guard.cli(["agents", "activate", "probe"]).ok();
    assert!(said.stdout.contains("probe is active"), "{said:#?}");
    assert_eq!(running.tries(&get), "ok 200");

    guard
        .cli(["agents", "retire", "probe", "--reason", "replaced"])
        .ok();
    assert_eq!(running.tries(&connect), "error EPERM");
    assert_eq!(state(&guard, "probe"), "retired");
    let refused = guard.cli(["agents", "activate", "probe"]);
    assert_eq!(refused.code(), 1, "{refused:#?}");
    assert!(refused.stderr.contains("for good"), "{refused:#?}");
    assert_eq!(running.tries(&connect), "error EPERM");
    let unknown = guard.cli(["agents", "suspend", "prob"]);
    assert_eq!(unknown.code(), 1);
    assert!(
        unknown.stderr.contains("did you mean `probe`?"),
        "{unknown:#?}"
    );
}

#[test]
fn who_acts_for_another_can_do_no_more_and_stops_with_it() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let folder = tempfile::tempdir().expect("a folder");
    let program = folder.path().join("agent");
    std::fs::copy("/usr/bin/curl", &program).expect("copied");
    use std::os::unix::fs::PermissionsExt as _;
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open.clone()).expect("set");
    std::fs::set_permissions(&program, open).expect("set");
    let child = format!(
        "[agent]\nname = \"child\"\nowner = \"c@example.com\"\nparent = \"planner\"\n
[[identify]]\nexe = \"{}\"\n\n{}[[reach]]\nto = \"127.0.0.1:{}\"\n",
        program.display(),
        reach("origin.test", origin.port, &["ANY /**"]),
        origin.port_plain,
    );
    let bundle = Bundle::new(1)
        .agent("planner", &reach("origin.test", origin.port, &["GET /v1/**"]))
        .file("agents/child.toml", child)
        .rules(
            "r",
            "@id(\"no-secrets\") forbid (principal == Agent::\"planner\", action, resource) when { context.path == \"/v1/secret\" };",
        );
    let guard = Guard::start(&site, &bundle);
    let url = origin.url("/v1/x");
    let mut child = dialer(&guard.agent("child"));
    assert_eq!(child.tries(&format!("get {url}")), "ok 200");
    for path in ["/v2/x", "/v1/secret"] {
        assert_eq!(child.tries(&format!("get {}", origin.url(path))), "ok 403");
    }
    // What only the kernel judges is narrowed as well.
    let direct = format!("get {}", origin.plain_url("/v1/x"));
    assert_ne!(child.tries(&direct), "ok 200");
    let records = guard.requests();
    let refused: Vec<_> = records.iter().filter(|it| it.outcome() == "deny").collect();
    for path in ["/v2/x", "/v1/secret"] {
        let record = refused
            .iter()
            .find(|it| it.path() == path)
            .expect("a record");
        assert_eq!(record.reason(), "delegation-exceeded", "{record:?}");
        assert_eq!(record.text("/facts/parents"), "planner");
        assert!(
            record
                .text("/facts/parent_refused")
                .starts_with("planner: "),
            "{record:?}"
        );
    }
    let body = format!("{} -s {}", program.display(), origin.url("/v2/x"));
    let said = guard
        .agent("planner")
        .python(&format!("os.system({body:?})"))
        .run();
    assert!(said.stdout.contains("delegation-exceeded"), "{said:#?}");
    assert!(
        !said.stdout.contains("planner"),
        "names no other agent: {said:#?}"
    );
    let by_exec = guard.requests().pop().expect("a record");
    assert_eq!(
        by_exec.agent(),
        "child",
        "the planner's child became the child's"
    );

    // Who stops the planner stops who acts for it.
    let connect = format!("tcp 127.0.0.1 {}", origin.port);
    guard
        .cli(["agents", "suspend", "planner", "--reason", "test"])
        .ok();
    assert_eq!(child.tries(&connect), "error EPERM");
    assert_eq!(state(&guard, "child"), "held");
    let refused = guard.agent("child").python_code("print(1)");
    assert_eq!(refused.code(), 125, "{refused:#?}");
    guard.cli(["agents", "activate", "planner"]).ok();
    assert_eq!(child.tries(&format!("get {url}")), "ok 200");
    guard.cli(["kill", "planner"]).ok();
    assert_eq!(child.tries(&connect), "error EPERM");
    guard.cli(["revive", "planner"]).ok();
    assert_eq!(child.tries(&format!("get {url}")), "ok 200");
    let records = guard.audit();
    let denied = records
        .iter()
        .filter(|it| it.agent() == "child" && it.outcome() == "deny");
    let stopped: Vec<_> = denied.filter(|it| !it.is_request()).collect();
    let delegated = |it: &&Record| it.reason() == "delegation-exceeded";
    assert!(stopped.iter().any(delegated), "{stopped:#?}");
}
