//! Hosts that are reached by a proxy: a real one, one over TLS, and those that do badly.

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;

use agentguard_tests::bundle::reach;
use agentguard_tests::client::{Subject, python};
use agentguard_tests::process::Running;
use agentguard_tests::{Bundle, Guard, Nginx, Record, Server, Site};
use serde_json::Value;
use toml::Table;

const REFUSED: &str = "urn:agentguard:problem:";

/// Configures the way out. Nobody here knows where `origin.test` is: the proxy alone does.
fn by_proxy(site: &Site, proxy: &str, change: impl FnOnce(&mut Table)) {
    site.configure(|config| {
        let forwarder = config["forwarder"].as_table_mut().expect("a table");
        forwarder.insert("upstream_connect_timeout_ms".into(), 5000.into());
        let upstream = config["upstream"].as_table_mut().expect("a table");
        let hosts = Table::from_iter([("proxy.test".to_owned(), "127.0.0.1".into())]);
        upstream.insert("hosts".into(), hosts.into());
        upstream.insert("resolvers".into(), vec!["127.0.0.1:9"].into());
        // The operator has named the proxy, wherever it is; for agents loopback is out of reach.
        upstream.insert("allow_addresses".into(), Vec::<String>::new().into());
        upstream.insert("proxy".into(), proxy.into());
        change(upstream);
    });
}

fn credentials(site: &Site, text: &str, mode: u32) -> String {
    let path = site.path("proxy-credentials");
    fs::write(&path, text).expect("written");
    fs::set_permissions(&path, Permissions::from_mode(mode)).expect("set");
    path.display().to_string()
}

/// tinyproxy, which looks names up as programs on this host do without AgentGuard. Its log is its own word.
fn tinyproxy(site: &Site, more: &str) -> (Running, u16) {
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = free.local_addr().expect("bound").port();
    drop(free);
    let path = site.path("tinyproxy.conf");
    let config = format!("Port {port}\nListen 127.0.0.1\nTimeout 60\nLogLevel Info\n{more}\n");
    fs::write(&path, config).expect("written");
    let client = site.client("tinyproxy".as_ref());
    let mut proxy = client.arg("-d").arg("-c").arg(&path).spawn();
    proxy.line(|line| line.contains("Accepting connections"));
    (proxy, port)
}

fn ask(guard: &Guard<'_>, url: &str, more: &[&str]) -> (u16, String) {
    let client = guard.agent("probe").client("curl".as_ref());
    let ran = client
        .args([
            "--silent",
            "--show-error",
            "--write-out",
            "%{stderr}%{http_code}",
        ])
        .args(more)
        .arg(url)
        .run()
        .ok();
    (ran.stderr.parse().expect("a status"), ran.stdout)
}

fn refusal(answer: &(u16, String)) -> (u16, String, String) {
    let problem: Value = serde_json::from_str(&answer.1).expect("a problem document");
    let text = |key: &str| problem[key].as_str().unwrap_or_default().to_owned();
    (answer.0, text("type").replace(REFUSED, ""), text("detail"))
}

fn policy(origin: &Nginx) -> Bundle {
    let routes = ["GET /v1/**", "POST /v1/**"];
    let policy = reach("origin.test", origin.port, &routes)
        + &reach("origin.test", origin.port_plain, &routes)
        + &format!(
            "[[reach]]\nhost = \"origin.test:{}\"\ntls = \"passthrough\"\nallow = [\"connect\"]\n",
            origin.port_http1
        );
    Bundle::new(1).agent("probe", &policy)
}

