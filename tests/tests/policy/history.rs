//! What comes into force after what: serials, expiry, the history, the way back, and a state that is old or new whenever the
//! daemon dies.

use std::fs;
use std::time::{Duration, Instant};

use agentguard_tests::bundle::{direct, reach};
use agentguard_tests::client::dialer;
use agentguard_tests::tools::PATIENCE;
use agentguard_tests::{Bundle, Guard, Nginx, Ran, Site};
use serde_json::Value;

fn bundle(serial: u64, origin: &Nginx, version: &str) -> Bundle {
    let routes = [&*format!("GET /{version}/**")];
    Bundle::new(serial).agent("probe", &reach("origin.test", origin.port, &routes))
}

fn apply(site: &Site, bundle: &Bundle) -> Ran {
    let dir = site.path("candidate");
    bundle.write(&dir);
    site.cli(["policy", "apply"]).arg(&dir).run()
}

#[track_caller]
fn refused(ran: &Ran, says: &str) {
    assert_eq!(ran.code(), 3, "{ran:?}");
    assert!(ran.stderr.contains(says), "{says}: {ran:?}");
}

fn serial(guard: &Guard<'_>) -> u64 {
    let shown = guard.cli(["policy", "show", "--json"]).ok().json();
    shown["serial"].as_u64().expect("a number")
}

#[test]
fn serials_grow_and_a_rollback_goes_back() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let mut guard = Guard::start(&site, &bundle(1, &origin, "v1"));
    let mut agent = dialer(&guard.agent("probe"));
    let (v1, v2) = (
        format!("get {}", origin.url("/v1/x")),
        format!("get {}", origin.url("/v2/x")),
    );
    apply(&site, &bundle(5, &origin, "v2")).ok();
    assert_eq!(agent.tries(&v2), "ok 200");

    let same = apply(&site, &bundle(5, &origin, "v2")).ok();
    assert!(same.stdout.contains("in force already"), "{same:?}");
    refused(&apply(&site, &bundle(5, &origin, "v3")), "not above 5");
    refused(&apply(&site, &bundle(4, &origin, "v3")), "not above 5");
    let before = apply(&site, &bundle(1, &origin, "v1"));
    refused(&before, "agentguard policy rollback 1");
    assert_eq!(serial(&guard), 5);

    guard.cli(["policy", "rollback"]).ok();
    assert_eq!(serial(&guard), 1);
    assert_eq!(
        (agent.tries(&v1), agent.tries(&v2)),
        ("ok 200".into(), "ok 403".into())
    );
    // An old bundle does not come back as a new one between the two.
    refused(&apply(&site, &bundle(3, &origin, "v3")), "not above 5");

    let all = guard.cli(["policy", "history", "--json"]).ok().json();
    let seen = all.as_array().expect("an array").iter().map(|it| {
        (
            it["serial"].as_u64(),
            it["origin"].as_str(),
            it["in_force"].as_bool(),
        )
    });
    let of = |serial, origin, now| (Some(serial), Some(origin), Some(now));
    assert_eq!(
        seen.collect::<Vec<_>>(),
        [
            of(1, "rollback", true),
            of(5, "apply", false),
            of(1, "start", false)
        ]
    );
    assert_eq!(all[0]["user"], "root");
    let table = guard.cli(["policy", "history"]).ok().stdout;
    assert!(
        table.contains("SERIAL") && table.contains("rollback"),
        "{table}"
    );

    let digest = all[1]["digest"].as_str().expect("a digest");
    for name in ["5", &digest[..12]] {
        let shown = guard.cli(["policy", "show", name, "--json"]).ok().json();
        assert_eq!(
            (&shown["digest"], &shown["in_force"]),
            (&digest.into(), &false.into())
        );
        let text = guard
            .cli(["policy", "show", name, "--file", "agents/probe.toml"])
            .ok();
        assert!(text.stdout.contains("GET /v2/**"), "{text:?}");
    }
    assert_eq!(guard.cli(["policy", "show", "9"]).code(), 1);
    refused(&guard.cli(["policy", "rollback", "9"]), "policy history");

    guard.stop();
    guard.restart();
    assert_eq!(serial(&guard), 1);
    guard.cli(["policy", "rollback", "5"]).ok();
    assert_eq!(agent.tries(&v2), "ok 200");
    let records = guard.audit();
    let rolled = records.iter().filter(|it| it.action() == "policy-rollback");
    let outcomes: Vec<&str> = rolled.map(|it| it.outcome()).collect();
    assert_eq!(outcomes, ["allow", "deny", "allow"]);

    // Who may not apply may not roll back.
    let stranger = site.cli(["policy", "rollback", "1"]).user(65_533).run();
    assert_eq!(stranger.code(), 5, "{stranger:?}");
    assert_eq!(serial(&guard), 5);
}

