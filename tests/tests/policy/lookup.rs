//! Rules that read what another service knows, over the wire: a small real service over TLS that answers well, badly and not
//! at all, real clients, and an origin that tells what has arrived at it.

use std::time::Instant;

use agentguard_tests::client::{Dialer, Subject as _, dialer, python};
use agentguard_tests::tools::PATIENCE;
use agentguard_tests::{Bundle, Guard, Record, Server, Site};

const TICKETS: &str = "tickets.test";

/// Agents `probe` and `other`, a customer database, and the ticket system that its records are looked up in.
struct Office<'site> {
    guard: Guard<'site>,
    origin: Server,
    tickets: Server,
}

/// `{tickets}` and `{origin}` in the host's file and the rules are `name:port` of theirs.
fn filled(text: &str, origin: u16, tickets: u16) -> String {
    text.replace("{tickets}", &format!("{TICKETS}:{tickets}"))
        .replace("{port}", &tickets.to_string())
        .replace("{origin}", &format!("origin.test:{origin}"))
}

fn bundle(serial: u64, lookups: &str, origin: u16, tickets: u16) -> Bundle {
    let host = format!("[host]\nname = \"{{origin}}\"\n{lookups}");
    let rules = "@id(\"read\") permit (principal, action == Action::\"GET\", resource == Host::\"{origin}\")
when { context.routes.contains(\"/free\") || context.lookup has open && context.lookup.open };";
    let reach = format!("[[reach]]\nhost = \"origin.test:{origin}\"\n");
    Bundle::new(serial)
        .agent("probe", &reach)
        .agent("other", &reach)
        .file("hosts/crm.toml", filled(&host, origin, tickets))
        .rules("records", &filled(rules, origin, tickets))
}

/// One look-up, of the record that the path names.
fn record(more: &str) -> String {
    format!(
        "[[lookup]]\non = \"GET /v1/customers/{{record}}/**\"\nurl = \"https://{{tickets}}/open?record={{path.record}}\"\nopen = {{ type = \"bool\", at = \"/open\" }}\n{more}"
    )
}

impl<'site> Office<'site> {
    fn open(site: &'site Site, lookups: &str) -> Self {
        site.configure(|config| {
            let upstream = config
                .get_mut("upstream")
                .and_then(toml::Value::as_table_mut);
            let hosts = upstream.and_then(|it| it.get_mut("hosts")?.as_table_mut());
            let hosts = hosts.expect("the base has hosts");
            for name in [TICKETS, "elsewhere.test"] {
                hosts.insert(name.into(), "127.0.0.1".into());
            }
        });
        let origin = Server::start(site, "recorder.py", &[]);
        let identity = site.ca().issue(&[TICKETS]);
        let (certificate, key) = (&identity.certificate, &identity.key);
        let tickets = Server::start_with("ticket_server.py", certificate, key, &[]);
        let bundle = bundle(1, lookups, origin.port, tickets.port);
        let guard = Guard::start(site, &bundle);
        Self {
            guard,
            origin,
            tickets,
        }
    }

    fn url(&self, path: &str) -> String {
        format!("https://origin.test:{}{path}", self.origin.port)
    }

    /// Status and problem of what curl gets, and the record.
    fn curl(&self, path: &str) -> (String, String, Record) {
        let client = self.guard.agent("probe").client("curl".as_ref());
        let more = ["--silent", "--show-error", "--write-out", "\n%{http_code}"];
        let said = client.args(more).arg(self.url(path)).run().ok().stdout;
        let (answer, status) = said.rsplit_once('\n').expect("a status");
        let answer: serde_json::Value = serde_json::from_str(answer).unwrap_or_default();
        let problem = answer["type"].as_str().unwrap_or_default();
        let slug = problem.rsplit(':').next().unwrap_or_default().to_owned();
        let record = self.guard.requests().pop().expect("a record");
        assert_eq!(
            record.text("/detail"),
            answer["detail"].as_str().unwrap_or_default()
        );
        (status.to_owned(), slug, record)
    }

    /// Paths that have arrived at the origin.
    fn hits(&mut self) -> Vec<String> {
        let url = self.url("/end");
        // What comes after everything else, from somebody who is no agent.
        let curl = self.guard.site().client("curl".as_ref());
        curl.args(["--silent", "--fail", &url]).run().ok();
        let server = self.origin.talk();
        server.line(|line| line.contains(" /end "));
        let heard = server.heard();
        let hits = heard
            .lines()
            .filter_map(|line| line.strip_prefix("hit GET "));
        let hits = hits.filter_map(|hit| hit.split(' ').next());
        hits.filter(|path| *path != "/end")
            .map(str::to_owned)
            .collect()
    }

    /// What the ticket system has been asked: a question of the test's own comes after all others.
    fn asked(&mut self) -> Vec<String> {
        let url = format!("https://{TICKETS}:{}/open?record=end", self.tickets.port);
        let resolve = format!("{TICKETS}:{}:127.0.0.1", self.tickets.port);
        let curl = self.guard.site().client("curl".as_ref());
        curl.args(["--silent", "--fail", "--resolve", &resolve, &url])
            .run()
            .ok();
        let server = self.tickets.talk();
        server.line(|line| line.contains("record=end"));
        let heard = server.heard();
        let asks = heard
            .lines()
            .filter_map(|line| line.strip_prefix("ask GET "));
        let asks = asks.filter(|ask| !ask.contains("record=end"));
        asks.map(str::to_owned).collect()
    }
}

fn apply(site: &Site, bundle: &Bundle) {
    let dir = site.path("candidate");
    bundle.write(&dir);
    site.cli(["policy", "apply"]).arg(&dir).run().ok();
}

fn ok(client: &mut Dialer, url: &str, status: u16) {
    assert_eq!(
        client.tries(&format!("get {url}")),
        format!("ok {status}"),
        "{url}"
    );
}

#[test]
fn a_good_answer_decides_and_everything_else_refuses() {
    const ELSE: &str = r#"
[[lookup]]                      # nobody listens
on = "GET /v1/down/{record}"
url = "https://tickets.test:1/open?record={path.record}"
open = { type = "bool", at = "/open" }
[[lookup]]                      # its certificate is another's
on = "GET /v1/untrusted/{record}"
url = "https://elsewhere.test:{port}/open?record={path.record}"
open = { type = "bool", at = "/open" }
[[lookup]]                      # an address that nothing goes to
on = "GET /v1/private/{record}"
url = "https://10.0.0.1:{port}/open?record={path.record}"
open = { type = "bool", at = "/open" }
[[lookup]]
on = "GET /v1/nameless/{record}"
url = "https://nobody.test/open?record={path.record}"
open = { type = "bool", at = "/open" }
[[lookup]]                      # a parameter that is not there
on = "GET /v1/by-ticket"
url = "https://{tickets}/open?record={query.ticket}"
open = { type = "bool", at = "/open" }
"#;
    let site = Site::new();
    let lookups = record("deadline_ms = 1500\n") + ELSE;
    let mut office = Office::open(&site, &lookups);
    for record in ["open", "charset", "anyone", "a%20b"] {
        let (status, _, record) = office.curl(&format!("/v1/customers/{record}/notes"));
        assert_eq!(
            (status.as_str(), record.outcome()),
            ("201", "allow"),
            "{record:?}"
        );
        assert_eq!(record.text("/facts/lookup.open"), "true");
        assert!(record.number("/latency_us/lookup") > 0, "{record:?}");
    }
    for record in ["closed", "silent"] {
        let (status, slug, _) = office.curl(&format!("/v1/customers/{record}"));
        assert_eq!(
            (status.as_str(), slug.as_str()),
            ("403", "policy-denied"),
            "{record}"
        );
    }
    let unavailable = [
        ("customers/slow", "did not answer within 1500 ms"),
        ("customers/drip", "did not answer within 1500 ms"),
        ("customers/redirect", "answered with the status 302"),
        ("customers/created", "answered with the status 201"),
        ("customers/error", "answered with the status 500"),
        ("customers/html", "text/html"),
        ("customers/cut", "is not closed"),
        ("customers/broken", "broke off"),
        ("customers/twice", "more than once"),
        ("customers/wrong", "is not true or false"),
        ("customers/null", "is not true or false"),
        ("customers/long", "longer than 65536 bytes"),
        ("customers/empty", "ends too early"),
        ("down/open", "refused"),
        ("untrusted/open", "certificate is for another name"),
        ("private/open", "may not be dialled"),
        ("nameless/open", "nobody.test"),
        (
            "by-ticket",
            "query parameter `ticket` is not in the request",
        ),
    ];
    for (path, why) in unavailable {
        let (status, slug, record) = office.curl(&format!("/v1/{path}"));
        assert_eq!(
            (status.as_str(), slug.as_str()),
            ("403", "attribute-unavailable"),
            "{path}"
        );
        assert_eq!(
            (record.outcome(), record.reason()),
            ("deny", "attribute-unavailable")
        );
        let failed = record.text("/facts/lookup_failed");
        assert!(failed.contains(why), "{path}: {failed}");
        // An agent is told what failed, and not where.
        for hidden in [TICKETS, "elsewhere", "10.0.0.1", "nobody.test", "127.0.0.1"] {
            assert!(!record.text("/detail").contains(hidden), "{record:?}");
        }
    }
    let (status, ..) = office.curl("/free");
    assert_eq!(status, "201", "no rule looks anything up for it");
    assert_eq!(office.curl("/v1/customers/a%2Fopen").1, "body-ambiguous");
    assert_eq!(office.curl("/v1/orders/open").1, "policy-denied");

    let hits: Vec<_> = ["open", "charset", "anyone", "a%20b"]
        .map(|record| format!("/v1/customers/{record}/notes"))
        .into_iter()
        .chain(["/free".to_owned()])
        .collect();
    assert_eq!(office.hits(), hits);
    let asked = office.asked();
    let headers = "accept,connection,host,user-agent";
    assert_eq!(asked[0], format!("/open?record=open {headers}"));
    assert_eq!(asked[3], format!("/open?record=a%20b {headers}"));
    // One question each, none for what has no service or no value, and no redirect was followed.
    assert_eq!(asked.len(), 4 + 2 + 13, "{asked:#?}");
}

#[test]
fn an_answer_holds_for_its_time_whoever_asks() {
    let site = Site::new();
    let mut office = Office::open(&site, &record("cache_s = 6\ndeadline_ms = 10000\n"));
    let mut probe = dialer(&office.guard.agent("probe"));
    let mut other = dialer(&office.guard.agent("other"));
    let url = office.url("/v1/customers/open");
    let first = Instant::now();
    for _ in 0..10 {
        ok(&mut probe, &url, 201);
        ok(&mut other, &url, 201);
    }
    let within = first.elapsed();
    assert!(
        within.as_secs() < 6,
        "too slow a machine for this test: {within:?}"
    );
    assert_eq!(office.asked().len(), 1);
    // A failure does not hold.
    let bad = office.url("/v1/customers/error");
    ok(&mut probe, &bad, 403);
    ok(&mut probe, &bad, 403);
    assert_eq!(office.asked().len(), 3);
    let deadline = Instant::now() + PATIENCE;
    while office.asked().len() < 4 {
        assert!(Instant::now() < deadline, "never asked again");
        ok(&mut probe, &url, 201);
    }
    assert!(first.elapsed().as_secs() >= 6);
}

#[test]
fn many_who_need_one_answer_ask_once() {
    let site = Site::new();
    let mut office = Office::open(&site, &record("deadline_ms = 10000\n"));
    let code = format!(
        "import ssl
context = ssl.create_default_context()
def opened(path):
    raw = socket.create_connection(('origin.test', {port}))
    tls = context.wrap_socket(raw, server_hostname='origin.test')
    tls.sendall(f'GET {{path}} HTTP/1.1\\r\\nHost: origin.test:{port}\\r\\n\\r\\n'.encode())
    return tls
waiting = [opened('/v1/customers/held') for _ in range(20)]
# Those are all under way when an answer that needs no look-up has come, and come again.
for _ in range(20): assert opened('/free').recv(12) == b'HTTP/1.1 201'
print('waiting', flush=True)
for one in waiting: print('ok', one.recv(12).decode(), flush=True)",
        port = office.origin.port
    );
    let mut client = office.guard.agent("probe").python(&code).spawn();
    office.tickets.talk().after("ask ");
    client.line(|line| line == "waiting");
    office.tickets.talk().say("go");
    for _ in 0..20 {
        assert_eq!(client.after("ok "), "HTTP/1.1 201");
    }
    client.finish().ok();
    assert_eq!(office.asked().len(), 1);
    assert_eq!(office.hits().len(), 40);
}

#[test]
fn one_agents_questions_leave_room_for_those_of_others() {
    let site = Site::new();
    let mut office = Office::open(&site, &record("deadline_ms = 10000\n"));
    let code = format!(
        "import ssl
context = ssl.create_default_context()
waiting = []
for name in [f'held-{{number}}' for number in range(12)] + ['open']:
    raw = socket.create_connection(('origin.test', {port}))
    tls = context.wrap_socket(raw, server_hostname='origin.test')
    tls.sendall(f'GET /v1/customers/{{name}} HTTP/1.1\\r\\nHost: origin.test:{port}\\r\\n\\r\\n'.encode())
    waiting.append(tls)
print('waiting', flush=True)
for one in waiting: print('ok', one.recv(12).decode(), flush=True)",
        port = office.origin.port
    );
    let mut client = office.guard.agent("probe").python(&code).spawn();
    client.line(|line| line == "waiting");
    for _ in 0..8 {
        office.tickets.talk().after("ask ");
    }
    // What the first asks too, and has not come to yet.
    let mut other = dialer(&office.guard.agent("other"));
    ok(&mut other, &office.url("/v1/customers/open"), 201);
    assert_eq!(office.asked().len(), 8 + 1);
    for _ in 0..12 {
        office.tickets.talk().say("go");
    }
    for _ in 0..13 {
        assert_eq!(client.after("ok "), "HTTP/1.1 201");
    }
    client.finish().ok();
    assert_eq!(office.asked().len(), 13 + 1);
}

#[test]
fn a_kill_ends_the_wait_and_the_question() {
    let site = Site::new();
    let mut office = Office::open(&site, &record("deadline_ms = 10000\n"));
    let url = office.url("/v1/customers/held");
    let client = office.guard.agent("probe").client("curl".as_ref());
    let client = client.args(["--silent", "--show-error", &url]).spawn();
    office.tickets.talk().after("ask ");
    office.guard.cli(["kill", "probe", "--reason", "test"]).ok();
    office.tickets.talk().line(|line| line == "gone");
    assert_ne!(client.finish().code(), 0, "it was cut");
    assert!(office.hits().is_empty());
    let records = office.guard.requests();
    let waited = records.iter().find(|it| it.path() == "/v1/customers/held");
    assert_eq!(waited.expect("a record").outcome(), "killed", "{records:?}");
}

#[test]
fn who_waits_for_the_same_answer_gets_it_though_who_asked_is_killed() {
    let site = Site::new();
    let mut office = Office::open(&site, &record("deadline_ms = 10000\n"));
    let first = office.guard.agent("probe").client("curl".as_ref());
    let first = first
        .args(["--silent", &office.url("/v1/customers/held")])
        .spawn();
    office.tickets.talk().after("ask ");
    let code = format!(
        "import ssl
context = ssl.create_default_context()
def opened(path):
    raw = socket.create_connection(('origin.test', {port}))
    tls = context.wrap_socket(raw, server_hostname='origin.test')
    tls.sendall(f'GET {{path}} HTTP/1.1\\r\\nHost: origin.test:{port}\\r\\n\\r\\n'.encode())
    return tls
waiting = opened('/v1/customers/held')
# It is under way when answers that need no look-up have come.
for _ in range(20): assert opened('/free').recv(12) == b'HTTP/1.1 201'
print('waiting', flush=True)
print('ok', waiting.recv(12).decode(), flush=True)",
        port = office.origin.port
    );
    let mut other = office.guard.agent("other").python(&code).spawn();
    other.line(|line| line == "waiting");
    office.guard.cli(["kill", "probe", "--reason", "test"]).ok();
    assert_ne!(first.finish().code(), 0, "it was cut");
    office.tickets.talk().say("go");
    assert_eq!(other.after("ok "), "HTTP/1.1 201");
    other.finish().ok();
    assert_eq!(office.asked().len(), 1);
    assert!(!office.tickets.talk().heard().contains("gone"));
}

#[test]
fn a_service_is_asked_about_a_body_that_is_sent_on_whole() {
    const SEARCH: &str = r#"
[[body]]
on = "POST /v1/search"
customer = { type = "string", at = "/customer" }
[[lookup]]
on = "POST /v1/search"
url = "https://{tickets}/open?record={body.customer}"
open = { type = "bool", at = "/open" }
"#;
    let site = Site::new();
    let mut office = Office::open(&site, SEARCH);
    let (origin, tickets) = (office.origin.port, office.tickets.port);
    let rules = format!(
        "@id(\"search\") permit (principal, action == Action::\"POST\", resource == Host::\"origin.test:{origin}\")
when {{ context.lookup has open && context.lookup.open }};"
    );
    apply(
        &site,
        &bundle(2, SEARCH, origin, tickets).rules("records", &rules),
    );
    let post = |body: &str| {
        let client = office.guard.agent("probe").client("curl".as_ref());
        let client = client.args(["--silent", "--header", "content-type: application/json"]);
        let client = client.args(["--data-binary", body, "--output", "/dev/null"]);
        let client = client.args(["--write-out", "%{http_code}"]);
        client.arg(office.url("/v1/search")).run().ok().stdout
    };
    assert_eq!(post("{\"customer\": \"open\"}"), "201");
    assert_eq!(post("{\"customer\": \"closed\"}"), "403");
    assert_eq!(post("{\"customer\": 7}"), "403");
    assert_eq!(post("{}"), "403");
    let records = office.guard.requests();
    let reasons: Vec<_> = records.iter().map(Record::reason).collect();
    assert_eq!(
        reasons,
        [
            "",
            "policy-denied",
            "body-unreadable",
            "attribute-unavailable"
        ]
    );
    assert_eq!(office.asked().len(), 2);
    let server = office.origin.talk();
    server.line(|line| line.starts_with("hit POST /v1/search application/json 20 "));
    assert_eq!(server.heard().matches("hit ").count(), 1);
}

#[test]
fn a_websocket_keeps_its_answer_while_the_lookup_is_the_same() {
    let site = Site::new();
    let lookup = record("cache_s = 1\n");
    let mut office = Office::open(&site, &lookup);
    let server = Server::start(&site, "ws_server.py", &[]);
    let tickets = office.tickets.port;
    let now =
        |serial: u64, lookup: &str| apply(&site, &bundle(serial, lookup, server.port, tickets));
    now(2, &lookup);
    let url = format!("wss://origin.test:{}/v1/customers/open", server.port);
    let mut client = python(&office.guard.agent("probe"), "ws_held.py")
        .args([url.as_str(), "echo"])
        .spawn();
    client.line(|line| line == "open");
    now(3, &lookup);
    client.say("one");
    assert_eq!(client.after("echo"), "one");
    assert_eq!(office.asked().len(), 1, "it is not asked again");
    now(4, &lookup.replace("open?record", "open?of=x&record"));
    client.say("two");
    client.line(|line| line == "ended");
    let _ = client.finish();
    let records = office.guard.requests();
    let cut = records.iter().find(|it| it.text("/detail").contains("cut"));
    assert_eq!(cut.expect("a record").path(), "/v1/customers/open");
}

#[test]
fn explain_asks_nobody() {
    let site = Site::new();
    let mut office = Office::open(&site, &record(""));
    let url = office.url("/v1/customers/7");
    let explain = |more: &[&str]| {
        let words = ["policy", "explain", "--agent", "probe", "GET", &url];
        office
            .guard
            .cli(words.into_iter().chain(more.iter().copied()))
            .ok()
            .stdout
    };
    let said = explain(&[]);
    assert!(
        said.starts_with("refused:") && said.contains("attribute-unavailable"),
        "{said}"
    );
    assert!(
        said.contains(&format!(
            "asks      https://{TICKETS}:{}/open?record=7",
            office.tickets.port
        )),
        "{said}"
    );
    assert!(explain(&["--lookup", "{\"open\": true}"]).starts_with("permitted:"));
    assert!(explain(&["--lookup", "{\"open\": false}"]).contains("policy-denied"));
    assert!(office.asked().is_empty());
}

#[test]
fn the_shipped_bundle_lets_support_see_records_with_an_open_ticket() {
    let site = Site::new();
    let mut office = Office::open(&site, &record(""));
    let (origin, tickets) = (office.origin.port, office.tickets.port);
    let folder = agentguard_tests::tools::workspace().join("policies/customer-records");
    let read = |below: &str| {
        let text = std::fs::read_to_string(folder.join(below)).expect("text");
        text.replace("tickets.example/api", &format!("{TICKETS}:{tickets}"))
            .replace("crm.example", &format!("origin.test:{origin}"))
    };
    let bundle = Bundle::new(2)
        .file(
            "agents/probe.toml",
            read("agents/support.toml").replace("\"support\"", "\"probe\""),
        )
        .file("hosts/crm.toml", read("hosts/crm.toml"))
        .rules(
            "records",
            &read("rules/records.cedar").replace("\"support\"", "\"probe\""),
        );
    apply(&site, &bundle);
    let mut probe = dialer(&office.guard.agent("probe"));
    for (path, status) in [
        ("/v1/articles/returns", 201),
        ("/v1/customers/open", 201),
        ("/v1/customers/open/payment", 201),
        ("/v1/customers/closed", 403),
        ("/v1/customers/closed/payment", 403),
        ("/v1/customers/error", 403),
    ] {
        ok(&mut probe, &office.url(path), status);
    }
    let reasons: Vec<_> = office
        .guard
        .requests()
        .iter()
        .map(|it| it.reason().to_owned())
        .collect();
    assert_eq!(
        reasons,
        [
            "",
            "",
            "",
            "policy-denied",
            "policy-denied",
            "attribute-unavailable"
        ]
    );
    // Both of a record's paths are one question.
    let asked = office.asked();
    let questions = ["open", "closed", "error"].map(|record| {
        format!("/open?record={record}&agent=probe accept,connection,host,user-agent")
    });
    assert_eq!(asked, questions);
}
