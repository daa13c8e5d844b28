//! A segment's header, which the daemon writes, and its frames as they are read.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use super::Frame;

/// Files that the spool consists of.
pub const SEGMENTS: usize = 2;
/// Bytes of each. All of them are written once when it is made: a full disk takes no room from records later.
pub const SEGMENT_BYTES: u64 = 8 << 20;
/// Where frames begin.
pub const HEADER_BYTES: u64 = 64;

const MAGIC: [u8; 8] = *b"AGSPOOL1";

/// What a segment is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    pub generation: u64,
    /// The log's last record when this use began: what is recorded by it has a later place there.
    pub after_seq: u64,
}

/// A segment that may be written to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CleanSegment {
    /// Of the spool's files.
    pub index: u8,
    pub generation: u64,
}

impl Header {
    /// `None` where the file has none.
    pub fn read(file: &File) -> io::Result<Option<Self>> {
        let mut bytes = [0; 24];
        match file.read_exact_at(&mut bytes, 0) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let number = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(number)
        };
        Ok((bytes[..8] == MAGIC).then(|| Self {
            generation: number(8),
            after_seq: number(16),
        }))
    }

    pub fn write(&self, file: &File) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES as usize);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&self.generation.to_le_bytes());
        bytes.extend_from_slice(&self.after_seq.to_le_bytes());
        file.write_all_at(&bytes, 0)
    }
}

/// Takes all the room that a segment will ever need, and has it on disk.
pub fn prepare(file: &File, bytes: u64) -> io::Result<()> {
    if file.metadata()?.len() == bytes {
        return Ok(());
    }
    let zeros = vec![0; 1 << 20];
    let mut at = 0;
    while at < bytes {
        let more = usize::try_from(bytes - at).map_or(zeros.len(), |left| left.min(zeros.len()));
        file.write_all_at(&zeros[..more], at)?;
        at += more as u64;
    }
    file.set_len(bytes)?;
    file.sync_all()
}

/// The frames of this generation that begin between `from` and `to`, and where the last of them ends.
pub fn read(file: &File, generation: u64, from: u64, to: u64) -> io::Result<(Vec<Frame>, u64)> {
    let to = to.min(file.metadata()?.len());
    let mut bytes = vec![0; usize::try_from(to.saturating_sub(from)).unwrap_or(0)];
    file.read_exact_at(&mut bytes, from)?;
    let (mut frames, mut at) = (Vec::new(), 0);
    while let Some((frame, length)) = Frame::first(&bytes[at..], generation) {
        frames.push(frame);
        at += length;
    }
    Ok((frames, from + at as u64))
}
