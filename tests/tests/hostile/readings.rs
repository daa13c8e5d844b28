//! A path, method or host that servers read otherwise than it is written: what a rule forbids stays forbidden in each reading,
//! over HTTP/1.1 and HTTP/2, and ordinary requests that look alike go on.

use agentguard_tests::bundle::reach;
use agentguard_tests::client::Subject;
use agentguard_tests::{Bundle, Guard, Nginx, Site};

const RULES: &str = r#"
@id("no-admin")
forbid (principal, action, resource) when { context.routes.contains("/admin/**") };
@id("no-deletion")
forbid (principal, action == Action::"DELETE", resource) when { context.path == "/v1/orders" };
"#;

/// A method and path, and header lines.
type Call = (&'static str, &'static str, &'static [&'static str]);

const FORBIDDEN: [Call; 47] = [
    ("GET", "/admin/users", &[]),
    ("GET", "/admin/", &[]),
    ("GET", "/admin/.", &[]),
    ("GET", "//admin//users", &[]),
    ("GET", "/v1/../admin", &[]),
    ("GET", "/%61dmin", &[]),
    ("GET", "/%2561dmin/users", &[]),
    ("GET", "/%252561dmin", &[]),
    ("GET", "/admin;x/users", &[]),
    ("GET", "/admin;x", &[]),
    ("GET", "/;x=1/admin", &[]),
    ("GET", "/admin%3bx", &[]),
    ("GET", "/admin%3Bx/users", &[]),
    ("GET", "/admin%253bx/users", &[]),
    ("GET", "/Admin/users", &[]),
    ("GET", "/ADMIN", &[]),
    ("GET", "/aDMIN;X/users", &[]),
    ("GET", "/admin%20/users", &[]),
    ("GET", "/%20admin/users", &[]),
    ("GET", "/admin%c2%a0/users", &[]),
    ("GET", "/admin%2e", &[]),
    ("GET", "/admin./users", &[]),
    ("GET", "/admin.json", &[]),
    ("GET", "/ADMIN.Json/", &[]),
    ("GET", "/admin%2fusers", &[]),
    ("GET", "/admin%252fusers", &[]),
    ("GET", "/admin%3fx", &[]),
    ("GET", "/admin%23x", &[]),
    ("GET", "/admin\\", &[]),
    ("GET", "/admin%5cusers", &[]),
    ("GET", "/admin%255cusers", &[]),
    ("GET", "/admin%09", &[]),
    ("GET", "/v1/%252e%252e/admin", &[]),
    ("GET", "/v1/..;/admin", &[]),
    ("DELETE", "/v1/orders/", &[]),
    ("DELETE", "/v1/orders.JSON", &[]),
    ("DELETE", "/v1/orders%2F", &[]),
    ("POST", "/v1/orders", &["X-HTTP-Method-Override: DELETE"]),
    ("POST", "/V1/orders", &["X_HTTP_Method: delete"]),
    ("GET", "/v1/orders", &["X-Method-Override: DELETE"]),
    ("POST", "/v1/orders?_method=DELETE", &[]),
    ("POST", "/v1/orders?a=1&%5fmethod=delete", &[]),
    ("GET", "/v1/x", &["X-Original-URL: /admin/users?x=1"]),
    ("GET", "/v1/x", &["X-Rewrite-URL: /Admin%2fusers"]),
    ("GET", "/v1/x", &["X-Forwarded-Host: elsewhere.test"]),
    ("GET", "/v1/x", &["X-Host: elsewhere.test"]),
    (
        "GET",
        "/v1/x",
        &["Forwarded: for=192.0.2.1;host=elsewhere.test"],
    ),
];

const ORDINARY: [Call; 15] = [
    ("GET", "/v1/orders", &[]),
    ("GET", "/administration", &[]),
    ("GET", "/bucket//key/a.tar.gz", &[]),
    ("GET", "/@scope%2fname", &[]),
    ("GET", "/v1/models/m:generateContent", &[]),
    ("GET", "/odata/Orders('x')", &[]),
    ("GET", "/maps;v=1/x;y=2", &[]),
    ("GET", "/repos/o/r/contents/a%20b.md", &[]),
    ("GET", "/search/100%25?filter%5Bname%5D=x&a.b=1", &[]),
    ("GET", "/wiki/%C3%9Cber", &[]),
    ("POST", "/v1/orders", &["X-HTTP-Method-Override: PATCH"]),
    ("POST", "/v1/orders?method=DELETE", &[]),
    ("GET", "/v1/x", &["X-Forwarded-For: 192.0.2.1"]),
    ("GET", "/v1/x", &["X-Original-URL: /v1/y"]),
    ("GET", "/v1/x", &["Forwarded: for=192.0.2.1;proto=https"]),
];

