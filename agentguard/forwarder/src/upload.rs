//! Requests' bodies on their way to upstream, frame by frame, and those that nobody wants.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::body::{RequestBody, UploadError, WholeBody};
use super::clock::Busy;
use super::life::Life;
use super::record::PassedBytes;
use super::refusal::CUT;

/// How much of a refused request's body is read, so that the client gets to read why, and for how long.
const DRAIN_BYTES: u64 = 16 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// A request's body towards upstream.
pub(crate) struct Upload {
    inner: UploadSource,
    state: UploadState,
    /// The end of the tasks that it is permitted on.
    over: Option<BoxFuture<'static, ()>>,
    /// Who reads the rest of a client's body when upstream wants no more of it.
    reader: Option<(Arc<Life>, Busy)>,
}

enum UploadSource {
    Empty,
    /// Of a request that went out and cannot be sent again.
    Lost,
    Client(Incoming),
    Whole(WholeBody),
}

/// How far an upload has come, for who waits for the answer.
#[derive(Clone, Default)]
pub(crate) struct UploadState {
    passed: Arc<PassedBytes>,
    end: Arc<UploadEnd>,
}

#[derive(Default)]
struct UploadEnd {
    done: AtomicBool,
    error: OnceLock<UploadError>,
}

impl Upload {
    pub(crate) fn empty() -> Self {
        Self {
            inner: UploadSource::Empty,
            state: UploadState::finished(),
            over: None,
            reader: None,
        }
    }

    pub(crate) fn lost() -> Self {
        Self {
            inner: UploadSource::Lost,
            state: UploadState::finished(),
            over: None,
            reader: None,
        }
    }

    pub(crate) fn new(
        body: RequestBody,
        passed: &Arc<PassedBytes>,
        over: Option<BoxFuture<'static, ()>>,
        reader: (Arc<Life>, Busy),
    ) -> Self {
        let inner = match body {
            RequestBody::Streamed(body) if !body.is_end_stream() => UploadSource::Client(body),
            RequestBody::Whole(body) if !body.is_spent() => UploadSource::Whole(body),
            RequestBody::Streamed(_) | RequestBody::Whole(_) | RequestBody::Spent => {
                return Self::empty();
            }
        };
        Self {
            inner,
            state: UploadState {
                passed: passed.clone(),
                end: Arc::default(),
            },
            over,
            reader: Some(reader),
        }
    }

    pub(crate) fn state(&self) -> UploadState {
        self.state.clone()
    }

    pub(crate) fn is_empty(&self) -> bool {
        matches!(self.inner, UploadSource::Empty)
    }

    pub(crate) fn is_lost(&self) -> bool {
        matches!(self.inner, UploadSource::Lost)
    }
}

impl UploadState {
    fn finished() -> Self {
        let state = Self::default();
        state.end.done.store(true, Ordering::Relaxed);
        state
    }

    /// Bytes passed on so far.
    pub(crate) fn passed(&self) -> u64 {
        self.passed.up.load(Ordering::Relaxed)
    }

    pub(crate) fn is_done(&self) -> bool {
        self.end.done.load(Ordering::Relaxed)
    }

    pub(crate) fn error(&self) -> Option<&UploadError> {
        self.end.error.get()
    }
}

/// Upstream has answered before it had read everything, or is gone: the client gets its answer all the same.
impl Drop for Upload {
    fn drop(&mut self) {
        let inner = std::mem::replace(&mut self.inner, UploadSource::Lost);
        if let (UploadSource::Client(body), Some((life, busy))) = (inner, self.reader.take())
            && !body.is_end_stream()
            && self.state.error().is_none()
            // The forwarder does not end just now.
            && tokio::runtime::Handle::try_current().is_ok()
        {
            drain(&life, body, busy);
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        if let Some(over) = &mut this.over
            && over.poll_unpin(cx).is_ready()
        {
            this.over = None;
            this.inner = UploadSource::Lost;
            this.state.end.error.get_or_init(|| UploadError::Over);
            return Poll::Ready(Some(Err(io::Error::other(CUT))));
        }
        let body = match &mut this.inner {
            UploadSource::Client(body) => body,
            UploadSource::Whole(body) => {
                let frame = body.next();
                let bytes = frame
                    .as_ref()
                    .and_then(Frame::data_ref)
                    .map_or(0, Bytes::len);
                this.state
                    .passed
                    .up
                    .fetch_add(bytes as u64, Ordering::Relaxed);
                if body.is_spent() {
                    this.state.end.done.store(true, Ordering::Relaxed);
                }
                return Poll::Ready(frame.map(Ok));
            }
            UploadSource::Empty | UploadSource::Lost => return Poll::Ready(None),
        };
        let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                this.state
                    .passed
                    .up
                    .fetch_add(bytes as u64, Ordering::Relaxed);
                if frame.is_trailers() || body.is_end_stream() {
                    this.state.end.done.store(true, Ordering::Relaxed);
                }
            }
            Some(Err(error)) => {
                this.state
                    .end
                    .error
                    .get_or_init(|| UploadError::from(error));
            }
            None => this.state.end.done.store(true, Ordering::Relaxed),
        }
        Poll::Ready(frame.map(|frame| frame.map_err(io::Error::other)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            UploadSource::Empty | UploadSource::Lost => true,
            UploadSource::Client(body) => body.is_end_stream(),
            UploadSource::Whole(body) => body.is_spent(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            UploadSource::Empty | UploadSource::Lost => SizeHint::with_exact(0),
            UploadSource::Client(body) => body.size_hint(),
            UploadSource::Whole(body) => body.size_hint(),
        }
    }
}

/// Reads on, within bounds, what a client is sending that nobody wants: closed at once, many would only see a reset.
pub(crate) fn drain(life: &Arc<Life>, mut body: Incoming, busy: Busy) {
    life.spawn(async move {
        let _busy = busy;
        let read = async {
            let mut left = DRAIN_BYTES;
            while let Some(Ok(frame)) = body.frame().await {
                let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
                match left.checked_sub(bytes) {
                    Some(rest) => left = rest,
                    None => return,
                }
            }
        };
        // Whether it ended or not, no more is read.
        let _ = tokio::time::timeout(DRAIN_TIME, read).await;
    });
}
