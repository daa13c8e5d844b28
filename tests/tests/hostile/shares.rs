//! One agent that takes what it can of what all share, while another one and a process that is nobody's go on.

use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use agentguard_tests::bundle::reach;
use agentguard_tests::client::{Subject, python};
use agentguard_tests::process::memory_kib;
use agentguard_tests::{Bundle, Guard, Nginx, Running, Site};

/// Of one measurement.
const REQUESTS: usize = 400;
/// What a machine that does other things, too, takes for a request now and then.
const QUIET_MS: f64 = 50.0;
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn tls_hellos_in_a_loop() {
    others_go_on("hellos", 1500);
}

#[test]
fn a_certificate_for_another_name_in_a_loop() {
    others_go_on("names", 64);
}

#[test]
fn connections_that_say_nothing() {
    others_go_on("connections", 4096);
}

#[test]
fn handshakes_that_nobody_ends() {
    others_go_on("handshakes", 4352);
}

/// While one agent does this, another one and who is nobody's do as before.
fn others_go_on(what: &str, count: usize) {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let guard = start(&site, &origin);
    let quiet = measured(&guard.agent("other"), origin.port);
    let greedy = greedy(&guard, origin.port, what, count);
    let meanwhile = measured(&guard.agent("other"), origin.port);
    let bystander = measured(&site, origin.port);
    greedy.end();
    println!("{quiet:?} became {meanwhile:?}; a bystander: {bystander:?}");
    assert_eq!(
        (quiet.failed, meanwhile.failed, bystander.failed),
        (0, 0, 0)
    );
    assert!(
        meanwhile.p99 <= 3.0 * quiet.p99.max(QUIET_MS),
        "{quiet:?} became {meanwhile:?}"
    );
}

#[test]
fn http2_connections_with_bodies_that_nobody_reads() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    // It takes connections and says nothing.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = silent.local_addr().expect("bound").port();
    let policy = reach("origin.test", port, &["POST /v1/**"]);
    let bundle = bundle(&origin).agent("greedy", &policy);
    let mut guard = Guard::start(&site, &bundle);
    let forwarder = guard.forwarder_tgid();
    measured(&guard.agent("other"), origin.port);
    let before = memory_kib(forwarder, "VmRSS");
    let greedy = greedy(&guard, port, "uploads", 514);
    let held = memory_kib(forwarder, "VmRSS");
    let meanwhile = measured(&guard.agent("other"), origin.port);
    greedy.end();
    let after = settled(forwarder, before * 3 / 2);
    println!("{before} KiB, {held} KiB held, {after} KiB after; {meanwhile:?}");
    assert_eq!(meanwhile.failed, 0);
    assert!(
        held <= before + 256 * 1024,
        "{before} KiB became {held} KiB"
    );
    assert!(after <= before * 3 / 2, "{before} KiB became {after} KiB");
}

#[test]
fn floods_of_frames_that_ask_for_nothing() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let guard = start(&site, &origin);
    for kind in ["priority", "window-update", "ping", "settings"] {
        let before = guard.audit().len();
        let mut greedy = greedy(&guard, origin.port, kind, 1);
        greedy.running.line(|line| line.trim() == "cut");
        greedy.end();
        let records = guard.audit().split_off(before);
        let refused = records.iter().find(|it| it.outcome() == "deny");
        let refused = refused.unwrap_or_else(|| panic!("{kind}: {records:#?}"));
        assert_eq!(refused.reason(), "protocol-refused", "{kind}");
        assert!(
            refused.text("/detail").contains("frames"),
            "{kind}: {refused:?}"
        );
    }
    assert_eq!(measured(&guard.agent("other"), origin.port).failed, 0);
}

/// What one client saw, times in ms.
#[derive(Debug)]
struct Measured {
    failed: usize,
    #[expect(dead_code, reason = "shown")]
    median: f64,
    p99: f64,
}

fn measured(subject: &dyn Subject, port: u16) -> Measured {
    let ran = python(subject, "timed.py")
        .args([&port.to_string(), &REQUESTS.to_string()])
        .spawn()
        .finish_within(PATIENCE)
        .ok();
    let mut values = ran.stdout.split_whitespace().map(|it| it.parse::<f64>());
    let mut next = || values.next().expect("three values").expect("a number");
    Measured {
        failed: next() as usize,
        median: next(),
        p99: next(),
    }
}

/// An agent that has what it wants, until its end.
struct Greedy {
    running: Running,
}

fn greedy(guard: &Guard, port: u16, what: &str, count: usize) -> Greedy {
    let mut running = python(&guard.agent("greedy"), "greedy.py")
        .args([&port.to_string(), what, &count.to_string()])
        .spawn();
    running.line(|line| line.trim() == "ready");
    Greedy { running }
}

impl Greedy {
    fn end(mut self) {
        self.running.close_stdin();
        self.running.finish_within(PATIENCE).ok();
    }
}

/// The resident memory of a process in KiB, once it is no more than `wanted`, or after a while.
fn settled(tgid: u32, wanted: u64) -> u64 {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let now = memory_kib(tgid, "VmRSS");
        if now <= wanted || std::time::Instant::now() > deadline {
            return now;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn start<'site>(site: &'site Site, origin: &Nginx) -> Guard<'site> {
    let policy = reach("origin.test", origin.port, &["GET /v1/**"]);
    Guard::start(site, &bundle(origin).agent("greedy", &policy))
}

fn bundle(origin: &Nginx) -> Bundle {
    let policy = reach("origin.test", origin.port, &["GET /v1/**"]);
    Bundle::new(1).agent("other", &policy)
}
