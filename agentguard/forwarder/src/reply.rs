//! What an agent gets, frame by frame. Nothing is collected; the record is complete before the agent can see the end of its
//! answer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use agentguard_record::{DenyReason, Ended, Outcome};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::clock::Busy;
use super::record::{PassedBytes, RecordEntry};
use super::refusal::{CUT, Refusal};
use super::session::Session;
use super::standing::Standing;
use super::upstream::UpstreamFault;
use super::upstream::exchange::Lease;

/// How long what is queued for an HTTP/2 client may take to go out before its stream is reset.
const GRACE: Duration = Duration::from_millis(100);

/// A document of ours, or upstream's own body.
pub(crate) enum Reply {
    Document(Option<Bytes>),
    Upstream(Box<Download>),
}

/// Upstream's body with the record that ends with it.
pub(crate) struct Download {
    body: Incoming,
    lease: Lease,
    entry: Option<RecordEntry>,
    passed: Arc<PassedBytes>,
    standing: Standing,
    /// The end of the tasks that it was permitted on.
    over: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    session: Arc<Session>,
    broken: Option<BrokenOff>,
    _busy: Busy,
}

/// Upstream's answer has ended too early. An error ends the client's connection or stream with what is queued for it, so that
/// what did come goes out first: over HTTP/1.1 until all is written, over HTTP/2, where nobody tells, for [`GRACE`].
struct BrokenOff {
    error: io::Error,
    /// The session's flushes when it happened.
    flushes: u64,
    grace: Option<Pin<Box<Sleep>>>,
}

impl Reply {
    pub(crate) fn empty() -> Self {
        Self::Document(None)
    }

    pub(crate) fn document(text: String) -> Self {
        Self::Document((!text.is_empty()).then(|| text.into()))
    }

    /// A permitted answer. One without a body is complete here.
    pub(crate) fn upstream(
        body: Incoming,
        lease: Lease,
        entry: RecordEntry,
        standing: Standing,
        session: Arc<Session>,
        busy: Busy,
    ) -> Self {
        let passed = entry.passed.clone();
        let mut download = Download {
            body,
            lease,
            entry: Some(entry),
            passed,
            over: standing.over().map(|over| Box::pin(over) as Pin<Box<_>>),
            standing,
            session,
            broken: None,
            _busy: busy,
        };
        if download.body.is_end_stream() {
            download.record();
            // Nobody polls a body that has ended. Who takes the connection next polls it anew.
            download.lease.end(&mut Context::from_waker(Waker::noop()));
        }
        Self::Upstream(Box::new(download))
    }
}

impl Download {
    fn record(&mut self) {
        if let Some(entry) = self.entry.take() {
            entry.complete(Outcome::Allow, Ended::Whole);
        }
    }

    fn cut(&mut self) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(entry) = self.entry.take() {
            entry.refuse(Refusal::cut(self.standing.reason()));
        }
        Poll::Ready(Some(Err(io::Error::other(CUT))))
    }

    fn break_off(&mut self, error: io::Error) {
        let http2 = self.session.entrance.http2;
        self.broken = Some(BrokenOff {
            error,
            flushes: self.session.flushes(),
            grace: http2.then(|| Box::pin(tokio::time::sleep(GRACE))),
        });
    }

    /// Ends it when what is queued for the client has gone.
    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let has_gone = |broken: &mut BrokenOff| match &mut broken.grace {
            Some(grace) => grace.as_mut().poll(cx).is_ready(),
            // Who writes asks again behind each flush.
            None => self.session.flushes() != broken.flushes,
        };
        match self.broken.take_if(has_gone) {
            Some(broken) => Poll::Ready(Some(Err(broken.error))),
            None => Poll::Pending,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.broken.is_some() {
            return self.poll_broken(cx);
        }
        // An answer that says nothing for long ends in time, too.
        let over = self.over.as_mut().map(|over| over.as_mut().poll(cx));
        if over.is_some_and(|over| over.is_ready()) {
            self.over = None;
            if !self.standing.holds() {
                return self.cut();
            }
        }
        let mut frame = Pin::new(&mut self.body).poll_frame(cx);
        if frame.is_pending() && self.lease.drive(cx) {
            frame = Pin::new(&mut self.body).poll_frame(cx);
        }
        let frame = match ready!(frame) {
            Some(Ok(frame)) if !self.standing.holds() => {
                drop(frame);
                return self.cut();
            }
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                if let Some(entry) = self.entry.take() {
                    let detail =
                        format!("the answer broke off: {}", UpstreamFault::exchange(&error));
                    let reason = DenyReason::UpstreamUnreachable;
                    entry.fail(Ended::UpstreamFailed, Some(reason), detail);
                }
                self.break_off(io::Error::other(error));
                return self.poll_broken(cx);
            }
            None => {
                self.record();
                self.lease.end(cx);
                return Poll::Ready(None);
            }
        };
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        self.passed.down.fetch_add(bytes as u64, Ordering::Relaxed);
        if frame.is_trailers() || self.body.is_end_stream() {
            self.record();
            self.lease.end(cx);
        }
        Poll::Ready(Some(Ok(frame)))
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Document(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Upstream(download) => download.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Document(text) => text.is_none(),
            Self::Upstream(download) => download.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Document(text) => {
                SizeHint::with_exact(text.as_ref().map_or(0, Bytes::len) as u64)
            }
            Self::Upstream(download) => download.body.size_hint(),
        }
    }
}
