//! Messages on the wire: what a server gets of a request and a client of an answer is what it would be without AgentGuard.

use agentguard_tests::bundle::reach;
use agentguard_tests::client::{Subject, python};
use agentguard_tests::tools::ORIGIN;
use agentguard_tests::{Bundle, Client, Guard, Server, Site};

/// `script_server.py`, and both its ports.
struct Origin {
    server: Server,
    plain: u16,
}

impl Origin {
    /// `answers`: name and bytes, as a Python expression.
    fn start(site: &Site, answers: &[(&str, &str)]) -> Self {
        let args: Vec<String> = answers
            .iter()
            .map(|(name, answer)| format!("{name}={answer}"))
            .collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut server = Server::start(site, "script_server.py", &args);
        let heard = server.talk().heard();
        let plain = heard
            .lines()
            .find_map(|line| line.strip_prefix("plain ")?.parse().ok());
        Self {
            plain: plain.expect("a port"),
            server,
        }
    }

    fn guard<'site>(&self, site: &'site Site) -> Guard<'site> {
        let routes = ["ANY /v1/**"];
        let policy = reach("origin.test", self.server.port, &routes)
            + &reach("origin.test", self.plain, &routes);
        Guard::start(site, &Bundle::new(1).agent("probe", &policy))
    }

    fn url(&self, name: &str) -> String {
        format!("https://origin.test:{}/v1/{name}", self.server.port)
    }

    /// The next request, as it came.
    fn got(&mut self) -> String {
        self.server.talk().after("got ")
    }
}

/// What the peer sends back to these bytes (a Python expression; `HOST` is the authority) by TLS, to its end.
fn send(subject: &dyn Subject, origin: &Origin, bytes: &str) -> String {
    send_by(subject, origin.server.port, "http/1.1", bytes)
}

fn send_by(subject: &dyn Subject, port: u16, way: &str, bytes: &str) -> String {
    let bytes = bytes.replace("HOST", &format!("origin.test:{port}"));
    let client = python(subject, "raw_client.py").args([&port.to_string(), way]);
    client.input(bytes).run().ok().stdout
}

fn curl(subject: &dyn Subject) -> Client {
    subject
        .client("curl".as_ref())
        .args(["--silent", "--show-error"])
}

const OK: &str = r"b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok'";

#[test]
fn a_host_without_a_port_is_its_connections() {
    let site = Site::new();
    let mut origin = Origin::start(&site, &[("x", OK)]);
    let guard = origin.guard(&site);
    let agent = guard.agent("probe");
    let port = origin.server.port;
    for subject in [&site as &dyn Subject, &agent] {
        for version in ["--http1.1", "--http2"] {
            for host in ["origin.test", &format!("origin.test:{port}")] {
                let url = origin.url("x");
                let header = format!("Host: {host}");
                let ran = curl(subject)
                    .args([version, "--header", &header, &url])
                    .run();
                assert_eq!(ran.ok().stdout, "ok", "{version} {host}");
                let got = origin.got();
                assert!(got.contains(&format!(r"ost: {host}\r\n")), "{got}");
            }
        }
    }
    let other = send(
        &agent,
        &origin,
        r"b'GET /v1/x HTTP/1.1\r\nHost: origin.test:443\r\n\r\n'",
    );
    assert!(other.starts_with("HTTP/1.1 403 "), "{other}");
}