#[test]
fn a_damaged_bundle_gives_way_to_the_last_good_one() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let mut guard = Guard::start(&site, &bundle(1, &origin, "v1"));
    apply(&site, &bundle(2, &origin, "v2")).ok();
    let active = site.path("state/policy/active.json");
    let alarm =
        |guard: &Guard<'_>| guard.cli(["status", "--json"]).ok().json()["alarms"].to_string();
    assert_eq!(alarm(&guard), "[]");

    // Its own copy in the history is whole.
    guard.stop();
    let text = fs::read_to_string(&active).expect("readable");
    fs::write(&active, text.replace("/v2/", "/v1/")).expect("written");
    guard.restart();
    assert_eq!(serial(&guard), 2);
    assert!(alarm(&guard).contains("last good"), "{}", alarm(&guard));

    // That one damaged too: the one before, and serials still grow from where they were.
    guard.stop();
    let copy = site.path("state/policy/history/0000000002.json");
    fs::write(&copy, &text.as_bytes()[..text.len() / 2]).expect("written");
    fs::write(&active, "{").expect("written");
    guard.restart();
    assert_eq!(serial(&guard), 1);
    let mut agent = dialer(&guard.agent("probe"));
    assert_eq!(
        agent.tries(&format!("get {}", origin.url("/v1/x"))),
        "ok 200"
    );
    apply(&site, &bundle(3, &origin, "v2")).ok();
    assert_eq!(alarm(&guard), "[]");

    // Nothing that can be used: closed, and another bundle can be applied.
    guard.stop();
    fs::remove_dir_all(site.path("state/policy/history")).expect("removed");
    fs::write(&active, "{").expect("written");
    guard.restart();
    let connect = format!("tcp 127.0.0.1 {}", origin.port);
    assert_eq!(agent.tries(&connect), "error EPERM");
    assert!(
        alarm(&guard).contains("no bundle is in force"),
        "{}",
        alarm(&guard)
    );
    apply(&site, &bundle(4, &origin, "v2")).ok();
    assert_eq!(
        agent.tries(&format!("get {}", origin.url("/v2/x"))),
        "ok 200"
    );
}

