//! Name resolution of agents: names that a rule can reach are answered by the guard, others lead to it and are refused there in
//! words, or do not exist, and no question of an agent gets anywhere else.

use std::fs;
use std::path::Path;
use std::time::Instant;

use agentguard_tests::bundle::reach;
use agentguard_tests::client::{Subject, dialer, node, python};
use agentguard_tests::process::Running;
use agentguard_tests::tools::{PATIENCE, python as interpreter, script};
use agentguard_tests::{Bundle, Guard, Ran, Site};
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
    site.configure(|config| set(config, "forwarder", "refused_names", "nxdomain"));
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
        "ok 192.0.2.1",
        "AgentGuard's own address"
    );
    assert_eq!(
        agent.tries("resolve elsewhere"),
        "error Name-or-service-not-known",
        "what a search list is for"
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
fn a_refused_name_leads_to_a_refusal_in_words() {
    let site = Site::new();
    let mut outside = resolver();
    let policy = reach("origin.test", 443, &["GET /**"]);
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let agent = guard.agent("probe");
    for (kind, rcode, answers) in [
        ("A", NOERROR, json!(["192.0.2.1"])),
        ("AAAA", NOERROR, json!([])),
        ("TXT", NXDOMAIN, json!([])),
    ] {
        let answer = ask(&agent, "leak.elsewhere.test", kind, "udp");
        assert_eq!(
            (&answer["rcode"], &answer["answers"]),
            (&json!(rcode), &answers),
            "{kind}"
        );
        assert_eq!(answer["extended"], json!([BLOCKED]), "{kind}");
    }
    for url in [
        "https://leak.elsewhere.test/",
        "https://leak.elsewhere.test:8443/",
        "http://leak.elsewhere.test/",
    ] {
        let ran = agent
            .client("curl".as_ref())
            .args(["--silent", "--write-out", "\n%{http_code}", url])
            .run()
            .ok();
        let (document, status) = ran.stdout.rsplit_once('\n').expect("two lines");
        assert_eq!(status, "403", "{url}: {document}");
        let document: Value = serde_json::from_str(document).expect("a document");
        assert_eq!(document["type"], "urn:agentguard:problem:policy-denied");
    }
    // The address itself is nobody's, and no way out.
    let mut dialer = dialer(&agent);
    assert_eq!(dialer.tries("send 192.0.2.1 443"), "error EPERM");
    let kinds = |action: &str| {
        let audit = guard.audit();
        let denied = audit.iter().filter(|it| it.outcome() == "deny");
        denied.filter(|it| it.action() == action).count()
    };
    // Each look-up for a URL is one for each family.
    assert!(kinds("dns") >= 6, "{:#?}", guard.audit());
    assert_eq!(kinds("GET"), 3);
    // Everything before it has been said.
    ask(&site, "last.test", "A", "udp");
    outside.line(|line| line == "asked last.test");
    assert_eq!(outside.heard().matches("asked ").count(), 1);
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

#[test]
fn many_questions_at_once_are_all_answered() {
    /// Seconds: what a resolver elsewhere takes, and how much longer all names together may take when guarded: less than
    /// a stub waits before it asks again.
    const DELAY: &str = "0.05";
    const SLACK: f64 = 4.0;
    const NAMES: u32 = 200;
    let site = Site::new();
    let _outside = resolver_with(&[DELAY]);
    let conf = site.path("resolv.conf");
    fs::write(&conf, format!("nameserver {RESOLVER}\n")).expect("written");
    let count = NAMES.to_string();
    // The seconds that it took until all had an address.
    let read = |ran: Ran| -> f64 {
        let ran = ran.ok();
        let (found, took) = ran.stdout.trim().split_once(' ').expect("two numbers");
        assert_eq!(found, count, "{}", ran.stderr);
        took.parse().expect("a number")
    };
    let ares = |subject: &dyn Subject| {
        let client = node(subject, "dns_burst.mjs").args([&*count, RESOLVER]);
        read(client.run())
    };
    let off = site
        .client("sh".as_ref())
        .args([
            "-c",
            "mount --bind \"$1\" /etc/resolv.conf && shift && exec \"$@\"",
            "sh",
        ])
        .arg(&conf)
        .arg(interpreter())
        .arg(script("dns_burst.py"))
        .arg(&count);
    let direct = [read(off.run()), ares(&site)];

    site.configure(|config| set(config, "upstream", "resolvers", vec![RESOLVER]));
    let policy = reach("*.burst.test", 443, &["GET /**"]);
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let agent = guard.agent("probe");
    let library = read(python(&agent, "dns_burst.py").arg(&count).run());
    for (direct, guarded) in direct.into_iter().zip([library, ares(&agent)]) {
        println!("{NAMES} names: direct {direct:.3} s, guarded {guarded:.3} s");
        assert!(guarded < direct + SLACK, "{direct} s, {guarded} s");
    }
}

#[test]
fn the_hosts_own_files_are_read_again_when_they_change() {
    // An `/etc` of the daemon's own.
    const ENTER: &str = "cp -a /etc \"$1\" && mount --bind \"$1\" /etc && shift && exec \"$@\"";
    let site = Site::new();
    let _outside = resolver();
    let etc = site.path("etc");
    let within = ["unshare", "--mount", "--propagation", "private", "sh", "-c"];
    let by = [&within[..], &[ENTER, "sh", etc.to_str().expect("text")]].concat();
    let policy = reach("*.moved.test", 443, &["GET /**"]);
    let mut guard = Guard::start_by(&site, &Bundle::new(1).agent("probe", &policy), &by);
    let mut agent = dialer(&guard.agent("probe"));
    let mut becomes = |name: &str, address: &str| {
        let (changed, expected) = (Instant::now(), format!("ok {address}"));
        guard.says("names are found elsewhere");
        // The forwarder is told of it next.
        loop {
            let found = agent.tries(&format!("resolve {name}"));
            if found == expected {
                println!("{name}: {:?}", changed.elapsed());
                return;
            }
            assert!(changed.elapsed() < PATIENCE, "{name}: {found}");
        }
    };
    let (hosts, other) = (etc.join("hosts"), etc.join("hosts.other"));
    let write = |path: &Path, text: &str| fs::write(path, text).expect("written");
    // In place, by another file, by a link, and behind it.
    write(&hosts, "192.0.2.21 a.moved.test\n");
    becomes("a.moved.test", "192.0.2.21");
    write(&other, "192.0.2.22 a.moved.test\n");
    fs::rename(&other, &hosts).expect("renamed");
    becomes("a.moved.test", "192.0.2.22");
    write(&other, "192.0.2.23 a.moved.test\n");
    fs::remove_file(&hosts).expect("removed");
    std::os::unix::fs::symlink(&other, &hosts).expect("linked");
    becomes("a.moved.test", "192.0.2.23");
    write(&other, "192.0.2.24 a.moved.test\n");
    becomes("a.moved.test", "192.0.2.24");
    let conf = etc.join("resolv.conf");
    let _ = fs::remove_file(&conf);
    write(&conf, &format!("nameserver {RESOLVER}\n"));
    becomes("b.moved.test", "192.0.2.9");
    assert_eq!(agent.tries("resolve a.moved.test"), "ok 192.0.2.24");
}

#[test]
fn records_of_covered_names_lead_to_covered_names() {
    // By c-ares, as clients of MongoDB and of mail ask.
    const CODE: &str = "const dns = require('dns').promises; const resolver = new dns.Resolver(); \
        resolver.setServers([process.argv[1]]); \
        const ask = (kind, name) => resolver.resolve(name, kind).catch((error) => error.code); \
        (async () => console.log(JSON.stringify([ \
            await ask('SRV', '_mongodb._tcp.covered.test'), \
            await ask('MX', 'covered.test'), \
            await ask('TXT', 'covered.test'), \
            await ask('SRV', '_c2vjcmv0._tcp.covered.test'), \
            await ask('TXT', 'elsewhere.test'), \
            await ask('CAA', 'covered.test'), \
        ])))()";
    let site = Site::new();
    let mut outside = resolver();
    site.configure(|config| set(config, "upstream", "resolvers", vec![RESOLVER]));
    let policy =
        reach("covered.test", 443, &["GET /**"]) + &reach("below.covered.test", 443, &["GET /**"]);
    let client = |subject: &dyn Subject| {
        let client = subject.client("node".as_ref());
        client.args(["--eval", CODE, RESOLVER]).run().ok().json()
    };
    let direct = client(&site);
    assert_eq!(direct[0].as_array().map(Vec::len), Some(2), "{direct}");
    let asked = outside.line(|line| line == "asked elsewhere.test");
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let guarded = client(&guard.agent("probe"));
    let service = json!({"name": "below.covered.test", "port": 27017, "priority": 1, "weight": 1});
    assert_eq!(
        guarded,
        json!([
            [service],
            [{"exchange": "below.covered.test", "priority": 10}],
            [["word"]],
            "ENOTFOUND",
            "ENOTFOUND",
            "ENODATA"
        ])
    );
    // Everything that was asked before has been said.
    ask(&site, "last.test", "A", "udp");
    outside.line(|line| line == "asked last.test");
    let heard = outside.heard();
    assert_eq!(heard.matches(&*asked).count(), 1, "{heard}");
    assert_eq!(heard.matches("_c2vjcmv0").count(), 1, "{heard}");
}

fn set(config: &mut toml::Table, section: &str, key: &str, value: impl Into<toml::Value>) {
    let section = config[section].as_table_mut().expect("a section");
    section.insert(key.into(), value.into());
}

fn ask(subject: &dyn Subject, name: &str, kind: &str, protocol: &str) -> Value {
    let client = python(subject, "dns_query.py").args([RESOLVER, name, kind, protocol]);
    client.run().ok().json()
}

fn resolver() -> Running {
    resolver_with(&[])
}

fn resolver_with(more: &[&str]) -> Running {
    let mut command = std::process::Command::new(interpreter());
    command
        .env_clear()
        .arg("-u")
        .arg(script("dns_server.py"))
        .arg(RESOLVER)
        .args(more);
    let mut running = Running::spawn(&mut command);
    running.line(|line| line == "ready");
    running
}
