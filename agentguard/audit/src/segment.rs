//! The log's files: one segment per stretch of records, named by its first record's seq, and what a crash leaves at the
//! end of the last one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::line::{self, ChainLink, FIRST_PREV, Hash};
use super::log::LogError;

const PREFIX: &str = "audit-";
const SUFFIX: &str = ".jsonl";
/// Digits of `u64::MAX`, so that names sort as numbers do.
const DIGITS: usize = 20;
/// Read at a time, looking backwards for a newline.
const CHUNK: u64 = 64 * 1024;

/// One file of records.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct SegmentFile {
    pub(super) first: u64,
    pub(super) path: PathBuf,
}

/// A place in the log: a segment, by its first `seq`, and bytes from its start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Position {
    pub(super) segment: u64,
    pub(super) offset: u64,
}

/// Where the chain ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ChainTail {
    pub(super) seq: u64,
    pub(super) hash: Hash,
}

impl ChainTail {
    const EMPTY: Self = Self {
        seq: 0,
        hash: FIRST_PREV,
    };
}

/// Bytes that no record could be read from, set aside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Torn {
    pub segment: PathBuf,
    /// Where they are now.
    pub kept: PathBuf,
    pub bytes: u64,
}

/// The segments below `dir`, oldest first. Other files are not ours to judge.
pub(super) fn list(dir: &Path) -> io::Result<Vec<SegmentFile>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if let Some(first) = path.file_name().and_then(|name| first_seq(name.to_str()?)) {
            segments.push(SegmentFile { first, path });
        }
    }
    segments.sort();
    Ok(segments)
}

/// The first `seq` of the segment that follows the one with this.
pub(super) fn after(dir: &Path, first: u64) -> io::Result<Option<u64>> {
    let mut later = list(dir)?.into_iter().map(|segment| segment.first);
    Ok(later.find(|later| *later > first))
}

fn first_seq(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    (digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| digits.parse().ok())
        .flatten()
}

pub(super) fn path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{first:0DIGITS$}{SUFFIX}"))
}

/// Makes the segment whose first record is `first`; durable when it returns. An empty one may be there, from a try that
/// failed half-way.
pub(super) fn create(dir: &Path, first: u64) -> Result<(File, PathBuf), LogError> {
    let path = path(dir, first);
    let empty = |file: File| match file.metadata()?.len() {
        0 => Ok(file),
        _ => Err(ErrorKind::AlreadyExists.into()),
    };
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .and_then(empty)
        .map_err(LogError::io("create", &path))?;
    sync_dir(dir)?;
    Ok((file, path))
}

pub(super) fn sync_dir(dir: &Path) -> Result<(), LogError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(LogError::io("sync", dir))
}

/// Finds the chain's end in the newest segment that has a record, setting aside what a crash tore at the very end.
pub(super) fn recover(
    dir: &Path,
    segments: &[SegmentFile],
) -> Result<(ChainTail, Option<Torn>), LogError> {
    let mut torn = None;
    for (age, segment) in segments.iter().rev().enumerate() {
        let path = &segment.path;
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .open(path)
            .map_err(LogError::io("open", path))?;
        let length = file.metadata().map_err(LogError::io("stat", path))?.len();
        let (tail, end) = find_tail(path, &file, length)?;
        // Only the newest segment can be torn by a crash; an older one is left as it is, for `verify` to judge.
        if age == 0 && end < length {
            torn = Some(set_aside(dir, path, &file, end, length)?);
        }
        if let Some(tail) = tail {
            return Ok((tail, torn));
        }
    }
    Ok((ChainTail::EMPTY, torn))
}

/// The last record of a segment, and the end of what can be read as records.
fn find_tail(path: &Path, file: &File, length: u64) -> Result<(Option<ChainTail>, u64), LogError> {
    let mut end = length;
    while let Some((start, bytes)) = last_line(file, end).map_err(LogError::io("read", path))? {
        let whole = bytes.strip_suffix(b"\n");
        let content = whole.unwrap_or(&bytes);
        if let Ok(link) = serde_json::from_slice::<ChainLink<'_>>(content) {
            if whole.is_none() {
                // The record is all there, but for its newline.
                finish_line(path, file)?;
            }
            let hash = line::hash(content);
            return Ok((
                Some(ChainTail {
                    seq: link.seq,
                    hash,
                }),
                end,
            ));
        }
        end = start;
    }
    Ok((None, 0))
}

fn finish_line(path: &Path, mut file: &File) -> Result<(), LogError> {
    file.write_all(b"\n")
        .and_then(|()| file.sync_all())
        .map_err(LogError::io("write", path))
}

/// The last line that ends at `end`, with its newline if it has one, and where it starts.
fn last_line(file: &File, end: u64) -> io::Result<Option<(u64, Vec<u8>)>> {
    if end == 0 {
        return Ok(None);
    }
    let mut line = Vec::new();
    let mut at = end;
    while at > 0 {
        let start = at.saturating_sub(CHUNK);
        let mut chunk = vec![0; (at - start) as usize];
        file.read_exact_at(&mut chunk, start)?;
        // The line's own newline does not end the search for the one before.
        let searched = if at == end {
            chunk.len() - 1
        } else {
            chunk.len()
        };
        let newline = chunk[..searched].iter().rposition(|byte| *byte == b'\n');
        let from = newline.map_or(0, |newline| newline + 1);
        chunk.drain(..from);
        chunk.append(&mut line);
        line = chunk;
        at = start + from as u64;
        if newline.is_some() {
            break;
        }
    }
    Ok(Some((at, line)))
}

/// Moves the bytes from `start` on into a `.torn` file beside the segment.
fn set_aside(dir: &Path, path: &Path, file: &File, start: u64, end: u64) -> Result<Torn, LogError> {
    let mut bytes = vec![0; (end - start) as usize];
    file.read_exact_at(&mut bytes, start)
        .map_err(LogError::io("read", path))?;
    let kept = (0..)
        .map(|n| {
            path.with_extension(if n == 0 {
                "torn".into()
            } else {
                format!("torn.{n}")
            })
        })
        .find(|kept| !kept.exists())
        .expect("some number is free");
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&kept)
        .and_then(|mut file| file.write_all(&bytes).and_then(|()| file.sync_all()))
        .map_err(LogError::io("write", &kept))?;
    sync_dir(dir)?;
    file.set_len(start)
        .and_then(|()| file.sync_all())
        .map_err(LogError::io("truncate", path))?;
    Ok(Torn {
        segment: path.to_owned(),
        kept,
        bytes: end - start,
    })
}
