//! Where a record is before anything of what it records leaves: files of a fixed size, which the forwarder appends to and the
//! daemon reads. It is written as memory that the kernel has: neither process's death reaches it.
//!
//! A segment is a header and frames. Its generation, which no other segment ever has, is part of each frame's checksum, so
//! that what an earlier use left behind is no frame. Each act that is permitted has two: one before it begins, one when it
//! is over. What is refused has one.

mod frame;
mod segment;
mod writer;

pub use self::frame::{Frame, Stage};
pub use self::segment::{
    CleanSegment, HEADER_BYTES, Header, SEGMENT_BYTES, SEGMENTS, prepare, read,
};
pub use self::writer::{Promise, SpoolEnd, UnsealedFrame, Writer};

use std::io;

#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error("the spool is full: the daemon has not taken up what is in it")]
    Full,
    #[error("the agent has its share of the spool for what has begun and is not over")]
    OwnShare,
    #[error("a record of {0} bytes is longer than the spool takes")]
    TooLarge(usize),
    #[error("cannot write to the spool: {0}")]
    Io(#[from] io::Error),
    #[error("cannot encode a record: {0}")]
    Encode(#[from] bincode::error::EncodeError),
    #[error("cannot decode a record: {0}")]
    Decode(#[from] bincode::error::DecodeError),
}

#[cfg(test)]
mod tests;
