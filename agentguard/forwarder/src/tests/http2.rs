//! HTTP/2: every stream judged, trailers end to end, h2c with prior knowledge.

use agentguard_record::DenyReason;
use agentguard_record::Outcome;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::origin::raw;
use super::rig::{Rig, Setup};

fn get(rig: &Rig, path: &str) -> Request<Empty<Bytes>> {
    let uri = format!("https://{}{path}", rig.authority());
    Request::get(uri).body(Empty::new()).unwrap()
}

async fn body(answer: Response<Incoming>) -> String {
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn streams_of_one_connection_are_each_judged() {
    let rig = Rig::new().await;
    let h2 = rig.h2().await;
    let mut tasks = Vec::new();
    for index in 0..40 {
        let path = if index % 2 == 0 { "/ok/x" } else { "/no" };
        let mut h2 = h2.clone();
        let request = get(&rig, path);
        tasks.push(tokio::spawn(async move {
            h2.send_request(request).await.unwrap().status()
        }));
    }
    let mut permitted = 0;
    for task in tasks {
        permitted += usize::from(task.await.unwrap() == StatusCode::OK);
    }
    assert_eq!(permitted, 20);
    assert_eq!(rig.origin.requests(), vec!["GET /ok/x"; 20]);
    let records = rig.records();
    assert_eq!(records.len(), 40);
    assert_eq!(
        records
            .iter()
            .filter(|r| r.outcome == Outcome::Allow)
            .count(),
        20
    );
    let connections = rig
        .origin
        .seen
        .connections
        .load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(connections, 1, "HTTP/2 upstream, shared");
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let rig = Rig::new().await;
    let mut h2 = rig.h2().await;
    let mut request = get(&rig, "/ok/trailers");
    request
        .headers_mut()
        .insert("te", "trailers".parse().unwrap());
    let answer = h2.send_request(request).await.unwrap();
    assert_eq!(answer.version(), Version::HTTP_2);
    let collected = answer.into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(collected.to_bytes(), "payload");
    assert_eq!(
        rig.origin.last().1["te"],
        "trailers",
        "gRPC servers insist on it"
    );
    assert_eq!(rig.record().await.bytes_down, 7);

    let stream = rig.tls(&["h2"]).await;
    let (mut h2, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let mut end = HeaderMap::new();
    end.insert("x-end", "42".parse().unwrap());
    let upload = Full::new(Bytes::from("12345")).with_trailers(std::future::ready(Some(Ok(end))));
    let uri = format!("https://{}/ok/upload", rig.authority());
    let answer = h2
        .send_request(Request::post(uri).body(upload).unwrap())
        .await
        .unwrap();
    assert_eq!(body(answer).await, "5 Some(\"42\")");
    assert_eq!(rig.record().await.bytes_up, 5);
}

#[tokio::test]
async fn a_refused_grpc_call_gets_its_status_in_the_one_header_block() {
    let rig = Rig::new().await;
    let mut h2 = rig.h2().await;
    let mut request = get(&rig, "/pkg.Service/Method");
    *request.method_mut() = Method::POST;
    request
        .headers_mut()
        .insert("content-type", "application/grpc+proto".parse().unwrap());
    let answer = h2.send_request(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["content-type"], "application/grpc");
    assert_eq!(answer.headers()["grpc-status"], "7");
    let message = answer.headers()["grpc-message"]
        .to_str()
        .unwrap()
        .to_owned();
    assert!(message.starts_with("policy-denied: "), "{message}");
    assert!(http_body::Body::is_end_stream(answer.body()));
    let record = rig.record().await;
    assert_eq!(
        (record.outcome, record.reason),
        (Outcome::Deny, Some(DenyReason::PolicyDenied))
    );
}

#[tokio::test]
async fn authorities_and_schemes_must_be_the_connections() {
    let rig = Rig::new().await;
    let port = rig.origin.port;
    let mut h2 = rig.h2().await;
    let uris = [
        format!("https://other.test:{port}/ok/x"),
        "https://origin.test:1/ok/x".into(),
        format!("http://origin.test:{port}/ok/x"),
    ];
    for uri in uris {
        let request = Request::get(&uri).body(Empty::new()).unwrap();
        let answer = h2.send_request(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{uri}");
        assert!(body(answer).await.contains("protocol-refused"), "{uri}");
    }
    let mut request = get(&rig, "/ok/x");
    request
        .headers_mut()
        .insert("host", "other.test".parse().unwrap());
    let answer = h2.send_request(request).await.unwrap();
    assert_eq!(
        answer.status(),
        StatusCode::FORBIDDEN,
        "host beside :authority"
    );
    let mut request = get(&rig, "/ok/x");
    request
        .headers_mut()
        .insert("x-long", "a".repeat(20_000).parse().unwrap());
    let answer = h2.send_request(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    assert_eq!(rig.records().len(), 5);
    assert!(rig.origin.requests().is_empty());
    // The connection has survived all that.
    assert_eq!(
        h2.send_request(get(&rig, "/ok/x")).await.unwrap().status(),
        StatusCode::OK
    );
}

#[tokio::test]
async fn connect_is_refused() {
    let rig = Rig::new().await;
    let mut h2 = rig.h2().await;
    let request = Request::connect("origin.test:443")
        .body(Empty::new())
        .unwrap();
    let answer = h2.send_request(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    assert_eq!(rig.record().await.reason, Some(DenyReason::ProtocolRefused));
}

#[tokio::test]
async fn h2c_with_prior_knowledge_is_judged_per_stream() {
    let rig = Rig::new().await;
    let plain = rig.origin.plain;
    let io = TokioIo::new(rig.connect(plain).await);
    let (mut h2, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    for (path, status) in [("/ok/1", 200), ("/no", 403), ("/ok/2", 200)] {
        let uri = format!("http://plain.test:{plain}{path}");
        let answer = h2
            .send_request(Request::get(uri).body(Empty::<Bytes>::new()).unwrap())
            .await
            .unwrap();
        assert_eq!(answer.status().as_u16(), status, "{path}");
    }
    assert_eq!(rig.records().len(), 3);
    assert_eq!(rig.origin.requests().len(), 2);
}

#[tokio::test]
async fn cookies_in_several_lines_are_one_upstream() {
    let rig = Rig::new().await;
    let mut h2 = rig.h2().await;
    let mut request = get(&rig, "/ok/x");
    for crumb in ["a=1", "b=2", "c=3"] {
        request
            .headers_mut()
            .append("cookie", crumb.parse().unwrap());
    }
    h2.send_request(request).await.unwrap();
    let (_, headers) = rig.origin.last();
    let cookies: Vec<_> = headers.get_all("cookie").iter().collect();
    assert_eq!(cookies, ["a=1; b=2; c=3"]);
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[tokio::test]
async fn frames_that_ask_for_nothing_are_cut_and_recorded() {
    let floods: [(&str, &[u8]); 4] = [
        ("PRIORITY", b"\0\0\x05\x02\0\0\0\0\x03\0\0\0\x01\x01"),
        ("WINDOW_UPDATE", b"\0\0\x04\x08\0\0\0\0\0\0\0\0\x01"),
        ("PING", b"\0\0\x08\x06\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        ("SETTINGS", b"\0\0\0\x04\0\0\0\0\0"),
    ];
    let rig = Rig::new().await;
    for (kind, frame) in floods {
        let (mut reader, mut writer) = tokio::io::split(rig.tls(&["h2"]).await);
        let drained = tokio::spawn(async move {
            let mut answers = Vec::new();
            let _ = reader.read_to_end(&mut answers).await;
        });
        writer.write_all(PREFACE).await.unwrap();
        let mut sent = 0;
        while !drained.is_finished() && writer.write_all(frame).await.is_ok() {
            sent += 1;
            assert!(sent < 100_000, "{kind}: it reads on");
        }
        let record = rig.record().await;
        assert_eq!(record.reason, Some(DenyReason::ProtocolRefused), "{kind}");
        assert_eq!(record.resource, rig.authority());
        let detail = record.detail.unwrap();
        assert!(detail.contains("control frames"), "{kind}: {detail}");
    }
}

#[tokio::test]
async fn interim_answers_without_end_are_an_end() {
    let port = raw(|mut socket| async move {
        let mut sent = [0; 4096];
        let _ = socket.read(&mut sent).await;
        socket.write_all(b"\0\0\0\x04\0\0\0\0\0").await.unwrap();
        // `:status: 103` on the first stream, without an end.
        let interim = b"\0\0\x05\x01\x04\0\0\0\x01\x08\x03103".repeat(64);
        while socket.write_all(&interim).await.is_ok() {}
    })
    .await;
    let agent = format!(
        "[agent]\nname = \"tester\"\nowner = \"o@example.com\"\nrisk = \"low\"\n\
         [[reach]]\nhost = \"plain.test:{port}\"\nallow = [\"GET /ok/**\"]\n"
    );
    let rig = Rig::with(Setup {
        agent: agent.leak(),
        ..Setup::default()
    })
    .await;
    let io = TokioIo::new(rig.connect(port).await);
    let (mut h2, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let uri = format!("http://plain.test:{port}/ok/x");
    let request = Request::get(uri).body(Empty::<Bytes>::new()).unwrap();
    let answer = h2.send_request(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
    let told = body(answer).await;
    assert!(told.contains("control frames"), "{told}");
}
