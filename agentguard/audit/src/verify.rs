//! Checks the chain from the first record to the last, without the daemon.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use agentguard_sys::lock::FolderLock;
use serde::Serialize;

use super::line::{self, ChainLink, FIRST_PREV, Hash};
use super::segment;

/// A log whose chain holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VerifiedLog {
    pub segments: u64,
    pub records: u64,
    /// 0 if there is no record.
    pub first_seq: u64,
    pub last_seq: u64,
    /// Hash of the last line: compare it with one noted elsewhere to see that no record was cut off at the end.
    pub head: String,
}

#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("cannot read {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: {fault}", path.display())]
    File { path: PathBuf, fault: ChainFault },
    #[error("{}:{line}: {fault}", path.display())]
    Line {
        path: PathBuf,
        /// Counts from 1.
        line: u64,
        fault: ChainFault,
    },
}

impl VerifyError {
    /// Whether the log may be whole, and the caller may not read it.
    pub fn is_forbidden(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
            Self::File { .. } | Self::Line { .. } => false,
        }
    }
}

/// What is wrong with the chain.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChainFault {
    #[error("not a record: {0}")]
    NotJson(String),
    #[error("the line is cut off")]
    Truncated,
    #[error(
        "seq is {found} where {expected} must follow: records are missing, repeated or out of order"
    )]
    Seq { expected: u64, found: u64 },
    #[error("prev is not the hash of the record before: that one or this one was changed")]
    Prev,
    #[error(
        "its name says that it starts at seq {found}, but {expected} must follow: a segment is missing"
    )]
    Segment { expected: u64, found: u64 },
}

struct Chain {
    next: u64,
    prev: Hash,
    found: VerifiedLog,
}

/// Reads every segment below `dir`. Records that the daemon appends meanwhile may or may not be seen.
pub fn verify(dir: &Path) -> Result<VerifiedLog, VerifyError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| VerifyError::Io { path, source }
    };
    let segments = segment::list(dir).map_err(io(dir))?;
    let mut chain = Chain {
        next: 1,
        prev: FIRST_PREV,
        found: VerifiedLog {
            segments: segments.len() as u64,
            records: 0,
            first_seq: 0,
            last_seq: 0,
            head: String::new(),
        },
    };
    for (index, segment) in segments.iter().enumerate() {
        let path = &segment.path;
        if segment.first != chain.next {
            return Err(VerifyError::File {
                path: path.clone(),
                fault: ChainFault::Segment {
                    expected: chain.next,
                    found: segment.first,
                },
            });
        }
        let mut reader = BufReader::with_capacity(1 << 20, File::open(path).map_err(io(path))?);
        let mut bytes = Vec::new();
        for number in 1.. {
            bytes.clear();
            if reader.read_until(b'\n', &mut bytes).map_err(io(path))? == 0 {
                break;
            }
            let result = match bytes.strip_suffix(b"\n") {
                Some(content) => chain.follow(content),
                // The daemon is in the middle of a write.
                None if index + 1 == segments.len() && is_live(dir) => break,
                None => Err(ChainFault::Truncated),
            };
            result.map_err(|fault| VerifyError::Line {
                path: path.clone(),
                line: number,
                fault,
            })?;
        }
    }
    chain.found.head = String::from_utf8_lossy(&chain.prev).into_owned();
    Ok(chain.found)
}

impl Chain {
    fn follow(&mut self, content: &[u8]) -> Result<(), ChainFault> {
        let link: ChainLink<'_> = serde_json::from_slice(content)
            .map_err(|error| ChainFault::NotJson(error.to_string()))?;
        if link.seq != self.next {
            return Err(ChainFault::Seq {
                expected: self.next,
                found: link.seq,
            });
        }
        if link.prev.as_bytes() != self.prev {
            return Err(ChainFault::Prev);
        }
        self.next += 1;
        self.prev = line::hash(content);
        self.found.records += 1;
        self.found.last_seq = link.seq;
        if self.found.first_seq == 0 {
            self.found.first_seq = link.seq;
        }
        Ok(())
    }
}

/// Whether a daemon has the log open.
fn is_live(dir: &Path) -> bool {
    !matches!(FolderLock::take(dir), Ok(Ok(_)))
}

#[cfg(test)]
mod tests;
