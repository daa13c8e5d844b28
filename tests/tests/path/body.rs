//! Rules that read request bodies, over the wire: real clients, the bundles of `policies/`, and a server that tells what has
//! arrived at it.

use std::fs;
use std::path::Path;

use agentguard_tests::client::Subject;
use agentguard_tests::{Bundle, Guard, Ran, Record, Server, Site};

/// A bundle of `policies/`, its host replaced by the site's.
fn shipped(name: &str, host: &str, port: u16) -> Bundle {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../policies")
        .join(name);
    let mut bundle = Bundle::new(1);
    for folder in ["agents", "hosts", "rules"] {
        for entry in fs::read_dir(root.join(folder)).expect("a folder") {
            let path = entry.expect("an entry").path();
            let file = path
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            let text = fs::read_to_string(&path).expect("text");
            let text = text.replace(host, &format!("origin.test:{port}"));
            // Who it is outside of these tests.
            let text = text.replace("user = \"procurement\"\n", "");
            bundle = bundle.file(&format!("{folder}/{file}"), text);
        }
    }
    bundle
}

struct Shop<'site> {
    guard: Guard<'site>,
    server: Server,
    agent: &'static str,
}

impl<'site> Shop<'site> {
    fn open(site: &'site Site, name: &str, host: &str, agent: &'static str) -> Self {
        let server = Server::start(site, "recorder.py", &[]);
        let guard = Guard::start(site, &shipped(name, host, server.port));
        Self {
            guard,
            server,
            agent,
        }
    }

    fn curl(&self, path: &str, args: &[&str], input: Option<&str>) -> Ran {
        let url = format!("https://origin.test:{}{path}", self.server.port);
        let client = self
            .guard
            .agent(self.agent)
            .client("curl".as_ref())
            .args([
                "--silent",
                "--show-error",
                "--max-time",
                "60",
                "--write-out",
                "\n%{http_code}",
            ])
            .args(args)
            .arg(url);
        match input {
            Some(text) => client.input(text).run(),
            None => client.run(),
        }
    }

    /// Sends JSON; the status, the answer, and the record.
    fn send(&self, path: &str, body: &str, more: &[&str]) -> (String, serde_json::Value, Record) {
        let mut args = vec![
            "--header",
            "content-type: application/json",
            "--data-binary",
            body,
        ];
        args.extend(more);
        self.answered(self.curl(path, &args, None))
    }

    fn answered(&self, ran: Ran) -> (String, serde_json::Value, Record) {
        let text = ran.ok().stdout;
        let (answer, status) = text.rsplit_once('\n').expect("a status");
        let answer = serde_json::from_str(answer).unwrap_or_default();
        let record = self.guard.requests().pop().expect("a record");
        (status.to_owned(), answer, record)
    }

    /// What the server has been sent: method, path and bytes of each.
    fn hits(&mut self) -> Vec<String> {
        // What comes after everything else, from somebody who is no agent.
        let url = format!("https://origin.test:{}/end", self.server.port);
        let curl = self.guard.site().client("curl".as_ref());
        curl.args(["--silent", "--fail", &url]).run().ok();
        let server = self.server.talk();
        server.line(|line| line.contains(" /end "));
        let heard = server.heard();
        let hits = heard.lines().filter_map(|line| line.strip_prefix("hit "));
        let hits = hits.filter(|hit| !hit.contains(" /end "));
        hits.map(|hit| {
            let words: Vec<&str> = hit.split(' ').collect();
            format!("{} {} {}", words[0], words[1], words[3])
        })
        .collect()
    }
}

