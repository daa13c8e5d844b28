//! gRPC by grpcio: unary, server-streaming and bidirectional calls with trailers, and a method that is refused.

use agentguard_tests::bundle::reach;
use agentguard_tests::client::{Subject, python};
use agentguard_tests::{Bundle, Guard, Server, Site};

const ALLOWED: [&str; 3] = [
    "/shop.Shop/Get ok got apples",
    "/shop.Shop/List ok apple 0, apple 1, apple 2",
    "/shop.Shop/Chat ok heard 0, heard 1, heard 2",
];

#[test]
fn calls_are_judged_by_method() {
    let site = Site::new();
    let mut server = Server::start(&site, "grpc_server.py", &[]);
    let target = format!("origin.test:{}", server.port);
    let call = |subject: &dyn Subject| {
        let ran = python(subject, "grpc_client.py").arg(&target).run().ok();
        ran.stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };

    let off = call(&site);
    assert_eq!(off[..3], ALLOWED);
    assert_eq!(off[3], "/shop.Shop/Delete ok got apples");
    server.talk().line(|line| line == "call /shop.Shop/Delete");

    let routes = ["Get", "List", "Chat"].map(|name| format!("POST /shop.Shop/{name}"));
    let policy = reach(
        "origin.test",
        server.port,
        &routes.each_ref().map(|route| &**route),
    );
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let on = call(&guard.agent("probe"));
    assert_eq!(on[..3], ALLOWED);
    assert!(
        on[3].starts_with("/shop.Shop/Delete PERMISSION_DENIED "),
        "{on:?}"
    );

    let denied: Vec<_> = guard
        .requests()
        .into_iter()
        .filter(|record| record.outcome() == "deny")
        .collect();
    let [record] = &denied[..] else {
        panic!("not one refusal: {denied:?}");
    };
    assert_eq!(
        (record.action(), record.path()),
        ("POST", "/shop.Shop/Delete")
    );
    let heard = server.talk().heard();
    assert_eq!(
        heard.matches("call /shop.Shop/Delete").count(),
        1,
        "only the control arrived: {heard}"
    );
}
