//! Lines of the log, newest first, without reading more of it than is asked for.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::vec;

use super::segment::{self, Position, SegmentFile};

const CHUNK: u64 = 256 * 1024;

/// Whole lines, without their newlines, from the end of the log towards its start, each with where it begins. What a writer
/// is in the middle of is left out.
pub(super) struct Backwards {
    segments: vec::IntoIter<SegmentFile>,
    file: Option<Segmented>,
    /// Nothing from here on.
    end: Option<Position>,
}

struct Segmented {
    file: File,
    first: u64,
    /// Bytes before this have not been read.
    at: u64,
    /// What was read from there on, up to the last line handed out.
    held: Vec<u8>,
}

impl Backwards {
    pub(super) fn new(dir: &Path) -> io::Result<Self> {
        Ok(Self {
            segments: segment::list(dir)?.into_iter(),
            file: None,
            end: None,
        })
    }

    /// Only what is before `end`.
    pub(super) fn before(dir: &Path, end: Position) -> io::Result<Self> {
        Ok(Self {
            end: Some(end),
            ..Self::new(dir)?
        })
    }

    fn advance(&mut self) -> io::Result<Option<(Position, Vec<u8>)>> {
        loop {
            match &mut self.file {
                Some(file) => {
                    if let Some(line) = file.previous()? {
                        return Ok(Some((file.position(), line)));
                    }
                    self.file = None;
                }
                None => {
                    let Some(segment) = self.segments.next_back() else {
                        return Ok(None);
                    };
                    let end = match self.end {
                        Some(end) if segment.first > end.segment => continue,
                        Some(end) if segment.first == end.segment => end.offset,
                        Some(_) | None => u64::MAX,
                    };
                    self.file = Some(Segmented::open(&segment, end)?);
                }
            }
        }
    }
}

impl Iterator for Backwards {
    type Item = io::Result<(Position, Vec<u8>)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}

impl Segmented {
    fn open(segment: &SegmentFile, end: u64) -> io::Result<Self> {
        let file = File::open(&segment.path)?;
        let at = file.metadata()?.len().min(end);
        let mut this = Self {
            file,
            first: segment.first,
            at,
            held: Vec::new(),
        };
        // Ends after the last newline, or at the start of the file.
        while let None = this.newline()
            && this.fill()?
        {}
        this.held
            .truncate(this.newline().map_or(0, |newline| newline + 1));
        Ok(this)
    }

    /// Of the line that was handed out last.
    fn position(&self) -> Position {
        Position {
            segment: self.first,
            offset: self.at + self.held.len() as u64,
        }
    }

    fn newline(&self) -> Option<usize> {
        self.held.iter().rposition(|byte| *byte == b'\n')
    }

    /// `held` ends with the newline of the line to hand out.
    fn previous(&mut self) -> io::Result<Option<Vec<u8>>> {
        if self.held.is_empty() && !self.fill()? {
            return Ok(None);
        }
        self.held.pop();
        loop {
            match self.newline() {
                Some(newline) => return Ok(Some(self.held.split_off(newline + 1))),
                None if self.fill()? => {}
                None => return Ok(Some(std::mem::take(&mut self.held))),
            }
        }
    }

    /// Reads the chunk before what is held; false at the start of the file.
    fn fill(&mut self) -> io::Result<bool> {
        if self.at == 0 {
            return Ok(false);
        }
        let start = self.at.saturating_sub(CHUNK);
        let mut chunk = vec![0; (self.at - start) as usize];
        self.file.read_exact_at(&mut chunk, start)?;
        chunk.append(&mut self.held);
        self.held = chunk;
        self.at = start;
        Ok(true)
    }
}
