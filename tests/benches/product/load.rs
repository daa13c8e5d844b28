//! The load generator: a process of its own that obeys one command after the other, so that the guarded one is an agent
//! and every subject meets the same client. One thread: it may not take the core that the proxy under test needs.

mod connect;
mod http1;
mod http2;
mod latency;
mod process;
mod tls;

use std::io::{BufRead, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use self::latency::Latencies;
use self::tls::Dialer;

/// Where the load goes; certificates are verified against the file that `SSL_CERT_FILE` names.
#[derive(clap::Args, Clone)]
pub(crate) struct Target {
    /// Where to connect
    address: SocketAddr,
    /// What to ask for: `Host` and `:authority`; its name is the SNI
    authority: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Opens connections, asks `path` once on each, and keeps them.
    Open {
        connections: usize,
        protocol: Protocol,
        path: String,
    },
    /// Requests on the open connections until the time is over; `streams` at once on each (HTTP/1.1: 1).
    Requests {
        path: String,
        streams: usize,
        millis: u64,
    },
    Close,
    /// A new connection for every request, `concurrency` at once; full handshakes, or with tickets.
    Handshakes {
        path: String,
        concurrency: usize,
        resume: bool,
        millis: u64,
    },
    Download {
        path: String,
        bytes: u64,
    },
    Upload {
        path: String,
        bytes: u64,
    },
    /// The first and the second event of a stream: `p50_us` and `p99_us` of the outcome.
    Events {
        path: String,
    },
    /// `connect(2)` alone, `count` times, one after the other.
    Connect {
        to: SocketAddr,
        count: u32,
    },
    /// The same to a socket file.
    UnixConnect {
        path: PathBuf,
        count: u32,
    },
    /// A child that ends at once, `count` times.
    Fork {
        count: u32,
    },
    /// The same with another program in it.
    Exec {
        count: u32,
    },
    /// So many bytes into one connection, until the other side says that it has them.
    Stream {
        to: SocketAddr,
        bytes: u64,
    },
}

/// What one command did. Times are those of single requests (connections, connects).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub count: u64,
    pub seconds: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
}

/// Obeys until stdin ends.
pub(crate) fn serve(target: Target) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut load = Load {
        dialer: Arc::new(Dialer::new(&target)?),
        http1: Vec::new(),
        http2: Vec::new(),
    };
    let mut stdout = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        let command: Command = serde_json::from_str(&line?).context("not a command")?;
        let answer = runtime
            .block_on(load.obey(&command))
            .map_err(|error| format!("{command:?}: {error:#}"));
        writeln!(stdout, "{}", serde_json::to_string(&answer)?)?;
        stdout.flush()?;
    }
    Ok(())
}

struct Load {
    dialer: Arc<Dialer>,
    http1: Vec<http1::Connection>,
    http2: Vec<http2::Connection>,
}

impl Load {
    async fn obey(&mut self, command: &Command) -> anyhow::Result<Outcome> {
        let started = Instant::now();
        let latencies = match command {
            Command::Open {
                connections,
                protocol,
                path,
            } => self.open(*connections, *protocol, path).await?,
            Command::Requests {
                path,
                streams,
                millis,
            } => {
                let until = started + Duration::from_millis(*millis);
                self.requests(path, *streams, until).await?
            }
            Command::Close => {
                self.http1.clear();
                self.http2.clear();
                Latencies::default()
            }
            Command::Handshakes {
                path,
                concurrency,
                resume,
                millis,
            } => {
                let until = started + Duration::from_millis(*millis);
                http1::handshakes(&self.dialer, path, *concurrency, *resume, until).await?
            }
            Command::Download { path, bytes } => {
                let mut connection = http1::Connection::bulk(&self.dialer).await?;
                return outcome_of_one(connection.download(path, *bytes).await?);
            }
            Command::Upload { path, bytes } => {
                let mut connection = http1::Connection::bulk(&self.dialer).await?;
                return outcome_of_one(connection.upload(path, *bytes).await?);
            }
            Command::Events { path } => {
                let mut connection = http1::Connection::bulk(&self.dialer).await?;
                let (first, second) = connection.events(path).await?;
                return Ok(Outcome {
                    count: 2,
                    p50_us: first.as_secs_f64() * 1e6,
                    p99_us: second.as_secs_f64() * 1e6,
                    ..Outcome::default()
                });
            }
            Command::Connect { to, count } => connect::connects(*to, *count)?,
            Command::UnixConnect { path, count } => connect::unix_connects(path, *count)?,
            Command::Fork { count } => process::forks(*count)?,
            Command::Exec { count } => process::execs(*count)?,
            Command::Stream { to, bytes } => {
                return outcome_of_one(connect::stream(*to, *bytes)?);
            }
        };
        Ok(latencies.outcome(started.elapsed()))
    }

    async fn open(
        &mut self,
        connections: usize,
        protocol: Protocol,
        path: &str,
    ) -> anyhow::Result<Latencies> {
        let mut latencies = Latencies::default();
        for _ in 0..connections {
            let started = Instant::now();
            match protocol {
                Protocol::Http1 => {
                    let mut connection = http1::Connection::open(&self.dialer).await?;
                    connection.get(path).await?;
                    self.http1.push(connection);
                }
                Protocol::Http2 => {
                    let mut connection = http2::Connection::open(&self.dialer).await?;
                    connection.get(path).await?;
                    self.http2.push(connection);
                }
            }
            latencies.push(started.elapsed());
        }
        Ok(latencies)
    }

    async fn requests(
        &mut self,
        path: &str,
        streams: usize,
        until: Instant,
    ) -> anyhow::Result<Latencies> {
        if self.http1.is_empty() && self.http2.is_empty() {
            bail!("no connection is open");
        }
        let mut latencies = http1::requests(&mut self.http1, path, until).await?;
        latencies.extend(http2::requests(&self.http2, path, streams, until).await?);
        Ok(latencies)
    }
}

fn outcome_of_one(took: Duration) -> anyhow::Result<Outcome> {
    let mut latencies = Latencies::default();
    latencies.push(took);
    Ok(latencies.outcome(took))
}
