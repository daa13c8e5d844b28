//! The kill switch: when the command returns, not one byte of payload of that agent moves any more.

use std::time::{SystemTime, UNIX_EPOCH};

use agentguard_tests::bundle::reach;
use agentguard_tests::client::{Subject, dialer};
use agentguard_tests::process::{listening_ports, pid};
use agentguard_tests::{Bundle, Client, Guard, Nginx, Site, Tap};
use nix::sys::signal::{Signal, kill};

#[test]
fn nothing_moves_after_it_returns() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let file = std::fs::File::create(origin.files().join("endless")).expect("made");
    // Sparse: as long as the test wants, and no disk.
    file.set_len(1 << 40).expect("set");
    let download = |subject: &dyn Subject| -> Client {
        subject
            .client("curl".as_ref())
            .args(["--silent", "--show-error", "--output", "/dev/null"])
            .arg(origin.url("/files/endless"))
    };
    let policy = reach("origin.test", origin.port, &["GET /files/**", "GET /v1/**"]);
    let bundle = Bundle::new(1)
        .agent("probe", &policy)
        .agent("other", &policy);
    let mut guard = Guard::start(&site, &bundle);
    let forwarder = guard.forwarder_tgid();
    let inner = listening_ports(forwarder);
    assert!(!inner.is_empty(), "the forwarder listens");

    let mut tap = Tap::start();
    let mut client = download(&guard.agent("probe")).spawn();
    let mut survivor = dialer(&guard.agent("other"));
    while tap.from_port(origin.port).bytes < 64 << 20 {
        assert!(client.is_running(), "{}", client.rest());
    }
    // Control: it does move by itself.
    let before = tap.from_port(origin.port);
    while tap.from_port(origin.port).bytes < before.bytes + (16 << 20) {
        assert!(client.is_running(), "{}", client.rest());
    }

    let order = ["kill", "probe", "--reason", "leaking", "--json"];
    let said = guard.cli(order).ok();
    let returned = now_ns();
    let cut = &said.json()["killed"][0];
    assert_eq!(
        (&cut["processes"], &cut["connections"]),
        (&1.into(), &1.into())
    );

    let ran = client.finish();
    assert_ne!(ran.code(), 0, "the download was cut: {ran:#?}");
    let hit = origin.await_hit(|hit| hit.uri == "/files/endless");
    assert!(!hit.complete, "the origin saw it cut: {hit:?}");
    for &port in inner.iter().chain([&origin.port]) {
        for seen in [tap.from_port(port), tap.to_port(port)] {
            let late = seen.last_ns.saturating_sub(returned);
            assert_eq!(
                late, 0,
                "payload on port {port}, {late} ns after the command returned: {seen:?}"
            );
        }
    }
    // Another agent is untouched.
    assert_eq!(
        survivor.tries(&format!("get {}", origin.url("/v1/other"))),
        "ok 200"
    );

    let records = guard.requests();
    let cut = records
        .iter()
        .find(|record| record.path() == "/files/endless")
        .expect("a record");
    assert_eq!(cut.outcome(), "killed", "{cut:?}");
    let order = guard
        .audit()
        .into_iter()
        .find(|record| record.action() == "kill")
        .expect("the kill itself is recorded");
    assert!(order.0.to_string().contains("leaking"), "{order:?}");
}

