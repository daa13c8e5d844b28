//! The daemon finds out by itself that something is no longer refused.

use std::path::PathBuf;
use std::time::Instant;

use agentguard_common::abi::{AgentId, ConfigSlot, ExecHead, MAX_AGENTS, RuleKey, VERSION};
use agentguard_tests::bundle::{direct, reach};
use agentguard_tests::client::dialer;
use agentguard_tests::process::pid;
use agentguard_tests::tools::PATIENCE;
use agentguard_tests::{Bundle, Guard, Nginx, Site};
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::of_maps::ArrayOfMaps;
use aya::maps::{Array, Map, MapData};
use nix::sys::signal::{Signal, kill};
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
fn each_surprise_has_its_name() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    configure(&site, "alarm");
    let mut guard = start(&site, &origin);
    let mut agent = dialer(&guard.agent("probe"));
    let mut neighbour = dialer(&site);
    let get = format!("get {}", origin.url("/v1/x"));
    let has_lsm = link(&site, "lsm_bprm_check_security").exists();
    type Doing = fn(&Site);
    let exec: (&str, &str) = match has_lsm {
        true => ("lsm_unix_stream_connect", "lsm_bprm_check_security"),
        false => ("unix_connect", "exec"),
    };
    let steps: [(&[&str], Option<Doing>, &str); 7] = [
        (
            &[],
            Some(forget_rules),
            "a permitted TCP connect over IPv4 did not work",
        ),
        (&[], Some(forget_exec_rules), "a permitted exec "),
        (
            &[exec.0],
            None,
            "a forbidden connect to a Unix socket went through",
        ),
        (&[exec.1], None, "a forbidden exec went through"),
        // Two hooks judge a datagram.
        (
            &["egress", "sendmsg4"],
            None,
            "a forbidden datagram over IPv4 went through",
        ),
        (&["sendmsg6"], None, "a forbidden datagram over IPv6"),
        (
            &["connect6"],
            None,
            "a forbidden TCP connect over mapped IPv6 went through",
        ),
    ];
    for (hooks, doing, named) in steps {
        if hooks.contains(&"unix_connect") && !link(&site, "unix_connect").exists() {
            continue;
        }
        for hook in hooks {
            detach(&site, hook);
        }
        if let Some(doing) = doing {
            doing(&site);
        }
        let alarms = await_status(&guard, |status| said(status, named));
        assert!(alarms.contains("agents go on"), "{alarms}");
        assert!(text(&canary(&guard), "why").contains(named));
        assert_eq!(neighbour.tries(&get), "ok 200", "after {named}");
        // Without it no name is resolved for an agent.
        if link(&site, "egress").exists() {
            assert_eq!(agent.tries(&get), "ok 200", "after {named}");
        }
    }
    let records = guard.audit();
    let told = records.iter().filter(|record| record.action() == "canary");
    assert!(told.count() >= steps.len() - 1, "{records:#?}");

    guard.stop();
    guard.restart();
    let status = guard.cli(["status", "--json"]).ok().json();
    assert_eq!(status["alarms"], json!([]), "{status}");
    assert_eq!(canary(&guard)["holds"], "enforced");
}

#[test]
fn a_forwarder_that_answers_nobody_is_an_alarm_and_closes_nobody() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    configure(&site, "close");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let policy = reach("origin.test", origin.port, &["GET /v1/**"])
        + &direct(&format!("127.0.0.1/32:{port}"), "tcp");
    let mut guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let straight = format!("tcp 127.0.0.1 {port}");
    let mut agent = dialer(&guard.agent("probe"));
    let mut neighbour = dialer(&site);
    let get = format!("get {}", origin.url("/v1/x"));
    assert_eq!(agent.tries(&get), "ok 200");
    let forwarder = pid(guard.forwarder_tgid());
    kill(forwarder, Signal::SIGSTOP).expect("stopped");
    let alarms = await_status(&guard, |status| said(status, "the canary could not"));
    assert!(
        alarms.contains("a permitted request did not work"),
        "{alarms}"
    );
    // Any agent may be the cause: what the kernel judges by itself goes on.
    let seen = agent.tries(&straight);
    assert!(seen.starts_with("ok "), "{seen}");
    assert_eq!(neighbour.tries(&get), "ok 200");
    kill(forwarder, Signal::SIGCONT).expect("goes on");
    await_status(&guard, |status| {
        (status["alarms"] == json!([])).then(String::new)
    });
    assert_eq!(agent.tries(&get), "ok 200", "without a restart");
    let records = guard.audit();
    let told: Vec<_> = records
        .iter()
        .filter(|record| record.action() == "canary")
        .map(|record| record.outcome().to_owned())
        .collect();
    assert_eq!(told, ["error", "allow"], "{records:#?}");
}

