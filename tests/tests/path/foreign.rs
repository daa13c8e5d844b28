//! Protocols that are neither TLS nor HTTP, by their own clients: refused at once, in their words, and recorded by name.

use std::time::{Duration, Instant};

use agentguard_tests::bundle::reach;
use agentguard_tests::client::{Client, Subject, python};
use agentguard_tests::{Bundle, Guard, Nginx, Record, Site};

/// What is not recognised waits for `head_timeout_ms`, 15 s.
const AT_ONCE: Duration = Duration::from_secs(10);
const SAID: &str = "Refused by AgentGuard: no rule lets";

#[test]
fn each_is_refused_at_once_and_recorded_by_its_name() {
    let site = Site::new();
    let policy = reach("origin.test", 443, &["GET /**"]);
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let agent = guard.agent("probe");
    let library = |name: &str| python(&agent, "foreign_client.py").arg(name);
    let ssh = |port: &str| {
        let options = [
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=no",
        ];
        let client = agent.client("ssh".as_ref()).args(options);
        client.args(["-p", port, "somebody@127.0.0.1", "true"])
    };
    let git = agent
        .client("git".as_ref())
        .args(["ls-remote", "git://127.0.0.1:9418/x.git"]);
    let cases: [(&str, Client, bool); 11] = [
        ("SSH", ssh("22"), true),
        ("SSH", ssh("2222"), true),
        ("git's own protocol", git, true),
        ("SMTP", library("smtp"), true),
        ("FTP", library("ftp"), true),
        ("IMAP", library("imap"), true),
        ("POP3", library("pop3"), true),
        ("MySQL", library("mysql"), true),
        ("Redis", library("redis"), true),
        ("PostgreSQL", library("postgresql"), true),
        ("SOCKS", library("socks"), false),
    ];
    for (name, client, has_words) in cases {
        let before = guard.audit().len();
        let started = Instant::now();
        let ran = client.run();
        let took = started.elapsed();
        assert!(took < AT_ONCE, "{name}: {took:?}");
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert_eq!(said.contains(SAID), has_words, "{name}: {ran:#?}");
        let records = guard.audit().split_off(before);
        let [record] = &records[..] else {
            panic!("{name}: not one record: {records:#?}");
        };
        assert_eq!(
            (record.action(), record.outcome(), record.reason()),
            ("connect", "deny", "protocol-refused"),
            "{record:?}"
        );
        let detail = record.text("/detail");
        assert!(detail.starts_with(&format!("{name}, ")), "{detail}");
        if has_words {
            assert!(said.contains(record.text("/decision")), "{name}: {said}");
        }
    }
}

#[test]
fn a_client_that_is_slow_to_speak_is_heard() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let policy = reach("origin.test", origin.port, &["GET /v1/**"]);
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    // Silent for longer than a client may be where servers speak first.
    let code = format!(
        "import ssl, time\n\
         raw = socket.create_connection(('127.0.0.1', {port}))\n\
         time.sleep(3)\n\
         tls = ssl.create_default_context().wrap_socket(raw, server_hostname='origin.test')\n\
         tls.sendall(b'GET /v1/x HTTP/1.1\\r\\nHost: origin.test:{port}\\r\\nConnection: close\\r\\n\\r\\n')\n\
         print(tls.recv(65536).decode().split('\\r\\n')[0])",
        port = origin.port
    );
    let ran = guard.agent("probe").python_code(&code).ok();
    assert_eq!(ran.stdout.trim(), "HTTP/1.1 200 OK");
    let requests = guard.requests();
    let allowed = |record: &Record| record.outcome() == "allow";
    assert!(requests.iter().all(allowed), "{requests:#?}");
}
