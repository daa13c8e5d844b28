//! The TLS that agents speak: names, versions, protocols, and beginnings that are none.

use std::sync::Arc;

use agentguard_record::{DenyReason, Outcome, TLS_ALERT};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::rig::{HOST, Rig, ask, client_config};
use crate::sniff::{Hello, Opening, Recogniser, SniffError};

/// A ClientHello as it goes out; `records`: cut into records of at most this many bytes.
fn hello(name: ServerName<'static>, records: Option<usize>) -> Vec<u8> {
    let mut config = client_config(Arc::new(RootCertStore::empty()), &["h2", "http/1.1"]);
    // As long as one with a post-quantum key share.
    config
        .alpn_protocols
        .extend([b'a', b'b', b'c', b'd', b'e'].map(|letter| vec![letter; 255]));
    config.max_fragment_size = records;
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut bytes).unwrap();
    }
    bytes
}

#[test]
fn every_prefix_of_a_hello_wants_more_and_the_whole_is_recognised() {
    for records in [None, Some(300)] {
        let bytes = hello(HOST.try_into().unwrap(), records);
        assert!(bytes.len() > 1_000, "today's hellos span segments");
        for end in 0..bytes.len() {
            let fed = Recogniser::default().feed(&bytes[..end]);
            assert!(matches!(fed, Ok(None)), "{end} of {}: {fed:?}", bytes.len());
        }
        // Byte by byte into one recogniser, and with what follows behind it.
        let mut recogniser = Recogniser::default();
        for end in 0..bytes.len() {
            assert!(recogniser.feed(&bytes[..end]).unwrap().is_none());
        }
        let expected = Hello {
            server_name: Some(HOST.into()),
            encrypted: false,
        };
        let with_more = [&bytes[..], b"more"].concat();
        for got in [
            recogniser.feed(&bytes),
            Recogniser::default().feed(&with_more),
        ] {
            assert!(
                matches!(&got, Ok(Some(Opening::Tls(hello))) if *hello == expected),
                "{got:?}"
            );
        }
    }
}

#[test]
fn a_hello_that_may_hide_another_name_is_known() {
    let bytes = hello(HOST.try_into().unwrap(), None);
    // `record_size_limit` or any other: the last extension's type becomes encrypted_client_hello's.
    let needle = [0x00, 0x2b];
    let at = bytes
        .windows(2)
        .rposition(|pair| pair == needle)
        .expect("supported_versions");
    let mut changed = bytes;
    changed[at..at + 2].copy_from_slice(&[0xfe, 0x0d]);
    match Recogniser::default().feed(&changed) {
        Ok(Some(Opening::Tls(hello))) => assert!(hello.encrypted),
        // Without supported_versions the hello is TLS 1.2's, or refused: never taken for a plain one.
        other => assert!(matches!(other, Err(SniffError::Hello { .. })), "{other:?}"),
    }
}

#[test]
fn what_is_no_opening_is_refused() {
    let cases: [(&[u8], &str); 10] = [
        (b"\x00", "unknown"),
        (b"\r\n GET / HTTP/1.1", "unknown"),
        (&[b'\n'; 40], "unknown"),
        (b" GET", "unknown"),
        (b"GET\t/", "unknown"),
        (b"\x80\x2e\x01\x03\x01", "unknown"),
        (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "unknown"),
        (b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", "hello"),
        (b"\x16\x03\x01\xff\xff\x01", "hello"),
        (b"\x16\x03\x01\x00\x00", "hello"),
    ];
    for (bytes, expected) in cases {
        let got = Recogniser::default().feed(bytes);
        match expected {
            "unknown" => assert!(
                matches!(got, Err(SniffError::Unknown)),
                "{bytes:?}: {got:?}"
            ),
            _ => assert!(
                matches!(got, Err(SniffError::Hello { .. })),
                "{bytes:?}: {got:?}"
            ),
        }
    }
    let openings: [(&[u8], bool); 6] = [
        (b"GET ", true),
        (b"\r\n", false),
        (b"\r\n\r\nGET ", true),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", true),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", false),
        (b"OPTION", false),
    ];
    for (bytes, known) in openings {
        assert_eq!(
            Recogniser::default().feed(bytes).unwrap().is_some(),
            known,
            "{bytes:?}"
        );
    }
}