#[test]
fn it_holds_over_a_restart_until_revived() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let policy = reach("origin.test", origin.port, &["GET /v1/**"]);
    let bundle = Bundle::new(1)
        .agent("probe", &policy)
        .agent("other", &policy);
    let mut guard = Guard::start(&site, &bundle);
    let get = format!("get {}", origin.url("/v1/x"));
    let connect = format!("tcp 127.0.0.1 {}", origin.port);
    let mut running = dialer(&guard.agent("probe"));
    assert_eq!(running.tries(&get), "ok 200");

    guard.cli(["kill", "probe", "--reason", "test"]).ok();
    assert_eq!(running.tries(&connect), "error EPERM");
    assert_ne!(running.tries(&get), "ok 200");

    guard.stop();
    guard.restart();
    assert_eq!(running.tries(&connect), "error EPERM", "after a restart");
    let mut other = dialer(&guard.agent("other"));
    assert_eq!(other.tries(&get), "ok 200", "another agent");

    guard.cli(["revive", "probe"]).ok();
    assert_eq!(running.tries(&get), "ok 200", "after the revival");
    let arrived = origin.hits_below("/v1/").len();
    assert_eq!(arrived, 3);

    guard.cli(["kill", "--all", "--reason", "test"]).ok();
    assert_eq!(running.tries(&connect), "error EPERM");
    assert_eq!(other.tries(&connect), "error EPERM");
    guard.cli(["revive", "--all"]).ok();
    assert_eq!(running.tries(&get), "ok 200");
    assert_eq!(other.tries(&get), "ok 200");
}

#[test]
fn a_killed_agent_starts_nothing() {
    let site = Site::new();
    let guard = Guard::start(
        &site,
        &Bundle::new(1).agent("probe", &reach("origin.test", 443, &["GET /**"])),
    );
    guard.agent("probe").client("true".as_ref()).run().ok();
    let mut running = guard.agent("probe").client("sh".as_ref()).spawn();
    running.say("echo before");
    running.line(|line| line == "before");

    guard.cli(["kill", "probe", "--reason", "test"]).ok();
    running.say("/bin/echo after; echo status $?");
    let status = running.after("status ");
    assert_ne!(status, "0", "an exec of a killed agent");
    assert!(
        !running.heard().lines().any(|line| line == "after"),
        "{}",
        running.heard()
    );
    assert_ne!(guard.agent("probe").client("true".as_ref()).run().code(), 0);
}

#[test]
fn a_kill_that_cannot_be_written_holds_whatever_else_is_changed() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let policy = reach("origin.test", origin.port, &["GET /v1/**"]);
    let bundle = Bundle::new(1)
        .agent("probe", &policy)
        .agent("other", &policy);
    let mut guard = Guard::start(&site, &bundle);
    let get = format!("get {}", origin.url("/v1/x"));
    let connect = format!("tcp 127.0.0.1 {}", origin.port);
    let mut probe = dialer(&guard.agent("probe"));
    assert_eq!(probe.tries(&get), "ok 200");
    let registry = site.path("state/agents.json");
    let written = std::fs::read(&registry).expect("read");
    // A folder cannot be replaced by a file, whoever tries.
    std::fs::remove_file(&registry).expect("removed");
    std::fs::create_dir_all(registry.join("in the way")).expect("made");

    let said = guard.cli(["kill", "probe", "--reason", "test"]);
    assert_eq!(said.code(), 1, "{said:#?}");
    assert!(said.stderr.contains("kill again"), "{said:#?}");
    std::fs::remove_dir_all(&registry).expect("removed");
    std::fs::write(&registry, written).expect("written");
    guard.cli(["revive", "other"]).ok();
    guard.cli(["agents", "suspend", "other"]).ok();
    assert_eq!(probe.tries(&connect), "error EPERM");
    let state = guard.cli(["agents", "--json"]).ok().json();
    let is = |agent: &serde_json::Value| agent["name"] == "probe" && agent["state"] == "killed";
    let agents = state.as_array().cloned().unwrap_or_default();
    assert!(agents.iter().any(is), "{state:#}");

    // What came after it has put it on disk.
    guard.crash();
    guard.restart();
    assert_eq!(probe.tries(&connect), "error EPERM");
    guard.cli(["revive", "probe"]).ok();
    assert_eq!(probe.tries(&get), "ok 200");
}