/// Each apply switches what is in force for executables.
#[test]
fn a_new_bundle_takes_nothing_from_it() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    configure(&site, "close");
    let guard = start(&site, &origin);
    let policy = reach("origin.test", origin.port, &["GET /v1/**"]);
    for serial in 2..5 {
        let exec = "[exec]\ndefault = \"deny\"\nallow = [\"/usr/bin/**\"]\n";
        let body = match serial % 2 {
            0 => format!("{policy}{exec}"),
            _ => policy.clone(),
        };
        let dir = site.path("next");
        Bundle::new(serial).agent("probe", &body).write(&dir);
        guard
            .cli(["policy", "apply", dir.to_str().expect("UTF-8")])
            .ok();
        await_rounds(&guard);
        let status = guard.cli(["status", "--json"]).ok().json();
        assert_eq!(status["alarms"], json!([]), "{status}");
        assert_eq!(canary(&guard)["holds"], "enforced");
    }
}

#[test]
fn nobody_sees_one_that_is_refused_as_it_must() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    configure(&site, "close");
    let guard = start(&site, &origin);
    await_rounds(&guard);
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
    std::fs::remove_file(link(site, hook)).expect("it is pinned");
}

fn link(site: &Site, hook: &str) -> PathBuf {
    site.pins().join(format!("v{VERSION}/links/{hook}"))
}

fn pinned(site: &Site, map: &str) -> MapData {
    let pin = site.pins().join(format!("v{VERSION}/maps/{map}"));
    MapData::from_pin(pin).expect("it is pinned")
}

/// Takes all that the canary may reach away.
fn forget_rules(site: &Site) {
    let rules: ArrayOfMaps<MapData> =
        ArrayOfMaps::try_from(Map::ArrayOfMaps(pinned(site, "RULES"))).expect("of its type");
    let canarys = rules.get(&AgentId::CANARY.0, 0).expect("it has some");
    let mut canarys: LpmTrie<_, RuleKey, u32> =
        LpmTrie::try_from(Map::LpmTrie(canarys)).expect("of its type");
    let keys: Vec<_> = canarys.keys().map(|key| key.expect("readable")).collect();
    assert!(!keys.is_empty());
    for key in keys {
        canarys.remove(&key).expect("removed");
    }
}

/// The same for what it may execute.
fn forget_exec_rules(site: &Site) {
    let config: Array<_, u64> = Array::try_from(Map::Array(pinned(site, "CONFIG"))).expect("one");
    let bank = config.get(&(ConfigSlot::Exec as u32), 0).expect("a bank");
    let mut heads: Array<_, ExecHead> =
        Array::try_from(Map::Array(pinned(site, "EXEC_HEADS"))).expect("one");
    let slot = bank as u32 * MAX_AGENTS + AgentId::CANARY.0;
    let head = heads.get(&slot, 0).expect("one");
    assert!(head.len > 0, "{head:?}");
    heads
        .set(slot, ExecHead { len: 0, ..head }, 0)
        .expect("changed");
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

/// Until one has been sent out and has come back since this was called.
fn await_rounds(guard: &Guard<'_>) {
    let refused = |status: &Value| status["drops"]["refused"].as_u64().expect("a count");
    let first = refused(&guard.cli(["status", "--json"]).ok().json());
    await_status(guard, |status| {
        (refused(status) >= first + 20).then(String::new)
    });
}

fn text<'r>(row: &'r Value, key: &str) -> &'r str {
    row[key].as_str().expect("text")
}

fn canary(guard: &Guard<'_>) -> Value {
    let doctor = guard.cli(["doctor", "--json"]).ok().json();
    let rows = doctor["guarantees"].as_array().expect("rows");
    let row = rows.iter().find(|row| row["id"] == "canary");
    row.expect("a row").clone()
}
