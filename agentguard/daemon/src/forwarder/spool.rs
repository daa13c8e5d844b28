//! The daemon's side of the spool: what the forwarder has written there is taken up into the log, each record once, also what
//! a forwarder or a daemon left that did not come to its end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agentguard_audit::Durability;
use agentguard_audit::decisions::decisions_after;
use agentguard_link::spool::{
    self, CleanSegment, Frame, HEADER_BYTES, Header, SEGMENT_BYTES, SEGMENTS, SpoolEnd, SpoolError,
    Stage,
};
use agentguard_record::Draft;
use agentguard_sys::file::ensure_folder;
use uuid::Uuid;

/// Of the frames in [`Spool::carried`], which is no segment: those begin with 1.
const CARRIED: u64 = 0;

#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeUpError {
    #[error("cannot {call} {}: {source}", path.display())]
    Io {
        call: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("the forwarder before has not ended, and may still write to {}", .0.display())]
    InUse(PathBuf),
    #[error(
        "the spool was not taken up into the log within {0:?}: an earlier forwarder still has it, or the disk is slow"
    )]
    Late(Duration),
    #[error("the log cannot be written, and the spool not be taken up into it")]
    NoLog,
    #[error("the forwarder says that the spool is written further than it is")]
    Short,
}

/// Where the forwarder's records are before they are in the log.
pub(crate) struct Spool {
    dir: PathBuf,
    audit: PathBuf,
    durability: Durability,
    /// By their index.
    segments: Vec<Segment>,
    /// What has begun and is not over.
    begun: BTreeMap<Uuid, Frame>,
    /// How far it has been taken up.
    at: SpoolEnd,
}

struct Segment {
    path: PathBuf,
    file: File,
    header: Option<Header>,
}

/// What was in the spool.
#[derive(Default)]
pub(crate) struct TakenUp {
    pub drafts: Vec<Draft>,
    /// Segments that the forwarder has left for the next.
    pub left: Vec<u8>,
}

/// What a forwarder that is gone has left, some of which the log may have.
pub(crate) struct Leftovers {
    frames: Vec<Frame>,
    audit: PathBuf,
    /// The log has none of it up to this record.
    after_seq: u64,
}

impl Spool {
    /// Opens the one in `dir`, or makes one. `audit`: the log's folder.
    pub(crate) fn open(
        dir: &Path,
        audit: &Path,
        durability: Durability,
    ) -> Result<Self, TakeUpError> {
        ensure_folder(dir, 0o700).map_err(|error| failed("make", dir)(io::Error::other(error)))?;
        let open = |index: usize| {
            let path = dir.join(format!("segment-{index}"));
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(failed("open", &path))?;
            spool::prepare(&file, SEGMENT_BYTES).map_err(failed("take the room of", &path))?;
            let header = Header::read(&file).map_err(failed("read", &path))?;
            Ok(Segment { path, file, header })
        };
        Ok(Self {
            dir: dir.to_owned(),
            audit: audit.to_owned(),
            durability,
            segments: (0..SEGMENTS).map(open).collect::<Result<_, _>>()?,
            begun: BTreeMap::new(),
            at: SpoolEnd::default(),
        })
    }

    /// What a forwarder that is gone has left. What has begun and has no end is among it as it stands.
    pub(crate) fn leftovers(&self) -> Result<Leftovers, TakeUpError> {
        let mut begun: BTreeMap<Uuid, Frame> = BTreeMap::new();
        for frame in self.carried()? {
            begun.insert(frame.decision, frame);
        }
        let mut over = Vec::new();
        let mut segments: Vec<_> = self.segments.iter().collect();
        segments.sort_by_key(|segment| segment.generation());
        for segment in segments {
            let Some(header) = segment.header else {
                continue;
            };
            drop(segment.lock()?);
            let read = spool::read(
                &segment.file,
                header.generation,
                HEADER_BYTES,
                SEGMENT_BYTES,
            );
            let (frames, _) = read.map_err(failed("read", &segment.path))?;
            for frame in frames {
                match frame.stage {
                    Stage::Begun => drop(begun.insert(frame.decision, frame)),
                    Stage::Over => {
                        begun.remove(&frame.decision);
                        over.push(frame);
                    }
                }
            }
        }
        let headers = self.segments.iter().filter_map(|segment| segment.header);
        Ok(Leftovers {
            frames: over.into_iter().chain(begun.into_values()).collect(),
            audit: self.audit.clone(),
            after_seq: headers.map(|header| header.after_seq).min().unwrap_or(0),
        })
    }

    /// Empties it for the next forwarder, which gets these descriptors. `seq`: the log's last record.
    pub(crate) fn renew(
        &mut self,
        seq: u64,
    ) -> Result<(Vec<OwnedFd>, Vec<CleanSegment>), TakeUpError> {
        let mut descriptors = Vec::new();
        for segment in &self.segments {
            descriptors.push(segment.lock()?.into());
        }
        Ok((descriptors, self.empty(seq)?))
    }

    /// Everything in it is in the log, up to `seq`.
    pub(crate) fn empty(&mut self, seq: u64) -> Result<Vec<CleanSegment>, TakeUpError> {
        let clean: Result<Vec<_>, _> = (0..self.segments.len())
            .map(|index| self.reuse(index, seq))
            .collect();
        let clean = clean?;
        self.begun.clear();
        self.carry()?;
        self.at = SpoolEnd {
            generation: clean.first().map_or(0, |first| first.generation),
            offset: HEADER_BYTES,
        };
        Ok(clean)
    }

