//! What a host's file says of the way in which its server is spoken to: tunnels, times, sizes, the version of HTTP.

use std::fs;

use agentguard_tests::bundle::reach;
use agentguard_tests::client::{Subject, python};
use agentguard_tests::process::Running;
use agentguard_tests::{Bundle, Guard, Nginx, Record, Server, Site};
use serde_json::Value;

/// What a host's file says of the origin.
fn host(port: u16, keys: &str) -> String {
    format!("[host]\nname = \"origin.test:{port}\"\n{keys}\n")
}

fn bundle(port: u16, keys: &str) -> Bundle {
    Bundle::new(1)
        .agent("probe", &reach("origin.test", port, &["ANY /v1/**"]))
        .file("hosts/origin.toml", host(port, keys))
}

fn url(port: u16, path: &str) -> String {
    format!("https://origin.test:{port}{path}")
}

/// A client that has asked for a tunnel, and what it says first.
fn tunnel(subject: &dyn Subject, port: u16, path: &str, more: &[&str]) -> (Running, String) {
    let client = python(subject, "upgrade_client.py").arg(url(port, path));
    let mut client = client.args(more).spawn();
    let said = client.printed();
    (client, said.trim().to_owned())
}

/// Sends a line through an open tunnel, which comes back in capitals.
fn shouts(client: &mut Running) {
    client.say("ping");
    client.line(|line| line == "back PING");
}

