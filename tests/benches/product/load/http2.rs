//! HTTP/2: many streams on one connection.

use std::time::Instant;

use anyhow::bail;
use http::{Request, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::task::JoinSet;

use super::Protocol;
use super::latency::Latencies;
use super::tls::Dialer;

#[derive(Clone)]
pub(super) struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    authority: String,
}

impl Connection {
    pub(super) async fn open(dialer: &Dialer) -> anyhow::Result<Self> {
        let stream = dialer.dial(Protocol::Http2, false).await?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            bail!("the server did not choose h2");
        }
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await?;
        tokio::spawn(connection);
        Ok(Self {
            sender,
            authority: dialer.authority().to_owned(),
        })
    }

    pub(super) async fn get(&mut self, path: &str) -> anyhow::Result<()> {
        let uri = Uri::builder()
            .scheme("https")
            .authority(self.authority.as_str())
            .path_and_query(path)
            .build()?;
        let request = Request::get(uri)
            .header("user-agent", "agentguard-bench")
            .header("accept", "*/*")
            .body(Empty::new())?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        if response.status() != 200 {
            bail!("answered {}", response.status());
        }
        let mut body = response.into_body();
        while let Some(frame) = body.frame().await {
            frame?;
        }
        Ok(())
    }
}

/// `streams` at once on every connection.
pub(super) async fn requests(
    connections: &[Connection],
    path: &str,
    streams: usize,
    until: Instant,
) -> anyhow::Result<Latencies> {
    let mut tasks = JoinSet::new();
    for connection in connections {
        for _ in 0..streams {
            let (mut connection, path) = (connection.clone(), path.to_owned());
            tasks.spawn(async move {
                let mut latencies = Latencies::default();
                let mut now = Instant::now();
                while now < until {
                    connection.get(&path).await?;
                    let then = std::mem::replace(&mut now, Instant::now());
                    latencies.push(now - then);
                }
                anyhow::Ok(latencies)
            });
        }
    }
    let mut all = Latencies::default();
    while let Some(done) = tasks.join_next().await {
        all.extend(done??);
    }
    Ok(all)
}
