//! The counters' file: one line per change, each with its checksum. What a crash cut off was never answered and is
//! dropped; anything else that is damaged is an error, because nobody knows what it counted.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use agentguard_sys::SysError;
use agentguard_sys::file::write_atomically;
use sha2::{Digest as _, Sha256};

use super::counters::{Change, Counters};

const HEAD: &str = "agentguard-limits 1\n";
/// Lines beyond twice what is live after which it is written anew.
const SLACK: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub(super) enum JournalError {
    #[error("cannot {call} what limits have counted, `{}`: {source}", path.display())]
    Io {
        call: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot write what limits have counted, `{}`: {source}", path.display())]
    Write { path: PathBuf, source: SysError },
    #[error("what limits have counted, `{}`, is damaged in line {line}: restore it, or move it away to count from nothing, and restart the daemon, which then kills every agent until it is revived", path.display())]
    Damaged { path: PathBuf, line: usize },
    /// What it was when the daemon started, which alone opens it.
    #[error("{0}; mend that, and restart the daemon")]
    Start(Box<Self>),
}

pub(super) struct Journal {
    path: PathBuf,
    file: File,
    /// Bytes of whole lines that have been answered for.
    length: u64,
    lines: usize,
    /// Lines after which it is written anew.
    full: usize,
    /// What is behind `length` could not be taken away.
    torn: bool,
}

impl Journal {
    /// Opens the file, or starts one, and says what it has counted. Only the daemon's start does.
    pub(super) fn open(path: &Path, now: i64) -> Result<(Self, Counters), JournalError> {
        Self::read_and_write(path, now).map_err(|error| match error {
            JournalError::Io { .. } | JournalError::Write { .. } => {
                JournalError::Start(Box::new(error))
            }
            error @ (JournalError::Damaged { .. } | JournalError::Start(_)) => error,
        })
    }

    fn read_and_write(path: &Path, now: i64) -> Result<(Self, Counters), JournalError> {
        let io = |call| {
            move |source| JournalError::Io {
                call,
                path: path.to_owned(),
                source,
            }
        };
        let mut counters = Counters::default();
        match std::fs::read(path) {
            Ok(bytes) => read(path, &bytes, &mut counters)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io("read")(error)),
        }
        let journal = Self::write(path, &counters.snapshot(now))?;
        Ok((journal, counters))
    }

    /// A new file with these changes in the place of the old one.
    fn write(path: &Path, changes: &[Change]) -> Result<Self, JournalError> {
        let text = format!("{HEAD}{}", lines(changes));
        write_atomically(path, text.as_bytes(), 0o600).map_err(|source| JournalError::Write {
            path: path.to_owned(),
            source,
        })?;
        let file = OpenOptions::new().append(true).open(path);
        let file = file.map_err(|source| JournalError::Io {
            call: "open",
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            file,
            length: text.len() as u64,
            lines: changes.len(),
            full: changes.len() * 2 + SLACK,
            torn: false,
        })
    }

    /// Adds to it; `durable`: on disk when this returns. After an error nothing has been added.
    pub(super) fn append(&mut self, changes: &[Change], durable: bool) -> Result<(), JournalError> {
        let io = |call, source| JournalError::Io {
            call,
            path: self.path.clone(),
            source,
        };
        if self.torn {
            self.file
                .set_len(self.length)
                .map_err(|error| io("mend", error))?;
            self.torn = false;
        }
        let text = lines(changes);
        let written = self
            .file
            .write_all(text.as_bytes())
            .map_err(|error| io("write", error));
        let written = written.and_then(|()| match durable {
            true => self.file.sync_data().map_err(|error| io("fsync", error)),
            false => Ok(()),
        });
        if written.is_err() {
            self.torn = self.file.set_len(self.length).is_err();
            return written;
        }
        self.length += text.len() as u64;
        self.lines += changes.len();
        Ok(())
    }

    /// Another file in the place of its own, which cannot be written.
    #[cfg(test)]
    pub(super) fn write_to(&mut self, path: &Path) {
        self.file = OpenOptions::new().append(true).open(path).expect("there");
    }

    /// It has grown long.
    pub(super) fn is_full(&self) -> bool {
        self.lines > self.full
    }

    /// Only these changes, from which the same follows.
    pub(super) fn rewrite(&mut self, changes: &[Change]) -> Result<(), JournalError> {
        *self = Self::write(&self.path, changes)?;
        Ok(())
    }
}

fn lines(changes: &[Change]) -> String {
    let mut text = String::new();
    for change in changes {
        let json = serde_json::to_string(change).expect("plain values");
        let _ = writeln!(text, "{} {json}", checksum(&json));
    }
    text
}

fn checksum(json: &str) -> String {
    let digest = Sha256::digest(json);
    digest[..8].iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn read(path: &Path, bytes: &[u8], counters: &mut Counters) -> Result<(), JournalError> {
    let damaged = |line| JournalError::Damaged {
        path: path.to_owned(),
        line,
    };
    // A file system may have made the file longer before it lost power, and not have written what was to be there.
    let end = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |at| at + 1);
    let whole = bytes[..end].iter().rposition(|byte| *byte == b'\n');
    let text = whole.map_or(&bytes[..0], |at| &bytes[..=at]);
    let text = std::str::from_utf8(text).map_err(|_| damaged(1))?;
    let text = text.strip_prefix(HEAD).ok_or_else(|| damaged(1))?;
    for (index, line) in text.lines().enumerate() {
        let change = line
            .split_once(' ')
            .filter(|(sum, json)| *sum == checksum(json));
        let change = change.and_then(|(_, json)| serde_json::from_str(json).ok());
        counters.replay(change.ok_or_else(|| damaged(index + 2))?);
    }
    Ok(())
}
