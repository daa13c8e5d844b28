//! Bodies that a rule reads: held until they are whole, judged, and sent on as they came. Everything else is streamed.

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentguard_common::abi::AgentId;
use agentguard_link::frame::Limits;
use agentguard_record::{DecidedBy, DenyReason, Ended, Outcome};
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::refusal::{Cause, Refusal};
use super::shares;

/// Bytes that one permit of [`BodyMemory`] stands for.
const UNIT: usize = 4096;

/// The memory that all held bodies together may take.
pub(crate) struct BodyMemory {
    all: Room,
    share: usize,
    by_agent: Mutex<HashMap<AgentId, Room>>,
}

type Room = Arc<Semaphore>;

impl BodyMemory {
    pub(crate) fn new(limits: &Limits) -> Self {
        let units = |bytes: u32| (bytes as usize).div_ceil(UNIT);
        Self::of(
            units(limits.max_judged_bodies_bytes),
            units(limits.max_judged_body_bytes),
        )
    }

    fn of(all: usize, largest: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(all)),
            share: shares::of_judged_bodies(all).max(largest),
            by_agent: Mutex::default(),
        }
    }

    /// The agent's own, and what it has of all agents'.
    fn rooms(&self, agent: AgentId) -> [Room; 2] {
        let mut by_agent = self.by_agent.lock().expect(UNPOISONED);
        let own = by_agent.entry(agent);
        let own = own.or_insert_with(|| Arc::new(Semaphore::new(self.share)));
        [own.clone(), self.all.clone()]
    }
}

/// A request's body on its way.
pub(crate) enum RequestBody {
    Streamed(Incoming),
    Whole(WholeBody),
    /// It is not sent on, and nothing of it is left to be read.
    Spent,
}

/// A whole body.
pub(crate) struct WholeBody {
    bytes: Bytes,
    trailers: Option<HeaderMap>,
    /// Given back when the body is gone.
    room: Vec<OwnedSemaphorePermit>,
}

/// Why a request's body did not come whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UploadError {
    /// It is not what HTTP allows.
    Malformed(String),
    Gone,
    /// The tasks that it was permitted on have ended.
    Over,
}

impl RequestBody {
    /// Takes the whole body in, of at most `limit` bytes. Refused, what is left of it stays here to be drained.
    pub(crate) async fn hold(
        &mut self,
        limit: usize,
        limits: &Limits,
        memory: &BodyMemory,
        agent: AgentId,
    ) -> Result<(), Refusal> {
        let Self::Streamed(body) = self else {
            return Ok(());
        };
        if body.size_hint().lower() > limit as u64 {
            return Err(too_large(limit));
        }
        let wait = limits.judged_body_timeout_ms;
        let held = tokio::time::timeout(
            Duration::from_millis(wait.into()),
            collect(body, limit, memory.rooms(agent)),
        );
        match held.await {
            Ok(Ok(held)) => *self = Self::Whole(held),
            Ok(Err(Stopped::Refused(refusal))) => return Err(*refusal),
            Ok(Err(Stopped::Broken(error))) => {
                *self = Self::Spent;
                return Err(Refusal::from(&error));
            }
            Err(_) => {
                return Err(Refusal::new(
                    DecidedBy::Facts,
                    DenyReason::BodyUnreadable,
                    format!(
                        "a rule reads the request's body, and it did not come whole within {wait} ms"
                    ),
                ));
            }
        }
        Ok(())
    }

    /// What is left to be read of a body that is not sent on.
    pub(crate) fn rest(self) -> Option<Incoming> {
        match self {
            Self::Streamed(body) => Some(body),
            Self::Whole(_) | Self::Spent => None,
        }
    }

    /// The bytes, as far as they are here.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Whole(held) => &held.bytes,
            Self::Streamed(_) | Self::Spent => &[],
        }
    }

    /// Whether the request has none. One in chunks, or in HTTP/2 without its stream's end in the head, counts as there.
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Whole(held) => held.is_spent(),
            Self::Streamed(body) => body.is_end_stream(),
            Self::Spent => true,
        }
    }

    /// Whether all there is of it is in [`Self::bytes`].
    pub(crate) fn is_known(&self) -> bool {
        match self {
            Self::Whole(_) => true,
            Self::Streamed(body) => body.is_end_stream(),
            Self::Spent => false,
        }
    }
}

