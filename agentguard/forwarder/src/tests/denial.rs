//! What a refused agent sees, and what it sees of upstreams that fail.

use std::time::Duration;

use agentguard_record::{DecidedBy, DenyReason, Ended, Outcome};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::origin::raw;
use super::rig::{Rig, Setup, ask, reply};

#[tokio::test]
async fn the_problem_document_says_what_and_why() {
    let rig = Rig::new().await;
    let host = rig.authority();
    let mut client = rig.tls(&["http/1.1"]).await;
    let refused = ask(
        &mut client,
        format!("POST /v1/pay?to=x HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\n\r\n{{}}"),
    )
    .await;
    assert_eq!(refused.status, 403);
    assert_eq!(
        refused.header("content-type"),
        Some("application/problem+json")
    );
    let document = refused.json();
    let record = rig.record().await;
    assert_eq!(document["type"], "urn:agentguard:problem:policy-denied");
    assert_eq!(document["status"], 403);
    assert_eq!(
        document["instance"],
        format!("urn:uuid:{}", record.decision)
    );
    assert_eq!(document["message"], document["detail"]);
    assert_eq!(document["agent"], "tester");
    assert_eq!(document["action"], "POST");
    assert_eq!(document["resource"], host);
    assert!(
        document["title"].is_string()
            && document["detail"].is_string()
            && document["policies"].is_array()
    );
    assert_eq!(record.detail.as_deref(), document["detail"].as_str());
    assert_eq!(record.request.unwrap().path, "/v1/pay");
    // HEAD: the same head, no body, and the connection goes on.
    client.write_all(format!("HEAD /v1/pay HTTP/1.1\r\nHost: {host}\r\n\r\nGET /ok/x HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await.unwrap();
    let head = super::rig::head(&mut client).await;
    assert!(
        head.starts_with("HTTP/1.1 403") && head.contains("Content-Length"),
        "{head}"
    );
    assert_eq!(reply(&mut client).await.body, b"GET /ok/x");
}

/// A bundle whose one host is at `port`.
async fn rig_for(port: u16, limits: impl FnOnce(&mut Setup)) -> Rig {
    let agent = format!(
        "[agent]\nname = \"tester\"\nowner = \"o@example.com\"\nrisk = \"low\"\n\
         [[reach]]\nhost = \"origin.test:{port}\"\nallow = [\"ANY /ok/**\"]\n\
         [[reach]]\nhost = \"nowhere.test:{port}\"\nallow = [\"ANY /ok/**\"]\n"
    );
    let mut setup = Setup {
        agent: agent.leak(),
        ..Setup::default()
    };
    limits(&mut setup);
    Rig::with(setup).await
}

async fn get(rig: &Rig, name: &str, port: u16) -> (u16, String, String) {
    let mut client = rig.tls_to(name, port, &["http/1.1"]).await.unwrap();
    let reply = ask(
        &mut client,
        format!("GET /ok/x HTTP/1.1\r\nHost: {name}:{port}\r\n\r\n"),
    )
    .await;
    let detail = reply.json()["detail"].as_str().unwrap().to_owned();
    (reply.status, reply.slug(), detail)
}

#[tokio::test]
async fn certificates_that_are_not_accepted_are_named() {
    // Without a CA of its own, for another name, expired.
    let rig = Rig::new().await;
    let mut ca = CertificateParams::new(Vec::<String>::new()).unwrap();
    ca.distinguished_name
        .push(rcgen::DnType::CommonName, "nobody's CA");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let issuer = Issuer::new(ca, key);
    let unknown = super::origin::server(
        CertificateParams::new(vec!["origin.test".into()]).unwrap(),
        &issuer,
        vec![],
    )
    .1;
    let port = raw(move |socket| accept_tls(TlsAcceptor::from(unknown.clone()), socket)).await;
    let other = rig_for(port, |_| {}).await;
    let (status, slug, detail) = get(&other, "origin.test", port).await;
    assert_eq!((status, slug.as_str()), (502, "upstream-tls"));
    assert!(detail.contains("issuer is not trusted"), "{detail}");
    let record = other.record().await;
    assert_eq!(
        (record.outcome, record.reason),
        (Outcome::Error, Some(DenyReason::UpstreamTls))
    );
    let told = (record.decided_by, record.ended);
    assert_eq!(told, (DecidedBy::Rules, Ended::UpstreamFailed));
    assert_eq!(record.request.unwrap().status, 502);

    // The rig's own origin has no certificate for other.test.
    let port = rig.origin.port;
    let (status, slug, detail) = get(&rig, "other.test", port).await;
    assert_eq!((status, slug.as_str()), (502, "upstream-tls"));
    assert!(detail.contains("another name"), "{detail}");
    assert!(rig.origin.requests().is_empty());
}

#[tokio::test]
async fn an_expired_certificate_is_named() {
    let rig = Rig::with(Setup {
        expired: true,
        ..Setup::default()
    })
    .await;
    let (status, slug, detail) = get(&rig, "origin.test", rig.origin.port).await;
    assert_eq!((status, slug.as_str()), (502, "upstream-tls"));
    assert!(detail.contains("expired"), "{detail}");
}

async fn accept_tls(tls: TlsAcceptor, socket: TcpStream) {
    if let Ok(mut stream) = tls.accept(socket).await {
        let _ = stream.read(&mut [0]).await;
    }
}

#[tokio::test]
async fn upstreams_that_cannot_be_reached_are_502_and_slow_ones_504() {
    // Nobody listens; no such name; no TLS; a reset; silence.
    let closed = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().port()
    };
    let rig = rig_for(closed, |_| {}).await;
    let (status, slug, detail) = get(&rig, "origin.test", closed).await;
    assert_eq!((status, slug.as_str()), (502, "upstream-unreachable"));
    assert!(detail.contains("refused"), "{detail}");
    let (status, slug, _) = get(&rig, "nowhere.test", closed).await;
    assert_eq!((status, slug.as_str()), (502, "upstream-unreachable"));

    let garbage = raw(|mut socket| async move {
        let _ = socket.write_all(b"220 mail ready\r\n").await;
        let _ = socket.read(&mut [0; 2048]).await;
    })
    .await;
    let rig = rig_for(garbage, |_| {}).await;
    let (status, slug, _) = get(&rig, "origin.test", garbage).await;
    assert_eq!((status, slug.as_str()), (502, "upstream-tls"));

    let silent = raw(|_socket| async move {
        let _kept = _socket;
        tokio::time::sleep(Duration::from_secs(30)).await;
    })
    .await;
    let rig = rig_for(silent, |setup| {
        setup.limits.upstream_connect_timeout_ms = 300
    })
    .await;
    let (status, slug, _) = get(&rig, "origin.test", silent).await;
    assert_eq!((status, slug.as_str()), (504, "upstream-timeout"));
    assert_eq!(rig.record().await.reason, Some(DenyReason::UpstreamTimeout));
}

#[tokio::test]
async fn a_slow_answer_is_504_and_a_broken_one_breaks_off() {
    let rig = Rig::with({
        let mut setup = Setup::default();
        setup.limits.upstream_head_timeout_ms = 300;
        setup
    })
    .await;
    let host = rig.authority();
    let mut client = rig.tls(&["http/1.1"]).await;
    let slow = ask(
        &mut client,
        format!("GET /ok/never HTTP/1.1\r\nHost: {host}\r\n\r\n"),
    )
    .await;
    assert_eq!(
        (slow.status, slow.slug().as_str()),
        (504, "upstream-timeout")
    );
    assert_eq!(rig.record().await.outcome, Outcome::Error);

    let answers: [(&str, &str); 3] = [
        (
            "plain",
            "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this",
        ),
        (
            "chunked",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nonly ",
        ),
        (
            "bad chunk",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        ),
    ];
    for (name, answer) in answers {
        let port = raw(move |mut socket| async move {
            let _ = socket.read(&mut [0; 4096]).await;
            let _ = socket.write_all(answer.as_bytes()).await;
        })
        .await;
        let rig = rig_for(port, |_| {}).await;
        let mut client = rig.connect(port).await;
        let request = format!("GET /ok/x HTTP/1.1\r\nHost: origin.test:{port}\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let mut got = String::new();
        let _ = client.read_to_string(&mut got).await;
        assert!(
            !got.ends_with("0\r\n\r\n"),
            "{name}: the client must see that it is not whole: {got}"
        );
        let record = rig.record().await;
        assert_eq!(
            (record.outcome, record.reason),
            (Outcome::Error, Some(DenyReason::UpstreamUnreachable)),
            "{name}"
        );
    }
    // Before the head, it can still be told.
    for answer in ["", "HTTP/1.1 2", "SSH-2.0-x\r\n"] {
        let port = raw(move |mut socket| async move {
            let _ = socket.read(&mut [0; 4096]).await;
            let _ = socket.write_all(answer.as_bytes()).await;
        })
        .await;
        let rig = rig_for(port, |_| {}).await;
        let mut client = rig.connect(port).await;
        let got = ask(
            &mut client,
            format!("GET /ok/x HTTP/1.1\r\nHost: origin.test:{port}\r\n\r\n"),
        )
        .await;
        assert_eq!(
            (got.status, got.slug().as_str()),
            (502, "upstream-unreachable"),
            "{answer:?}"
        );
    }
}

/// An upstream that closes after each answer without saying so: requests meet connections that are just closing.
#[tokio::test]
async fn a_kept_connection_that_upstream_has_closed_is_replaced() {
    let port = raw(|mut socket| async move {
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n") {
            match socket.read_u8().await {
                Ok(byte) => seen.push(byte),
                Err(_) => return,
            }
        }
        let _ = socket
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .await;
    })
    .await;
    let rig = rig_for(port, |_| {}).await;
    let mut client = rig.connect(port).await;
    for round in 0..50 {
        let got = ask(
            &mut client,
            format!("GET /ok/{round} HTTP/1.1\r\nHost: origin.test:{port}\r\n\r\n"),
        )
        .await;
        assert_eq!(
            (got.status, got.body.as_slice()),
            (200, &b"ok"[..]),
            "round {round}"
        );
    }
    assert_eq!(rig.records().len(), 50);
}
