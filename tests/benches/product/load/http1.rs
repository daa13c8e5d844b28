//! HTTP/1.1 by hand: the least a client can do, so that the figures are those of what it talks to. It takes only what the
//! origins here send: status 200 and a `content-length`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;

use super::Protocol;
use super::latency::Latencies;
use super::tls::Dialer;

const SMALL_BUFFER: usize = 8 << 10;
const BULK_BUFFER: usize = 256 << 10;

pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    authority: Arc<str>,
    buffer: Box<[u8]>,
}

impl Connection {
    pub(super) async fn open(dialer: &Dialer) -> anyhow::Result<Self> {
        Self::with(dialer, SMALL_BUFFER, false).await
    }

    pub(super) async fn bulk(dialer: &Dialer) -> anyhow::Result<Self> {
        Self::with(dialer, BULK_BUFFER, false).await
    }

    async fn with(dialer: &Dialer, buffer: usize, resume: bool) -> anyhow::Result<Self> {
        Ok(Self {
            stream: dialer.dial(Protocol::Http1, resume).await?,
            authority: dialer.authority().into(),
            buffer: vec![0; buffer].into(),
        })
    }

    pub(super) async fn get(&mut self, path: &str) -> anyhow::Result<u64> {
        let head = self.head("GET", path, None);
        self.send(head.as_bytes()).await?;
        self.discard_response().await
    }

    /// The time from the request to the last byte of a response of exactly `bytes`.
    pub(super) async fn download(&mut self, path: &str, bytes: u64) -> anyhow::Result<Duration> {
        let started = Instant::now();
        let received = self.get(path).await?;
        if received != bytes {
            bail!("{received} bytes of {bytes} came");
        }
        Ok(started.elapsed())
    }

    /// The time from the request to the answer of a sink that says how many bytes it read.
    pub(super) async fn upload(&mut self, path: &str, bytes: u64) -> anyhow::Result<Duration> {
        let chunk = vec![b'u'; BULK_BUFFER];
        let started = Instant::now();
        let head = self.head("PUT", path, Some(bytes));
        self.send(head.as_bytes()).await?;
        let mut left = bytes;
        while left > 0 {
            let now = left.min(chunk.len() as u64);
            self.stream.write_all(&chunk[..now as usize]).await?;
            left -= now;
        }
        self.stream.flush().await?;
        let (body, filled) = self.response_head().await?;
        let mut answer = self.buffer[filled.clone()].to_vec();
        while (answer.len() as u64) < body {
            let count = self.receive(0).await?;
            answer.extend_from_slice(&self.buffer[..count]);
        }
        if answer != bytes.to_string().as_bytes() {
            bail!(
                "the sink read {:?} of {bytes}",
                String::from_utf8_lossy(&answer)
            );
        }
        Ok(started.elapsed())
    }

    /// When the events `one` and `two` of a stream were here, since the request.
    pub(super) async fn events(&mut self, path: &str) -> anyhow::Result<(Duration, Duration)> {
        let started = Instant::now();
        let head = self.head("GET", path, None);
        self.send(head.as_bytes()).await?;
        let mut filled = 0;
        let mut first = None;
        loop {
            filled += self.receive(filled).await?;
            let seen = &self.buffer[..filled];
            if first.is_none() && find(seen, b"data: one\n\n").is_some() {
                first = Some(started.elapsed());
            }
            if let Some(first) = first
                && find(seen, b"data: two\n\n").is_some()
            {
                return Ok((first, started.elapsed()));
            }
        }
    }

    fn head(&self, method: &str, path: &str, body: Option<u64>) -> String {
        let length = body.map_or(String::new(), |bytes| {
            format!("content-length: {bytes}\r\n")
        });
        format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nuser-agent: agentguard-bench\r\naccept: */*\r\n{length}\r\n",
            self.authority
        )
    }

    async fn send(&mut self, head: &[u8]) -> anyhow::Result<()> {
        self.stream.write_all(head).await?;
        self.stream.flush().await?;
        Ok(())
    }

    async fn discard_response(&mut self) -> anyhow::Result<u64> {
        let (body, early) = self.response_head().await?;
        let mut received = early.len() as u64;
        while received < body {
            received += self.receive(0).await? as u64;
        }
        if received > body {
            bail!("{received} bytes of body where {body} were announced");
        }
        Ok(received)
    }

    /// The body's length, and where in the buffer its first bytes are.
    async fn response_head(&mut self) -> anyhow::Result<(u64, std::ops::Range<usize>)> {
        let mut filled = 0;
        let end = loop {
            filled += self.receive(filled).await?;
            if let Some(end) = find(&self.buffer[..filled], b"\r\n\r\n") {
                break end + 4;
            }
        };
        let head = std::str::from_utf8(&self.buffer[..end]).context("response head")?;
        let mut lines = head.split("\r\n");
        if lines.next().and_then(|line| line.split(' ').nth(1)) != Some("200") {
            let body = String::from_utf8_lossy(&self.buffer[end..filled]);
            bail!("answered {head}{body}");
        }
        let length = lines
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .with_context(|| format!("no content-length in {head}"))?;
        Ok((length.1.trim().parse()?, end..filled))
    }

    async fn receive(&mut self, filled: usize) -> anyhow::Result<usize> {
        if filled == self.buffer.len() {
            bail!("the response head is longer than {filled} bytes");
        }
        match self.stream.read(&mut self.buffer[filled..]).await? {
            0 => bail!("the connection ended early"),
            count => Ok(count),
        }
    }
}

/// All connections at once, one request after the other on each.
pub(super) async fn requests(
    connections: &mut Vec<Connection>,
    path: &str,
    until: Instant,
) -> anyhow::Result<Latencies> {
    let mut tasks = JoinSet::new();
    for mut connection in connections.drain(..) {
        let path = path.to_owned();
        tasks.spawn(async move {
            let mut latencies = Latencies::default();
            let mut now = Instant::now();
            while now < until {
                connection.get(&path).await?;
                let then = std::mem::replace(&mut now, Instant::now());
                latencies.push(now - then);
            }
            anyhow::Ok((connection, latencies))
        });
    }
    let mut all = Latencies::default();
    while let Some(done) = tasks.join_next().await {
        let (connection, latencies) = done??;
        connections.push(connection);
        all.extend(latencies);
    }
    Ok(all)
}

/// A connection, one request and a close, over and over.
pub(super) async fn handshakes(
    dialer: &Arc<Dialer>,
    path: &str,
    concurrency: usize,
    resume: bool,
    until: Instant,
) -> anyhow::Result<Latencies> {
    let mut tasks = JoinSet::new();
    for _ in 0..concurrency {
        let (dialer, path) = (Arc::clone(dialer), path.to_owned());
        tasks.spawn(async move {
            let mut latencies = Latencies::default();
            while Instant::now() < until {
                let started = Instant::now();
                let mut connection = Connection::with(&dialer, SMALL_BUFFER, resume).await?;
                connection.get(&path).await?;
                latencies.push(started.elapsed());
                connection.stream.shutdown().await.ok();
            }
            anyhow::Ok(latencies)
        });
    }
    let mut all = Latencies::default();
    while let Some(done) = tasks.join_next().await {
        all.extend(done??);
    }
    Ok(all)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}
