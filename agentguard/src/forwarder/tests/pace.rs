//! No stalls: small requests and answers do not wait for each other's acknowledgements. Figures are for `xtask bench`.

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

/// Rough figures, all in one process: `cargo test --release -p agentguard --lib -- --ignored --nocapture rates`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prints figures, judges nothing"]
async fn rates() {
    let rig = std::sync::Arc::new(Rig::new().await);
    for clients in [1, 32] {
        for direct in [true, false] {
            let started = Instant::now();
            let running: Vec<_> = (0..clients)
                .map(|_| tokio::spawn(keep_asking(rig.clone(), direct, 6_000 / clients)))
                .collect();
            let mut times = Vec::new();
            for client in running {
                times.extend(client.await.unwrap());
                rig.records();
            }
            let rate = times.len() as f64 / started.elapsed().as_secs_f64();
            times.sort_unstable();
            let at = |part: usize| times[times.len() * part / 100];
            let way = if direct { "direct" } else { "judged" };
            println!(
                "{way} c={clients}: {rate:.0}/s, p50 {:?}, p99 {:?}",
                at(50),
                at(99)
            );
        }
    }
}

async fn keep_asking(rig: std::sync::Arc<Rig>, direct: bool, requests: usize) -> Vec<Duration> {
    let get = format!("GET /ok/x HTTP/1.1\r\nHost: {}\r\n\r\n", rig.authority());
    let mut client = if direct {
        rig.direct().await
    } else {
        rig.tls(&["http/1.1"]).await
    };
    let mut times = Vec::new();
    for _ in 0..requests {
        let started = Instant::now();
        assert_eq!(ask(&mut client, &get).await.status, 200);
        times.push(started.elapsed());
    }
    times
}