#[test]
fn connect_as_old_clients_send_it() {
    let site = Site::new();
    let origin = Origin::start(&site, &[("x", OK)]);
    let guard = origin.guard(&site);
    let agent = guard.agent("probe");
    for option in ["--proxy", "--proxy1.0"] {
        let proxied = ["--proxytunnel", option, "http://origin.test:3128"];
        let ran = curl(&agent).args(proxied).arg(origin.url("x")).run();
        assert_eq!(ran.ok().stdout, "ok", "{option}");
    }
    // To port 443, where nothing is permitted.
    for version in ["1.0", "1.1"] {
        let request = format!(
            r"b'CONNECT origin.test HTTP/{version}\r\n\r\nGET /v1/x HTTP/1.1\r\nHost: origin.test\r\nConnection: close\r\n\r\n'"
        );
        let answer = send_by(&agent, origin.plain, "plain", &request);
        let (tunnel, inside) = answer.split_once("\r\n\r\n").expect("two heads");
        assert!(
            tunnel.starts_with(&format!("HTTP/{version} 200 ")),
            "{answer}"
        );
        assert!(inside.starts_with("HTTP/1.1 403 "), "{answer}");
        assert!(inside.contains(r#""resource":"origin.test""#), "{answer}");
    }
}

/// The same bytes to a client of HTTP/1.1 and to one of HTTP/2, as far as each can show them.
fn fetch(
    subject: &dyn Subject,
    origin: &Origin,
    version: &str,
    name: &str,
) -> agentguard_tests::Ran {
    curl(subject)
        .args([version, "--include", "--no-buffer"])
        .arg(origin.url(name))
        .run()
}

#[test]
fn as_many_header_lines_as_bytes_allow() {
    const MANY: &str = r"b'HTTP/1.1 200 OK\r\n' + b''.join(b'X-A%d: v\r\n' % n for n in range(200)) + b'Content-Length: 2\r\n\r\nok'";
    const TRAILERS: &str = r"b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: ' + b', '.join(b'X-T%d' % n for n in range(200)) + b'\r\n\r\n2\r\nok\r\n0\r\n' + b''.join(b'X-T%d: v\r\n' % n for n in range(200)) + b'\r\n'";
    const LONG: &str =
        r"b'HTTP/1.1 200 OK\r\nX-Long: ' + b'a' * 80000 + b'\r\nContent-Length: 2\r\n\r\nok'";
    let site = Site::new();
    let mut origin = Origin::start(
        &site,
        &[("many", MANY), ("trailers", TRAILERS), ("long", LONG)],
    );
    let guard = origin.guard(&site);
    let agent = guard.agent("probe");
    let request = |name: &str, more: &str| {
        format!(
            r"b'GET /v1/{name} HTTP/1.1\r\nHost: HOST\r\nConnection: close, TE\r\nTE: trailers\r\n' + {more} + b'\r\n'"
        )
    };
    let lines = r"b''.join(b'X-Q%d: v\r\n' % n for n in range(200))";
    let answer = send(&agent, &origin, &request("many", lines));
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("ok"),
        "{answer}"
    );
    assert!(answer.contains("\r\nX-A199: v\r\n"), "{answer}");
    assert!(origin.got().contains(r"\r\nX-Q199: v\r\n"));
    let answer = send(&agent, &origin, &request("trailers", "b''"));
    assert!(
        answer.to_lowercase().contains("\r\nx-t199: v\r\n"),
        "{answer}"
    );
    for version in ["--http1.1", "--http2"] {
        let ran = fetch(&agent, &origin, version, "many").ok();
        assert!(ran.stdout.to_lowercase().contains("x-a199: v"), "{ran:?}");
    }

    // Beyond the bytes there is a reason in words.
    let answer = send(
        &agent,
        &origin,
        &request("many", r"b'X-Long: ' + b'a' * 80000 + b'\r\n'"),
    );
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert!(
        answer.contains("the headers are longer than 65536 bytes"),
        "{answer}"
    );
    let answer = send(&agent, &origin, &request("long", "b''"));
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert!(answer.contains("max_header_bytes"), "{answer}");
}

#[test]
fn answers_are_repaired_or_refused_in_words() {
    const REPAIRED: [(&str, &str, &str); 5] = [
        (
            "space",
            r"b'HTTP/1.1 200 OK\r\nX-A : 1\r\nContent-Length: 2\r\n\r\nok'",
            "x-a: 1",
        ),
        (
            "fold",
            r"b'HTTP/1.1 200 OK\r\nX-A: 1\r\n\t 2\r\nContent-Length: 2\r\n\r\nok'",
            "x-a: 1 2",
        ),
        (
            "list",
            r"b'HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok'",
            "content-length: 2",
        ),
        (
            "twice",
            r"b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok'",
            "content-length: 2",
        ),
        (
            "both",
            r"b'HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n'",
            "200",
        ),
    ];
    const REFUSED: [(&str, &str, &str); 6] = [
        (
            "control",
            r"b'HTTP/1.1 200 OK\r\nSet-Cookie: a\x01b\r\nContent-Length: 2\r\n\r\nok'",
            "breaks the rules of HTTP",
        ),
        (
            "differ",
            r"b'HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nok'",
            "content-length",
        ),
        (
            "gzip",
            r"b'HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n'",
            "transfer coding",
        ),
        (
            "gzip-only",
            r"b'HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok'",
            "transfer coding",
        ),
        (
            "old",
            r"b'HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n'",
            "transfer-encoding",
        ),
        ("junk", r"b'HELLO\r\n\r\n'", "breaks the rules of HTTP"),
    ];
    let site = Site::new();
    let answers: Vec<(&str, &str)> = REPAIRED
        .iter()
        .chain(&REFUSED)
        .map(|(name, answer, _)| (*name, *answer))
        .collect();
    let origin = Origin::start(&site, &answers);
    let guard = origin.guard(&site);
    let agent = guard.agent("probe");
    for version in ["--http1.1", "--http2"] {
        for (name, _, expected) in REPAIRED {
            let ran = fetch(&agent, &origin, version, name).ok();
            let (head, body) = ran.stdout.split_once("\r\n\r\n").expect("a head");
            let head = head.to_lowercase();
            assert!(head.contains(expected), "{version} {name}: {ran:?}");
            assert!(
                head.matches("content-length").count() < 2,
                "{version} {name}: {ran:?}"
            );
            assert!(body.ends_with("ok"), "{version} {name}: {ran:?}");
        }
        for (name, _, expected) in REFUSED {
            let ran = fetch(&agent, &origin, version, name).ok();
            assert!(ran.stdout.contains(" 502"), "{version} {name}: {ran:?}");
            assert!(
                ran.stdout.contains("upstream-unreachable"),
                "{version} {name}: {ran:?}"
            );
            assert!(ran.stdout.contains(expected), "{version} {name}: {ran:?}");
        }
    }
}

#[test]
fn a_trailer_that_a_head_alone_may_have_ends_its_request() {
    let site = Site::new();
    let origin = Server::node(&site, "origin.mjs", &["{}"]);
    let port = origin.port;
    let policy = reach(ORIGIN, port, &["POST /v1/**"]);
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let send = |name: &str| {
        let code = format!(
            "import ssl
tls = ssl.create_default_context().wrap_socket(socket.create_connection(('{ORIGIN}', {port})), server_hostname='{ORIGIN}')
tls.sendall(b'POST /v1/x HTTP/1.1\\r\\nHost: {ORIGIN}:{port}\\r\\nTransfer-Encoding: chunked\\r\\nTrailer: {name}\\r\\n'
    b'Connection: close\\r\\n\\r\\n3\\r\\nabc\\r\\n0\\r\\n{name}: DELETE\\r\\n\\r\\n')
print(tls.recv(4096).split(b' ')[1].decode())"
        );
        guard.agent("probe").python(&code).run().ok().stdout
    };
    assert_eq!(send("X-Checksum").trim(), "200");
    for name in ["X-HTTP-Method-Override", "x_original_url", "Cookie"] {
        assert_eq!(send(name).trim(), "403", "{name}");
        let record = guard.audit().pop().expect("a record");
        assert!(record.text("/detail").contains("trailer"), "{record:?}");
    }
    let code = format!(
        "const session = require('http2').connect('https://{ORIGIN}:{port}');
const request = session.request({{ ':method': 'POST', ':path': '/v1/x' }}, {{ waitForTrailers: true }});
request.on('wantTrailers', () => request.sendTrailers({{ 'x-original-url': '/no' }})).end('abc');
request.on('response', (head) => {{ console.log(head[':status']); session.destroy(); }}).on('error', () => {{}});"
    );
    let agent = guard.agent("probe");
    let ran = agent.client("node".as_ref()).args(["--eval", &code]).run();
    assert_eq!(ran.ok().stdout.trim(), "403");
}

#[test]
fn header_names_go_as_written() {
    const ODD: &str = "b'HTTP/1.1 200 OK\\r\\nX-Odd-cASE: 1\\r\\netag: \"x\"\\r\\nSet-Cookie: a=1\\r\\nset-cookie: b=2\\r\\nContent-Length: 2\\r\\n\\r\\nok'";
    let site = Site::new();
    let mut origin = Origin::start(&site, &[("x", ODD)]);
    let guard = origin.guard(&site);
    let agent = guard.agent("probe");
    let names = ["SOAPAction", "x-lower", "X-uPPer"];
    for subject in [&site as &dyn Subject, &agent] {
        let lines: String = names.iter().map(|name| format!(r"{name}: 1\r\n")).collect();
        let request = format!(
            r"b'GET /v1/x?end=notify HTTP/1.1\r\nHOST: HOST\r\n{lines}Connection: close\r\n\r\n'"
        )
        .replacen("HOST: ", "hOST: ", 1);
        let answer = send(subject, &origin, &request);
        for line in [
            "X-Odd-cASE: 1",
            "etag: \"x\"",
            "Set-Cookie: a=1",
            "set-cookie: b=2",
        ] {
            assert!(answer.contains(&format!("\r\n{line}\r\n")), "{answer}");
        }
        let got = origin.got();
        for name in names.iter().chain(&["hOST"]) {
            assert!(got.contains(&format!(r"\r\n{name}: ")), "{got}");
        }
    }
    // HTTP/2 has them in lower case alone; what refuses is ours.
    let ran = curl(&agent)
        .args(["--http2", "--header", "SOAPAction: 1"])
        .arg(origin.url("x"))
        .run();
    assert_eq!(ran.ok().stdout, "ok");
    assert!(origin.got().contains(r"\r\nSoapaction: 1\r\n"));
    let refused = send(
        &agent,
        &origin,
        r"b'GET /v2 HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n'",
    );
    assert!(
        refused.contains("\r\nContent-Type: application/problem+json\r\n"),
        "{refused}"
    );
}

#[test]
fn an_answer_that_is_cut_arrives_up_to_there() {
    const LENGTH: &str = r"b'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello'";
    const CHUNKS: &str = r"b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n'";
    const END: &str = r"b'HTTP/1.1 200 OK\r\n\r\nhello'";
    /// Which of head and end is seen first is a race, so more than once.
    const TURNS: usize = 10;
    let site = Site::new();
    let origin = Origin::start(
        &site,
        &[("length", LENGTH), ("chunks", CHUNKS), ("end", END)],
    );
    let guard = origin.guard(&site);
    let agent = guard.agent("probe");
    let plain = |name: &str| format!("http://origin.test:{}/v1/{name}", origin.plain);
    for end in ["close", "notify"] {
        for name in ["length", "chunks"] {
            let tls = origin.url(name);
            for (version, url) in [
                ("--http1.1", &plain(name)),
                ("--http1.1", &tls),
                ("--http2", &tls),
            ] {
                for _ in 0..TURNS {
                    let ran = curl(&agent)
                        .args([version, "--write-out", "%{stderr} status %{http_code}"])
                        .arg(format!("{url}?end={end}"))
                        .run();
                    assert!(
                        ran.stderr.contains(" status 200"),
                        "{version} {url} {end}: {ran:?}"
                    );
                    assert_eq!(ran.stdout, "hello", "{version} {url} {end}");
                    assert_ne!(ran.code(), 0, "{version} {url} {end}");
                }
            }
        }
        // Nothing but its end says how long it is.
        for version in ["--http1.1", "--http2"] {
            let url = format!("{}?end={end}", origin.url("end"));
            let ran = curl(&agent).args([version, &url]).run();
            assert_eq!(ran.ok().stdout, "hello", "{version} {end}");
        }
    }
    let outcomes = |wanted: &str| {
        let requests = guard.requests();
        requests.iter().filter(|it| it.outcome() == wanted).count()
    };
    assert_eq!((outcomes("error"), outcomes("allow")), (12 * TURNS, 4));
}

#[test]
fn other_application_protocols_are_http_1_1() {
    let site = Site::new();
    let origin = Origin::start(&site, &[("x", OK)]);
    let guard = origin.guard(&site);
    let request = r"b'GET /v1/x HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n'";
    for way in ["http/1.0", "http/1.1"] {
        let answer = send_by(&guard.agent("probe"), origin.server.port, way, request);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{way}: {answer}");
    }
}

#[test]
fn requests_in_rare_forms() {
    let site = Site::new();
    let mut origin = Origin::start(&site, &[("x", OK), ("", OK)]);
    let (port, plain) = (origin.server.port, origin.plain);
    let policy = reach("origin.test", port, &["ANY /v1/**", "OPTIONS /"])
        + &reach("127.0.0.1", plain, &["GET /v1/**"]);
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let agent = guard.agent("probe");
    let forms = [
        (
            port,
            "http/1.1",
            r"\r\n\r\nGET /v1/x HTTP/1.1\r\nHost: HOST\r\nConnection: close",
            r"GET /v1/x HTTP/1.1\r\nHost: HOST\r\n",
        ),
        (
            port,
            "http/1.1",
            r"GET /v1/x HTTP/1.0",
            r"GET /v1/x HTTP/1.1\r\nHost: HOST\r\n",
        ),
        (
            port,
            "http/1.1",
            r"OPTIONS * HTTP/1.1\r\nHost: HOST\r\nConnection: close",
            r"OPTIONS * HTTP/1.1\r\nHost: HOST\r\n",
        ),
        (
            plain,
            "plain",
            r"\r\nGET /v1/x HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close",
            r"GET /v1/x HTTP/1.1\r\nHost: 127.0.0.1\r\n",
        ),
        // For nobody by name: for the address that the connection was for.
        (
            plain,
            "plain",
            r"GET /v1/x HTTP/1.0",
            r"GET /v1/x HTTP/1.1\r\nHost: 127.0.0.1:PLAIN\r\n",
        ),
    ];
    for (port, way, head, expected) in forms {
        let answer = send_by(&agent, port, way, &format!(r"b'{head}\r\n\r\n'"));
        assert!(
            answer.contains(" 200 ") && answer.ends_with("ok"),
            "{head}: {answer}"
        );
        let expected = expected
            .replace("HOST", &format!("origin.test:{port}"))
            .replace("PLAIN", &plain.to_string());
        let got = origin.got();
        assert!(got.starts_with(&format!("'{expected}")), "{head}: {got}");
    }
    let ran = curl(&agent)
        .args(["--http2", "--request", "OPTIONS", "--request-target", "*"])
        .arg(format!("https://origin.test:{port}"))
        .run();
    assert_eq!(ran.ok().stdout, "ok");
    assert!(origin.got().starts_with("'OPTIONS * HTTP/1.1"));
    let nameless = send(
        &agent,
        &origin,
        r"b'GET /v1/x HTTP/1.1\r\nConnection: close\r\n\r\n'",
    );
    assert!(nameless.contains("`Host` is missing"), "{nameless}");
}

#[test]
fn an_address_is_a_host() {
    let site = Site::new();
    let servers = [&["origin.test", "127.0.0.1"][..], &["origin.test"]].map(|names| {
        let identity = site.ca().issue(names);
        let answers = [format!("x={OK}")];
        let answers = answers.each_ref().map(String::as_str);
        Server::start_with(
            "script_server.py",
            &identity.certificate,
            &identity.key,
            &answers,
        )
    });
    let [port, unnamed] = servers.each_ref().map(|server| server.port);
    let policy = reach("127.0.0.1", port, &["GET /v1/**"])
        + &reach("127.0.0.1", unnamed, &["GET /v1/**"])
        + &reach("origin.test", port, &["GET /v1/**"]);
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let agent = guard.agent("probe");
    let get = |args: &[&str], url: &str| {
        let client = curl(&agent).args(["--write-out", "%{stderr}%{http_code}"]);
        let ran = client.args(args).arg(url).run().ok();
        (ran.stderr, ran.stdout)
    };
    let url = format!("https://127.0.0.1:{port}/v1/x");
    let proxied = ["--proxytunnel", "--proxy", "http://origin.test:3128"];
    for way in [&["--http1.1"][..], &["--http2"], &proxied] {
        assert_eq!(get(way, &url), ("200".into(), "ok".into()), "{way:?}");
    }
    // A name inside what an address was named for.
    let to_address = format!("origin.test:{port}:127.0.0.1:{port}");
    let named = [&proxied[..], &["--connect-to", &to_address]].concat();
    let by_name = get(&named, &format!("https://origin.test:{port}/v1/x"));
    assert_eq!(by_name, ("200".into(), "ok".into()));
    // The server has no such address in its certificate.
    let (status, body) = get(&[], &format!("https://127.0.0.1:{unnamed}/v1/x"));
    assert_eq!(status, "502", "{body}");
    assert!(
        body.contains("urn:agentguard:problem:upstream-tls"),
        "{body}"
    );
    // A name that TLS was not given.
    let (status, body) = get(&["--header", "Host: origin.test"], &url);
    assert_eq!(status, "403", "{body}");
    assert!(
        body.contains("the request is for `origin.test`, its connection for `127.0.0.1`"),
        "{body}"
    );
    let outcomes: Vec<_> = guard
        .requests()
        .iter()
        .map(|it| (it.resource().to_owned(), it.outcome().to_owned()))
        .collect();
    assert_eq!(
        outcomes.iter().filter(|it| it.1 == "allow").count(),
        4,
        "{outcomes:?}"
    );
}

#[test]
fn socks_is_refused_by_its_name() {
    let site = Site::new();
    let origin = Origin::start(&site, &[("x", OK)]);
    let guard = origin.guard(&site);
    for option in ["--socks5-hostname", "--socks4a"] {
        let before = guard.audit().len();
        let ran = curl(&guard.agent("probe"))
            .args([option, "origin.test:1080"])
            .arg(origin.url("x"))
            .run();
        assert_ne!(ran.code(), 0, "{option}");
        let records = guard.audit().split_off(before);
        let told = |it: &agentguard_tests::Record| it.text("/detail").contains("SOCKS");
        assert_eq!(
            records.iter().filter(|it| told(it)).count(),
            1,
            "{records:#?}"
        );
    }
}