#[tokio::test]
async fn a_hello_in_pieces_is_put_together() {
    let rig = Rig::new().await;
    let mut client = rig.connect(rig.origin.port).await;
    let bytes = hello(HOST.try_into().unwrap(), None);
    for piece in bytes.chunks(97) {
        client.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut answer = [0; 6];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!((answer[0], answer[5]), (22, 2), "a ServerHello");
}

#[tokio::test]
async fn tls_without_a_name_is_for_the_address() {
    let rig = Rig::new().await;
    let port = rig.origin.port;
    let address = format!("192.0.2.1:{port}");
    for (host, slug) in [
        (&address, "policy-denied"),
        (&rig.authority(), "protocol-refused"),
    ] {
        let mut client = rig.tls_to("192.0.2.1", port, &["http/1.1"]).await.unwrap();
        let request = format!("GET /ok/x HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(ask(&mut client, request).await.slug(), slug);
        assert_eq!(rig.record().await.resource, address);
    }
    assert!(rig.origin.requests().is_empty());
}

#[tokio::test]
async fn a_broken_hello_gets_an_alert_and_a_record() {
    let rig = Rig::new().await;
    for bytes in [
        &b"\x16\x03\x01\x00\x04\x01\x00\x00\x00"[..],
        b"\x15\x03\x01\x00\x02\x02\x28",
    ] {
        let mut client = rig.connect(rig.origin.port).await;
        client.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer).await;
        if bytes[0] == 22 {
            assert_eq!(answer.first(), Some(&21), "{answer:?}");
        }
        let record = rig.record().await;
        assert_eq!(
            record.reason,
            Some(DenyReason::ProtocolRefused),
            "{record:?}"
        );
    }
}

#[tokio::test]
async fn a_client_that_distrusts_us_or_speaks_something_else_leaves_a_record() {
    let rig = Rig::new().await;
    let stranger = client_config(Arc::new(RootCertStore::empty()), &[]);
    let connector = tokio_rustls::TlsConnector::from(Arc::new(stranger));
    let socket = rig.connect(rig.origin.port).await;
    connector
        .connect(HOST.try_into().unwrap(), socket)
        .await
        .unwrap_err();
    let record = rig.record().await;
    assert_eq!(record.outcome, Outcome::Error);
    assert_eq!(record.resource, rig.authority());
    assert_eq!(record.reason, Some(DenyReason::ClientTls));
    assert_eq!(record.facts[TLS_ALERT], "unknown_ca");
    drop(rig.tls(&["h2"]).await);
    let record = rig.record().await;
    assert_eq!(record.reason, Some(DenyReason::ClientTls));
    assert_eq!(record.facts.get(TLS_ALERT), None);
    assert!(
        rig.tls_to(HOST, rig.origin.port, &["spdy/3"])
            .await
            .is_err(),
        "no protocol in common"
    );
    let record = rig.record().await;
    assert_eq!((record.outcome, record.reason), (Outcome::Error, None));
    assert!(rig.records().is_empty());
}

#[tokio::test]
async fn the_clients_offer_decides_the_protocol() {
    let rig = Rig::new().await;
    let offers: [(&[&str], Option<&[u8]>); 4] = [
        (&["h2", "http/1.1"], Some(b"h2")),
        (&["http/1.1", "h2"], Some(b"h2")),
        (&["http/1.1"], Some(b"http/1.1")),
        (&[], None),
    ];
    for (offer, expected) in offers {
        let stream = rig.tls(offer).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), expected, "{offer:?}");
    }
    // Without a word about it, HTTP/1.1.
    let mut client = rig.tls(&[]).await;
    let get = format!("GET /ok/x HTTP/1.1\r\nHost: {}\r\n\r\n", rig.authority());
    assert_eq!(ask(&mut client, get).await.status, 200);
}

#[tokio::test]
async fn a_name_that_nothing_covers_is_told_why_not() {
    let rig = Rig::new().await;
    let port = rig.origin.port;
    let mut client = rig
        .tls_to("unknown.test", port, &["http/1.1"])
        .await
        .unwrap();
    let get = format!("GET /ok/x HTTP/1.1\r\nHost: unknown.test:{port}\r\n\r\n");
    let refused = ask(&mut client, get).await;
    assert_eq!(
        (refused.status, refused.slug().as_str()),
        (403, "policy-denied")
    );
    assert_eq!(rig.record().await.outcome, Outcome::Deny);
}

#[tokio::test]
async fn both_tls_versions_resume() {
    let rig = Rig::new().await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(rig.roots())
            .with_no_client_auth();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let mut kinds = Vec::new();
        for _ in 0..2 {
            let socket = rig.connect(rig.origin.port).await;
            let mut client = connector
                .connect(HOST.try_into().unwrap(), socket)
                .await
                .unwrap();
            let get = format!("GET /ok/x HTTP/1.1\r\nHost: {}\r\n\r\n", rig.authority());
            assert_eq!(ask(&mut client, get).await.status, 200);
            kinds.push(client.get_ref().1.handshake_kind().unwrap());
        }
        assert_eq!(
            kinds[1],
            rustls::HandshakeKind::Resumed,
            "{version:?}: {kinds:?}"
        );
    }
}
