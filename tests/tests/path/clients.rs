//! Unchanged HTTP clients without a flag: each is allowed and refused by method and path on one and the same host.

use agentguard_tests::bundle::reach;
use agentguard_tests::client::Subject;
use agentguard_tests::{Bundle, Guard, Nginx, Ran, Site};

/// What a client was answered.
struct Answer {
    status: u16,
    body: String,
}

impl Answer {
    /// From a client that prints the status on the first line and then the body.
    fn status_first(ran: Ran) -> Self {
        let ran = ran.ok();
        let (status, body) = ran.stdout.split_once('\n').unwrap_or((&ran.stdout, ""));
        Self {
            status: status
                .trim()
                .parse()
                .unwrap_or_else(|_| panic!("no status: {ran:#?}")),
            body: body.to_owned(),
        }
    }
}

/// Off: both calls succeed. On: the allowed one arrives once; the refused ones get a problem document, never arrive, and
/// have one record each.
fn allowed_and_refused(name: &str, call: impl Fn(&dyn Subject, &str, &str) -> Answer) {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let allowed = format!("/v1/allowed/{name}");
    let refused = format!("/v1/refused/{name}");
    let calls = [
        ("GET", &allowed, true),
        ("GET", &refused, false),
        ("DELETE", &allowed, false),
    ];

    for (method, path, _) in calls {
        let answer = call(&site, method, &origin.url(path));
        assert_eq!(
            (answer.status, answer.body.trim()),
            (200, &*format!("{method} {path}")),
            "without AgentGuard"
        );
    }
    assert_eq!(origin.hits().len(), calls.len(), "without AgentGuard");

    let policy = reach("origin.test", origin.port, &["GET /v1/allowed/**"]);
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    for (method, path, may) in calls {
        let answer = call(&guard.agent("probe"), method, &origin.url(path));
        let case = format!("{method} {path}: {} {}", answer.status, answer.body);
        let records: Vec<_> = guard
            .requests()
            .into_iter()
            .filter(|record| record.action() == method && record.path() == path)
            .collect();
        let [record] = &records[..] else {
            panic!("{case}: not one record: {records:?}");
        };
        assert_eq!(record.resource(), origin.host(), "{case}");
        assert_eq!(record.agent(), "probe", "{case}");
        assert_eq!(
            record.number("/request/status"),
            u64::from(answer.status),
            "{case}"
        );
        if may {
            assert_eq!(answer.status, 200, "{case}");
            assert_eq!(answer.body.trim(), format!("{method} {path}"));
            assert_eq!(record.outcome(), "allow", "{case}");
        } else {
            assert_eq!(answer.status, 403, "{case}");
            let problem: serde_json::Value =
                serde_json::from_str(&answer.body).expect("a problem document");
            assert_eq!(
                problem["type"], "urn:agentguard:problem:policy-denied",
                "{case}"
            );
            assert_eq!(problem["status"], 403, "{case}");
            assert_eq!(problem["agent"], "probe", "{case}");
            assert_eq!(problem["action"], method, "{case}");
            assert_eq!(problem["resource"], origin.host(), "{case}");
            assert_eq!(
                problem["instance"],
                format!("urn:uuid:{}", record.text("/decision")),
                "{case}"
            );
            assert!(
                problem["title"].is_string() && problem["detail"].is_string(),
                "{case}"
            );
            assert_eq!(
                (record.outcome(), record.reason()),
                ("deny", "policy-denied"),
                "{case}"
            );
        }
    }
    let arrived: Vec<_> = origin.hits().split_off(calls.len());
    let arrived: Vec<_> = arrived
        .iter()
        .map(|hit| (&*hit.method, &*hit.uri))
        .collect();
    assert_eq!(arrived, [("GET", &*allowed)], "what arrived at the origin");
}

fn curl(subject: &dyn Subject, version: &str, expected: &str, method: &str, url: &str) -> Answer {
    let ran = subject
        .client("curl".as_ref())
        .args(["--silent", "--show-error", version, "--request", method])
        .args(["--write-out", "%{stderr}%{http_code} %{http_version}", url])
        .run()
        .ok();
    let (status, spoken) = ran.stderr.split_once(' ').expect("two values");
    assert_eq!(spoken, expected, "curl spoke another version");
    Answer {
        status: status.parse().expect("a status"),
        body: ran.stdout,
    }
}

#[test]
fn curl_http1() {
    allowed_and_refused("curl-http1", |subject, method, url| {
        curl(subject, "--http1.1", "1.1", method, url)
    });
}

#[test]
fn curl_http2() {
    allowed_and_refused("curl-http2", |subject, method, url| {
        curl(subject, "--http2", "2", method, url)
    });
}

#[test]
fn wget() {
    allowed_and_refused("wget", |subject, method, url| {
        let ran = subject
            .client("wget".as_ref())
            .args([
                "--server-response",
                "--content-on-error",
                "--output-document=-",
            ])
            .args([&format!("--method={method}"), "--tries=1", url])
            .run();
        let status = ran
            .stderr
            .lines()
            .find_map(|line| line.trim().strip_prefix("HTTP/1.1 "))
            .unwrap_or_else(|| panic!("no status: {ran:#?}"));
        Answer {
            status: status[..3].parse().expect("a status"),
            body: ran.stdout.clone(),
        }
    });
}

fn python(library: &str) {
    allowed_and_refused(library, |subject, method, url| {
        let client = agentguard_tests::client::python(subject, "http_client.py");
        Answer::status_first(client.args([library, method, url]).run())
    });
}

fn node(way: &str) {
    allowed_and_refused(&format!("node-{way}"), |subject, method, url| {
        let client = agentguard_tests::client::node(subject, "http_client.mjs");
        Answer::status_first(client.args([way, method, url]).run())
    });
}

#[test]
fn python_requests() {
    python("requests");
}

#[test]
fn python_httpx() {
    python("httpx");
}

#[test]
fn python_httpx_http2() {
    python("httpx_http2");
}

#[test]
fn python_urllib() {
    python("urllib");
}

#[test]
fn python_urllib3() {
    python("urllib3");
}

#[test]
fn python_aiohttp() {
    python("aiohttp");
}

#[test]
fn python_boto3() {
    python("boto3");
}

#[test]
fn node_fetch() {
    node("fetch");
}

#[test]
fn node_https() {
    node("https");
}

#[test]
fn node_http2() {
    node("http2");
}

#[test]
fn node_undici() {
    node("undici");
}
