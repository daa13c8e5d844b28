//! Connections that become tunnels: `CONNECT`, inside which everything begins anew, and upgrades, whose bytes are passed on
//! after the request was permitted and upstream agreed.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use agentguard_record::{Ended, Outcome};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes};

use super::clock::Busy;
use super::identity::RequestTarget;
use super::io::ClientStream;
use super::record::{ConnectionOver, PassedBytes, RecordEntry};
use super::refusal::Refusal;
use super::standing::Standing;

/// Bytes read at once, each way.
const CHUNK: usize = 16 * 1024;

/// What a connection is after its last HTTP answer.
pub(crate) enum Tunnel {
    Connect(Connect),
    Upgrade(Box<UpgradeTunnel>),
}

/// The agent takes us for its proxy: what it sends now is for `target`.
pub(crate) struct Connect {
    pub client: OnUpgrade,
    pub target: RequestTarget,
    pub entry: RecordEntry,
}

/// Upstream has agreed.
pub(crate) struct UpgradeTunnel {
    pub client: OnUpgrade,
    pub upstream: OnUpgrade,
    pub entry: RecordEntry,
    pub standing: Standing,
    pub busy: Busy,
}

impl Connect {
    /// What was opened, once the answer has been sent.
    pub(crate) async fn open(
        self,
    ) -> Result<(ClientStream, RequestTarget, RecordEntry), ConnectionOver> {
        match self.client.await {
            Ok(client) => {
                let client = ClientStream::Tunnel(TokioIo::new(client));
                Ok((client, self.target, self.entry))
            }
            Err(error) => {
                let detail = format!("`CONNECT` was not completed: {error}");
                Err(self.entry.fail(Ended::ClientGone, None, detail))
            }
        }
    }
}

impl UpgradeTunnel {
    /// Passes the bytes both ways until both sides have ended.
    pub(crate) async fn pass(self) -> ConnectionOver {
        let Self {
            client,
            upstream,
            entry,
            standing,
            busy: _busy,
        } = self;
        let (client, upstream) = match tokio::try_join!(client, upstream) {
            Ok(sides) => sides,
            Err(error) => {
                let detail = format!("the upgrade did not happen: {error}");
                return entry.fail(Ended::BrokeOff, None, detail);
            }
        };
        let passed = entry.passed.clone();
        let passing = splice(TokioIo::new(client), TokioIo::new(upstream), &passed);
        carry(passing, entry, standing).await
    }
}

/// Lets bytes pass until both sides have ended or a new bundle does not permit it any more, and completes the record.
pub(crate) async fn carry(
    passing: impl Future<Output = io::Result<()>>,
    mut entry: RecordEntry,
    mut standing: Standing,
) -> ConnectionOver {
    tokio::select! {
        passed = passing => {
            let ended = match passed {
                Ok(()) => Ended::Whole,
                Err(error) => {
                    entry.detail = Some(format!("the connection broke off: {error}"));
                    Ended::BrokeOff
                }
            };
            entry.complete(Outcome::Allow, ended)
        }
        () = standing.lost() => entry.refuse(Refusal::cut(standing.reason())),
    }
}

/// Copies both ways, each until its own end (RFC 9293 section 3.6: half-close), counting as it goes.
pub(crate) async fn splice<A, B>(client: A, upstream: B, passed: &PassedBytes) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut client = CountingStream {
        inner: client,
        read: &passed.up,
    };
    let mut upstream = CountingStream {
        inner: upstream,
        read: &passed.down,
    };
    copy_bidirectional_with_sizes(&mut client, &mut upstream, CHUNK, CHUNK)
        .await
        .map(drop)
}

/// Counts what is read from a stream.
pub(crate) struct CountingStream<'a, S> {
    pub inner: S,
    pub read: &'a AtomicU64,
}

impl<S: AsyncRead + Unpin> AsyncRead for CountingStream<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let bytes = buf.filled().len() - before;
        self.read.fetch_add(bytes as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for CountingStream<'_, S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
