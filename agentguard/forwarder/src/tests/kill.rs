//! The kill: everything of the agent's ends at once, on both legs, and is recorded as killed.

use std::time::Duration;

use agentguard_record::{DecidedBy, DenyReason, Ended, Outcome};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::rig::{AGENT, Rig, ask, head};

#[tokio::test]
async fn live_answers_tunnels_and_idle_connections_end() {
    let rig = Rig::new().await;
    let host = rig.authority();
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let mut idle = rig.tls(&["http/1.1"]).await;
    assert_eq!(ask(&mut idle, get("/ok/x")).await.status, 200);
    rig.record().await;
    let mut streaming = rig.tls(&["http/1.1"]).await;
    streaming
        .write_all(get("/ok/stream").as_bytes())
        .await
        .unwrap();
    head(&mut streaming).await;
    let mut waiting = rig.tls(&["http/1.1"]).await;
    waiting
        .write_all(get("/ok/never").as_bytes())
        .await
        .unwrap();
    let mut socket = rig.tls(&["http/1.1"]).await;
    let upgrade = format!(
        "GET /ok/ws HTTP/1.1\r\nHost: {host}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    );
    socket.write_all(upgrade.as_bytes()).await.unwrap();
    head(&mut socket).await;
    while !rig.origin.requests().contains(&"GET /ok/never".into()) {
        rig.origin.seen.waiting.notified().await;
    }
    assert_eq!(rig.forwarder.lives.connections()[&AGENT], 4);

    let killed = rig
        .forwarder
        .lives
        .kill(&[(AGENT, DenyReason::AgentKilled)].into());
    timeout(Duration::from_secs(5), killed)
        .await
        .expect("the kill is quick");
    let records = rig.records();
    assert_eq!(records.len(), 3, "{records:?}");
    for record in &records {
        assert_eq!(
            (record.outcome, record.reason),
            (Outcome::Killed, Some(DenyReason::AgentKilled)),
            "{record:?}"
        );
    }
    assert!(rig.forwarder.lives.connections().is_empty());
    for client in [&mut idle, &mut waiting, &mut socket] {
        assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
    }

    // New ones are refused, until it is revived.
    let mut refused = rig.connect(rig.origin.port).await;
    assert_eq!(refused.read(&mut [0]).await.unwrap_or(0), 0);
    let record = rig.record().await;
    assert_eq!(
        (record.outcome, record.reason),
        (Outcome::Deny, Some(DenyReason::AgentKilled))
    );
    rig.forwarder.lives.revive(&[AGENT].into());
    let mut again = rig.tls(&["http/1.1"]).await;
    assert_eq!(ask(&mut again, get("/ok/x")).await.status, 200);
}

#[tokio::test]
async fn http2_streams_end_too() {
    let rig = Rig::new().await;
    let mut h2 = rig.h2().await;
    let uri = format!("https://{}/ok/never", rig.authority());
    let request = http::Request::get(uri)
        .body(http_body_util::Empty::new())
        .unwrap();
    let answer = tokio::spawn(async move { h2.send_request(request).await });
    rig.origin.seen.waiting.notified().await;
    let suspended = [(AGENT, DenyReason::AgentSuspended)];
    rig.forwarder.lives.kill(&suspended.into()).await;
    assert!(answer.await.unwrap().is_err());
    assert_eq!(rig.record().await.outcome, Outcome::Killed);
    assert!(rig.records().is_empty());
}

#[tokio::test]
async fn without_an_audit_log_nothing_is_let_through() {
    let rig = Rig::new().await;
    let host = rig.authority();
    let mut client = rig.tls(&["http/1.1"]).await;
    rig.forwarder.records.set_available(false);
    let get = format!("GET /ok/x HTTP/1.1\r\nHost: {host}\r\n\r\n");
    assert_eq!(ask(&mut client, &get).await.slug(), "audit-unavailable");
    rig.forwarder.records.set_available(true);
    assert_eq!(ask(&mut client, &get).await.status, 200);
    assert_eq!(rig.origin.requests().len(), 1);
}

#[tokio::test]
async fn a_new_bundle_holds_for_the_next_request() {
    let rig = Rig::new().await;
    let host = rig.authority();
    let mut client = rig.tls(&["http/1.1"]).await;
    let get = format!("GET /ok/x HTTP/1.1\r\nHost: {host}\r\n\r\n");
    assert_eq!(ask(&mut client, &get).await.status, 200);
    rig.apply(
        &super::rig::BUNDLE
            .replace("\"GET /ok\"", "\"GET /other\"")
            .replace("ANY /ok/**", "POST /ok/**"),
    );
    assert_eq!(ask(&mut client, &get).await.slug(), "policy-denied");
    assert_ne!(rig.record().await.bundle, rig.record().await.bundle);
}

#[tokio::test]
async fn what_is_under_way_ends_with_the_bundle_that_permitted_it() {
    let rig = Rig::new().await;
    let host = rig.authority();
    let mut streaming = rig.tls(&["http/1.1"]).await;
    let get = format!("GET /ok/stream HTTP/1.1\r\nHost: {host}\r\n\r\n");
    streaming.write_all(get.as_bytes()).await.unwrap();
    head(&mut streaming).await;
    let mut socket = rig.tls(&["http/1.1"]).await;
    let upgrade = format!(
        "GET /ok/ws HTTP/1.1\r\nHost: {host}\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    );
    socket.write_all(upgrade.as_bytes()).await.unwrap();
    head(&mut socket).await;
    // A bundle that still permits both changes nothing.
    rig.apply(&super::rig::BUNDLE.replace("GET /ok\"", "GET /other\""));
    socket.write_all(b"ping").await.unwrap();
    socket.read_exact(&mut [0; 4]).await.unwrap();
    assert!(rig.records().is_empty());
    // Another route for the WebSocket, the same host.
    rig.apply(&super::rig::BUNDLE.replace("ANY /ok/**", "GET /ok/stream"));
    assert_eq!(socket.read(&mut [0]).await.unwrap_or(0), 0);
    let record = rig.record().await;
    assert_eq!((record.outcome, record.bytes_up), (Outcome::Deny, 4));
    let told = (record.decided_by, record.ended);
    assert_eq!(told, (DecidedBy::Rules, Ended::NotPermitted));
    // The host itself.
    rig.apply(&super::rig::BUNDLE.replace("origin.test", "elsewhere.test"));
    let mut rest = Vec::new();
    let _ = streaming.read_to_end(&mut rest).await;
    let record = rig.record().await;
    assert_eq!(
        (record.outcome, record.reason),
        (Outcome::Deny, Some(DenyReason::PolicyDenied))
    );
    assert!(rig.records().is_empty());
}
