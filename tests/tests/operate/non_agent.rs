//! A process that is no agent makes the same calls, untouched, and is nowhere in the audit log.

use agentguard_tests::bundle::reach;
use agentguard_tests::client::{Subject, dialer, python};
use agentguard_tests::{Bundle, Guard, Nginx, Server, Site};

#[test]
fn calls_as_if_nothing_was_there() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let grpc = Server::start(&site, "grpc_server.py", &[]);
    let policy = reach("origin.test", origin.port, &["GET /v1/agent"]);
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let mut agent = dialer(&guard.agent("probe"));
    assert_eq!(
        agent.tries(&format!("get {}", origin.url("/v1/agent"))),
        "ok 200"
    );

    // It trusts the test CA alone: an intercepted connection would fail.
    let mut neighbour = dialer(&site);
    for path in ["/v1/neighbour", "/v2/neighbour"] {
        assert_eq!(
            neighbour.tries(&format!("get {}", origin.url(path))),
            "ok 200"
        );
    }
    for host in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
        let answer = neighbour.tries(&format!("tcp {host} {}", origin.port));
        assert_eq!(answer, format!("ok {host} {}", origin.port));
    }
    assert_eq!(neighbour.tries("udp 127.0.0.1 9"), "ok 5");
    assert!(
        neighbour
            .tries("bind stream 127.0.0.1 0")
            .starts_with("ok ")
    );
    for socket in ["inet raw 1", "inet6 raw 58", "inet stream 262"] {
        assert_eq!(
            neighbour.tries(&format!("socket {socket}")),
            "ok",
            "{socket}"
        );
    }
    python(&site, "grpc_client.py")
        .arg(format!("origin.test:{}", grpc.port))
        .run()
        .ok();
    for version in ["--http1.1", "--http2"] {
        let ran = site
            .client("curl".as_ref())
            .args([
                "--silent",
                "--show-error",
                version,
                &origin.url("/v3/neighbour"),
            ])
            .run()
            .ok();
        assert_eq!(ran.stdout.trim(), "GET /v3/neighbour");
    }

    let records = guard.audit();
    assert!(
        records.iter().any(|record| record.path() == "/v1/agent"),
        "{records:?}"
    );
    for record in &records {
        assert!(!record.0.to_string().contains("neighbour"), "{record:?}");
        let tgid = record
            .0
            .pointer("/process/tgid")
            .and_then(serde_json::Value::as_u64);
        assert_ne!(tgid, Some(u64::from(neighbour.tgid)), "{record:?}");
        assert!(["probe", ""].contains(&record.agent()), "{record:?}");
    }
    assert_eq!(origin.hits_below("/v3/").len(), 2);
}

#[test]
fn may_not_connect_to_the_forwarder_either() {
    let site = Site::new();
    let mut guard = Guard::start(
        &site,
        &Bundle::new(1).agent("probe", &reach("origin.test", 443, &["GET /**"])),
    );
    let forwarder = guard.forwarder_tgid();
    let ports = agentguard_tests::process::listening_ports(forwarder);
    assert!(!ports.is_empty());
    let mut neighbour = dialer(&site);
    let mut agent = dialer(&guard.agent("probe"));
    for port in ports {
        for host in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(
                neighbour.tries(&format!("tcp {host} {port}")),
                "error EPERM",
                "{host}"
            );
            let answer = agent.tries(&format!("tcp {host} {port}"));
            assert!(
                answer == "error EPERM" || answer == format!("ok {host} {port}"),
                "{answer}"
            );
        }
    }
}
