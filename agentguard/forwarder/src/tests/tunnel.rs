//! `CONNECT`, WebSockets and passed-through TLS.

use agentguard_record::DenyReason;
use agentguard_record::Outcome;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::rig::{HOST, Rig, ask, head, reply};

#[tokio::test]
async fn a_websocket_is_a_tunnel_once_both_sides_agree() {
    let rig = Rig::new().await;
    let host = rig.authority();
    let upgrade = |path: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
    };
    let mut client = rig.tls(&["http/1.1"]).await;
    assert_eq!(
        ask(&mut client, upgrade("/no")).await.slug(),
        "policy-denied"
    );
    assert_eq!(rig.record().await.outcome, Outcome::Deny);
    // Upstream may decline.
    assert_eq!(ask(&mut client, upgrade("/ok/x")).await.status, 200);
    assert_eq!(rig.record().await.outcome, Outcome::Allow);
    client
        .write_all(upgrade("/ok/ws").as_bytes())
        .await
        .unwrap();
    let granted = head(&mut client).await;
    assert!(granted.starts_with("HTTP/1.1 101"), "{granted}");
    assert!(
        granted.to_ascii_lowercase().contains("upgrade: websocket"),
        "{granted}"
    );
    assert_eq!(rig.origin.last().1["sec-websocket-version"], "13");
    for word in ["ping", "pong"] {
        client.write_all(word.as_bytes()).await.unwrap();
        let mut echo = [0; 4];
        client.read_exact(&mut echo).await.unwrap();
        assert_eq!(echo, word.as_bytes());
    }
    assert!(rig.records().is_empty());
    // Half-close: our end of it does not end theirs.
    client.shutdown().await.unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"bye");
    let record = rig.record().await;
    assert_eq!(
        (record.outcome, record.bytes_up, record.bytes_down),
        (Outcome::Allow, 8, 11)
    );
    assert_eq!(record.request.unwrap().status, 101);
}

#[tokio::test]
async fn what_connect_opens_is_judged_inside() {
    let rig = Rig::new().await;
    let host = rig.authority();
    let mut client = rig.connect(3128).await;
    let opened = ask_connect(
        &mut client,
        &format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n"),
    )
    .await;
    assert!(opened.starts_with("HTTP/1.1 200"), "{opened}");
    let mut inside = rig.tls_over(client, HOST, &["http/1.1"]).await.unwrap();
    assert_eq!(
        ask(
            &mut inside,
            format!("GET /ok/x HTTP/1.1\r\nHost: {host}\r\n\r\n")
        )
        .await
        .status,
        200
    );
    assert_eq!(
        ask(
            &mut inside,
            format!("GET /no HTTP/1.1\r\nHost: {host}\r\n\r\n")
        )
        .await
        .slug(),
        "policy-denied"
    );
    let records = rig.records();
    assert_eq!(records.len(), 2, "none for the tunnel itself: {records:?}");
    assert_eq!(rig.origin.requests(), ["GET /ok/x"]);

    // Plain HTTP in it, for the host that was named and for another.
    let plain = rig.origin.plain;
    let named = format!("plain.test:{plain}");
    let mut client = rig.connect(3128).await;
    ask_connect(
        &mut client,
        &format!("CONNECT {named} HTTP/1.1\r\nHost: {named}\r\n\r\n"),
    )
    .await;
    assert_eq!(
        ask(
            &mut client,
            format!("GET /ok/y HTTP/1.1\r\nHost: {named}\r\n\r\n")
        )
        .await
        .status,
        200
    );
    let fronted = ask(
        &mut client,
        format!(
            "GET http://origin.test:{plain}/ok/y HTTP/1.1\r\nHost: origin.test:{plain}\r\n\r\n"
        ),
    )
    .await;
    assert_eq!(fronted.slug(), "protocol-refused");
    assert_eq!(rig.records().len(), 2);
}

#[tokio::test]
async fn connect_opens_nothing_else() {
    let rig = Rig::new().await;
    let host = rig.authority();
    let connect = format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    // Raw bytes, another name, a second CONNECT.
    let mut client = rig.connect(3128).await;
    ask_connect(&mut client, &connect).await;
    client.write_all(b"\x00\x01 raw").await.unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
    let record = rig.record().await;
    assert_eq!(
        (record.reason, record.resource.as_str()),
        (Some(DenyReason::ProtocolRefused), host.as_str())
    );

    let mut client = rig.connect(3128).await;
    ask_connect(&mut client, &connect).await;
    assert!(
        rig.tls_over(client, "other.test", &["http/1.1"])
            .await
            .is_err()
    );
    assert_eq!(rig.record().await.reason, Some(DenyReason::ProtocolRefused));

    let mut client = rig.connect(3128).await;
    ask_connect(&mut client, &connect).await;
    assert_eq!(ask(&mut client, &connect).await.slug(), "protocol-refused");
    assert_eq!(rig.record().await.reason, Some(DenyReason::ProtocolRefused));

    // Inside TLS.
    let mut client = rig.tls(&["http/1.1"]).await;
    assert_eq!(ask(&mut client, &connect).await.slug(), "protocol-refused");
    assert_eq!(rig.records().len(), 1);
    assert!(rig.origin.requests().is_empty());
}