#[test]
fn a_revival_does_not_fail_because_the_forwarder_is_slow() {
    let site = Site::new();
    let mut guard = Guard::start(&site, &Bundle::new(1).agent("probe", ""));
    let forwarder = pid(guard.forwarder_tgid());
    guard.cli(["kill", "probe", "--reason", "test"]).ok();
    kill(forwarder, Signal::SIGSTOP).expect("stopped");
    let revived = guard.cli(["revive", "probe"]);
    kill(forwarder, Signal::SIGCONT).expect("continued");
    revived.ok();
    let last = guard.audit().pop().expect("a record");
    assert_eq!(
        (last.action(), last.outcome()),
        ("revive", "allow"),
        "{last:?}"
    );
}

#[test]
fn it_holds_while_the_daemon_stands_still_and_is_recorded_when_it_goes_on() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let file = std::fs::File::create(origin.files().join("endless")).expect("made");
    file.set_len(1 << 40).expect("set");
    let policy = reach("origin.test", origin.port, &["GET /files/**", "GET /v1/**"]);
    let bundle = Bundle::new(1)
        .agent("probe", &policy)
        .agent("below", &format!("parent = \"probe\"\n{policy}"))
        .agent("other", &policy);
    let guard = Guard::start(&site, &bundle);
    let get = format!("get {}", origin.url("/v1/x"));
    let connect = format!("tcp 127.0.0.1 {}", origin.port);
    let mut probe = dialer(&guard.agent("probe"));
    let mut below = dialer(&guard.agent("below"));
    let mut other = dialer(&guard.agent("other"));
    for agent in [&mut probe, &mut below, &mut other] {
        assert_eq!(agent.tries(&get), "ok 200");
    }
    let client = guard
        .agent("probe")
        .client("curl".as_ref())
        .args(["--silent", "--show-error", "--output", "/dev/null"])
        .arg(origin.url("/files/endless"))
        .spawn();
    let mut tap = Tap::start();
    while tap.from_port(origin.port).bytes < 16 << 20 {}

    let daemon = pid(guard.daemon_tgid());
    kill(daemon, Signal::SIGSTOP).expect("stopped");
    let said = guard.cli(["kill", "probe", "--reason", "leaking", "--json"]);
    let returned = now_ns();
    let seen = [probe.tries(&connect), below.tries(&connect)];
    let cut = client.finish();
    kill(daemon, Signal::SIGCONT).expect("continued");

    let said = said.ok().json();
    assert_eq!(said["killed"][0]["state"], "killed", "{said:#}");
    assert_eq!(said["killed"][1]["agent"], "below", "{said:#}");
    assert_eq!(said["killed"][1]["state"], "held", "{said:#}");
    assert_ne!(said["killed"][0]["sockets"], 0, "{said:#}");
    assert!(said["unanswered"].is_string(), "{said:#}");
    assert_eq!(seen, ["error EPERM"; 2]);
    assert_ne!(cut.code(), 0, "the download was cut: {cut:#?}");
    let late = tap.from_port(origin.port).last_ns.saturating_sub(returned);
    assert_eq!(late, 0, "payload {late} ns after the command returned");

    let order = await_kill(&guard, "leaking");
    assert!(order.contains("did not answer"), "{order}");
    assert_eq!(probe.tries(&connect), "error EPERM");
    assert_eq!(other.tries(&get), "ok 200");
    guard.cli(["revive", "probe"]).ok();
    for agent in [&mut probe, &mut below] {
        assert_eq!(agent.tries(&get), "ok 200");
    }
}

