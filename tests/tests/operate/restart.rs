//! The death of the daemon or of the forwarder closes agents, touches nobody else, and ends with a restart.

use agentguard_tests::bundle::reach;
use agentguard_tests::client::{Subject, dialer};
use agentguard_tests::process::{await_end, pid};
use agentguard_tests::{Bundle, Guard, Nginx, Site};
use nix::sys::signal::{Signal, kill};

#[test]
fn a_crashed_daemon_closes_agents_only() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let mut guard = start(&site, &origin);
    let mut agent = dialer(&guard.agent("probe"));
    let mut neighbour = dialer(&site);
    let get = format!("get {}", origin.url("/v1/x"));
    let connect = format!("tcp 127.0.0.1 {}", origin.port);
    assert_eq!(agent.tries(&get), "ok 200");

    let forwarder = guard.forwarder_tgid();
    guard.crash();
    // Immediately, while the forwarder may still be there, and afterwards.
    assert_ne!(agent.tries(&get), "ok 200", "just after the crash");
    await_end(forwarder);
    assert_eq!(agent.tries(&connect), "error EPERM");
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

    guard.restart();
    assert_eq!(
        agent.tries(&get),
        "ok 200",
        "the same process after the restart"
    );
    let mut fresh = dialer(&guard.agent("probe"));
    assert_eq!(fresh.tries(&get), "ok 200");
    guard.cli(["audit", "verify"]).ok();
}

#[test]
fn a_process_forked_while_the_daemon_is_down_stays_an_agent() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let mut guard = start(&site, &origin);
    let mut agent = dialer(&guard.agent("probe"));
    let forwarder = guard.forwarder_tgid();
    guard.crash();
    await_end(forwarder);
    assert!(agent.tries("fork").starts_with("ok "));
    assert_eq!(
        agent.tries(&format!("tcp 127.0.0.1 {}", origin.port)),
        "error EPERM"
    );
    guard.restart();
    assert_eq!(
        agent.tries(&format!("get {}", origin.url("/v1/x"))),
        "ok 200"
    );
    assert_eq!(
        agent.tries(&format!("get {}", origin.url("/v2/x"))),
        "ok 403"
    );
}

#[test]
fn a_dead_forwarder_is_started_again() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let mut guard = start(&site, &origin);
    let mut agent = dialer(&guard.agent("probe"));
    let forwarder = guard.forwarder_tgid();
    kill(pid(forwarder), Signal::SIGKILL).expect("it runs");
    await_end(forwarder);
    let get = format!("get {}", origin.url("/v1/x"));
    let deadline = std::time::Instant::now() + agentguard_tests::tools::PATIENCE;
    loop {
        match &*agent.tries(&get) {
            "ok 200" => break,
            // Closed while it is away, in whatever way the client words it; never open: a refused path stays refused.
            answer => assert!(std::time::Instant::now() < deadline, "still {answer}"),
        }
    }
    assert_ne!(guard.forwarder_tgid(), forwarder);
    assert_eq!(
        agent.tries(&format!("get {}", origin.url("/v2/x"))),
        "ok 403"
    );
}

#[test]
fn a_clean_stop_keeps_agents_closed_and_unload_opens_them() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let mut guard = start(&site, &origin);
    let mut agent = dialer(&guard.agent("probe"));
    let connect = format!("tcp 127.0.0.1 {}", origin.port);
    let ran = guard.stop();
    assert_eq!(ran.code(), 0, "a clean stop: {ran:#?}");
    assert_eq!(agent.tries(&connect), "error EPERM");

    let without = guard.cli(["unload"]);
    assert_eq!(without.code(), 2, "unload wants --yes: {without:#?}");
    assert_eq!(agent.tries(&connect), "error EPERM");
    guard.cli(["unload", "--yes"]).ok();
    assert!(agent.tries(&connect).starts_with("ok "), "after unload");
}

#[test]
fn unload_stops_a_running_daemon() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let guard = start(&site, &origin);
    let mut agent = dialer(&guard.agent("probe"));
    assert_eq!(
        agent.tries(&format!("get {}", origin.url("/v2/x"))),
        "ok 403"
    );
    let daemon = guard.daemon_tgid();
    guard.cli(["unload", "--yes"]).ok();
    await_end(daemon);
    assert!(
        agent
            .tries(&format!("tcp 127.0.0.1 {}", origin.port))
            .starts_with("ok ")
    );
}

#[test]
fn a_second_daemon_says_who_holds_it() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let guard = start(&site, &origin);
    let second = guard.cli(["daemon"]);
    assert_ne!(second.code(), 0, "{second:#?}");
    assert!(
        second.stderr.contains(&guard.daemon_tgid().to_string()),
        "{second:#?}"
    );
    let mut agent = dialer(&guard.agent("probe"));
    assert_eq!(
        agent.tries(&format!("get {}", origin.url("/v1/x"))),
        "ok 200",
        "the first is untouched"
    );
}

#[test]
fn a_file_of_the_state_that_is_gone_kills_agents_until_they_are_revived() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let mut guard = start(&site, &origin);
    let get = format!("get {}", origin.url("/v1/x"));
    let alarms =
        |guard: &Guard<'_>| guard.cli(["status", "--json"]).ok().json()["alarms"].to_string();
    // Labelled by the first daemon: a new registry's ids must not take it for another agent.
    let mut running = dialer(&guard.agent("probe"));
    for name in ["agents.json", "tasks.json", "limits.log"] {
        guard.stop();
        std::fs::remove_file(site.path("state").join(name)).expect("it was there");
        guard.restart();
        assert!(alarms(&guard).contains(name), "{}", alarms(&guard));
        assert_ne!(running.tries(&get), "ok 200", "{name}");
        let refused = guard.agent("probe").client("true".as_ref()).run();
        assert_ne!(refused.code(), 0, "{refused:#?}");
        guard.cli(["revive", "probe"]).ok();
        // Only one that was started since is known by the new registry.
        let mut fresh = dialer(&guard.agent("probe"));
        assert_eq!(fresh.tries(&get), "ok 200", "{name}, revived");
        running = fresh;
        guard.stop();
        guard.restart();
        assert_eq!(alarms(&guard), "[]", "after {name}");
        assert_eq!(running.tries(&get), "ok 200", "{name}, revived for good");
    }

    guard.stop();
    std::fs::remove_dir_all(site.path("state/audit")).expect("it was there");
    guard.restart();
    assert!(alarms(&guard).contains("audit log that was here is gone"));
    assert_eq!(running.tries(&get), "ok 200");
    let begun = guard.audit();
    let told = |record: &agentguard_tests::Record| record.text("/detail").contains("is gone");
    assert!(begun.iter().any(told), "{begun:#?}");
}

fn start<'site>(site: &'site Site, origin: &Nginx) -> Guard<'site> {
    let policy = reach("origin.test", origin.port, &["GET /v1/**"]);
    Guard::start(site, &Bundle::new(1).agent("probe", &policy))
}