#[test]
fn nothing_forbidden_passes_as_something_else() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    for (_, path, _) in FORBIDDEN {
        let answered = call(&site, &origin, "--http1.1", ("GET", path, &[]));
        assert_ne!(answered.status, 0, "without AgentGuard, {path}");
    }
    let guard = start(&site, &origin, "");
    let before = origin.hits().len();
    for version in ["--http1.1", "--http2"] {
        for (method, path, headers) in FORBIDDEN {
            let before = guard.audit().len();
            let answered = call(
                &guard.agent("probe"),
                &origin,
                version,
                (method, path, headers),
            );
            let what = format!("{version} {method} {path} {headers:?}");
            let refused = matches!(answered.status, 400 | 403);
            assert!(refused, "{what}: {}", answered.body);
            let mut records = guard.audit().split_off(before);
            records.retain(|record| record.action() != "dns");
            let [record] = &records[..] else {
                panic!("{what}: not one record: {records:#?}");
            };
            assert_eq!(record.outcome(), "deny", "{what}: {record:?}");
            assert!(
                matches!(record.reason(), "policy-denied" | "protocol-refused"),
                "{what}: {record:?}"
            );
        }
    }
    let arrived = origin.hits().split_off(before);
    assert!(arrived.is_empty(), "something arrived: {arrived:#?}");
    for version in ["--http1.1", "--http2"] {
        for (method, path, headers) in ORDINARY {
            let answered = call(
                &guard.agent("probe"),
                &origin,
                version,
                (method, path, headers),
            );
            assert_eq!(
                answered.status, 200,
                "{version} {method} {path} {headers:?}: {}",
                answered.body
            );
        }
    }
}

#[test]
fn a_refusal_names_the_reading_that_decides() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let guard = start(&site, &origin, "");
    let agent = guard.agent("probe");
    let refused = call(&agent, &origin, "--http2", ("GET", "/Admin/users", &[]));
    let taken_for = "which some servers take for GET `/admin/users` (in lower case)";
    assert!(refused.body.contains(taken_for), "{}", refused.body);
    let record = guard.requests().pop().expect("a record");
    assert_eq!(record.path(), "/Admin/users", "{record:?}");
    assert!(
        record.0["detail"].to_string().contains(taken_for),
        "{record:?}"
    );
    assert_eq!(record.0["policies"], serde_json::json!(["no-admin"]));
    assert_eq!(
        record.0["facts"]["read_as"], "GET `/admin/users` (in lower case)",
        "{record:?}"
    );
    let headers = &["X-HTTP-Method-Override: DELETE"];
    let refused = call(
        &agent,
        &origin,
        "--http1.1",
        ("POST", "/v1/orders", headers),
    );
    let taken_for = "which some servers take for DELETE `/v1/orders` (x-http-method-override)";
    assert!(refused.body.contains(taken_for), "{}", refused.body);
    let record = guard.requests().pop().expect("a record");
    assert_eq!(
        record.0["facts"]["header.x-http-method-override"], "DELETE",
        "{record:?}"
    );
}

#[test]
fn a_hosts_file_says_which_readings_its_server_never_makes() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let exact = "paths = \"exact\"\noverrides = \"ignored\"\n";
    let guard = start(&site, &origin, exact);
    let agent = guard.agent("probe");
    let of = |method, path, headers| call(&agent, &origin, "--http1.1", (method, path, headers));
    for path in ["/Admin/users", "/admin;x/users", "/admin.json"] {
        assert_eq!(of("GET", path, &[]).status, 200, "{path}");
    }
    let headers = &["X-Original-URL: /admin", "X-HTTP-Method-Override: DELETE"];
    assert_eq!(of("POST", "/v1/orders?_method=DELETE", headers).status, 200);
    assert_eq!(of("GET", "/v1/../admin/users", &[]).status, 403);
}

struct Answered {
    /// 0: none.
    status: u16,
    body: String,
}

fn call(
    subject: &dyn Subject,
    origin: &Nginx,
    version: &str,
    (method, path, headers): Call,
) -> Answered {
    let mut client = subject
        .client("curl".as_ref())
        .args(["--silent", "--path-as-is", "--globoff", version])
        .args(["--request", method, "--write-out", "%{stderr}%{http_code}"]);
    for line in headers {
        client = client.args(["--header", line]);
    }
    let ran = client.arg(origin.url(path)).run();
    Answered {
        status: ran.stderr.trim().parse().expect("a status"),
        body: ran.stdout,
    }
}

fn start<'s>(site: &'s Site, origin: &Nginx, host: &str) -> Guard<'s> {
    let name = origin.host();
    let bundle = Bundle::new(1)
        .agent("probe", &reach("origin.test", origin.port, &["ANY /**"]))
        .file(
            "hosts/origin.toml",
            format!("[host]\nname = \"{name}\"\n{host}"),
        )
        .rules("all", RULES);
    Guard::start(site, &bundle)
}
