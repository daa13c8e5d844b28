//! WebSocket over TLS: text, binary and large messages echo; a refused path gets the same 403 as any request.

use agentguard_tests::bundle::reach;
use agentguard_tests::client::{Subject, node, python};
use agentguard_tests::{Bundle, Guard, Server, Site};

#[test]
fn python_websockets() {
    check(
        |subject, url| python(subject, "ws_client.py").arg(url).run().ok().stdout,
        "echoed 5\nechoed 2\nechoed 1000000\nclosed 1000",
    );
}

#[test]
fn node_ws() {
    check(
        |subject, url| node(subject, "ws_client.mjs").arg(url).run().ok().stdout,
        "echoed 5\nclosed 1000",
    );
}

fn check(call: impl Fn(&dyn Subject, &str) -> String, echoed: &str) {
    let site = Site::new();
    let mut server = Server::start(&site, "ws_server.py", &[]);
    let url = |path: &str| format!("wss://origin.test:{}{path}", server.port);
    let (open, closed) = (url("/v1/open"), url("/v1/closed"));

    assert_eq!(call(&site, &open), echoed);
    assert_eq!(call(&site, &closed), echoed);

    let policy = reach("origin.test", server.port, &["GET /v1/open"]);
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let agent = guard.agent("probe");
    assert_eq!(call(&agent, &open), echoed);
    let refused = call(&agent, &closed);
    assert!(refused.starts_with("refused 403"), "{refused}");

    let records: Vec<_> = guard
        .requests()
        .iter()
        .map(|record| format!("{} {} {}", record.action(), record.path(), record.outcome()))
        .collect();
    assert_eq!(records, ["GET /v1/open allow", "GET /v1/closed deny"]);
    server.talk().line(|line| line == "opened /v1/closed");
    let heard = server.talk().heard();
    assert_eq!(
        heard.matches("opened /v1/closed").count(),
        1,
        "only the control arrived: {heard}"
    );
}
