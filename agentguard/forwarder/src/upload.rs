//! Requests' bodies on their way to upstream, frame by frame, and those that nobody wants.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
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
use super::headers::of_head;
use super::life::Life;
use super::record::PassedBytes;
use super::refusal::CUT;

/// How much of a refused request's body is read, so that the client gets to read why, and for how long.
const DRAIN_BYTES: u64 = 16 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// Of a body that streams, how much is kept until the answer's head has come, so that it can be sent again, with what each
/// frame costs. One that a rule has read is kept whole.
const KEPT_BYTES: usize = 64 << 10;

/// A request's body towards upstream.
pub(crate) struct Upload {
    /// `None`: it has none.
    held: Option<Held>,
    state: UploadState,
}

/// A body, and which of its ways out it is on.
struct Held {
    shared: Arc<Mutex<Shared>>,
    sending: u32,
}

struct Shared {
    source: UploadSource,
    /// Counts its ways out. Who sent it before gets nothing more of it.
    sending: u32,
    /// From its beginning while it is `kept`, so that it can be sent again; else what is still to go out again.
    taken: VecDeque<Frame<Bytes>>,
    /// How many of `taken` the present way out has had.
    had: usize,
    kept: bool,
    kept_bytes: usize,
    /// Nobody sends it, and it may be sent again.
    waits: bool,
    /// The end of the tasks that it is permitted on.
    over: Option<BoxFuture<'static, ()>>,
    /// Who reads the rest of a client's body when upstream wants no more of it.
    reader: Option<(Arc<Life>, Busy)>,
}

enum UploadSource {
    /// Nothing more comes of it.
    Spent,
    Client(Incoming),
    Whole(WholeBody),
}

/// A body that may be sent once more, for as long as this is held.
pub(crate) struct KeptUpload {
    shared: Option<Arc<Mutex<Shared>>>,
    state: UploadState,
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
            held: None,
            state: UploadState::finished(),
        }
    }

    pub(crate) fn new(
        body: RequestBody,
        passed: &Arc<PassedBytes>,
        over: Option<BoxFuture<'static, ()>>,
        reader: (Arc<Life>, Busy),
    ) -> Self {
        let source = match body {
            RequestBody::Streamed(body) if !body.is_end_stream() => UploadSource::Client(body),
            RequestBody::Whole(body) if !body.is_spent() => UploadSource::Whole(body),
            RequestBody::Streamed(_) | RequestBody::Whole(_) | RequestBody::Spent => {
                return Self::empty();
            }
        };
        Self {
            held: Some(Held {
                shared: Arc::new(Mutex::new(Shared {
                    source,
                    sending: 0,
                    taken: VecDeque::new(),
                    had: 0,
                    kept: false,
                    kept_bytes: 0,
                    waits: false,
                    over,
                    reader: Some(reader),
                })),
                sending: 0,
            }),
            state: UploadState {
                passed: passed.clone(),
                end: Arc::default(),
            },
        }
    }

    pub(crate) fn state(&self) -> UploadState {
        self.state.clone()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_none()
    }

    /// Keeps what is taken of it. Nothing has been, since it was made or came back to be sent again.
    pub(crate) fn keep(&self) -> KeptUpload {
        if let Some(held) = &self.held {
            held.lock().kept = true;
        }
        KeptUpload {
            shared: self.held.as_ref().map(|held| held.shared.clone()),
            state: self.state.clone(),
        }
    }
}

impl KeptUpload {
    /// The body from its beginning, if that much of it was kept. The earlier one has ended.
    pub(crate) fn again(self) -> Option<Upload> {
        let Some(shared) = &self.shared else {
            return Some(Upload::empty());
        };
        let mut held = shared.lock().expect(UNPOISONED);
        if !held.kept {
            return None;
        }
        let had: usize = held.taken.iter().take(held.had).map(length).sum();
        self.state
            .passed
            .up
            .fetch_sub(had as u64, Ordering::Relaxed);
        self.state.end.done.store(false, Ordering::Relaxed);
        held.had = 0;
        held.waits = false;
        held.sending += 1;
        let sending = held.sending;
        drop(held);
        Some(Upload {
            held: Some(Held {
                shared: shared.clone(),
                sending,
            }),
            state: self.state.clone(),
        })
    }
}

/// It need not be sent again.
impl Drop for KeptUpload {
    fn drop(&mut self) {
        let Some(shared) = &self.shared else {
            return;
        };
        let mut shared = shared.lock().expect(UNPOISONED);
        shared.forget();
        if shared.waits {
            shared.drain();
        }
    }
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect(UNPOISONED)
    }
}

