//! Broken and deceptive HTTP: refused with a reason and a record; the second request that hides in it never arrives.

use agentguard_tests::bundle::reach;
use agentguard_tests::client::{Subject, python};
use agentguard_tests::server::Server;
use agentguard_tests::{Bundle, Guard, Nginx, Site};

const SMUGGLED: &str = "GET /v1/smuggled HTTP/1.1\\r\\nHost: HOST\\r\\n\\r\\n";

/// Name, and the bytes as the inside of a Python byte string; `HOST` is the origin's authority.
const SHAPES: [(&str, &str); 20] = [
    (
        "length and chunked",
        "POST /v1/x HTTP/1.1\\r\\nHost: HOST\\r\\nContent-Length: 4\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\nSMUGGLED",
    ),
    (
        "chunked and length",
        "POST /v1/x HTTP/1.1\\r\\nHost: HOST\\r\\nTransfer-Encoding: chunked\\r\\nContent-Length: 4\\r\\n\\r\\n0\\r\\n\\r\\nSMUGGLED",
    ),
    (
        "two lengths",
        "POST /v1/x HTTP/1.1\\r\\nHost: HOST\\r\\nContent-Length: 0\\r\\nContent-Length: 44\\r\\n\\r\\nSMUGGLED",
    ),
    (
        "a list of lengths",
        "POST /v1/x HTTP/1.1\\r\\nHost: HOST\\r\\nContent-Length: 0, 44\\r\\n\\r\\nSMUGGLED",
    ),
    (
        "a signed length",
        "POST /v1/x HTTP/1.1\\r\\nHost: HOST\\r\\nContent-Length: +0\\r\\n\\r\\nSMUGGLED",
    ),
    (
        "chunked is not last",
        "POST /v1/x HTTP/1.1\\r\\nHost: HOST\\r\\nTransfer-Encoding: chunked, identity\\r\\n\\r\\n0\\r\\n\\r\\nSMUGGLED",
    ),
    (
        "an unknown coding",
        "POST /v1/x HTTP/1.1\\r\\nHost: HOST\\r\\nTransfer-Encoding: xchunked\\r\\n\\r\\n0\\r\\n\\r\\nSMUGGLED",
    ),
    (
        "a bad chunk size",
        "POST /v1/x HTTP/1.1\\r\\nHost: HOST\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\nzz\\r\\n\\r\\nSMUGGLED",
    ),
    (
        "a chunk size beyond 64 bits",
        "POST /v1/x HTTP/1.1\\r\\nHost: HOST\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n10000000000000000\\r\\n\\r\\nSMUGGLED",
    ),
    (
        "a folded line",
        "GET /v1/x HTTP/1.1\\r\\nHost: HOST\\r\\nX-A: 1\\r\\n Transfer-Encoding: chunked\\r\\n\\r\\nSMUGGLED",
    ),
    (
        "a space before the colon",
        "POST /v1/x HTTP/1.1\\r\\nHost: HOST\\r\\nTransfer-Encoding : chunked\\r\\n\\r\\n0\\r\\n\\r\\nSMUGGLED",
    ),
    (
        "a NUL in a value",
        "GET /v1/x HTTP/1.1\\r\\nHost: HOST\\r\\nX-A: a\\0b\\r\\n\\r\\nSMUGGLED",
    ),
    (
        "two hosts",
        "GET /v1/x HTTP/1.1\\r\\nHost: HOST\\r\\nHost: elsewhere.test\\r\\n\\r\\nSMUGGLED",
    ),
    ("no host", "GET /v1/x HTTP/1.1\\r\\n\\r\\nSMUGGLED"),
    (
        "an unknown version",
        "GET /v1/x HTTP/3.7\\r\\nHost: HOST\\r\\n\\r\\nSMUGGLED",
    ),
    ("HTTP/0.9", "GET /v1/x\\r\\n\\r\\nSMUGGLED"),
    (
        "a backslash",
        "GET /v1/..\\\\v2/x HTTP/1.1\\r\\nHost: HOST\\r\\n\\r\\nSMUGGLED",
    ),
    (
        "a hidden NUL",
        "GET /v1/x%00 HTTP/1.1\\r\\nHost: HOST\\r\\n\\r\\nSMUGGLED",
    ),
    (
        "dot segments behind an escaped slash",
        "GET /v1/a%2F..%2F..%2Fv2 HTTP/1.1\\r\\nHost: HOST\\r\\n\\r\\nSMUGGLED",
    ),
    (
        "an absolute form for another host",
        "GET https://elsewhere.test/v1/x HTTP/1.1\\r\\nHost: HOST\\r\\n\\r\\nSMUGGLED",
    ),
];