#[test]
fn a_tunnel_that_the_hosts_file_lists() {
    let site = Site::new();
    let mut server = Server::node(&site, "upgrade_server.mjs", &[]);
    let port = server.port;
    let keys = "upgrade = [\"tcp\", \"spdy/3.1\"]\nreads_bodies = true";
    let forbid = format!(
        "@id(\"no-attach\") forbid (principal, action, resource == Host::\"origin.test:{port}\")
when {{ context.path == \"/v1/secret/attach\" }};"
    );
    let guard = Guard::start(&site, &bundle(port, keys).rules("attach", &forbid));
    let agent = guard.agent("probe");
    for subject in [&site as &dyn Subject, &agent] {
        for (protocol, body) in [("tcp", ""), ("SPDY/3.1", ""), ("tcp", "{\"Tty\":false}")] {
            let (mut client, said) = tunnel(subject, port, "/v1/attach", &[protocol, body]);
            assert_eq!(said, format!("open {protocol}"));
            let changed = format!("changed POST /v1/attach {protocol} {body}");
            server.talk().line(|line| line.trim() == changed.trim());
            shouts(&mut client);
            client.close_stdin();
            client.line(|line| line.trim() == "ended");
        }
    }
    let (_, said) = tunnel(&agent, port, "/v1/secret/attach", &["tcp"]);
    assert!(
        said.starts_with("403 ") && said.contains("policy-denied"),
        "{said}"
    );

    let records = guard.requests();
    let seen: Vec<_> = records
        .iter()
        .map(|it| (it.outcome(), it.number("/request/status")))
        .collect();
    assert_eq!(
        seen,
        [
            ("allow", 101),
            ("allow", 101),
            ("allow", 101),
            ("deny", 403)
        ]
    );
    assert_eq!(records[0].number("/bytes_up"), 5, "{:#?}", records[0]);
    assert_eq!(records[0].number("/bytes_down"), 5, "{:#?}", records[0]);
}

#[test]
fn a_tunnel_that_no_file_lists_is_refused_in_words() {
    let site = Site::new();
    let mut server = Server::node(&site, "upgrade_server.mjs", &[]);
    let port = server.port;
    let guard = Guard::start(&site, &bundle(port, "upgrade = [\"tcp\"]"));
    let agent = guard.agent("probe");
    for (more, expected) in [
        (&["SPDY/3.1"][..], "upgrade = [\\\"spdy/3.1\\\"]"),
        (&["tcp", "body"], "reads_bodies = true"),
    ] {
        let (_, said) = tunnel(&agent, port, "/v1/attach", more);
        assert!(
            said.starts_with("403 ") && said.contains(expected),
            "{said}"
        );
    }
    let records = guard.requests();
    assert_eq!(records.len(), 2);
    let refused = |it: &Record| (it.outcome(), it.reason()) == ("deny", "protocol-refused");
    assert!(records.iter().all(refused), "{records:#?}");
    // What a server need not take up does not keep a request from being answered.
    let ran = agent
        .client("curl".as_ref())
        .args(["--silent", "--http1.1", "-H", "Connection: Upgrade"])
        .args(["-H", "Upgrade: h2c"])
        .arg(url(port, "/v1/plain"))
        .run()
        .ok();
    assert_eq!(ran.stdout, "no tunnel");
    server.talk().line(|line| line == "answered GET /v1/plain");
    assert!(!server.talk().heard().contains("changed"));
}

#[test]
fn a_tunnel_ends_with_its_task_and_with_the_kill() {
    let site = Site::new();
    let server = Server::node(&site, "upgrade_server.mjs", &[]);
    let port = server.port;
    let guard = Guard::start(&site, &bundle(port, "upgrade = [\"tcp\"]"));
    let agent = guard.agent("probe");
    let open = || {
        let (mut client, said) = tunnel(&agent, port, "/v1/attach", &["tcp"]);
        assert_eq!(said, "open tcp");
        shouts(&mut client);
        client
    };
    // The client learns of it when it reads, which it does after its next line.
    let cut = |mut client: Running| {
        client.say("ping");
        client.line(|line| line.starts_with("ended"));
        client.finish();
    };
    let task = [
        "task",
        "start",
        "probe",
        "--intent",
        "look into a container",
    ];
    let task = guard.cli(task).ok().stdout;
    let client = open();
    guard.cli(["task", "end", task.trim()]).ok();
    cut(client);
    let client = open();
    guard.cli(["kill", "probe"]).ok();
    cut(client);

    let records = guard.requests();
    let seen: Vec<_> = records.iter().map(|it| it.text("/ended")).collect();
    assert_eq!(seen, ["task-over", "stopped"], "{records:#?}");
}

/// What the configuration says where no host's file does.
fn limit(site: &Site, key: &str, value: i64) {
    site.configure(|config| {
        let forwarder = config["forwarder"].as_table_mut().expect("a table");
        forwarder.insert(key.into(), value.into());
    });
}

fn ask(guard: &Guard<'_>, port: u16, more: &[&str]) -> (u16, Value) {
    let ran = guard
        .agent("probe")
        .client("curl".as_ref())
        .args(["--silent", "--write-out", "%{stderr}%{http_code}"])
        .args(more)
        .arg(url(port, "/v1/x"))
        .run()
        .ok();
    let body = serde_json::from_str(&ran.stdout).unwrap_or(Value::String(ran.stdout));
    (ran.stderr.parse().expect("a status"), body)
}

#[test]
fn the_head_of_an_answer_may_come_later_where_the_file_says_so() {
    let site = Site::new();
    limit(&site, "upstream_head_timeout_ms", 300);
    let server = Server::start(&site, "late_server.py", &["1.5"]);
    for (keys, expected) in [
        ("", 504),
        ("timeouts = { head = \"1s\" }", 504),
        ("timeouts = { head = \"15m\" }", 200),
    ] {
        let guard = Guard::start(&site, &bundle(server.port, keys));
        let (status, body) = ask(&guard, server.port, &[]);
        assert_eq!(status, expected, "{keys}: {body}");
        if expected == 504 {
            let detail = body["detail"].as_str().unwrap_or_default();
            assert!(
                detail.contains("`timeouts.head` in the host's file"),
                "{detail}"
            );
        }
    }
}

#[test]
fn a_connection_is_not_kept_for_longer_than_the_file_says() {
    let site = Site::new();
    let server = Server::start(&site, "late_server.py", &["0"]);
    let ask_twice = |keys| {
        let guard = Guard::start(&site, &bundle(server.port, keys));
        let first = ask(&guard, server.port, &[]).1;
        // The time itself is what is tried.
        std::thread::sleep(std::time::Duration::from_millis(1100));
        (first, ask(&guard, server.port, &[]).1)
    };
    let (first, second) = ask_twice("");
    assert_eq!(first, second, "kept");
    let (first, second) = ask_twice("timeouts = { idle = \"1s\" }");
    assert_ne!(first, second, "not kept");
}

#[test]
fn a_longer_body_is_judged_where_the_file_says_so() {
    let site = Site::new();
    limit(&site, "max_judged_body_bytes", 64 << 10);
    let origin = Nginx::start(&site);
    let rules = "@id(\"no-secrets\") forbid (principal, action == Action::\"POST\", resource)
when { context.body has kind && context.body.kind == \"secret\" };";
    let file = |kind: &str| {
        let path = site.path(kind);
        let body = format!(
            "{{\"pad\":\"{}\",\"kind\":\"{kind}\"}}",
            "x".repeat(200 << 10)
        );
        fs::write(&path, body).expect("written");
        format!("@{}", path.display())
    };
    let (plain, secret) = (file("plain"), file("secret"));
    let fields = "\n[[body]]\non = \"POST /v1/x\"\nkind = { type = \"string\", at = \"/kind\" }";
    let post = |guard: &Guard<'_>, body: &str| {
        let json = "content-type: application/json";
        let (status, body) = ask(guard, origin.port, &["-H", json, "--data-binary", body]);
        let kind = body["type"].as_str().unwrap_or_default().to_owned();
        (
            status,
            kind.replace("urn:agentguard:problem:", ""),
            body["detail"].to_string(),
        )
    };
    let guard = Guard::start(&site, &bundle(origin.port, fields).rules("r", rules));
    let (status, kind, detail) = post(&guard, &plain);
    assert_eq!((status, kind.as_str()), (403, "body-too-large"));
    assert!(
        detail.contains("`max_judged_body` in the host's file"),
        "{detail}"
    );
    drop(guard);

    let keys = format!("max_judged_body = \"8MiB\"{fields}");
    let guard = Guard::start(&site, &bundle(origin.port, &keys).rules("r", rules));
    assert_eq!(post(&guard, &plain).0, 200);
    let (status, kind, _) = post(&guard, &secret);
    assert_eq!((status, kind.as_str()), (403, "policy-denied"));
    let sent = origin.hits().into_iter().filter(|hit| hit.method == "POST");
    assert_eq!(sent.count(), 1);
}

#[test]
fn http2_is_not_offered_where_the_file_says_so() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    for (keys, expected) in [("", "HTTP/2.0"), ("http = \"1.1\"", "HTTP/1.1")] {
        let guard = Guard::start(&site, &bundle(origin.port, keys));
        let version = [
            "--http2",
            "--write-out",
            "%{stderr}%{http_version} %{http_code}",
        ];
        let ran = guard
            .agent("probe")
            .client("curl".as_ref())
            .arg("--silent")
            .args(version)
            .arg(origin.url("/v1/x"))
            .run()
            .ok();
        assert_eq!(ran.stderr, "2 200", "the agent's own is its choice");
        let hits = origin.hits();
        assert_eq!(hits.last().expect("a hit").protocol, expected, "{keys}");
    }
}