#[test]
fn it_holds_without_a_daemon_and_over_its_start() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let policy = reach("origin.test", origin.port, &["GET /v1/**"]);
    let bundle = Bundle::new(1)
        .agent("probe", &policy)
        .agent("unsigned", &policy)
        .agent("other", &policy);
    let mut guard = Guard::start(&site, &bundle);
    let get = format!("get {}", origin.url("/v1/x"));
    let mut agents = ["probe", "unsigned", "other"].map(|name| dialer(&guard.agent(name)));
    guard.crash();
    let unknown = guard.cli(["kill", "prob"]);
    assert_eq!(unknown.code(), 4, "{unknown:#?}");
    assert!(
        unknown.stderr.contains("did you mean `probe`"),
        "{unknown:#?}"
    );

    let said = guard.cli(["kill", "unsigned", "--reason", "no note"]).ok();
    assert!(said.stderr.contains("recorded when"), "{said:#?}");
    // As after a full disk.
    std::fs::remove_dir_all(site.path("state/kills")).expect("the note was there");
    guard.cli(["kill", "probe", "--reason", "noted"]).ok();

    guard.restart();
    await_kill(&guard, "noted");
    await_kill(&guard, "no note says by whom");
    let tried = agents.each_mut().map(|agent| agent.tries(&get));
    assert!(tried[0].starts_with("error"), "{tried:?}");
    assert!(tried[1].starts_with("error"), "{tried:?}");
    assert_eq!(tried[2], "ok 200");
    // They are kills as any other now, and stay revived.
    guard.cli(["revive", "probe", "unsigned"]).ok();
    guard.stop();
    guard.restart();
    let tried = agents.each_mut().map(|agent| agent.tries(&get));
    assert_eq!(tried, ["ok 200"; 3]);
}

#[test]
fn what_is_noted_holds_when_the_maps_that_held_it_are_gone() {
    let site = Site::new();
    let mut guard = Guard::start(&site, &Bundle::new(1).agent("probe", ""));
    guard.agent("probe").client("true".as_ref()).run().ok();
    guard.crash();
    guard.cli(["kill", "probe", "--reason", "noted"]).ok();
    // As a restart of the host.
    guard.cli(["unload", "--yes"]).ok();
    guard.restart();
    assert_ne!(guard.agent("probe").client("true".as_ref()).run().code(), 0);
    await_kill(&guard, "noted");
    guard.cli(["revive", "probe"]).ok();
    guard.agent("probe").client("true".as_ref()).run().ok();
}

#[test]
fn another_process_at_the_daemons_socket_is_not_believed() {
    let site = Site::new();
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", ""));
    let socket = site.path("run/control.sock");
    let real = site.path("run/control.real");
    std::fs::rename(&socket, &real).expect("renamed");
    let impostor = std::os::unix::net::UnixListener::bind(&socket).expect("bound");
    for words in [&["agents"][..], &["status"], &["revive", "probe"]] {
        let ran = guard.cli(words);
        assert_eq!(ran.code(), 5, "{ran:#?}");
        let told = format!("served by process {}", std::process::id());
        assert!(ran.stderr.contains(&told), "{ran:#?}");
    }
    // The kill needs no answer.
    let said = guard.cli(["kill", "probe"]).ok();
    assert!(said.stderr.contains("is not the daemon's"), "{said:#?}");
    drop(impostor);
    std::fs::rename(&real, &socket).expect("renamed");
    await_kill(&guard, "past the daemon");
}

/// The record of a kill that the daemon has taken in, whose reason says `what`.
fn await_kill(guard: &Guard, what: &str) -> String {
    let deadline = std::time::Instant::now() + agentguard_tests::tools::PATIENCE;
    loop {
        let records = guard.audit().into_iter();
        let mut kills = records.filter(|record| record.action() == "kill");
        if let Some(record) = kills.find(|record| record.text("/detail").contains(what)) {
            return record.0.to_string();
        }
        assert!(
            std::time::Instant::now() < deadline,
            "no record of the kill"
        );
    }
}

#[test]
fn an_unknown_agent_is_an_error_that_names_the_near_one() {
    let site = Site::new();
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", ""));
    let ran = guard.cli(["kill", "prob", "--reason", "test"]);
    assert_eq!(ran.code(), 1, "{ran:#?}");
    assert!(ran.stderr.contains("probe"), "{ran:#?}");
}

fn now_ns() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    u64::try_from(now.as_nanos()).expect("before 2554")
}
