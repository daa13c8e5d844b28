//! What reading the log costs the daemon: little, however much there is to read, for however many, however slowly they take it.

use std::fs;

use agentguard_audit::{Durability, Log};
use agentguard_common::abi::AgentId;
use agentguard_record::{Context, Draft, Record};
use agentguard_tests::client::Client;
use agentguard_tests::process::{Running, memory_kib};
use agentguard_tests::tools::python;
use agentguard_tests::{Bundle, Guard, Site};
use serde_json::Value;

/// Of the log that is read, and of what one answer has of it.
const LOG_BYTES: u64 = 276 << 20;
const ANSWER_BYTES: u64 = 64 << 20;
/// What so many readers may cost at once.
const MEMORY_KIB: u64 = 50 << 10;

#[test]
fn twenty_readers_of_a_large_log_cost_the_daemon_little() {
    let site = Site::new();
    fill(&site);
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", ""));
    let daemon = guard.daemon_tgid();
    // The peak from now on.
    fs::write(format!("/proc/{daemon}/clear_refs"), "5").expect("root");
    let before = memory_kib(daemon, "VmRSS");
    let mut readers = readers(&site, 0);
    readers.say("read 20 /v1/audit");
    for _ in 0..20 {
        let answer = readers.after("answer ");
        let [status, cut, lines, bytes] = answer.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{answer}");
        };
        assert_eq!((status, cut), ("200", "true"), "{answer}");
        let (lines, bytes): (u64, u64) = (lines.parse().unwrap(), bytes.parse().unwrap());
        assert!(lines > 10_000, "{answer}");
        assert!(
            (ANSWER_BYTES - 2000..=ANSWER_BYTES).contains(&bytes),
            "{answer}"
        );
    }
    let peak = memory_kib(daemon, "VmHWM").saturating_sub(before);
    let after = memory_kib(daemon, "VmRSS").saturating_sub(before);
    println!("20 readers of {LOG_BYTES} bytes: {peak} KiB at most, {after} KiB afterwards");
    assert!(peak < MEMORY_KIB, "grew by {peak} KiB");

    let all = guard.cli(["audit", "search", "--json"]).ok();
    assert!(
        all.stderr.contains("older records match, too"),
        "{}",
        all.stderr
    );
    let records = all.json();
    let records = records.as_array().expect("an array");
    let (first, last) = (&records[0], &records[records.len() - 1]);
    let seq = |record: &Value| record["seq"].as_u64().expect("a number");
    assert_eq!(seq(last) - seq(first) + 1, records.len() as u64, "a gap");
    let until = first["time"].as_str().expect("a time");
    let earlier = ["audit", "search", "--json", "-n", "1", "--until", until];
    let earlier = guard.cli(earlier).ok();
    assert_eq!(seq(&earlier.json()[0]), seq(first) - 1);
    assert_eq!(earlier.stderr, "", "no more was asked for");
}

#[test]
fn a_user_has_so_many_searches_and_those_of_callers_that_have_gone_are_over() {
    let site = Site::new();
    fill(&site);
    site.configure(|config| {
        let grant = toml::toml! { group = "daemon"
        role = "viewer" };
        config.insert("roles".into(), toml::Value::Array(vec![grant.into()]));
    });
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", ""));
    let mut viewer = readers(&site, 1);
    viewer.say("hold 9 /v1/audit");
    for _ in 0..8 {
        assert_eq!(viewer.after("held "), "200");
    }
    let refused = viewer.after("held ");
    assert!(
        refused.starts_with("429") && refused.contains("busy") && refused.contains("wait until"),
        "{refused}"
    );
    guard.cli(["audit", "search", "-n", "1"]).ok();
    guard.cli(["status"]).ok();
    viewer.say("close");
    viewer.say("until 200 /v1/audit?limit=1");
    viewer.line(|line| line == "so it is");
    // Nothing is found, and the callers go before that is known.
    viewer.say("leave 8 /v1/audit?text=nowhere");
    viewer.say("until 200 /v1/audit?limit=1");
    viewer.line(|line| line == "so it is");
}

/// A log of another time.
fn fill(site: &Site) {
    let mut log = Log::open(&site.audit_dir(), Durability::Batched).expect("a log");
    let context = Context {
        agent: "probe",
        ..Context::default()
    };
    let mut draft = Draft {
        detail: Some("x".repeat(600)),
        ..Draft::blank(AgentId(2))
    };
    let mut bytes = 0;
    while bytes < LOG_BYTES {
        draft.time_us += 1;
        log.stage(Record::Decision(&draft, &context)).expect("kept");
        if log.staged() > 1 << 20 {
            bytes += log.staged() as u64;
            log.commit().expect("written");
        }
    }
}

/// Callers of the control socket as this user, who do what they are told.
fn readers(site: &Site, uid: u32) -> Running {
    const SCRIPT: &str = r#"
import http.client, socket, sys, threading

class Control(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(sys.argv[1])

def ask(path):
    control = Control("agentguard")
    control.request("GET", path)
    return control

def read(path):
    answer = ask(path).getresponse()
    lines = bytes = 0
    while piece := answer.read(1 << 16):
        lines += piece.count(b"\n")
        bytes += len(piece)
    said = ["answer", answer.status, answer.headers.get("agentguard-cut"), lines, bytes]
    print(*said, flush=True)

held = []
for line in sys.stdin:
    match line.split():
        case ["read", count, path]:
            threads = [threading.Thread(target=read, args=[path]) for _ in range(int(count))]
            for thread in threads: thread.start()
            for thread in threads: thread.join()
        case ["hold", count, path]:
            for _ in range(int(count)):
                control = ask(path)
                answer = control.getresponse()
                why = answer.read().decode().strip() if answer.status != 200 else ""
                print("held", answer.status, why, flush=True)
                held.append((control, answer))
        case ["close"]:
            for control, answer in held:
                answer.close()
                control.close()
            held.clear()
        case ["leave", count, path]:
            left = [ask(path) for _ in range(int(count))]
            for control in left: control.close()
        case ["until", status, path]:
            while ask(path).getresponse().status != int(status): pass
            print("so it is", flush=True)
"#;
    let socket = site.path("run/control.sock");
    let python = Client::new(python()).args(["-c", SCRIPT]).arg(socket);
    python.user(uid).spawn()
}