#[test]
fn what_has_expired_allows_nothing() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let guard = Guard::start(&site, &bundle(1, &origin, "v1"));
    let until = |serial, seconds: i64| {
        let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
        let body = reach("origin.test", origin.port, &["GET /v1/**"]);
        let body = body + &direct("127.0.0.1/32:9", "udp");
        Bundle::new(serial).agent("probe", &body).file(
            "bundle.toml",
            format!("name = \"test\"\nserial = {serial}\nexpires = \"{at}\"\n"),
        )
    };
    refused(&apply(&site, &until(2, -1)), "has expired");
    let code = format!(
        r#"
import http.client, ssl
connection = http.client.HTTPSConnection("origin.test", {}, context=ssl.create_default_context())
for line in iter(sys.stdin.readline, ""):
    connection.request("GET", "/v1/x"); answer = connection.getresponse()
    print("status", answer.status, answer.read()[:400], flush=True)
"#,
        origin.port
    );
    let warned = apply(&site, &until(3, 6)).ok();
    let began = Instant::now();
    assert!(warned.stderr.contains("expires at"), "{warned:?}");
    let mut client = guard.agent("probe").python(&code).spawn();
    client.say("go");
    assert!(client.after("status ").starts_with("200"));
    let mut agent = dialer(&guard.agent("probe"));
    let direct = "udp 127.0.0.1 9";
    assert!(agent.tries(direct).starts_with("ok"));
    let alarms = || guard.cli(["status", "--json"]).ok().json()["alarms"].to_string();
    assert!(alarms().contains("the bundle expires at"), "{}", alarms());
    assert!(
        began.elapsed() < Duration::from_secs(6),
        "this machine is too slow for the test"
    );

    let deadline = began + PATIENCE;
    while agent.tries(direct).starts_with("ok") {
        assert!(Instant::now() < deadline, "it never expires");
    }
    assert_eq!(agent.tries(direct), "error EPERM");
    client.say("go");
    let said = client.after("status ");
    assert!(
        said.starts_with("403") && said.contains("policy-stale"),
        "{said}"
    );
    assert!(alarms().contains("has expired"), "{}", alarms());
    let records = guard.audit();
    let stale = records.iter().find(|it| it.reason() == "policy-stale");
    assert_eq!(stale.expect("a record").outcome(), "deny");
    // The kernel's rules are switched before it is recorded.
    let recorded = || {
        guard
            .audit()
            .iter()
            .any(|it| it.action() == "policy-expire")
    };
    while !recorded() {
        assert!(Instant::now() < deadline, "its end is not recorded");
    }

    apply(&site, &until(4, 3600)).ok();
    assert!(agent.tries(direct).starts_with("ok"));
    assert_eq!(
        agent.tries(&format!("get {}", origin.url("/v1/x"))),
        "ok 200"
    );
    refused(&guard.cli(["policy", "rollback", "3"]), "has expired");
}

/// The daemon is killed when the new bundle has been written, when it has been put in its place, and in between.
#[test]
fn a_crash_while_applying_leaves_old_or_new() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let mut guard = Guard::start(&site, &bundle(1, &origin, "v1"));
    let folder = site.path("state/policy");
    let mut left = 1;
    for (round, moment) in ["staged", "active", "staged", "active"]
        .into_iter()
        .enumerate()
    {
        let next = left + 1;
        let version = if next % 2 == 0 { "v2" } else { "v1" };
        let dir = site.path("candidate");
        bundle(next, &origin, version).write(&dir);
        let path = folder.join(format!(
            "active.{}",
            if moment == "staged" { "staged" } else { "json" }
        ));
        let before = stamp(&path);
        let applying = site.cli(["policy", "apply"]).arg(&dir).spawn();
        let deadline = Instant::now() + PATIENCE;
        while stamp(&path) == before {
            assert!(Instant::now() < deadline, "nothing is written");
            std::hint::spin_loop();
        }
        guard.crash();
        applying.finish();
        guard.restart();
        let status: Value = guard.cli(["status", "--json"]).ok().json();
        assert_eq!(status["alarms"].to_string(), "[]", "{moment}");
        let now = serial(&guard);
        assert!(now == left || now == next, "{moment}: {now}");
        if moment == "active" {
            assert_eq!(now, next, "what is in its place holds");
        }
        let mut agent = dialer(&guard.agent("probe"));
        for version in ["v1", "v2"] {
            let expected = if (version == "v2") == (now.is_multiple_of(2)) {
                "ok 200"
            } else {
                "ok 403"
            };
            let got = agent.tries(&format!("get {}", origin.url(&format!("/{version}/x"))));
            assert_eq!(got, expected, "{moment} in round {round}, serial {now}");
        }
        let history = guard.cli(["policy", "history", "--json"]).ok().json();
        assert_eq!(
            (&history[0]["serial"], &history[0]["in_force"]),
            (&now.into(), &true.into())
        );
        left = now;
    }
}

/// What tells one file of that name from another.
fn stamp(path: &std::path::Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).ok().map(|meta| meta.ino())
}