#[tokio::test]
async fn passed_through_tls_is_the_servers_own() {
    let rig = Rig::new().await;
    let port = rig.origin.port;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rig.origin.root.clone().into()).unwrap();
    let config = super::rig::client_config(roots.into(), &["http/1.1"]);
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let name = |name: &str| rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let mut client = connector
        .connect(name("pinned.test"), rig.connect(port).await)
        .await
        .unwrap();
    let request = "GET /anything HTTP/1.1\r\nHost: pinned.test\r\nConnection: close\r\n\r\n";
    let answer = ask(&mut client, request).await;
    assert_eq!(answer.body, b"GET /anything");
    client.shutdown().await.unwrap();
    drop(client);
    let record = rig.record().await;
    assert_eq!(
        (record.action.as_str(), record.outcome),
        ("connect", Outcome::Allow)
    );
    assert_eq!(record.resource, format!("pinned.test:{port}"));
    assert!(
        record.bytes_up > 200 && record.bytes_down > 200,
        "{record:?}"
    );
    // The same name on a port that no entry has.
    assert!(
        connector
            .connect(name("pinned.test"), rig.connect(port - 1).await)
            .await
            .is_err()
    );
}

/// The head of the answer to `CONNECT`, after which the tunnel begins.
async fn ask_connect(client: &mut tokio::net::TcpStream, request: &str) -> String {
    client.write_all(request.as_bytes()).await.unwrap();
    head(client).await
}

#[tokio::test]
async fn bytes_behind_connect_are_the_tunnels() {
    let rig = Rig::new().await;
    let plain = rig.origin.plain;
    let named = format!("plain.test:{plain}");
    let mut client = rig.connect(3128).await;
    let all = format!(
        "CONNECT {named} HTTP/1.1\r\nHost: {named}\r\n\r\nGET /ok/z HTTP/1.1\r\nHost: {named}\r\n\r\n"
    );
    client.write_all(all.as_bytes()).await.unwrap();
    assert!(head(&mut client).await.starts_with("HTTP/1.1 200"));
    assert_eq!(reply(&mut client).await.body, b"GET /ok/z");
    assert_eq!(rig.records().len(), 1);
}

/// As old clients and small ones ask for a tunnel.
#[tokio::test]
async fn connect_by_http_1_0_and_without_a_port() {
    let rig = Rig::new().await;
    let plain = rig.origin.plain;
    let named = format!("plain.test:{plain}");
    let mut client = rig.connect(3128).await;
    let opened = ask_connect(&mut client, &format!("CONNECT {named} HTTP/1.0\r\n\r\n")).await;
    assert!(opened.starts_with("HTTP/1.0 200"), "{opened}");
    let get = "GET /ok/x HTTP/1.1\r\nHost: plain.test\r\n\r\n";
    assert_eq!(ask(&mut client, get).await.body, b"GET /ok/x");
    assert_eq!(rig.record().await.resource, named);

    for version in ["1.0", "1.1"] {
        let mut client = rig.connect(3128).await;
        let connect = format!("CONNECT plain.test HTTP/{version}\r\nHost: plain.test\r\n\r\n");
        let opened = ask_connect(&mut client, &connect).await;
        assert!(opened.contains(" 200 "), "{opened}");
        assert_eq!(ask(&mut client, get).await.slug(), "policy-denied");
        assert_eq!(rig.record().await.resource, "plain.test", "port 443");
    }
}

/// As on a connection to an address, the name inside counts, and what has none is for the address.
#[tokio::test]
async fn connect_by_address_is_judged_by_the_name_inside() {
    let rig = Rig::new().await;
    let (port, plain) = (rig.origin.port, rig.origin.plain);
    let connect = |port: u16| format!("CONNECT 198.51.100.1:{port} HTTP/1.1\r\nHost: a\r\n\r\n");
    let mut client = rig.connect(3128).await;
    ask_connect(&mut client, &connect(port)).await;
    let mut inside = rig.tls_over(client, HOST, &["http/1.1"]).await.unwrap();
    let get = |host: &str| format!("GET /ok/x HTTP/1.1\r\nHost: {host}\r\n\r\n");
    assert_eq!(ask(&mut inside, get(HOST)).await.status, 200);
    assert_eq!(rig.record().await.resource, rig.authority());

    let mut client = rig.connect(3128).await;
    ask_connect(&mut client, &connect(plain)).await;
    assert_eq!(ask(&mut client, get("plain.test")).await.status, 200);
    assert_eq!(rig.record().await.resource, format!("plain.test:{plain}"));
    let other =
        format!("GET http://plain.test:{port}/ok/x HTTP/1.1\r\nHost: plain.test:{port}\r\n\r\n");
    assert_eq!(ask(&mut client, other).await.slug(), "protocol-refused");
    rig.record().await;

    let mut client = rig.connect(3128).await;
    ask_connect(&mut client, &connect(port)).await;
    let mut inside = rig
        .tls_over(client, "198.51.100.1", &["http/1.1"])
        .await
        .unwrap();
    let refused = ask(&mut inside, get("198.51.100.1")).await;
    assert_eq!(refused.slug(), "policy-denied");
    assert_eq!(rig.record().await.resource, format!("198.51.100.1:{port}"));
}