#[test]
fn deceptive_shapes_are_refused() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let guard = start(&site, &origin);
    for (name, shape) in SHAPES {
        let before = guard.audit().len();
        let answer = send(&guard.agent("probe"), &origin, &format!("b'{shape}'"));
        let status = status(&answer);
        assert!(
            matches!(status, 0 | 400..=499 | 501 | 505),
            "{name}: {answer}"
        );
        assert!(
            answer.matches("HTTP/1.1 2").count() == 0,
            "{name}: {answer}"
        );
        let records: Vec<_> = guard
            .audit()
            .split_off(before)
            .into_iter()
            .filter(|record| record.action() != "dns")
            .collect();
        let [record] = &records[..] else {
            panic!("{name}: not one record: {records:#?}\n{answer}");
        };
        assert_eq!(record.outcome(), "deny", "{name}: {record:?}");
        assert_eq!(record.reason(), "protocol-refused", "{name}: {record:?}");
    }
    let arrived = origin.hits();
    assert!(arrived.is_empty(), "something arrived: {arrived:#?}");
}

#[test]
fn a_path_is_judged_in_each_of_its_forms_and_sent_as_it_is_written() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let guard = start(&site, &origin);
    let cases = [
        ("/v1/a/../b", 200),
        ("/v1/./a", 200),
        ("/v1//a/", 200),
        ("/v1/https://a.test//b", 200),
        ("/v1/%61", 200),
        ("/%76%31/%7Ea", 200),
        ("/v1/a%2fb", 200),
        ("/v1/caf%E9|b", 200),
        ("/v1/a?x=/../v2|%7e", 200),
        ("/v1", 200),
        ("//v1/a", 403),
        ("//x/v1/a", 403),
        ("/v2/%2e%2e/v1/a", 403),
        ("/v1/../v2/a", 403),
        ("/v1//../v2/a", 403),
        ("/v1/%2e%2e/v2/a", 403),
        ("/%76%32/a", 403),
        ("/V1/a", 403),
        ("/v", 403),
        ("/v1/%C0%AE%C0%AE/v2", 403),
    ];
    for (path, wanted) in cases {
        let before = origin.hits().len();
        let request =
            format!("b'GET {path} HTTP/1.1\\r\\nHost: HOST\\r\\nConnection: close\\r\\n\\r\\n'");
        let answer = send(&guard.agent("probe"), &origin, &request);
        assert_eq!(status(&answer), wanted, "{path}: {answer}");
        let arrived = origin.hits().split_off(before);
        let uris: Vec<_> = arrived.iter().map(|hit| &*hit.uri).collect();
        let expected: &[&str] = if wanted == 200 { &[path] } else { &[] };
        assert_eq!(uris, expected, "{path}");
    }
}

#[test]
fn a_header_beyond_the_bound_is_refused() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let guard = start(&site, &origin);
    let fits = "b'GET /v1/x HTTP/1.1\\r\\nHost: HOST\\r\\nConnection: close\\r\\nX-Long: ' + b'a' * 16000 + b'\\r\\n\\r\\n'";
    assert_eq!(status(&send(&guard.agent("probe"), &origin, fits)), 200);
    let before = guard.audit().len();
    let long =
        "b'GET /v1/x HTTP/1.1\\r\\nHost: HOST\\r\\nX-Long: ' + b'a' * 2000000 + b'\\r\\n\\r\\n'";
    let many = "b'GET /v1/x HTTP/1.1\\r\\nHost: HOST\\r\\n' + b'X-A: b\\r\\n' * 100000 + b'\\r\\n'";
    let target = "b'GET /v1/' + b'a' * 2000000 + b' HTTP/1.1\\r\\nHost: HOST\\r\\n\\r\\n'";
    for request in [long, many, target] {
        let answer = send(&guard.agent("probe"), &origin, request);
        assert!(matches!(status(&answer), 0 | 400..=499), "{answer}");
    }
    let records = guard.audit().split_off(before);
    let denied = records
        .iter()
        .filter(|record| record.reason() == "protocol-refused")
        .count();
    assert_eq!(denied, 3, "{records:#?}");
    assert_eq!(origin.hits().len(), 1);
}

#[test]
fn a_slow_client_is_let_go_and_recorded() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    site.configure(|config| {
        config["forwarder"]
            .as_table_mut()
            .expect("a table")
            .insert("head_timeout_ms".into(), 500.into());
    });
    let guard = start(&site, &origin);
    let before = guard.audit().len();
    // The peer has to end it: the client waits without a limit of its own worth mentioning.
    let half = "b'GET /v1/x HTTP/1.1\\r\\nHost: HO'";
    for way in ["http/1.1", "plain"] {
        let port = if way == "plain" {
            origin.port_plain
        } else {
            origin.port
        };
        let answer = send_as(&guard.agent("probe"), port, way, half);
        assert!(matches!(status(&answer), 0 | 403 | 408), "{way}: {answer}");
    }
    let records: Vec<_> = guard
        .audit()
        .split_off(before)
        .into_iter()
        .filter(|record| record.action() != "dns")
        .collect();
    assert_eq!(records.len(), 2, "{records:#?}");
    assert!(
        records.iter().all(|record| record.outcome() != "allow"),
        "{records:#?}"
    );
    assert!(origin.hits().is_empty());
}