    /// Takes up what has been written since, up to `end`.
    pub(crate) fn take_up(&mut self, end: SpoolEnd) -> Result<TakenUp, TakeUpError> {
        let mut taken = TakenUp::default();
        while self.at != end {
            let is_last = self.at.generation == end.generation;
            let to = match is_last {
                true => end.offset,
                false => SEGMENT_BYTES,
            };
            let (index, segment) = self.of(self.at.generation).ok_or(TakeUpError::Short)?;
            let read = spool::read(&segment.file, self.at.generation, self.at.offset, to);
            let (frames, offset) = read.map_err(failed("read", &segment.path))?;
            for frame in frames {
                match frame.stage {
                    Stage::Begun => drop(self.begun.insert(frame.decision, frame)),
                    Stage::Over => {
                        self.begun.remove(&frame.decision);
                        taken.drafts.extend(decode(&frame));
                    }
                }
            }
            self.at.offset = offset;
            if is_last && offset != end.offset {
                return Err(TakeUpError::Short);
            }
            if !is_last {
                taken.left.push(index);
                let generations: BTreeSet<u64> =
                    self.segments.iter().map(Segment::generation).collect();
                let mut later = generations.range(self.at.generation + 1..);
                self.at = SpoolEnd {
                    generation: *later.next().ok_or(TakeUpError::Short)?,
                    offset: HEADER_BYTES,
                };
            }
        }
        Ok(taken)
    }

    /// Whether all that has begun is over.
    pub(crate) fn is_over(&self) -> bool {
        self.begun.is_empty()
    }

    /// A segment that was left, and whose records are in the log up to `seq`, may be written to again. What began in it and
    /// is not over is kept elsewhere.
    pub(crate) fn clean(&mut self, index: u8, seq: u64) -> Result<CleanSegment, TakeUpError> {
        self.carry()?;
        self.reuse(usize::from(index), seq)
    }

    fn reuse(&mut self, index: usize, seq: u64) -> Result<CleanSegment, TakeUpError> {
        let newest = self.segments.iter().map(Segment::generation).max();
        let header = Header {
            generation: newest.unwrap_or(0) + 1,
            after_seq: seq,
        };
        let segment = &mut self.segments[index];
        header
            .write(&segment.file)
            .and_then(|()| segment.file.sync_data())
            .map_err(failed("write", &segment.path))?;
        segment.header = Some(header);
        Ok(CleanSegment {
            index: u8::try_from(index).expect("two segments"),
            generation: header.generation,
        })
    }

    /// The segment of this generation, with its index.
    fn of(&self, generation: u64) -> Option<(u8, &Segment)> {
        let mut segments = (0..).zip(&self.segments);
        segments.find(|(_, segment)| segment.generation() == generation)
    }

    fn carried_path(&self) -> PathBuf {
        self.dir.join("begun")
    }

    fn carried(&self) -> Result<Vec<Frame>, TakeUpError> {
        let path = self.carried_path();
        match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(failed("open", &path)(error)),
            Ok(file) => {
                let read = spool::read(&file, CARRIED, 0, u64::MAX);
                Ok(read.map_err(failed("read", &path))?.0)
            }
        }
    }

    /// Keeps what has begun in a file of its own, whole or not at all.
    fn carry(&self) -> Result<(), TakeUpError> {
        let path = self.carried_path();
        if self.begun.is_empty() {
            return match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    Err(failed("remove", &path)(error))
                }
                _ => Ok(()),
            };
        }
        let next = path.with_extension("next");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&next)
            .map_err(failed("open", &next))?;
        let frames: Vec<u8> = self
            .begun
            .values()
            .flat_map(|it| it.encode(CARRIED))
            .collect();
        file.write_all(&frames).map_err(failed("write", &next))?;
        if self.durability == Durability::Strict {
            file.sync_all().map_err(failed("sync", &next))?;
        }
        fs::rename(&next, &path).map_err(failed("rename", &next))
    }
}

impl Leftovers {
    /// Those that the log does not have. Everything that was taken up before must be in the log.
    ///
    /// The log may be of any length, and is read on a thread of its own.
    pub(crate) async fn unlogged(self) -> Result<Vec<Draft>, TakeUpError> {
        if self.frames.is_empty() {
            return Ok(Vec::new());
        }
        let Self {
            frames,
            audit,
            after_seq,
        } = self;
        let since = Instant::now();
        let dir = audit.clone();
        let reading = tokio::task::spawn_blocking(move || decisions_after(&dir, after_seq));
        let logged = reading
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(failed("read", &audit))?;
        tracing::info!(
            records = logged.len(),
            ms = since.elapsed().as_millis(),
            "the log was read for what an earlier forwarder left in the spool"
        );
        let left = frames.iter().filter(|it| !logged.contains(&it.decision));
        Ok(left.filter_map(decode).collect())
    }
}

impl Segment {
    fn generation(&self) -> u64 {
        self.header.map_or(0, |header| header.generation)
    }

    /// An opening of its own, locked for as long as any process has it, as a descriptor or as memory.
    fn lock(&self) -> Result<File, TakeUpError> {
        let file = OpenOptions::new().read(true).write(true).open(&self.path);
        let file = file.map_err(failed("open", &self.path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(TakeUpError::InUse(self.path.clone())),
            Err(TryLockError::Error(error)) => Err(failed("lock", &self.path)(error)),
        }
    }
}

fn decode(frame: &Frame) -> Option<Draft> {
    let draft = frame.draft();
    if let Err(error @ SpoolError::Decode(_)) = &draft {
        tracing::error!(%error, decision = %frame.decision, "a record in the spool is lost");
    }
    draft.ok()
}

fn failed(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TakeUpError + use<> {
    let path = path.to_owned();
    move |source| TakeUpError::Io { call, path, source }
}

#[cfg(test)]
mod tests;
