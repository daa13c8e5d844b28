//! Appends frames. What has begun has the room that its end takes, whatever comes between.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;

use agentguard_common::abi::AgentId;
use agentguard_record::Draft;
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
    files: Vec<File>,
    segment_bytes: u64,
    /// To be written to next, in this order.
    clean: VecDeque<CleanSegment>,
    current: Option<(CleanSegment, u64)>,
    /// Bytes that the ends of what has begun take, by whose they are.
    promised: BTreeMap<AgentId, u64>,
}

/// What is about to begin, as it is written.
pub struct Beginning {
    agent: AgentId,
    frame: Vec<u8>,
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

impl Beginning {
    pub fn of(draft: &Draft) -> Result<Self, SpoolError> {
        Ok(Self {
            agent: draft.agent,
            frame: frame::encode(Stage::Begun, draft)?,
        })
    }
}

impl Writer {
    /// `files`: the spool's, each of `segment_bytes`.
    pub fn new(files: Vec<File>, segment_bytes: u64) -> Self {
        Self {
            files,
            segment_bytes,
            clean: VecDeque::new(),
            current: None,
            promised: BTreeMap::new(),
        }
    }

    /// The daemon has taken up what was in this segment.
    pub fn add(&mut self, segment: CleanSegment) {
        self.clean.push_back(segment);
    }

    pub fn files(&self) -> &[File] {
        &self.files
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
    pub fn begin(&mut self, beginning: &mut Beginning) -> Result<Promise, SpoolError> {
        let Beginning { agent, frame } = beginning;
        let agent = *agent;
        let length = frame.len() as u64;
        let bytes = length + END_BYTES;
        let its_own = self.promised.get(&agent).unwrap_or(&0) + bytes;
        if its_own > self.segment_bytes * self.files.len() as u64 / SHARES {
            return Err(SpoolError::OwnShare);
        }
        self.admit(length + bytes)?;
        self.append(frame)?;
        self.promised.insert(agent, its_own);
        Ok(Promise { agent, bytes })
    }

    /// It is over.
    pub fn end_of(&mut self, promise: Promise, draft: &Draft) -> Result<(), SpoolError> {
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
        self.append(&mut frame::encode(Stage::Over, draft)?)
    }

    /// What never began: it leaves room to what does.
    pub fn note(&mut self, draft: &Draft) -> Result<(), SpoolError> {
        let mut frame = frame::encode(Stage::Over, draft)?;
        self.admit(frame.len() as u64 + self.segment_bytes / 2)?;
        self.append(&mut frame)
    }

    /// The end of what is done at once: nothing of it has left before.
    pub fn note_done(&mut self, draft: &Draft) -> Result<(), SpoolError> {
        let mut frame = frame::encode(Stage::Over, draft)?;
        self.admit(frame.len() as u64)?;
        self.append(&mut frame)
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

    fn append(&mut self, frame: &mut [u8]) -> Result<(), SpoolError> {
        let length = frame.len() as u64;
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
        frame::seal(frame, segment.generation);
        let file = self
            .files
            .get(usize::from(segment.index))
            .ok_or(SpoolError::Full)?;
        file.write_all_at(frame, at)?;
        self.current = Some((segment, at + length));
        Ok(())
    }
}