#[test]
fn a_pipelined_request_is_judged_by_itself() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let guard = start(&site, &origin);
    let two = "b'GET /v1/one HTTP/1.1\\r\\nHost: HOST\\r\\n\\r\\nGET /v2/two HTTP/1.1\\r\\nHost: HOST\\r\\nConnection: close\\r\\n\\r\\n'";
    let answer = send(&guard.agent("probe"), &origin, two);
    assert!(
        answer.contains("HTTP/1.1 200") && answer.contains("HTTP/1.1 403"),
        "{answer}"
    );
    let uris: Vec<_> = origin.hits().into_iter().map(|hit| hit.uri).collect();
    assert_eq!(uris, ["/v1/one"]);
}

/// A server that answers by the head alone takes the body for the next request.
#[test]
fn a_body_is_no_request_to_a_server_that_does_not_read_it() {
    let site = Site::new();
    let mut origin = Server::start(&site, "careless_server.py", &[]);
    let url = format!("https://origin.test:{}/v1", origin.port);
    let routes = ["GET /v1/**", "POST /v1/**", "PUT /v1/**"];
    let policy = reach("origin.test", origin.port, &routes);
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let agent = guard.agent("probe");
    let hidden = "DELETE /v1/secret HTTP/1.1\r\nHost: origin.test\r\n\r\n";
    let status = |subject: &dyn Subject, args: &[&str]| {
        let client = subject.client("curl".as_ref());
        let client = client.args([
            "--silent",
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code}",
        ]);
        client.args(args).run().ok().stdout
    };
    let with_body = |method| ["--request", method, "--data-binary", hidden];
    let direct = [&with_body("POST")[..], &["--http1.1", &url]].concat();
    assert_eq!(status(&site, &direct), "200");
    origin
        .talk()
        .line(|line| line == "served DELETE /v1/secret");

    for version in ["--http1.1", "--http2"] {
        for (method, expected) in [("POST", "200"), ("PUT", "200"), ("GET", "403")] {
            for chunked in [None, Some("Transfer-Encoding: chunked")] {
                let mut args = with_body(method).to_vec();
                args.extend(
                    chunked
                        .map(|chunked| ["--header", chunked])
                        .into_iter()
                        .flatten(),
                );
                // Two requests of one client, so that the second could go out behind the first.
                args.extend([version, &url, "--next", "--silent", "--output", "/dev/null"]);
                let last = format!("/v1/last/{method}{version}/{}", chunked.is_some());
                let then = format!("https://origin.test:{}{last}", origin.port);
                args.extend(["--write-out", "%{http_code}", version, &then]);
                let seen = status(&agent, &args);
                assert_eq!(
                    seen,
                    format!("{expected}200"),
                    "{version} {method} {chunked:?}: {:#?}",
                    guard.requests()
                );
                origin
                    .talk()
                    .line(|line| line == format!("served GET {last}"));
            }
        }
    }
    let heard = origin.talk().heard();
    assert_eq!(
        heard.matches("secret").count(),
        1,
        "the one without AgentGuard: {heard}"
    );
}

fn start<'site>(site: &'site Site, origin: &Nginx) -> Guard<'site> {
    let routes = ["GET /v1/**", "POST /v1/**"];
    let policy = reach("origin.test", origin.port, &routes)
        + &reach("origin.test", origin.port_plain, &routes);
    Guard::start(site, &Bundle::new(1).agent("probe", &policy))
}

fn send(subject: &dyn Subject, origin: &Nginx, bytes: &str) -> String {
    send_as(subject, origin.port, "http/1.1", bytes)
}

fn send_as(subject: &dyn Subject, port: u16, way: &str, bytes: &str) -> String {
    let bytes = bytes
        .replace("SMUGGLED", SMUGGLED)
        .replace("HOST", &format!("origin.test:{port}"));
    let client = python(subject, "raw_client.py").args([&port.to_string(), way]);
    client.input(bytes).run().ok().stdout
}

/// Of the first answer; 0 where there is none.
fn status(answer: &str) -> u16 {
    let line = answer
        .strip_prefix("HTTP/1.1 ")
        .or_else(|| answer.strip_prefix("HTTP/1.0 "));
    line.and_then(|line| line.get(..3)?.parse().ok())
        .unwrap_or_default()
}
