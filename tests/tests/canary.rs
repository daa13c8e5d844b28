//! The daemon finds out by itself that something is no longer refused.

use std::time::Instant;

use agentguard_common::abi::VERSION;
use agentguard_tests::bundle::reach;
use agentguard_tests::client::dialer;
use agentguard_tests::tools::PATIENCE;
use agentguard_tests::{Bundle, Guard, Nginx, Site};
use serde_json::{Value, json};

#[test]
fn a_hook_that_is_gone_closes_agents_until_it_is_back() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    configure(&site, "close");
    let mut guard = start(&site, &origin);
    let mut agent = dialer(&guard.agent("probe"));
    let mut neighbour = dialer(&site);
    let get = format!("get {}", origin.url("/v1/x"));
    assert_eq!(agent.tries(&get), "ok 200");
    assert_eq!(canary(&guard)["holds"], "enforced");

    detach(&site, "connect4");
    let alarms = await_status(&guard, |status| said(status, "the canary failed"));
    assert!(
        alarms.contains("IPv4 was not refused") || alarms.contains("IPv4 went through"),
        "{alarms}"
    );
    assert!(alarms.contains("agents are held closed"), "{alarms}");
    assert_eq!(canary(&guard)["holds"], "open");
    // By the hooks that are left.
    assert_eq!(
        agent.tries(&format!("tcp ::1 {}", origin.port)),
        "error EPERM"
    );
    assert_eq!(agent.tries("udp 127.0.0.1 9"), "error EPERM");
    assert_eq!(
        neighbour.tries(&get),
        "ok 200",
        "a process that is no agent"
    );
    let run = guard.cli(["run", "--agent", "probe", "--", "true"]);
    assert_eq!(run.code(), 125, "{run:#?}");
    assert!(run.stderr.contains("canary"), "{run:#?}");
    // A revival does not open what the canary holds.
    guard.cli(["revive", "probe"]).ok();
    assert_eq!(
        agent.tries(&format!("tcp ::1 {}", origin.port)),
        "error EPERM"
    );
    let records = guard.audit();
    let told: Vec<_> = records
        .iter()
        .filter(|record| record.action() == "canary")
        .collect();
    assert_eq!(told.len(), 1, "one record for one change: {told:#?}");
    assert_eq!(told[0].outcome(), "error", "{told:?}");

    guard.stop();
    guard.restart();
    assert_eq!(agent.tries(&get), "ok 200", "after the restart");
    let status = guard.cli(["status", "--json"]).ok().json();
    assert_eq!(status["alarms"], json!([]), "{status}");
    assert_eq!(canary(&guard)["holds"], "enforced");
    guard.cli(["audit", "verify"]).ok();
}

#[test]
fn agents_go_on_where_only_the_alarm_is_wanted() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    configure(&site, "alarm");
    let guard = start(&site, &origin);
    let mut agent = dialer(&guard.agent("probe"));
    detach(&site, "connect6");
    let alarms = await_status(&guard, |status| said(status, "the canary failed"));
    assert!(
        alarms.contains("IPv6") && alarms.contains("agents go on"),
        "{alarms}"
    );
    let get = format!("get {}", origin.url("/v1/x"));
    assert_eq!(agent.tries(&get), "ok 200");
    let records = guard.audit();
    assert!(records.iter().any(|record| record.action() == "canary"));
}

#[test]
fn nobody_sees_one_that_is_refused_as_it_must() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    configure(&site, "close");
    let guard = start(&site, &origin);
    let refused = |status: &Value| status["drops"]["refused"].as_u64().expect("a count");
    let first = refused(&guard.cli(["status", "--json"]).ok().json());
    await_status(&guard, |status| {
        (refused(status) >= first + 10).then(String::new)
    });
    let status = guard.cli(["status", "--json"]).ok().json();
    assert_eq!(status["alarms"], json!([]), "{status}");
    assert_eq!(status["agents"]["known"], 1, "{status}");
    assert_eq!(status["agents"]["processes"], 0, "{status}");
    let agents = guard.cli(["agents", "--json"]).ok().json();
    assert_eq!(agents.as_array().map(Vec::len), Some(1), "{agents}");
    let records = guard.audit();
    let odd: Vec<_> = records
        .iter()
        .filter(|record| record.action() != "start")
        .collect();
    assert!(odd.is_empty(), "{odd:#?}");
    assert!(origin.hits_below("/").is_empty());
}

fn configure(site: &Site, on_failure: &str) {
    site.configure(|config| {
        let canary = toml::toml! { every_s = 1 };
        config.insert("canary".into(), canary.into());
        config["canary"]
            .as_table_mut()
            .expect("a table")
            .insert("on_failure".into(), on_failure.into());
    });
}

fn start<'site>(site: &'site Site, origin: &Nginx) -> Guard<'site> {
    let policy = reach("origin.test", origin.port, &["GET /v1/**"]);
    Guard::start(site, &Bundle::new(1).agent("probe", &policy))
}

/// Takes one hook of this test's own daemon away.
fn detach(site: &Site, hook: &str) {
    let link = site.pins().join(format!("v{VERSION}/links/{hook}"));
    std::fs::remove_file(link).expect("it is pinned");
}

fn said(status: &Value, what: &str) -> Option<String> {
    let alarms = status["alarms"].to_string();
    alarms.contains(what).then_some(alarms)
}

fn await_status(guard: &Guard<'_>, wanted: impl Fn(&Value) -> Option<String>) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = guard.cli(["status", "--json"]).ok().json();
        if let Some(found) = wanted(&status) {
            return found;
        }
        assert!(Instant::now() < deadline, "{status}");
    }
}

fn canary(guard: &Guard<'_>) -> Value {
    let doctor = guard.cli(["doctor", "--json"]).ok().json();
    let rows = doctor["guarantees"].as_array().expect("rows");
    let row = rows.iter().find(|row| row["id"] == "canary");
    row.expect("a row").clone()
}
