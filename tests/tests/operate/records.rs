//! Every permitted request has its record, whichever process is killed, and whatever the daemon does.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use agentguard_tests::bundle::reach;
use agentguard_tests::client::{Dialer, dialer};
use agentguard_tests::process::{await_end, pid};
use agentguard_tests::tools::PATIENCE;
use agentguard_tests::{Bundle, Guard, Nginx, Record, Site};
use nix::sys::signal::{Signal, kill};

const CLIENTS: usize = 3;
/// How often each process is killed; more by hand, with `AGENTGUARD_KILLS`.
const KILLS: usize = 2;

#[derive(Clone, Copy, Debug)]
enum Killed {
    Daemon,
    Forwarder,
    Both,
}

#[test]
fn who_is_killed_takes_no_record_along() {
    for durability in ["batched", "strict"] {
        let site = Site::new();
        site.configure(|config| {
            config["audit"]["durability"] = durability.into();
        });
        killed(&site, durability);
    }
}

fn killed(site: &Site, durability: &str) {
    let kills = std::env::var("AGENTGUARD_KILLS").map_or(KILLS, |it| it.parse().expect("a number"));
    let origin = Nginx::start(site);
    let mut guard = start(site, &origin);
    let mut clients: Vec<Dialer> = (0..CLIENTS)
        .map(|_| dialer(&guard.agent("probe")))
        .collect();
    let (base, stop) = (&origin.url(""), &AtomicBool::new(false));
    let calls = &AtomicUsize::new(0);
    let answered: Vec<String> = thread::scope(|scope| {
        let calling: Vec<_> = (0..)
            .zip(&mut clients)
            .map(|(client, dialer)| scope.spawn(move || call(dialer, client, base, stop, calls)))
            .collect();
        let mut probe = dialer(&guard.agent("probe"));
        for round in 0..kills {
            for victim in [Killed::Daemon, Killed::Forwarder, Killed::Both] {
                let forwarder = guard.forwarder_tgid();
                // At another moment of what is under way each time.
                await_calls(calls, 20 + round);
                if !matches!(victim, Killed::Daemon) {
                    kill(pid(forwarder), Signal::SIGKILL).expect("it runs");
                }
                if !matches!(victim, Killed::Forwarder) {
                    guard.crash();
                    await_end(forwarder);
                    guard.restart();
                }
                await_answers(
                    &mut probe,
                    &origin,
                    &format!("/v1/probe-{round}-{victim:?}"),
                );
            }
        }
        stop.store(true, Ordering::Relaxed);
        let answered = calling.into_iter();
        answered
            .flat_map(|it| it.join().expect("no panic"))
            .collect()
    });
    assert!(answered.len() > 10 * kills, "{} answers", answered.len());
    let records = by_path(&guard.requests());
    let what = |path: &str| (durability, path.to_owned(), records.get(path).cloned());
    for path in &answered {
        let count = records.get(path).map_or(0, Vec::len);
        assert_eq!(count, 1, "an answered request: {:?}", what(path));
    }
    let hits: Vec<String> = origin
        .hits_below("/v1/")
        .into_iter()
        .map(|hit| hit.uri)
        .collect();
    for path in &hits {
        let records = records.get(path);
        assert!(records.is_some(), "it reached the origin: {:?}", what(path));
    }
    for (path, records) in &records {
        for record in records {
            let is_done = record.outcome() == "allow" && record.text("/ended") == "whole";
            assert!(!is_done || hits.contains(path), "{record:?}");
        }
    }
    guard.cli(["audit", "verify"]).ok();
}

