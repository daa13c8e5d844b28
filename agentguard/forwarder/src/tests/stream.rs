//! Bodies that take their time: nothing waits for an end that another part of the exchange has to bring about.

use agentguard_record::{DecidedBy, Draft, Ended, Outcome};
use http::Request;
use http_body_util::Empty;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::rig::{Rig, ask, chunk, head, reply};

#[tokio::test]
async fn events_come_one_by_one() {
    let rig = Rig::new().await;
    let mut client = rig.tls(&["http/1.1"]).await;
    let host = rig.authority();
    let request =
        format!("GET /ok/events HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    // The head comes before there is any event.
    assert!(head(&mut client).await.contains("text/event-stream"));
    for event in ["one", "two", "three"] {
        assert!(rig.records().is_empty(), "the answer is not over");
        rig.origin.seen.events.send(event).unwrap();
        let data = chunk(&mut client).await.unwrap();
        assert_eq!(data, format!("data: {event}\n\n").as_bytes());
    }
    rig.origin.seen.events.send("end").unwrap();
    assert_eq!(chunk(&mut client).await, None);
    let record = rig
        .records()
        .pop()
        .expect("complete before the client sees the end");
    assert_eq!(record.outcome, Outcome::Allow);
    assert_eq!(
        record.bytes_down,
        "data: one\n\ndata: two\n\ndata: three\n\n".len() as u64
    );
}

#[tokio::test]
async fn an_echo_goes_both_ways_at_once() {
    let rig = Rig::new().await;
    let mut client = rig.tls(&["http/1.1"]).await;
    let host = rig.authority();
    let request =
        format!("POST /ok/echo HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    client.write_all(b"5\r\nfirst\r\n").await.unwrap();
    head(&mut client).await;
    assert_eq!(chunk(&mut client).await.unwrap(), b"first");
    for word in ["again", "and  ", "again"] {
        client
            .write_all(format!("5\r\n{word}\r\n").as_bytes())
            .await
            .unwrap();
        assert_eq!(chunk(&mut client).await.unwrap(), word.as_bytes());
    }
    client.write_all(b"0\r\n\r\n").await.unwrap();
    assert_eq!(chunk(&mut client).await, None);
    let record = rig.record().await;
    assert_eq!((record.bytes_up, record.bytes_down), (20, 20));
}

#[tokio::test]
async fn a_client_that_has_finished_sending_still_gets_its_answer() {
    let rig = Rig::new().await;
    let plain = rig.origin.plain;
    let mut client = rig.connect(plain).await;
    let request = format!(
        "POST /ok/upload HTTP/1.1\r\nHost: plain.test:{plain}\r\nContent-Length: 5\r\n\r\n12345"
    );
    client.write_all(request.as_bytes()).await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(reply(&mut client).await.body, b"5 None");
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(rig.record().await.outcome, Outcome::Allow);
}

#[tokio::test]
async fn nobody_is_told_to_go_on_before_the_decision() {
    let rig = Rig::new().await;
    let host = rig.authority();
    let expecting = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        )
    };
    let mut client = rig.tls(&["http/1.1"]).await;
    let refused = ask(&mut client, expecting("/no")).await;
    assert_eq!(
        (refused.status, refused.header("connection")),
        (403, Some("close"))
    );
    assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
    let mut client = rig.tls(&["http/1.1"]).await;
    client
        .write_all(expecting("/ok/upload").as_bytes())
        .await
        .unwrap();
    assert!(head(&mut client).await.starts_with("HTTP/1.1 100"));
    let permitted = ask(&mut client, "12345").await;
    assert_eq!(permitted.body, b"5 None");
    assert!(!rig.origin.last().1.contains_key("expect"));
    // The connection goes on.
    assert_eq!(
        ask(
            &mut client,
            format!("GET /ok/x HTTP/1.1\r\nHost: {host}\r\n\r\n")
        )
        .await
        .status,
        200
    );
}

#[tokio::test]
async fn a_refused_upload_is_read_so_that_the_refusal_is() {
    let rig = Rig::new().await;
    let host = rig.authority();
    let mut client = rig.tls(&["http/1.1"]).await;
    let length = 4 << 20;
    let request = format!("PUT /no HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    // As clients do that write all before they read.
    client.write_all(&vec![0; length]).await.unwrap();
    client.flush().await.unwrap();
    assert_eq!(reply(&mut client).await.slug(), "policy-denied");
    assert_eq!(
        ask(
            &mut client,
            format!("GET /ok/x HTTP/1.1\r\nHost: {host}\r\n\r\n")
        )
        .await
        .status,
        200
    );
}

#[tokio::test]
async fn a_large_answer_passes_whole_and_is_counted() {
    let rig = Rig::new().await;
    let mut client = rig.tls(&["http/1.1"]).await;
    let host = rig.authority();
    let got = ask(
        &mut client,
        format!("GET /ok/large HTTP/1.1\r\nHost: {host}\r\n\r\n"),
    )
    .await;
    assert_eq!(got.body.len(), 1 << 20);
    assert!(got.body.iter().all(|byte| *byte == b'y'));
    assert_eq!(rig.record().await.bytes_down, 1 << 20);
}

#[tokio::test]
async fn a_client_that_goes_away_is_recorded_as_gone() {
    let gone = |record: &Draft| {
        let told = (record.outcome, record.decided_by, record.ended);
        assert_eq!(told, (Outcome::Error, DecidedBy::Rules, Ended::ClientGone));
        record.request.as_ref().unwrap().status
    };
    let rig = Rig::new().await;
    let host = rig.authority();
    let mut client = rig.tls(&["http/1.1"]).await;
    let get = format!("GET /ok/stream HTTP/1.1\r\nHost: {host}\r\n\r\n");
    client.write_all(get.as_bytes()).await.unwrap();
    head(&mut client).await;
    drop(client);
    assert_eq!(gone(&rig.record().await), 200);
    assert!(rig.records().is_empty());

    // Before there is an answer, which HTTP/1.1 cannot tell from a client that has no more to say.
    let rig = Rig::new().await;
    let mut client = rig.h2().await;
    let uri = format!("https://{}/ok/never", rig.authority());
    let asked = client.send_request(Request::get(uri).body(Empty::new()).unwrap());
    tokio::select! {
        answer = asked => panic!("{answer:?}"),
        () = rig.origin.seen.waiting.notified() => {}
    }
    assert_eq!(gone(&rig.record().await), 0);
    assert!(rig.records().is_empty());
}

#[tokio::test]
async fn the_forwarders_end_is_no_clients() {
    let rig = Rig::new().await;
    let host = rig.authority();
    let mut client = rig.tls(&["http/1.1"]).await;
    let get = format!("GET /ok/never HTTP/1.1\r\nHost: {host}\r\n\r\n");
    client.write_all(get.as_bytes()).await.unwrap();
    rig.origin.seen.waiting.notified().await;
    rig.forwarder.lives.end().await;
    let record = rig.record().await;
    assert_eq!(
        (record.outcome, record.ended),
        (Outcome::Error, Ended::Aborted)
    );
}
