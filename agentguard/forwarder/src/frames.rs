//! HTTP/2 frames that cost whoever reads them and ask for nothing (RFC 9113 section 10.5): the library reads over
//! PRIORITY, WINDOW_UPDATE, PING, SETTINGS and interim answers without end. What is exchanged pays for them.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Of a frame's header (RFC 9113 section 4.1).
const HEADER: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
/// Comes before a client's first frame (RFC 9113 section 3.4).
const PREFACE: usize = 24;

/// Frames that ask for nothing which a peer may have sent at any time beyond those that are paid for: it has so many at the
/// beginning, and never more.
const MOST: u32 = 4096;
/// How many more per second: idle connections talk, too.
const PER_SECOND: u64 = 16;
/// What a request pays for: window updates of its answer, or its interim answers.
const PER_REQUEST: u32 = 64;
/// What each part of an answer or a body that we send pays for: window updates of its stream and of the connection, and what
/// measures the way.
const PER_PART: u32 = 4;

/// Said of a connection that was cut.
pub(crate) const FLOOD: &str =
    "more HTTP/2 control frames than its requests and answers account for";

/// The other side.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Client,
    Server,
}

/// Whether a connection was cut.
#[derive(Clone, Default)]
pub(crate) struct Flooded(Arc<AtomicBool>);

impl Flooded {
    pub(crate) fn is(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// An HTTP/2 connection's bytes. Reading fails when the peer has sent too many frames that ask for nothing.
pub(crate) struct MeteredStream<S> {
    inner: S,
    peer: Peer,
    balance: Balance,
    read: FrameWalk,
    written: FrameWalk,
    flooded: Flooded,
}

impl<S> MeteredStream<S> {
    pub(crate) fn new(inner: S, peer: Peer) -> Self {
        let (read, written) = match peer {
            Peer::Client => (PREFACE, 0),
            Peer::Server => (0, PREFACE),
        };
        Self {
            inner,
            peer,
            balance: Balance::new(),
            read: FrameWalk::after(read),
            written: FrameWalk::after(written),
            flooded: Flooded::default(),
        }
    }

    pub(crate) fn flooded(&self) -> Flooded {
        self.flooded.clone()
    }

    fn has_read(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Self {
            peer,
            balance,
            read,
            flooded,
            ..
        } = self;
        let mut paid = true;
        read.over(bytes, |frame| match frame.kind {
            DATA if frame.length > 0 => balance.earn(1),
            HEADERS if *peer == Peer::Client => balance.earn(PER_REQUEST),
            _ => paid = paid && balance.spend(),
        });
        if paid {
            return Ok(());
        }
        flooded.0.store(true, Ordering::Relaxed);
        Err(io::Error::other(FLOOD))
    }

    fn has_written(&mut self, bytes: &[u8]) {
        let Self {
            peer,
            balance,
            written,
            ..
        } = self;
        written.over(bytes, |frame| match frame.kind {
            HEADERS if *peer == Peer::Server => balance.earn(PER_REQUEST),
            // Some peers tell of each 4 KiB that they have taken, for the stream and for the connection.
            DATA | HEADERS => {
                let told = u32::try_from(frame.length / 1024).unwrap_or(MOST);
                balance.earn(PER_PART.max(told));
            }
            _ => {}
        });
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for MeteredStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        Poll::Ready(self.has_read(&buf.filled()[before..]))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for MeteredStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.inner).poll_write(cx, bytes);
        if let Poll::Ready(Ok(length)) = wrote {
            self.has_written(&bytes[..length]);
        }
        wrote
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.inner).poll_write_vectored(cx, parts);
        if let Poll::Ready(Ok(mut left)) = wrote {
            for part in parts {
                let length = part.len().min(left);
                self.has_written(&part[..length]);
                left -= length;
            }
        }
        wrote
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

struct Balance {
    left: u32,
    /// Up to when time has been paid for.
    since: Instant,
}

impl Balance {
    fn new() -> Self {
        Self {
            left: MOST,
            since: Instant::now(),
        }
    }

    fn earn(&mut self, frames: u32) {
        self.left = self.left.saturating_add(frames).min(MOST);
    }

    /// Whether one more is paid for. The clock is looked at only when nothing else is left.
    fn spend(&mut self) -> bool {
        if self.left == 0 {
            let earned = self.since.elapsed().as_secs() * PER_SECOND;
            self.since = Instant::now();
            self.earn(u32::try_from(earned).unwrap_or(MOST));
        }
        let paid = self.left > 0;
        self.left = self.left.saturating_sub(1);
        paid
    }
}

struct Frame {
    kind: u8,
    length: usize,
}

/// Goes from one frame's header to the next, however the bytes come.
struct FrameWalk {
    header: [u8; HEADER],
    have: usize,
    /// Bytes before the next header.
    skip: usize,
}

impl FrameWalk {
    fn after(skip: usize) -> Self {
        Self {
            header: [0; HEADER],
            have: 0,
            skip,
        }
    }

    fn over(&mut self, mut bytes: &[u8], mut each: impl FnMut(Frame)) {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return;
            }
            let (now, later) = bytes.split_at(bytes.len().min(HEADER - self.have));
            self.header[self.have..][..now.len()].copy_from_slice(now);
            self.have += now.len();
            bytes = later;
            if self.have == HEADER {
                let [high, middle, low, kind, ..] = self.header;
                let length = u32::from_be_bytes([0, high, middle, low]) as usize;
                self.have = 0;
                self.skip = length;
                each(Frame { kind, length });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: u8 = 6;

    fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, 0, 0, 0, 0, 1]);
        frame.extend(body);
        frame
    }

