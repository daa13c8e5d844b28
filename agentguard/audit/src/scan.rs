//! The end of the log on several processors at once: every line from some time on, each once, in no order.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;

use super::segment;

/// Bytes that one worker takes at a time.
const PIECE: u64 = 8 << 20;
/// Between two words on how far it is.
const TELL_EVERY: Duration = Duration::from_millis(200);

pub struct Scan {
    pieces: Vec<ScanRange>,
}

/// The lines that begin in a range of a file.
struct ScanRange {
    path: PathBuf,
    start: u64,
    end: u64,
}

/// The time that a line begins with.
#[derive(Deserialize)]
struct Timed {
    time: Timestamp,
}

impl Scan {
    /// Files that end before `since` are left out; of the others some lines may be older.
    pub fn since(dir: &Path, since: Timestamp) -> io::Result<Self> {
        let segments = segment::list(dir)?;
        let mut first = 0;
        for (index, segment) in segments.iter().enumerate() {
            let mut line = String::new();
            BufReader::new(File::open(&segment.path)?).read_line(&mut line)?;
            let begins = serde_json::from_str::<Timed>(&line);
            if begins.is_ok_and(|begins| begins.time < since) {
                first = index;
            }
        }
        let mut pieces = Vec::new();
        for segment in &segments[first..] {
            let bytes = segment.path.metadata()?.len();
            let starts = (0..bytes).step_by(PIECE as usize);
            pieces.extend(starts.map(|start| ScanRange {
                path: segment.path.clone(),
                start,
                end: bytes.min(start + PIECE),
            }));
        }
        Ok(Self { pieces })
    }

    pub fn bytes(&self) -> u64 {
        self.pieces
            .iter()
            .map(|piece| piece.end - piece.start)
            .sum()
    }

    /// Hands every whole line to one of the workers, as many as there are processors; answers what each has made of its own.
    /// `tell` is told every now and then how many bytes are done.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn run<W: Send>(
        &self,
        make: impl Fn() -> W + Sync,
        each: impl Fn(&mut W, &[u8]) + Sync,
        mut tell: impl FnMut(u64),
    ) -> io::Result<Vec<W>> {
        let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
        let work = || {
            let mut worker = make();
            while let Some(piece) = self.pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                piece.read(|line| each(&mut worker, line))?;
                done.fetch_add(piece.end - piece.start, Ordering::Relaxed);
            }
            Ok(worker)
        };
        let count = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            let workers: Vec<_> = (0..count).map(|_| scope.spawn(work)).collect();
            while workers.iter().any(|worker| !worker.is_finished()) {
                tell(done.load(Ordering::Relaxed));
                thread::park_timeout(TELL_EVERY);
            }
            tell(done.load(Ordering::Relaxed));
            let ended = workers.into_iter().map(|worker| {
                worker
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            ended.collect()
        })
    }
}

impl ScanRange {
    fn read(&self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let mut file = BufReader::with_capacity(1 << 18, File::open(&self.path)?);
        let mut at = self.start.saturating_sub(1);
        file.seek(SeekFrom::Start(at))?;
        let mut line = Vec::new();
        if self.start > 0 {
            // The line that begins before is another piece's; the byte before may be its newline.
            at += file.read_until(b'\n', &mut line)? as u64;
        }
        while at < self.end {
            line.clear();
            at += file.read_until(b'\n', &mut line)? as u64;
            // What a writer is in the middle of has no end yet.
            let Some(whole) = line.strip_suffix(b"\n") else {
                break;
            };
            each(whole);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::io::Write;

    use super::super::fixture::{files, filled, lines};
    use super::*;

    #[test]
    fn every_line_is_read_once_however_it_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        filled(dir.path(), 300, 20_000);
        let mut expected = lines(dir.path());
        expected.sort();
        let last = files(dir.path()).pop().unwrap();
        let mut file = OpenOptions::new().append(true).open(&last).unwrap();
        file.write_all(b"{\"half").unwrap();
        for size in [1, 100, 777, 5_000, 1 << 20] {
            let mut found = Vec::new();
            for path in files(dir.path()) {
                let bytes = fs::metadata(&path).unwrap().len();
                for start in (0..bytes).step_by(size) {
                    let piece = ScanRange {
                        path: path.clone(),
                        start,
                        end: bytes.min(start + size as u64),
                    };
                    let keep = |line: &[u8]| found.push(String::from_utf8(line.to_vec()).unwrap());
                    piece.read(keep).unwrap();
                }
            }
            found.sort();
            assert_eq!(found, expected, "pieces of {size} bytes");
        }
        let scan = Scan::since(dir.path(), Timestamp::MIN).unwrap();
        let counts = scan.run(|| 0, |count, _| *count += 1, |_| {}).unwrap();
        assert_eq!(counts.iter().sum::<i32>(), 300);
        let late = Scan::since(dir.path(), Timestamp::MAX).unwrap();
        assert!(late.bytes() < scan.bytes());
    }
}