impl WholeBody {
    /// The next frame to be sent on.
    pub(crate) fn next(&mut self) -> Option<Frame<Bytes>> {
        if !self.bytes.is_empty() {
            return Some(Frame::data(std::mem::take(&mut self.bytes)));
        }
        self.trailers.take().map(Frame::trailers)
    }

    pub(crate) fn is_spent(&self) -> bool {
        self.bytes.is_empty() && self.trailers.is_none()
    }

    /// Exact where there are no trailers, which only a body of unknown length can have in HTTP/1.1.
    pub(crate) fn size_hint(&self) -> SizeHint {
        match self.trailers {
            Some(_) => SizeHint::default(),
            None => SizeHint::with_exact(self.bytes.len() as u64),
        }
    }
}

impl From<&hyper::Error> for UploadError {
    fn from(error: &hyper::Error) -> Self {
        let mut source = error.source();
        while let Some(cause) = source {
            if let Some(io) = cause.downcast_ref::<io::Error>()
                && matches!(
                    io.kind(),
                    io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData
                )
            {
                return Self::Malformed(io.to_string());
            }
            source = cause.source();
        }
        Self::Gone
    }
}

impl From<&UploadError> for Refusal {
    fn from(error: &UploadError) -> Self {
        match error {
            UploadError::Malformed(detail) => {
                Self::protocol(format!("the request's body: {detail}"))
            }
            UploadError::Gone => Self {
                cause: Cause::Ended(Ended::ClientGone),
                outcome: Outcome::Error,
                ..Self::protocol("the client broke off its request")
            },
            UploadError::Over => Self::over(),
        }
    }
}

enum Stopped {
    Refused(Box<Refusal>),
    Broken(UploadError),
}

async fn collect(
    body: &mut Incoming,
    limit: usize,
    rooms: [Room; 2],
) -> Result<WholeBody, Stopped> {
    let mut held = WholeBody {
        bytes: Bytes::new(),
        trailers: None,
        room: Vec::new(),
    };
    let mut bytes = BytesMut::new();
    let mut taken = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Stopped::Broken(UploadError::from(&error)))?;
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                held.trailers = frame.into_trailers().ok();
                continue;
            }
        };
        if bytes.len() + data.len() > limit {
            return Err(Stopped::Refused(Box::new(too_large(limit))));
        }
        bytes.extend_from_slice(&data);
        let units = bytes.len().div_ceil(UNIT);
        if units > taken {
            let more = u32::try_from(units - taken).unwrap_or(u32::MAX);
            let Some(room) = take(&rooms, more) else {
                return Err(Stopped::Refused(Box::new(no_room())));
            };
            held.room.extend(room);
            taken = units;
        }
    }
    held.bytes = bytes.freeze();
    Ok(held)
}

/// So much of both, or nothing.
fn take([own, all]: &[Room; 2], units: u32) -> Option<[OwnedSemaphorePermit; 2]> {
    let own = own.clone().try_acquire_many_owned(units).ok()?;
    let all = all.clone().try_acquire_many_owned(units).ok()?;
    Some([own, all])
}

fn too_large(limit: usize) -> Refusal {
    Refusal::new(
        DecidedBy::Facts,
        DenyReason::BodyTooLarge,
        format!(
            "a rule reads the request's body, and it is longer than {limit} bytes \
             (`max_judged_body` in the host's file, else `[forwarder] max_judged_body_bytes`)"
        ),
    )
}

fn no_room() -> Refusal {
    Refusal::new(
        DecidedBy::Facts,
        DenyReason::BodyTooLarge,
        "a rule reads the request's body, and at the moment there is no room for it beside those of other requests",
    )
}

const UNPOISONED: &str = "nothing panics with the lock held";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_agents_bodies_leave_room_for_others() {
        let memory = BodyMemory::of(64, 8);
        let [greedy, other] = [2, 3].map(|agent| memory.rooms(AgentId(agent)));
        let held: Vec<_> = std::iter::from_fn(|| take(&greedy, 8)).collect();
        assert_eq!(held.len(), 6, "three quarters");
        assert!(take(&other, 8).is_some());
        drop(held);
        assert!(take(&greedy, 8).is_some(), "given back");
        let small = BodyMemory::of(8, 8);
        assert!(
            take(&small.rooms(AgentId(2)), 8).is_some(),
            "the largest fits"
        );
    }
}
