//! No stalls: small requests and answers do not wait for each other's acknowledgements.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;

use super::rig::{Rig, ask};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kept_connections_do_not_stall() {
    let rig = Rig::new().await;
    let host = rig.authority();
    let shapes = [
        (
            "GET",
            format!("GET /ok/x HTTP/1.1\r\nHost: {host}\r\n\r\n"),
            "",
        ),
        // The body in a segment of its own: where Nagle meets delayed acknowledgements.
        (
            "POST",
            format!("POST /ok/upload HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\n\r\n"),
            "12345",
        ),
    ];
    for (name, head, body) in shapes {
        let mut client = rig.tls(&["http/1.1"]).await;
        let mut times: Vec<Duration> = Vec::new();
        for _ in 0..300 {
            let started = Instant::now();
            client.write_all(head.as_bytes()).await.unwrap();
            assert_eq!(ask(&mut client, body).await.status, 200);
            times.push(started.elapsed());
        }
        times.sort_unstable();
        println!("{name}: p50 {:?}, p99 {:?}", times[150], times[297]);
        // Delayed acknowledgements take 40 ms of every request; a busy machine takes its time of some.
        assert!(
            times[75] < Duration::from_millis(35),
            "{name}: {:?}",
            times[75]
        );
    }
}