impl Shared {
    /// Takes the next frame of it.
    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        state: &UploadState,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(over) = &mut self.over
            && over.poll_unpin(cx).is_ready()
        {
            self.over = None;
            self.fail(state, UploadError::Over);
            return Poll::Ready(Some(Err(io::Error::other(CUT))));
        }
        if let Some(frame) = self.next_again() {
            return Poll::Ready(Some(Ok(frame)));
        }
        let frame = match &mut self.source {
            UploadSource::Spent => None,
            UploadSource::Whole(body) => body.next().map(Ok),
            UploadSource::Client(body) => ready!(Pin::new(body).poll_frame(cx)),
        };
        let trailers = frame
            .as_ref()
            .and_then(|it| it.as_ref().ok()?.trailers_ref());
        if let Some(name) = trailers.and_then(of_head) {
            let error = format!("trailer `{name}` belongs into the head (RFC 9110 section 6.5.1)");
            self.fail(state, UploadError::Malformed(error.clone()));
            return Poll::Ready(Some(Err(io::Error::other(error))));
        }
        match &frame {
            Some(Ok(frame)) => self.keep(frame),
            Some(Err(error)) => self.fail(state, UploadError::from(error)),
            None => self.source = UploadSource::Spent,
        }
        Poll::Ready(frame.map(|frame| frame.map_err(io::Error::other)))
    }

    /// What an earlier way out has had already.
    fn next_again(&mut self) -> Option<Frame<Bytes>> {
        if !self.kept {
            return self.taken.pop_front();
        }
        let frame = copy(self.taken.get(self.had)?);
        self.had += 1;
        Some(frame)
    }

    fn keep(&mut self, frame: &Frame<Bytes>) {
        if !self.kept {
            return;
        }
        self.kept_bytes += length(frame) + size_of::<Frame<Bytes>>();
        let streams = matches!(self.source, UploadSource::Client(_));
        if streams && self.kept_bytes > KEPT_BYTES {
            self.forget();
            return;
        }
        self.taken.push_back(copy(frame));
        self.had += 1;
    }

    /// It has no end, and must not seem to have one when it is sent again.
    fn fail(&mut self, state: &UploadState, error: UploadError) {
        state.end.error.get_or_init(|| error);
        self.source = UploadSource::Spent;
        self.kept = false;
        self.taken.clear();
        self.had = 0;
    }

    /// It is not sent again.
    fn forget(&mut self) {
        self.taken.drain(..self.had);
        self.had = 0;
        self.kept = false;
    }

    fn drain(&mut self) {
        let source = std::mem::replace(&mut self.source, UploadSource::Spent);
        if let (UploadSource::Client(body), Some((life, busy))) = (source, self.reader.take())
            && !body.is_end_stream()
            // The forwarder does not end just now.
            && tokio::runtime::Handle::try_current().is_ok()
        {
            drain(&life, body, busy);
        }
    }

    fn is_end(&self) -> bool {
        self.had == self.taken.len() && self.source.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        let again: usize = self.taken.iter().skip(self.had).map(length).sum();
        let rest = self.source.size_hint();
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + again as u64);
        }
        hint.set_lower(rest.lower() + again as u64);
        hint
    }
}

impl UploadSource {
    fn is_end(&self) -> bool {
        match self {
            Self::Spent => true,
            Self::Client(body) => body.is_end_stream(),
            Self::Whole(body) => body.is_spent(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Spent => SizeHint::with_exact(0),
            Self::Client(body) => body.size_hint(),
            Self::Whole(body) => body.size_hint(),
        }
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
impl Drop for Held {
    fn drop(&mut self) {
        let mut shared = self.lock();
        if shared.sending != self.sending {
            return;
        }
        if shared.kept {
            shared.waits = true;
        } else {
            shared.drain();
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
        let Some(held) = &mut this.held else {
            return Poll::Ready(None);
        };
        let mut shared = held.shared.lock().expect(UNPOISONED);
        if shared.sending != held.sending {
            return Poll::Ready(Some(Err(io::Error::other("it is sent again"))));
        }
        let frame = ready!(shared.poll_next(cx, &this.state));
        let state = &this.state;
        let is_last = match &frame {
            Some(Ok(frame)) => {
                state
                    .passed
                    .up
                    .fetch_add(length(frame) as u64, Ordering::Relaxed);
                frame.is_trailers() || shared.is_end()
            }
            Some(Err(_)) => false,
            None => true,
        };
        if is_last {
            state.end.done.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let held = self.held.as_ref();
        held.is_none_or(|held| held.lock().is_end())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.held {
            Some(held) => held.lock().size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}

fn length(frame: &Frame<Bytes>) -> usize {
    frame.data_ref().map_or(0, Bytes::len)
}

/// A frame is data or trailers.
fn copy(frame: &Frame<Bytes>) -> Frame<Bytes> {
    match frame.trailers_ref() {
        Some(trailers) => Frame::trailers(trailers.clone()),
        None => Frame::data(frame.data_ref().cloned().unwrap_or_default()),
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

const UNPOISONED: &str = "nothing panics with the lock held";