#[test]
fn a_real_proxy_is_asked_by_name() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let (mut proxy, port) = tinyproxy(&site, "BasicAuth user pass");
    let url = format!("http://proxy.test:{port}");
    by_proxy(&site, &url, |upstream| {
        let file = credentials(&site, &format!("proxy.test:{port} user:pass\n"), 0o600);
        upstream.insert("proxy_credentials_file".into(), file.into());
    });
    let guard = Guard::start(&site, &policy(&origin));
    let tls = origin.url("/v1/a?x=%2F");
    let plain = origin.plain_url("/v1/b?x=%2F");
    let passed = format!("https://origin.test:{}/v1/c", origin.port_http1);
    for (url, more, body) in [
        (&tls, &[][..], "GET /v1/a?x=%2F"),
        (&tls, &["--http1.1"], "GET /v1/a?x=%2F"),
        (&plain, &[], "GET /v1/b?x=%2F"),
        (&plain, &["--data", "x"], "POST /v1/b?x=%2F"),
        // It is told the port that was judged, whatever the client leaves out.
        (
            &plain,
            &["--header", "Host: origin.test"],
            "GET /v1/b?x=%2F",
        ),
    ] {
        let (status, said) = ask(&guard, url, more);
        assert_eq!((status, said.as_str()), (200, body), "{url} {more:?}");
    }
    let trusted = site.ca().certificate().display().to_string();
    let (status, _) = ask(&guard, &passed, &["--cacert", &trusted]);
    assert_eq!(status, 200, "its TLS is the origin's own");
    proxy.line(|line| line.contains(&format!("CONNECT origin.test:{} ", origin.port)));
    proxy.line(|line| line.contains(&format!("CONNECT origin.test:{} ", origin.port_http1)));
    let heard = proxy.heard();
    let absolute = format!("GET http://origin.test:{}/v1/b?x=%2F ", origin.port_plain);
    assert!(heard.contains(&absolute), "{heard}");
    let hits = origin.hits();
    assert_eq!(hits[0].uri, "/v1/a?x=%2F");
    assert_eq!(hits[0].protocol, "HTTP/2.0", "HTTP/2 goes through");

    let (status, kind, _) = refusal(&ask(&guard, &tls, &["-X", "DELETE"]));
    assert_eq!((status, kind.as_str()), (403, "policy-denied"));
    assert_eq!(
        origin.hits().len(),
        hits.len(),
        "no rule permits it by any way"
    );
    let names = "import socket; print(socket.gethostbyname('origin.test'))";
    assert_eq!(
        guard.agent("probe").python_code(names).ok().stdout,
        "192.0.2.1"
    );

    let sent: Vec<Record> = guard.audit();
    let sent: Vec<&Record> = sent
        .iter()
        .filter(|it| it.0["upstream"].is_object())
        .collect();
    assert_eq!(sent.len(), 6, "{sent:#?}");
    for record in &sent {
        assert_eq!(record.text("/upstream/proxy"), url);
        assert_eq!(record.text("/upstream/addr"), format!("127.0.0.1:{port}"));
    }
    assert_eq!(sent[0].text("/upstream/tls"), "TLSv1.3");
    let log = guard.cli(["audit", "search", "--json"]).ok().stdout;
    assert!(!log.contains("dXNlcjpwYXNz") && !log.contains("user:pass"));
}

#[test]
fn a_proxy_over_tls_and_a_tunnel_through_it() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let mut sockets = Server::start(&site, "ws_server.py", &[]);
    let identity = site.ca().issue(&["proxy.test"]);
    let start =
        |mode| Server::start_with("proxy.py", &identity.certificate, &identity.key, &[mode]);
    let mut proxy = start("tls");
    let mut other = start("open");
    let (port, other_port) = (proxy.port, other.port);
    by_proxy(&site, &format!("https://proxy.test:{port}"), |upstream| {
        let text = format!("proxy.test:{port} user:secret\n");
        let file = credentials(&site, &text, 0o600);
        upstream.insert("proxy_credentials_file".into(), file.into());
        let proxies = Table::from_iter([(
            "own.test".to_owned(),
            format!("http://proxy.test:{other_port}").into(),
        )]);
        upstream.insert("proxies".into(), proxies.into());
        let hosts = upstream["hosts"].as_table_mut().expect("a table");
        hosts.insert("direct.test".into(), "127.0.0.1".into());
        upstream.insert("no_proxy".into(), vec!["direct.test"].into());
        upstream.insert("allow_addresses".into(), vec!["127.0.0.0/8"].into());
    });
    let hosts = ["own.test", "direct.test"].map(|host| {
        let plain = origin.port_plain;
        reach(host, plain, &["GET /v1/**"])
    });
    let socket = reach("origin.test", sockets.port, &["GET /v1/**"]);
    let bundle = Bundle::new(1).agent("probe", &(hosts.concat() + &socket));
    let guard = Guard::start(&site, &bundle);

    let url = format!("wss://origin.test:{}/v1/open", sockets.port);
    let agent = guard.agent("probe");
    let mut held = python(&agent, "ws_held.py").arg(&url).spawn();
    held.line(|line| line == "open");
    proxy
        .talk()
        .line(|line| line.starts_with("asked CONNECT origin.test:"));
    sockets.talk().line(|line| line == "opened /v1/open");

    let by = |host: &str| {
        let url = format!("http://{host}:{}/v1/x", origin.port_plain);
        assert_eq!(ask(&guard, &url, &[]).0, 200, "{host}");
        let records = guard.requests();
        records
            .last()
            .expect("a record")
            .text("/upstream/proxy")
            .to_owned()
    };
    assert_eq!(by("own.test"), format!("http://proxy.test:{other_port}"));
    other
        .talk()
        .line(|line| line.starts_with("asked GET http://own.test:"));
    assert_eq!(by("direct.test"), "");

    guard.cli(["kill", "probe"]).ok();
    held.line(|line| line == "ended");
}

