//! Faults of the origin: the agent gets 502 or 504 with a reason, the operator one record, and nothing is sent to a server
//! that is not who it says.

use agentguard_tests::bundle::reach;
use agentguard_tests::client::Subject;
use agentguard_tests::pki::{Ca, Identity};
use agentguard_tests::{Bundle, Client, Guard, Nginx, Record, Server, Site};
use serde_json::Value;

#[test]
fn a_certificate_that_does_not_hold() {
    let site = Site::new();
    let strange = Ca::new(&site.path("tls"), "strange-ca");
    let name = &["origin.test"];
    // What it is, and what the refusal says of it.
    let cases: [(&str, &str, Identity); 6] = [
        (
            "of an unknown issuer",
            "`upstream.roots` adds one",
            strange.issue(name),
        ),
        (
            "that has expired",
            "has expired",
            site.ca().issue_expired(name),
        ),
        (
            "for another name",
            "for another name",
            site.ca().issue(&["elsewhere.test"]),
        ),
        ("without a name", "no subjectAltName", site.ca().issue(&[])),
        ("of a CA", "CA:TRUE", site.ca().issue_to_ca(name)),
        (
            "for clients",
            "not one for servers",
            site.ca().issue_to_client(name),
        ),
    ];
    for (name, words, identity) in cases {
        let origin = Nginx::start_as(&site, &identity);
        let guard = start(&site, origin.port);
        let problem = refused(&guard, origin.port, 502, "upstream-tls", "error");
        let detail = problem["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(words), "{name}: {problem}");
        assert!(
            origin.hits().is_empty(),
            "a certificate {name} got a request"
        );
    }
}

#[test]
fn an_origin_that_resets() {
    let site = Site::new();
    for stage in ["accept", "tls", "head"] {
        let server = Server::start(&site, "reset_server.py", &[stage]);
        let guard = start(&site, server.port);
        let before = guard.audit().len();
        let (status, body) = call(&guard, server.port);
        assert_eq!(status, 502, "{stage}: {body}");
        let problem: Value = serde_json::from_str(&body).expect("a problem document");
        let kind = problem["type"].as_str().unwrap_or_default();
        assert!(
            kind.starts_with("urn:agentguard:problem:upstream-"),
            "{stage}: {body}"
        );
        let records = requests_since(&guard, before);
        assert_eq!(records.len(), 1, "{stage}: {records:#?}");
        assert_eq!(records[0].outcome(), "error", "{stage}: {records:#?}");
    }
}

#[test]
fn an_origin_that_resets_in_its_answer() {
    let site = Site::new();
    let mut server = Server::start(&site, "reset_server.py", &["body"]);
    let guard = start(&site, server.port);
    let mut client = curl(&guard, server.port).arg("--no-buffer").spawn();
    client.line(|line| line == "first part");
    server.talk().say("now");
    let ran = client.finish();
    assert_ne!(
        ran.code(),
        0,
        "the client knows that it did not get all: {ran:#?}"
    );
    let records = guard.requests();
    assert_eq!(records.len(), 1, "{records:#?}");
    assert_eq!(records[0].outcome(), "error", "{records:#?}");
}

#[test]
fn an_origin_that_never_answers() {
    let site = Site::new();
    site.configure(|config| {
        let forwarder = config["forwarder"].as_table_mut().expect("a table");
        forwarder.insert("upstream_head_timeout_ms".into(), 500.into());
    });
    let server = Server::start(&site, "reset_server.py", &["silent"]);
    let guard = start(&site, server.port);
    refused(&guard, server.port, 504, "upstream-timeout", "error");
}

#[test]
fn an_origin_that_is_not_there() {
    let site = Site::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    drop(listener);
    let guard = start(&site, port);
    refused(&guard, port, 502, "upstream-unreachable", "error");
}

#[test]
fn a_name_that_cannot_be_resolved() {
    let site = Site::new();
    // Nobody answers there.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let resolver = silent.local_addr().expect("bound").to_string();
    upstream(&site, |upstream| {
        upstream.insert("hosts".into(), toml::Table::new().into());
        upstream.insert("resolvers".into(), vec![resolver].into());
    });
    let guard = start(&site, 443);
    let problem = refused(&guard, 443, 502, "upstream-unreachable", "error");
    assert!(
        problem["detail"]
            .as_str()
            .unwrap_or_default()
            .contains("origin.test"),
        "{problem}"
    );
}

#[test]
fn a_name_that_resolves_to_where_nobody_may_go() {
    let site = Site::new();
    for address in [
        "169.254.169.254",
        "10.0.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "::",
        "fe80::1",
        "fd00::1",
        "::ffff:10.0.0.1",
    ] {
        upstream(&site, |upstream| {
            let hosts = toml::Table::from_iter([("origin.test".to_owned(), address.into())]);
            upstream.insert("hosts".into(), hosts.into());
        });
        let guard = start(&site, 443);
        refused(&guard, 443, 502, "upstream-unreachable", "error");
    }
}

fn upstream(site: &Site, change: impl FnOnce(&mut toml::Table)) {
    site.configure(|config| change(config["upstream"].as_table_mut().expect("a table")));
}

fn start(site: &Site, port: u16) -> Guard<'_> {
    Guard::start(
        site,
        &Bundle::new(1).agent("probe", &reach("origin.test", port, &["GET /v1/**"])),
    )
}

fn curl(guard: &Guard, port: u16) -> Client {
    guard
        .agent("probe")
        .client("curl".as_ref())
        // The agent's own look-up is not what is tried here.
        .args(["--resolve", &format!("origin.test:{port}:127.0.0.1")])
        .args([
            "--silent",
            "--show-error",
            "--write-out",
            "%{stderr}%{http_code}",
        ])
        .arg(format!("https://origin.test:{port}/v1/x"))
}

fn call(guard: &Guard, port: u16) -> (u16, String) {
    let ran = curl(guard, port).run().ok();
    (ran.stderr.parse().expect("a status"), ran.stdout)
}

/// The call fails so, with a problem document and one record. Returns the document.
#[track_caller]
fn refused(guard: &Guard, port: u16, status: u16, reason: &str, outcome: &str) -> Value {
    let before = guard.audit().len();
    let (seen, body) = call(guard, port);
    assert_eq!(seen, status, "{body}");
    let problem: Value = serde_json::from_str(&body).expect("a problem document");
    assert_eq!(
        problem["type"],
        format!("urn:agentguard:problem:{reason}"),
        "{problem}"
    );
    let records = requests_since(guard, before);
    assert_eq!(records.len(), 1, "{records:#?}");
    assert_eq!(
        (records[0].outcome(), records[0].reason()),
        (outcome, reason),
        "{records:#?}"
    );
    problem
}

/// A site's log is kept over its guards.
fn requests_since(guard: &Guard, before: usize) -> Vec<Record> {
    let new = guard.audit().split_off(before);
    new.into_iter().filter(Record::is_request).collect()
}