    fn client() -> MeteredStream<()> {
        let mut stream = MeteredStream::new((), Peer::Client);
        stream.has_read(&[b'x'; PREFACE]).unwrap();
        stream
    }

    #[test]
    fn frames_are_found_however_they_come() {
        let bytes = [frame(0, b"abc"), frame(6, &[0; 8]), frame(4, b"")].concat();
        for size in 1..=bytes.len() {
            let mut walk = FrameWalk::after(2);
            let mut found = Vec::new();
            for piece in [b"xx", &bytes[..]].concat().chunks(size) {
                walk.over(piece, |frame| found.push((frame.kind, frame.length)));
            }
            assert_eq!(found, [(0, 3), (6, 8), (4, 0)], "in pieces of {size}");
        }
    }

    #[test]
    fn a_flood_is_an_error_and_stays_one() {
        let mut stream = client();
        for _ in 0..MOST {
            stream.has_read(&frame(PING, &[0; 8])).unwrap();
        }
        assert!(!stream.flooded().is());
        assert!(stream.has_read(&frame(PING, &[0; 8])).is_err());
        assert!(stream.flooded().is());
    }

    #[test]
    fn requests_and_answers_pay() {
        let mut stream = client();
        for _ in 0..2 * MOST {
            stream.has_read(&frame(HEADERS, b"x")).unwrap();
            for _ in 0..PER_REQUEST {
                stream.has_read(&frame(PING, &[0; 8])).unwrap();
            }
        }
        for _ in 0..2 * MOST {
            stream.has_written(&frame(DATA, b"x"));
            for _ in 0..PER_PART {
                stream.has_read(&frame(PING, &[0; 8])).unwrap();
            }
        }
    }

    #[test]
    fn a_long_answer_pays_for_an_update_of_both_windows_each_4_kib() {
        let mut stream = client();
        let part = frame(DATA, &[0; 16 << 10]);
        for _ in 0..(64 << 20) / (16 << 10) {
            stream.has_written(&part);
            for _ in 0..2 * 4 {
                stream.has_read(&frame(8, &[0; 4])).unwrap();
            }
        }
    }

    #[test]
    fn empty_parts_pay_for_nothing() {
        let mut stream = client();
        let mut read = (0..=MOST).map(|_| stream.has_read(&frame(DATA, b"")));
        assert!(read.any(|read| read.is_err()));
    }

    #[test]
    fn interim_answers_are_paid_for_by_requests() {
        let mut stream = MeteredStream::new((), Peer::Server);
        stream.has_written(&[b'x'; PREFACE]);
        for _ in 0..MOST {
            stream.has_written(&frame(HEADERS, b"x"));
            for _ in 0..PER_REQUEST {
                stream.has_read(&frame(HEADERS, b"x")).unwrap();
            }
        }
        let mut read = (0..=MOST).map(|_| stream.has_read(&frame(HEADERS, b"x")));
        assert!(read.any(|read| read.is_err()));
    }
}
