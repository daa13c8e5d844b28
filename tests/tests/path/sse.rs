//! Server-sent events come through one by one: the server sends the next only when the client has shown the one before.

use agentguard_tests::bundle::reach;
use agentguard_tests::client::{Subject, node, python};
use agentguard_tests::{Bundle, Client, Guard, Server, Site};

#[test]
fn curl() {
    check(|subject, url| {
        subject.client("curl".as_ref()).args([
            "--silent",
            "--no-buffer",
            "--write-out",
            "status %{http_code}\n",
            url,
        ])
    });
}

#[test]
fn python_requests() {
    check(|subject, url| python(subject, "sse_client.py").args(["requests", url]));
}

#[test]
fn python_httpx() {
    check(|subject, url| python(subject, "sse_client.py").args(["httpx", url]));
}

#[test]
fn node_fetch() {
    check(|subject, url| node(subject, "sse_client.mjs").arg(url));
}

fn check(client: impl Fn(&dyn Subject, &str) -> Client) {
    let site = Site::new();
    let mut server = Server::start(&site, "sse_server.py", &[]);
    let url = |path: &str| format!("https://origin.test:{}{path}", server.port);
    let (allowed, refused) = (url("/v1/events"), url("/v1/secrets"));

    read_events(&mut server, client(&site, &allowed));
    read_events(&mut server, client(&site, &refused));

    let policy = reach("origin.test", server.port, &["GET /v1/events"]);
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let agent = guard.agent("probe");
    read_events(&mut server, client(&agent, &allowed));
    let ran = client(&agent, &refused).run().ok();
    assert!(ran.stdout.contains("status 403"), "{ran:#?}");

    let heard = server.talk().heard();
    assert_eq!(
        heard.matches("request GET /v1/secrets").count(),
        1,
        "only the control arrived: {heard}"
    );
    let records: Vec<_> = guard
        .requests()
        .iter()
        .map(|record| format!("{} {}", record.path(), record.outcome()))
        .collect();
    assert_eq!(records, ["/v1/events allow", "/v1/secrets deny"]);
}

fn read_events(server: &mut Server, client: Client) {
    let mut reader = client.spawn();
    server.talk().line(|line| line.starts_with("request "));
    for event in ["one", "two", "three"] {
        server.talk().say(event);
        reader.line(|line| line == format!("data: {event}"));
    }
    server.talk().say("end");
    let ran = reader.finish().ok();
    assert!(ran.stdout.contains("status 200"), "{ran:#?}");
}
