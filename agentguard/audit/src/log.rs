//! The writer: appends, chains, rotates, makes durable. What could not be written stays pending, in order, so that the
//! chain has no gap when it can be written again.

mod error;
mod notes;

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use agentguard_record::Record;
use agentguard_sys::file::ensure_folder;
use agentguard_sys::lock::{FolderLock, LockHolder};
use nix::sys::statvfs::fstatvfs;
use tokio::sync::watch;

pub use self::error::LogError;
use super::line::{self, ChainPlace, Hash};
use super::segment::{self, ChainTail, Position};
use super::sync::Syncer;
use crate::Durability;

/// A segment that has reached this is followed by the next.
const SEGMENT_BYTES: u64 = 256 * 1024 * 1024;
/// Records kept in memory while they cannot be written.
const PENDING_BYTES: usize = 64 * 1024 * 1024;

/// Of the disk, not for decisions: kills and what else operators do are recorded there when it is full for agents.
const RESERVE_BYTES: u64 = 16 * 1024 * 1024;
/// Of a small disk it is such a part at most.
const RESERVE_PART: u64 = 8;

/// The end of what readers can see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// Of the last record; 0 if there is none.
    pub seq: u64,
    /// Behind it.
    pub(super) end: Position,
}

/// The one writer of the audit log.
pub struct Log {
    dir: PathBuf,
    durability: Durability,
    segment_bytes: u64,
    /// The segment being written: its first `seq`, its file, the bytes of whole records in it.
    first: u64,
    file: Arc<File>,
    path: PathBuf,
    size: u64,
    /// Bytes of a part of a record may follow them.
    partial: bool,
    /// Written and not known to be on disk.
    unsynced: bool,
    /// Lines that are chained and not written.
    pending: Vec<u8>,
    /// Of the last chained record.
    tail: ChainTail,
    /// Not kept, and not yet admitted in a record.
    lost: u64,
    /// Since when it cannot be written.
    failing: Option<Instant>,
    head: watch::Sender<Head>,
    syncer: Option<Syncer>,
    _lock: FolderLock,
}

impl Log {
    /// Opens the log below `dir`, or starts one; sets aside what a crash tore.
    pub fn open(dir: &Path, durability: Durability) -> Result<Self, LogError> {
        Self::open_sized(dir, durability, SEGMENT_BYTES)
    }

