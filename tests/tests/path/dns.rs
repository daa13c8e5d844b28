//! Name resolution of agents: names that a rule can reach are answered by the guard, others do not exist, and no question
//! of an agent gets anywhere else.

use agentguard_tests::bundle::reach;
use agentguard_tests::client::{Subject, dialer, python};
use agentguard_tests::process::Running;
use agentguard_tests::tools::{python as interpreter, script};
use agentguard_tests::{Bundle, Guard, Site};
use serde_json::{Value, json};

/// Loopback, and nobody's.
const RESOLVER: &str = "127.0.0.99";
const NXDOMAIN: i64 = 3;
const NOERROR: i64 = 0;
/// RFC 8914, section 4.16.
const BLOCKED: i64 = 15;

#[test]
fn only_reachable_names_exist() {
    let site = Site::new();
    let mut outside = resolver();
    assert_eq!(
        ask(&site, "leak.elsewhere.test", "A", "udp")["answers"],
        json!(["192.0.2.9"])
    );
    outside.line(|line| line == "asked leak.elsewhere.test");

    let policy = reach("origin.test", 443, &["GET /**"]) + &reach("*.wild.test", 443, &["GET /**"]);
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let agent = guard.agent("probe");
    for protocol in ["udp", "tcp"] {
        let answer = ask(&agent, "origin.test", "A", protocol);
        assert_eq!(
            (&answer["rcode"], &answer["answers"]),
            (&json!(NOERROR), &json!(["127.0.0.1"])),
            "{protocol}"
        );
        assert_eq!(
            (&answer["peer"], &answer["source"]),
            (&json!(RESOLVER), &json!(RESOLVER)),
            "{protocol}"
        );
        for (name, kind) in [
            ("leak.elsewhere.test", "A"),
            ("c2VjcmV0.elsewhere.test", "TXT"),
            ("wild.test", "A"),
            ("sub.origin.test", "AAAA"),
        ] {
            let answer = ask(&agent, name, kind, protocol);
            assert_eq!(answer["rcode"], NXDOMAIN, "{protocol} {name}: {answer}");
            assert_eq!(
                answer["extended"],
                json!([BLOCKED]),
                "{protocol} {name}: {answer}"
            );
        }
    }
    // The name exists, a record of that kind does not, and a key for an encrypted hello is never handed out.
    let https = ask(&agent, "origin.test", "HTTPS", "udp");
    assert_eq!(
        (&https["rcode"], &https["answers"]),
        (&json!(NOERROR), &json!([])),
        "{https}"
    );
    assert_eq!(
        ask(&agent, "ORIGIN.Test", "A", "udp")["answers"],
        json!(["127.0.0.1"])
    );

    let denied: Vec<_> = guard
        .audit()
        .into_iter()
        .filter(|record| record.action() == "dns" && record.outcome() == "deny")
        .map(|record| record.resource().to_owned())
        .collect();
    for name in [
        "leak.elsewhere.test",
        "c2vjcmv0.elsewhere.test",
        "wild.test",
        "sub.origin.test",
    ] {
        let count = denied
            .iter()
            .filter(|resource| resource.eq_ignore_ascii_case(name))
            .count();
        assert_eq!(count, 2, "{name}, by each protocol, in {denied:?}");
    }
    let heard = outside.heard();
    assert_eq!(
        heard.matches("asked ").count(),
        1,
        "a question left the host: {heard}"
    );
}

#[test]
fn the_c_library_resolves_by_it() {
    let site = Site::new();
    let guard = Guard::start(
        &site,
        &Bundle::new(1).agent("probe", &reach("origin.test", 443, &["GET /**"])),
    );
    let mut agent = dialer(&guard.agent("probe"));
    assert_eq!(agent.tries("resolve origin.test"), "ok 127.0.0.1");
    assert_eq!(
        agent.tries("resolve elsewhere.test"),
        "error Name-or-service-not-known"
    );
    let ran = guard
        .agent("probe")
        .client("getent".as_ref())
        .args(["ahosts", "origin.test"])
        .run()
        .ok();
    assert!(ran.stdout.contains("127.0.0.1"), "{ran:#?}");
}

#[test]
fn a_neighbour_keeps_its_resolver() {
    let site = Site::new();
    let mut outside = resolver();
    let guard = Guard::start(
        &site,
        &Bundle::new(1).agent("probe", &reach("origin.test", 443, &["GET /**"])),
    );
    assert_eq!(
        ask(&site, "neighbour.elsewhere.test", "A", "udp")["answers"],
        json!(["192.0.2.9"])
    );
    outside.line(|line| line == "asked neighbour.elsewhere.test");
    assert!(
        guard
            .audit()
            .iter()
            .all(|record| !record.0.to_string().contains("neighbour"))
    );
}

#[test]
fn malformed_questions_get_no_answer_from_outside() {
    let site = Site::new();
    let outside = resolver();
    let guard = Guard::start(
        &site,
        &Bundle::new(1).agent("probe", &reach("origin.test", 443, &["GET /**"])),
    );
    let code = format!(
        r#"
for message in [b"", b"x", b"\0" * 11, b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x3fabc", b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\xc0\x0c\0\x01\0\x01", b"\xff" * 1200]:
    question = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    question.settimeout(0.5)
    try:
        question.connect(("{RESOLVER}", 53))
        question.send(message)
        print("rcode", question.recv(4096)[3] & 15)
    except OSError as error:
        print("nothing", type(error).__name__)
"#
    );
    let ran = guard.agent("probe").python_code(&code).ok();
    for line in ran.stdout.lines() {
        assert!(
            ["rcode 1", "rcode 4", "rcode 5"].contains(&line) || line.starts_with("nothing"),
            "{line}"
        );
    }
    assert_eq!(
        ask(&guard.agent("probe"), "origin.test", "A", "udp")["answers"],
        json!(["127.0.0.1"]),
        "afterwards"
    );
    assert!(!outside.heard().contains("asked"), "{}", outside.heard());
}

fn ask(subject: &dyn Subject, name: &str, kind: &str, protocol: &str) -> Value {
    let client = python(subject, "dns_query.py").args([RESOLVER, name, kind, protocol]);
    client.run().ok().json()
}

fn resolver() -> Running {
    let mut command = std::process::Command::new(interpreter());
    command
        .env_clear()
        .arg("-u")
        .arg(script("dns_server.py"))
        .arg(RESOLVER);
    let mut running = Running::spawn(&mut command);
    running.line(|line| line == "ready");
    running
}
