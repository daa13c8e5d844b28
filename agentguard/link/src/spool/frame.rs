//! One frame: its length, its checksum, its stage, the decision that it is about, and the draft in `bincode`.

use agentguard_record::Draft;
use uuid::Uuid;

use super::SpoolError;

/// Bytes of the longest frame.
pub(super) const MAX_FRAME: usize = 256 * 1024;
const LENGTH: usize = 4;
const CHECKSUM: usize = 4;
const STAGE: usize = 1;
const DECISION: usize = 16;
const HEAD: usize = LENGTH + CHECKSUM + STAGE + DECISION;

/// What a frame says of an act.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Stage {
    /// It is permitted and may have begun.
    Begun = 1,
    /// It is over, or was refused.
    Over = 2,
}

/// A frame as it was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    pub stage: Stage,
    pub decision: Uuid,
    draft: Vec<u8>,
}

impl Frame {
    pub fn draft(&self) -> Result<Draft, SpoolError> {
        let config = bincode::config::standard().with_limit::<MAX_FRAME>();
        let (draft, _) = bincode::serde::decode_from_slice(&self.draft, config)?;
        Ok(draft)
    }

    /// The same bytes in another segment.
    pub fn encode(&self, generation: u64) -> Vec<u8> {
        let mut bytes = head(self.stage, self.decision);
        bytes.extend_from_slice(&self.draft);
        seal(&mut bytes, generation);
        bytes
    }

    /// The first frame of `bytes`, and how long it is; `None` where none begins.
    pub(super) fn first(bytes: &[u8], generation: u64) -> Option<(Self, usize)> {
        let (length, rest) = bytes.split_first_chunk::<LENGTH>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        if !(HEAD..=MAX_FRAME).contains(&length) {
            return None;
        }
        let (sum, sealed) = rest
            .get(..length - LENGTH)?
            .split_first_chunk::<CHECKSUM>()?;
        if u32::from_le_bytes(*sum) != checksum(sealed, generation) {
            return None;
        }
        let (stage, rest) = sealed.split_first()?;
        let stage = match stage {
            1 => Stage::Begun,
            2 => Stage::Over,
            _ => return None,
        };
        let (decision, draft) = rest.split_first_chunk::<DECISION>()?;
        let frame = Self {
            stage,
            decision: Uuid::from_bytes(*decision),
            draft: draft.to_vec(),
        };
        Some((frame, length))
    }
}

/// A frame's bytes, all but its length and its checksum.
pub(super) fn encode(stage: Stage, draft: &Draft) -> Result<Vec<u8>, SpoolError> {
    let bytes = head(stage, draft.decision);
    let mut bytes = Appended(bytes);
    bincode::serde::encode_into_writer(draft, &mut bytes, bincode::config::standard())?;
    match bytes.0.len() {
        length if length > MAX_FRAME => Err(SpoolError::TooLarge(length)),
        _ => Ok(bytes.0),
    }
}

/// Makes it a frame of the segment's.
pub(super) fn seal(bytes: &mut [u8], generation: u64) {
    let length = u32::try_from(bytes.len()).expect("no longer than the longest frame");
    let sum = checksum(&bytes[LENGTH + CHECKSUM..], generation);
    bytes[..LENGTH].copy_from_slice(&length.to_le_bytes());
    bytes[LENGTH..LENGTH + CHECKSUM].copy_from_slice(&sum.to_le_bytes());
}

fn head(stage: Stage, decision: Uuid) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(512);
    bytes.extend_from_slice(&[0; LENGTH + CHECKSUM]);
    bytes.push(stage as u8);
    bytes.extend_from_slice(decision.as_bytes());
    bytes
}

fn checksum(sealed: &[u8], generation: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&generation.to_le_bytes());
    hasher.update(sealed);
    hasher.finalize()
}

struct Appended(Vec<u8>);

impl bincode::enc::write::Writer for Appended {
    fn write(&mut self, bytes: &[u8]) -> Result<(), bincode::error::EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}