    pub(super) fn open_sized(
        dir: &Path,
        durability: Durability,
        segment_bytes: u64,
    ) -> Result<Self, LogError> {
        ensure_folder(dir, 0o700)?;
        let lock = lock(dir)?;
        let segments = segment::list(dir).map_err(LogError::io("read", dir))?;
        let (tail, torn) = segment::recover(dir, &segments)?;
        let (first, file, path, size) = match segments.last() {
            Some(last) if last.first <= tail.seq + 1 => {
                let path = last.path.clone();
                let file = OpenOptions::new().read(true).append(true).open(&path);
                let file = file.map_err(LogError::io("open", &path))?;
                let size = file.metadata().map_err(LogError::io("stat", &path))?.len();
                (last.first, file, path, size)
            }
            _ => {
                let first = tail.seq + 1;
                let (file, path) = segment::create(dir, first)?;
                (first, file, path, 0)
            }
        };
        let syncer = match durability {
            Durability::Batched => {
                Some(Syncer::start().map_err(LogError::io("start syncing", dir))?)
            }
            Durability::Strict => None,
        };
        let mut log = Self {
            dir: dir.to_owned(),
            durability,
            segment_bytes,
            first,
            file: Arc::new(file),
            path,
            size,
            partial: false,
            unsynced: false,
            pending: Vec::new(),
            tail,
            lost: 0,
            failing: None,
            head: watch::Sender::new(Head {
                seq: tail.seq,
                end: Position {
                    segment: first,
                    offset: size,
                },
            }),
            syncer,
            _lock: lock,
        };
        if let Some(torn) = torn {
            log.note_torn(&torn)?;
        }
        Ok(log)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `seq` and hash of the last record.
    pub fn chain(&self) -> (u64, Hash) {
        (self.tail.seq, self.tail.hash)
    }

    /// Changes whenever readers can see more: what `tail -f` waits for.
    pub fn head(&self) -> watch::Receiver<Head> {
        self.head.subscribe()
    }

    /// Bytes that are chained and not written.
    pub fn staged(&self) -> usize {
        self.pending.len()
    }

    /// Whether decisions may be recorded: the disk has more room than what is kept for operators.
    pub fn room(&self) -> Result<(), LogError> {
        let disk = fstatvfs(&*self.file)
            .map_err(|error| LogError::io("stat the file system of", &self.path)(error.into()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(disk.fragment_size());
        let kept = RESERVE_BYTES.min(bytes(disk.blocks()) / RESERVE_PART);
        match bytes(disk.blocks_available()) {
            free if free < kept => Err(LogError::Reserve {
                dir: self.dir.clone(),
                free,
                kept,
            }),
            _ => Ok(()),
        }
    }

    /// One record: chained, written, and with [`Durability::Strict`] on disk. Gives its `seq`.
    ///
    /// # Errors
    /// The log cannot be written now. The record is not lost ([`LogError::Full`] apart): it is written, before any later
    /// one, by the next call that can write.
    pub fn append(&mut self, record: Record<'_>) -> Result<u64, LogError> {
        let seq = self.stage(record)?;
        self.commit()?;
        Ok(seq)
    }

    /// Chains a record that the next [`Log::commit`] writes: for batches.
    pub fn stage(&mut self, record: Record<'_>) -> Result<u64, LogError> {
        if self.pending.len() >= PENDING_BYTES {
            return Err(self.lose(LogError::Full));
        }
        let start = self.pending.len();
        let place = ChainPlace {
            seq: self.tail.seq + 1,
            prev: &self.tail.hash,
        };
        if let Err(error) = line::write(&mut self.pending, place, record) {
            self.pending.truncate(start);
            return Err(self.lose(error.into()));
        }
        self.tail = ChainTail {
            seq: place.seq,
            hash: line::hash(&self.pending[start..]),
        };
        self.pending.push(b'\n');
        Ok(self.tail.seq)
    }

    /// The next record that can be written says so.
    fn lose(&mut self, error: LogError) -> LogError {
        self.lost += 1;
        self.failing.get_or_insert_with(Instant::now);
        error
    }

    /// Writes what is staged, in one call to the kernel, and as durable as the log is.
    ///
    /// # Errors
    /// As for [`Log::append`]: call it again, without anything new if need be, to find out when writing works again.
    pub fn commit(&mut self) -> Result<(), LogError> {
        if let Err(error) = self.try_commit() {
            self.failing.get_or_insert_with(Instant::now);
            return Err(error);
        }
        match self.failing.take() {
            Some(since) => self.note_outage(since.elapsed()),
            None => Ok(()),
        }
    }

    fn try_commit(&mut self) -> Result<(), LogError> {
        if let Some(error) = self.syncer.as_ref().and_then(Syncer::failure) {
            return Err(LogError::io("sync", &self.path)(error));
        }
        self.write_pending()?;
        if self.durability == Durability::Strict && self.unsynced || self.failing.is_some() {
            self.sync()?;
        }
        Ok(())
    }

    /// Writes what is staged and waits until everything is on disk.
    pub fn flush(&mut self) -> Result<(), LogError> {
        self.commit()?;
        self.sync()
    }

    fn write_pending(&mut self) -> Result<(), LogError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.drop_partial()?;
        if self.size >= self.segment_bytes {
            self.rotate()?;
        }
        let (written, result) = write(&self.file, &self.pending);
        let whole = match result {
            Ok(()) => written,
            Err(_) => whole_lines(&self.pending[..written]),
        };
        self.size += whole as u64;
        self.partial = written > whole;
        self.unsynced |= whole > 0;
        self.pending.drain(..whole);
        self.pending.shrink_to(1 << 20);
        if whole > 0 {
            self.head.send_replace(Head {
                seq: self.written_seq(),
                end: Position {
                    segment: self.first,
                    offset: self.size,
                },
            });
            if let Some(syncer) = &self.syncer {
                syncer.written(&self.file);
            }
        }
        result.map_err(|error| {
            // If this fails too, the next write starts with it.
            let _ = self.drop_partial();
            LogError::io("write", &self.path)(error)
        })
    }

    /// Cuts off the part of a record that a failed write left.
    fn drop_partial(&mut self) -> Result<(), LogError> {
        if self.partial {
            self.file
                .set_len(self.size)
                .map_err(LogError::io("truncate", &self.path))?;
            self.partial = false;
        }
        Ok(())
    }

    fn rotate(&mut self) -> Result<(), LogError> {
        self.sync()?;
        let first = self.written_seq() + 1;
        let (file, path) = segment::create(&self.dir, first)?;
        (self.first, self.file, self.path, self.size) = (first, Arc::new(file), path, 0);
        Ok(())
    }

    /// Of the last record that is in a file.
    fn written_seq(&self) -> u64 {
        let waiting = self.pending.iter().filter(|byte| **byte == b'\n').count();
        self.tail.seq - waiting as u64
    }

    fn sync(&mut self) -> Result<(), LogError> {
        self.file
            .sync_data()
            .map_err(LogError::io("sync", &self.path))?;
        self.unsynced = false;
        if let Some(syncer) = &self.syncer {
            syncer.synced();
        }
        Ok(())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Err(error) = self.flush() {
            tracing::error!(%error, "the audit log could not be completed");
        }
    }
}

fn lock(dir: &Path) -> Result<FolderLock, LogError> {
    FolderLock::take(dir)?.map_err(|taken| LogError::Locked {
        dir: dir.to_owned(),
        holder: match taken {
            LockHolder::By(tgid) => format!("process {tgid}"),
            LockHolder::Unknown => "another process".into(),
        },
    })
}

/// Writes as much as the kernel takes.
fn write(mut file: &File, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => return (written, Err(ErrorKind::WriteZero.into())),
            Ok(more) => written += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

fn whole_lines(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |newline| newline + 1)
}

#[cfg(test)]
mod tests;