#[test]
fn procurement() {
    let site = Site::new();
    let mut shop = Shop::open(&site, "procurement", "api.supplier.example", "procurement");
    let orders = "/v1/orders";
    let cases = [
        (r#"{"amount": 399.99}"#, "201", "allow", "", ""),
        (
            r#"{"amount": 400}"#,
            "403",
            "approval-required",
            "approval-required",
            "owner",
        ),
        (
            r#"{"amount": 1200, "for": "laptop batteries"}"#,
            "403",
            "approval-required",
            "approval-required",
            "owner",
        ),
        (
            r#"{"amount": 50000}"#,
            "403",
            "approval-required",
            "approval-required",
            "finance",
        ),
        (r#"{"amount": 1000000}"#, "403", "deny", "policy-denied", ""),
        (r#"{"amount": -1}"#, "403", "deny", "policy-denied", ""),
        ("{}", "403", "deny", "policy-denied", ""),
        (
            r#"{"amount": 399.999999999999999999}"#,
            "403",
            "deny",
            "body-unreadable",
            "",
        ),
        (
            r#"{"amount": 1, "amount": 50000}"#,
            "403",
            "deny",
            "body-ambiguous",
            "",
        ),
        (
            r#"{"amount": 1, "Amount": 50000}"#,
            "403",
            "deny",
            "body-ambiguous",
            "",
        ),
        ("{\"amount\": 1", "403", "deny", "body-unreadable", ""),
    ];
    for (body, status, outcome, reason, role) in cases {
        let (got, answer, record) = shop.send(orders, body, &[]);
        assert_eq!(got, status, "{body} {answer}");
        assert_eq!(
            (record.outcome(), record.reason()),
            (outcome, reason),
            "{body} {record:?}"
        );
        if status == "201" {
            continue;
        }
        assert_eq!(
            answer["type"],
            format!("urn:agentguard:problem:{reason}"),
            "{body}"
        );
        assert_eq!(
            answer["approval"]["role"].as_str().unwrap_or_default(),
            role,
            "{body} {answer}"
        );
        assert_eq!(record.0["approval"], answer["approval"], "{body}");
    }
    assert_eq!(shop.hits(), ["POST /v1/orders 18"]);
    let record = &shop.guard.requests()[0];
    assert_eq!(record.text("/facts/body.amount"), "399.99");
    assert_eq!(record.text("/facts/scope"), "money");
    assert_eq!(record.number("/bytes_up"), 18);
    let (_, answer, record) = shop.send(orders, r#"{"amount": 50000}"#, &[]);
    assert_eq!(
        answer["approval"]["roles"],
        serde_json::json!(["finance", "owner"])
    );
    assert_eq!(
        record.0["policies"],
        serde_json::json!(["orders-finance", "orders-owner"])
    );
    assert!(!record.0.to_string().contains("50000}"), "{record:?}");
    let held = [
        "policy",
        "explain",
        "--agent",
        "procurement",
        "--body",
        "-",
        "POST",
    ];
    let url = format!("https://origin.test:{}{orders}", shop.server.port);
    let explain = |roles: &[&str]| {
        let words = held
            .iter()
            .copied()
            .chain([url.as_str()])
            .chain(roles.iter().copied());
        site.cli(words)
            .input("{\"amount\": 1200}")
            .run()
            .ok()
            .stdout
    };
    assert!(
        explain(&[]).contains("approval-required"),
        "{}",
        explain(&[])
    );
    assert!(explain(&["--approved-by", "owner"]).starts_with("permitted:"));
}

#[test]
fn every_way_to_send_a_body() {
    let site = Site::new();
    let mut shop = Shop::open(&site, "procurement", "api.supplier.example", "procurement");
    let small = "{\"amount\": 12.5}";
    let ways: [&[&str]; 4] = [
        &["--http1.1"],
        &["--http2"],
        &["--http1.1", "--header", "transfer-encoding: chunked"],
        &["--http1.1", "--header", "expect: 100-continue"],
    ];
    for way in ways {
        let (status, answer, record) = shop.send("/v1/orders", small, way);
        assert_eq!(status, "201", "{way:?} {answer} {record:?}");
        let (status, ..) = shop.send("/v1/orders", "{\"amount\": 1200}", way);
        assert_eq!(status, "403", "{way:?}");
    }
    assert_eq!(shop.hits().len(), 4);

    // Compressed: judged as the server will read it, sent on as it came.
    let agent = shop.guard.agent("procurement");
    let python = format!(
        r#"
import gzip, http.client, json, ssl, zlib
def send(body, coding, kind="application/json"):
    c = http.client.HTTPSConnection("origin.test", {port}, context=ssl.create_default_context(), timeout=60)
    headers = {{"content-type": kind}}
    if coding: headers["content-encoding"] = coding
    c.request("POST", "/v1/orders", body, headers)
    r = c.getresponse(); text = r.read(); c.close()
    slug = json.loads(text)["type"].rsplit(":", 1)[1] if text else "-"
    print(r.status, slug)
small, large = b'{{"amount": 12.5}}', b'{{"amount": 1200}}'
send(gzip.compress(small, mtime=0), "gzip")
send(gzip.compress(large), "gzip")
send(zlib.compress(small), "deflate")
send(small, "br")
send(gzip.compress(b" " * 50_000_000), "gzip")
send(gzip.compress(small) + gzip.compress(large), "gzip")
send(small, None, "text/plain")
send(small, None, "application/json; charset=utf-16")
send(b" " * (1 << 20) + small, None)
send(b"[" * 100 + b"]" * 100, None)
"#,
        port = shop.server.port
    );
    let said = agent.python_code(&python).ok().stdout;
    let expected = "201 -\n403 approval-required\n201 -\n403 body-unreadable\n403 body-too-large\n403 body-ambiguous\n403 body-unreadable\n403 body-unreadable\n403 body-too-large\n403 body-too-large";
    assert_eq!(said, expected);
    assert_eq!(shop.hits().len(), 6);
}

#[test]
fn a_body_that_does_not_come_is_not_waited_for_long() {
    let site = Site::new();
    site.configure(|config| {
        let forwarder = config["forwarder"].as_table_mut().expect("a table");
        forwarder.insert("judged_body_timeout_ms".into(), 300.into());
    });
    let mut shop = Shop::open(&site, "procurement", "api.supplier.example", "procurement");
    let code = format!(
        r#"
import ssl
s = ssl.create_default_context().wrap_socket(socket.create_connection(("origin.test", {port})), server_hostname="origin.test")
s.sendall(b"POST /v1/orders HTTP/1.1\r\nHost: origin.test:{port}\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{{")
print(s.recv(65536).decode())
"#,
        port = shop.server.port
    );
    let said = shop
        .guard
        .agent("procurement")
        .python_code(&code)
        .ok()
        .stdout;
    assert!(
        said.contains("403") && said.contains("body-unreadable"),
        "{said}"
    );
    assert_eq!(shop.hits(), [""; 0]);
    let record = shop.guard.requests().pop().expect("a record");
    assert_eq!(
        (record.outcome(), record.reason()),
        ("deny", "body-unreadable")
    );
}

#[test]
fn bodies_that_are_held_at_once_have_a_bound_together() {
    let site = Site::new();
    site.configure(|config| {
        let forwarder = config["forwarder"].as_table_mut().expect("a table");
        forwarder.insert("max_judged_body_bytes".into(), (1 << 20).into());
        forwarder.insert("max_judged_bodies_bytes".into(), (1 << 20).into());
    });
    let mut shop = Shop::open(&site, "procurement", "api.supplier.example", "procurement");
    // The second asks for room while the first has most of it, and again when that has gone on.
    let code = format!(
        r#"
import json, ssl
context = ssl.create_default_context()
def begun(body):
    s = context.wrap_socket(socket.create_connection(("origin.test", {port})), server_hostname="origin.test")
    s.sendall(b"POST /v1/orders HTTP/1.1\r\nHost: origin.test:{port}\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(body))
    return s
def answer(s):
    s.settimeout(60)
    return s.recv(65536).decode()
body = b'{{"amount": 12.5, "note": "' + b"x" * 700_000 + b'"}}'
def send():
    s = begun(body)
    said = answer(s)
    try:
        if "100 Continue" in said:
            s.sendall(body)
            said = answer(s)
    except OSError:
        said = ""  # Refused before its end.
    return said
first = begun(body)
assert "100 Continue" in answer(first)
first.sendall(body[:-1])
refused = send()
while "body-too-large" not in refused: refused = send()
print(refused.split("\r\n\r\n", 1)[1])
first.sendall(body[-1:])
print(answer(first).split()[1], send().split()[1])
"#,
        port = shop.server.port
    );
    let agent = shop.guard.agent("procurement");
    let said = agent.python_code(&code).ok().stdout;
    assert!(
        said.contains("no room for it beside those of other requests"),
        "{said}"
    );
    assert!(said.ends_with("\n201 201"), "{said}");
    assert!(shop.hits().len() >= 2);
}

#[test]
fn infrastructure() {
    let site = Site::new();
    let mut shop = Shop::open(&site, "infrastructure", "api.cloud.example", "platform");
    let cases = [
        (
            r#"{"spec": {"environment": "dev", "count": 50}}"#,
            "201",
            "allow",
        ),
        (
            r#"{"spec": {"environment": "dev", "count": 51}}"#,
            "403",
            "approval-required",
        ),
        (
            r#"{"spec": {"environment": "prod", "count": 1}}"#,
            "403",
            "approval-required",
        ),
        (r#"{"spec": {"count": 1}}"#, "403", "approval-required"),
        (
            r#"{"spec": {"environment": "dev", "environment": "prod", "count": 1}}"#,
            "403",
            "deny",
        ),
        (r#"{"spec": {"environment": "dev"}}"#, "403", "deny"),
    ];
    for (body, status, outcome) in cases {
        let (got, answer, record) = shop.send("/v1/servers", body, &[]);
        assert_eq!(
            (got.as_str(), record.outcome()),
            (status, outcome),
            "{body} {answer}"
        );
    }
    let (status, _, record) =
        shop.answered(shop.curl("/v1/servers/7", &["--request", "DELETE"], None));
    assert_eq!(
        (status.as_str(), record.outcome()),
        ("403", "approval-required")
    );
    // What no rule reads is streamed, whatever it is.
    let (status, ..) = shop.send("/v1/search", "no JSON at all", &[]);
    assert_eq!(status, "201");
    assert_eq!(shop.hits(), ["POST /v1/servers 45", "POST /v1/search 14"]);
}

#[test]
fn export() {
    let site = Site::new();
    let mut shop = Shop::open(&site, "export", "warehouse.example", "analyst");
    let (status, ..) = shop.answered(shop.curl("/v1/reports/7", &[], None));
    assert_eq!(status, "201");
    let (status, answer, _) = shop.answered(shop.curl("/v1/customers/download", &[], None));
    assert_eq!(status, "403");
    assert_eq!(answer["approval"]["role"], "data-protection", "{answer}");
    let (status, ..) = shop.send("/v1/jobs", r#"{"kind": "aggregate"}"#, &[]);
    assert_eq!(status, "201");
    let (status, _, record) = shop.send("/v1/jobs", r#"{"kind": "dump"}"#, &[]);
    assert_eq!(
        (status.as_str(), record.outcome()),
        ("403", "approval-required")
    );
    assert_eq!(record.text("/facts/scope"), "export");

    let form = |fields: &[&str], flag: &str| {
        let args: Vec<&str> = fields.iter().flat_map(|field| [flag, *field]).collect();
        let (status, answer, record) = shop.answered(shop.curl("/v1/exports", &args, None));
        assert_eq!(status, "403", "{answer}");
        let slug = answer["type"].as_str().expect("a type").rsplit(':').next();
        (slug.unwrap_or_default().to_owned(), record)
    };
    let contact = "contact=ada@example.com";
    for flag in ["--data-urlencode", "--form"] {
        let (slug, record) = form(
            &["destination=vault.example", "table=orders", contact],
            flag,
        );
        assert_eq!(slug, "approval-required", "{flag}");
        assert_eq!(record.text("/facts/body.tables"), "orders");
        let hidden = record.text("/facts/body.contact");
        assert!(hidden.starts_with("sha256:"), "{hidden}");
        assert!(!record.0.to_string().contains("ada@"), "{record:?}");
        assert_eq!(
            form(&["destination=paste.example", contact], flag).0,
            "policy-denied"
        );
        let twice = [
            "destination=vault.example",
            "destination=paste.example",
            contact,
        ];
        assert_eq!(form(&twice, flag).0, "body-ambiguous", "{flag}");
    }
    assert_eq!(shop.hits(), ["GET /v1/reports/7 0", "POST /v1/jobs 21"]);
}