#[test]
fn a_proxy_that_does_badly() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let identity = site.ca().issue(&["proxy.test"]);
    for (mode, kind, expected) in [
        ("refuses", "upstream-unreachable", "403 Forbidden"),
        ("redirects", "upstream-unreachable", "redirects (302 Found)"),
        (
            "wants-basic",
            "upstream-unreachable",
            "`upstream.proxy_credentials_file`",
        ),
        ("wants-more", "upstream-unreachable", "`Negotiate` (407)"),
        ("speaks-ssh", "upstream-unreachable", "does not speak HTTP"),
        ("speaks-first", "upstream-unreachable", "bytes of its own"),
        ("tunnels-badly", "upstream-tls", "TLS"),
        (
            "endless-head",
            "upstream-unreachable",
            "longer than 16384 bytes",
        ),
        (
            "endless-interim",
            "upstream-unreachable",
            "longer than 16384 bytes",
        ),
        ("hangs", "upstream-timeout", "did not answer in time"),
        ("closes", "upstream-unreachable", "without an answer"),
    ] {
        let proxy = Server::start_with("proxy.py", &identity.certificate, &identity.key, &[mode]);
        let url = format!("http://proxy.test:{}", proxy.port);
        by_proxy(&site, &url, |_| {});
        let guard = Guard::start(&site, &policy(&origin));
        let before = guard.requests().len();
        let (status, found, detail) = refusal(&ask(&guard, &origin.url("/v1/x"), &[]));
        let timeout = kind == "upstream-timeout";
        assert_eq!(status, if timeout { 504 } else { 502 }, "{mode}: {detail}");
        assert_eq!(found, kind, "{mode}: {detail}");
        assert!(detail.contains(expected), "{mode}: {detail}");
        assert!(detail.contains(&format!("`{url}`")), "{mode}: {detail}");
        let records = guard.requests().split_off(before);
        assert_eq!(records.len(), 1, "{mode}: {records:#?}");
        assert_eq!(records[0].reason(), kind, "{mode}");
        if mode == "wants-basic" {
            // Not the origin's answer, which would ask the agent for credentials.
            let (status, _, detail) = refusal(&ask(&guard, &origin.plain_url("/v1/x"), &[]));
            assert_eq!(status, 502, "{detail}");
            assert!(detail.contains(expected), "{detail}");
        }
    }
    assert!(origin.hits().is_empty());
}

#[test]
fn a_proxy_is_not_trusted_with_more_than_the_way() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let identity = site.ca().issue(&["elsewhere.test"]);
    // A proxy over TLS whose certificate is another's.
    let proxy = Server::start_with("proxy.py", &identity.certificate, &identity.key, &["tls"]);
    by_proxy(&site, &format!("https://proxy.test:{}", proxy.port), |_| {});
    let guard = Guard::start(&site, &policy(&origin));
    let (status, kind, detail) = refusal(&ask(&guard, &origin.url("/v1/x"), &[]));
    assert_eq!((status, kind.as_str()), (502, "upstream-tls"), "{detail}");
    assert!(detail.contains("another name"), "{detail}");
    drop(guard);
    // A host named by an address is held to `allow_addresses`, whoever would dial it.
    let honest = Server::start_with("proxy.py", &identity.certificate, &identity.key, &["open"]);
    by_proxy(&site, &format!("http://proxy.test:{}", honest.port), |_| {});
    let bundle = Bundle::new(1).agent("probe", &reach("10.0.0.1", 80, &["GET /v1/**"]));
    let guard = Guard::start(&site, &bundle);
    let (status, _, detail) = refusal(&ask(&guard, "http://10.0.0.1/v1/x", &[]));
    assert_eq!(status, 502);
    assert!(detail.contains("private"), "{detail}");
}

#[test]
fn credentials_that_others_can_read_are_refused() {
    let site = Site::new();
    by_proxy(&site, "http://proxy.test:3128", |upstream| {
        let file = credentials(&site, "proxy.test:3128 user:pass\n", 0o644);
        upstream.insert("proxy_credentials_file".into(), file.into());
    });
    site.install(&Bundle::new(1).agent("probe", ""));
    let ran = site.cli(["daemon"]).run();
    assert_eq!(ran.code(), 2, "{ran:#?}");
    assert!(ran.stderr.contains("is not root's alone"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("user:pass"), "{}", ran.stderr);
}