#[test]
fn a_daemon_that_stands_still_loses_nothing_when_it_is_killed() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let mut guard = start(&site, &origin);
    let mut agent = dialer(&guard.agent("probe"));
    assert_eq!(
        agent.tries(&format!("get {}", origin.url("/v1/before"))),
        "ok 200"
    );
    let (daemon, forwarder) = (guard.daemon_tgid(), guard.forwarder_tgid());
    for (round, goes_on) in [(0, true), (1, false)] {
        kill(pid(daemon), Signal::SIGSTOP).expect("it runs");
        let paths: Vec<String> = (0..100).map(|n| format!("/v1/{round}-{n}")).collect();
        let answered: Vec<&String> = paths
            .iter()
            .filter(|path| agent.tries(&format!("get {}", origin.url(path))) == "ok 200")
            .collect();
        if goes_on {
            kill(pid(daemon), Signal::SIGCONT).expect("it runs");
        } else {
            kill(pid(forwarder), Signal::SIGKILL).expect("it runs");
            guard.crash();
            guard.restart();
        }
        assert!(!answered.is_empty(), "nothing is answered while it stands");
        let records = by_path(&guard.requests());
        let without = answered
            .iter()
            .filter(|path| records.get(**path).map_or(0, Vec::len) != 1);
        assert_eq!(without.count(), 0, "of {} answers", answered.len());
    }
    guard.cli(["audit", "verify"]).ok();
}

#[test]
fn what_was_under_way_when_its_forwarder_died_is_recorded_as_unfinished() {
    let site = Site::new();
    // An origin that never answers.
    let origin = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = origin.local_addr().expect("bound").port();
    let policy = reach("origin.test", port, &["GET /v1/**"]);
    let mut guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let forwarder = guard.forwarder_tgid();
    let ask = format!(
        "import http.client\n\
         connection = http.client.HTTPConnection('origin.test', {port})\n\
         connection.request('GET', '/v1/slow')\n\
         connection.getresponse()\n"
    );
    let client = guard.agent("probe").python(&ask).spawn();
    let (mut asked, _) = origin.accept().expect("a connection");
    let mut head = [0; 4];
    asked.read_exact(&mut head).expect("a request");
    assert_eq!(&head, b"GET ");
    kill(pid(forwarder), Signal::SIGKILL).expect("it runs");
    assert_ne!(client.finish().code(), 0, "it has no answer");
    let deadline = Instant::now() + PATIENCE;
    let record = loop {
        let records = by_path(&guard.requests());
        match records.get("/v1/slow") {
            Some(records) => {
                assert_eq!(records.len(), 1, "{records:?}");
                break records[0].clone();
            }
            None => assert!(Instant::now() < deadline, "it has no record"),
        }
    };
    assert_eq!(
        (record.outcome(), record.text("/ended")),
        ("allow", "unfinished"),
        "{record:?}"
    );
}

/// Paths of requests that were answered, each asked for once.
fn call(
    dialer: &mut Dialer,
    client: usize,
    base: &str,
    stop: &AtomicBool,
    calls: &AtomicUsize,
) -> Vec<String> {
    let mut answered = Vec::new();
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let path = format!("/v1/{client}-{n}");
        if dialer.tries(&format!("get {base}{path}")) == "ok 200" {
            answered.push(path);
            calls.fetch_add(1, Ordering::Relaxed);
        }
    }
    answered
}

/// Until so many more have been answered.
fn await_calls(calls: &AtomicUsize, more: usize) {
    let (before, deadline) = (calls.load(Ordering::Relaxed), Instant::now() + PATIENCE);
    while calls.load(Ordering::Relaxed) < before + more {
        assert!(Instant::now() < deadline, "nobody is answered any more");
        thread::yield_now();
    }
}

fn await_answers(probe: &mut Dialer, origin: &Nginx, path: &str) {
    let deadline = Instant::now() + PATIENCE;
    for n in 0.. {
        let answer = probe.tries(&format!("get {}", origin.url(&format!("{path}-{n}"))));
        if answer == "ok 200" {
            return;
        }
        assert!(Instant::now() < deadline, "still {answer}");
    }
}

fn by_path(records: &[Record]) -> BTreeMap<String, Vec<Record>> {
    let mut by_path: BTreeMap<String, Vec<Record>> = BTreeMap::new();
    for record in records {
        let of_path = by_path.entry(record.path().to_owned()).or_default();
        of_path.push(record.clone());
    }
    by_path
}

fn start<'site>(site: &'site Site, origin: &Nginx) -> Guard<'site> {
    let policy = reach("origin.test", origin.port, &["GET /v1/**"]);
    Guard::start(site, &Bundle::new(1).agent("probe", &policy))
}
