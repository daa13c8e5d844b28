//! Appends frames. What has begun has the room that its end takes, whatever comes between.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;

use agentguard_common::abi::AgentId;
use agentguard_record::Draft;
use agentguard_sys::memory::MappedFile;
use serde::{Deserialize, Serialize};

use super::frame::{self, MAX_FRAME, Stage};
use super::segment::HEADER_BYTES;
use super::{CleanSegment, SpoolError};

/// An end may say so many bytes more than its beginning: why it ended, where upstream was.
const END_BYTES: u64 = 1024;
/// One agent's ends may take the spool's bytes divided by this.
const SHARES: u64 = 8;

/// The one who appends to the spool.
pub struct Writer {
    files: Vec<MappedFile>,
    segment_bytes: u64,
    /// To be written to next, in this order.
    clean: VecDeque<CleanSegment>,
    current: Option<(CleanSegment, u64)>,
    /// Bytes that the ends of what has begun take, by whose they are.
    promised: BTreeMap<AgentId, u64>,
}

/// A frame that is to be written, but for what only its place tells.
pub struct UnsealedFrame {
    agent: AgentId,
    bytes: Vec<u8>,
}

/// The room for the end of something that has begun.
#[derive(Debug)]
#[must_use = "the room is kept until the end is written"]
pub struct Promise {
    agent: AgentId,
    bytes: u64,
}

/// How far the spool has been written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SpoolEnd {
    pub generation: u64,
    pub offset: u64,
}

impl UnsealedFrame {
    /// Of something that is about to begin.
    pub fn begun(draft: &Draft) -> Result<Self, SpoolError> {
        Self::of(Stage::Begun, draft)
    }

    /// Of something that is over, or never began.
    pub fn over(draft: &Draft) -> Result<Self, SpoolError> {
        Self::of(Stage::Over, draft)
    }

    fn of(stage: Stage, draft: &Draft) -> Result<Self, SpoolError> {
        Ok(Self {
            agent: draft.agent,
            bytes: frame::encode(stage, draft)?,
        })
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
}

impl Writer {
    /// `files`: the spool's, each of `segment_bytes` that are on disk.
    pub fn new(files: &[File], segment_bytes: u64) -> io::Result<Self> {
        let bytes = usize::try_from(segment_bytes).map_err(io::Error::other)?;
        let map = |file| MappedFile::new(file, bytes).map_err(io::Error::other);
        Ok(Self {
            files: files.iter().map(map).collect::<Result<_, _>>()?,
            segment_bytes,
            clean: VecDeque::new(),
            current: None,
            promised: BTreeMap::new(),
        })
    }

    /// The daemon has taken up what was in this segment.
    pub fn add(&mut self, segment: CleanSegment) {
        self.clean.push_back(segment);
    }

    pub fn end(&self) -> SpoolEnd {
        let end = |(segment, offset): (CleanSegment, u64)| SpoolEnd {
            generation: segment.generation,
            offset,
        };
        self.current.map_or(SpoolEnd::default(), end)
    }

    /// What is permitted is about to begin.
    ///
    /// # Errors
    /// [`SpoolError::OwnShare`]: an eighth of the spool is promised to this agent. What others begin goes on.
    pub fn begin(&mut self, frame: &mut UnsealedFrame) -> Result<Promise, SpoolError> {
        let agent = frame.agent;
        let bytes = frame.len() + END_BYTES;
        let its_own = self.promised.get(&agent).unwrap_or(&0) + bytes;
        if its_own > self.segment_bytes * self.files.len() as u64 / SHARES {
            return Err(SpoolError::OwnShare);
        }
        self.admit(frame.len() + bytes)?;
        self.append(frame)?;
        self.promised.insert(agent, its_own);
        Ok(Promise { agent, bytes })
    }

    /// It is over.
    pub fn end_of(
        &mut self,
        promise: Promise,
        frame: &mut UnsealedFrame,
    ) -> Result<(), SpoolError> {
        let Promise { agent, bytes } = promise;
        let left = self
            .promised
            .get(&agent)
            .unwrap_or(&0)
            .saturating_sub(bytes);
        match left {
            0 => self.promised.remove(&agent),
            left => self.promised.insert(agent, left),
        };
        self.append(frame)
    }

    /// What never began: it leaves room to what does.
    pub fn note(&mut self, frame: &mut UnsealedFrame) -> Result<(), SpoolError> {
        self.admit(frame.len() + self.segment_bytes / 2)?;
        self.append(frame)
    }

    /// The end of what is done at once: nothing of it has left before.
    pub fn note_done(&mut self, frame: &mut UnsealedFrame) -> Result<(), SpoolError> {
        self.admit(frame.len())?;
        self.append(frame)
    }

    /// Whether anything at all may be written.
    pub fn has_room(&self) -> bool {
        self.admit(2 * END_BYTES).is_ok()
    }

    /// Whether so many bytes are left to whom nothing is promised.
    fn admit(&self, bytes: u64) -> Result<(), SpoolError> {
        let here = self.current.map_or(0, |(_, at)| self.segment_bytes - at);
        // No frame is in two segments: the last of each may not be filled.
        let each = self.segment_bytes - HEADER_BYTES - MAX_FRAME as u64;
        let room = here + each * self.clean.len() as u64;
        let promised: u64 = self.promised.values().sum();
        match bytes + promised <= room {
            true => Ok(()),
            false => Err(SpoolError::Full),
        }
    }

    fn append(&mut self, frame: &mut UnsealedFrame) -> Result<(), SpoolError> {
        let length = frame.len();
        let fits = |(segment, at): (CleanSegment, u64)| {
            (at + length <= self.segment_bytes).then_some((segment, at))
        };
        let (segment, at) = match self.current.and_then(fits) {
            Some(place) => place,
            None => {
                let next = self.clean.pop_front().ok_or(SpoolError::Full)?;
                (next, HEADER_BYTES)
            }
        };
        self.current = Some((segment, at));
        frame::seal(&mut frame.bytes, segment.generation);
        let file = self.files.get_mut(usize::from(segment.index));
        let place = usize::try_from(at).map_err(io::Error::other)?;
        if !file.is_some_and(|file| file.write(place, &frame.bytes)) {
            return Err(SpoolError::Full);
        }
        self.current = Some((segment, at + length));
        Ok(())
    }
}
