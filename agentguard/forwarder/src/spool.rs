//! The spool, as the rest of the forwarder has it: what is written to it outlives the forwarder and the daemon.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentguard_link::spool::{
    CleanSegment, Promise, SEGMENT_BYTES, SpoolEnd, SpoolError, UnsealedFrame, Writer,
};
use agentguard_record::Draft;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

/// How long something that is permitted waits for room.
const ROOM_LIMIT: Duration = Duration::from_secs(1);
const UNPOISONED: &str = "nothing panics with the lock held";

pub(crate) struct Spool {
    written: Mutex<Written>,
    /// Told of each frame.
    pub grown: Notify,
    /// Told of each segment that may be written to again.
    cleaned: Notify,
    broken: AtomicBool,
    breaks: Notify,
    disk: Option<Arc<Disk>>,
}

struct Written {
    writer: Writer,
    frames: u64,
}

/// How many frames are on disk; one call to the disk is for all that wait.
struct Disk {
    files: Vec<File>,
    wanted: Notify,
    /// `None`: nothing can be brought there any more.
    frames: watch::Sender<Option<u64>>,
}

impl Spool {
    /// `strict`: what begins is on disk before [`Self::kept`] returns. Must be called in a tokio runtime.
    pub(crate) fn start(
        files: Vec<File>,
        clean: Vec<CleanSegment>,
        strict: bool,
    ) -> io::Result<Arc<Self>> {
        let mut writer = Writer::new(&files, SEGMENT_BYTES)?;
        clean.into_iter().for_each(|segment| writer.add(segment));
        let disk = match strict {
            true => Some(Arc::new(Disk {
                files,
                wanted: Notify::new(),
                frames: watch::Sender::new(Some(0)),
            })),
            false => None,
        };
        let spool = Arc::new(Self {
            written: Mutex::new(Written { writer, frames: 0 }),
            grown: Notify::new(),
            cleaned: Notify::new(),
            broken: AtomicBool::new(false),
            breaks: Notify::new(),
            disk,
        });
        if let Some(disk) = &spool.disk {
            tokio::spawn(sync(disk.clone(), Arc::downgrade(&spool)));
        }
        Ok(spool)
    }

    /// Writes what is about to begin, which waits where there is no room. It may begin once it is [`Self::kept`].
    pub(crate) async fn begin(&self, mut beginning: UnsealedFrame) -> Result<Begun, SpoolError> {
        let deadline = Instant::now() + ROOM_LIMIT;
        let mut waited = false;
        let (promise, frames) = loop {
            let cleaned = self.cleaned.notified();
            match self.write(|writer| writer.begin(&mut beginning)) {
                Err(SpoolError::Full) => {
                    waited = true;
                    if timeout_at(deadline, cleaned).await.is_err() {
                        return Err(SpoolError::Full);
                    }
                }
                begun => break begun?,
            }
        };
        Ok(Begun {
            promise,
            frames,
            waited,
        })
    }

    /// Waits until what has begun is where it has to be: with `strict` on disk. Whether there was anything to wait for.
    pub(crate) async fn kept(&self, begun: &Begun) -> Result<bool, SpoolError> {
        if self.is_kept(begun) {
            return Ok(false);
        }
        self.on_disk(begun.frames).await?;
        Ok(true)
    }

    pub(crate) fn is_kept(&self, begun: &Begun) -> bool {
        let there = |disk: &Arc<Disk>| disk.frames.borrow().is_some_and(|it| it >= begun.frames);
        self.disk.as_ref().is_none_or(there)
    }

    pub(crate) fn end_of(&self, begun: Begun, draft: &Draft) -> Result<(), SpoolError> {
        let mut frame = UnsealedFrame::over(draft)?;
        self.write(|writer| writer.end_of(begun.promise, &mut frame))
            .map(drop)
    }

    /// What is refused.
    pub(crate) fn note(&self, draft: &Draft) -> Result<(), SpoolError> {
        let mut frame = UnsealedFrame::over(draft)?;
        self.write(|writer| writer.note(&mut frame)).map(drop)
    }

    /// What is done at once, after this.
    pub(crate) async fn note_done(&self, draft: &Draft) -> Result<(), SpoolError> {
        let mut frame = UnsealedFrame::over(draft)?;
        let (_, frames) = self.write(|writer| writer.note_done(&mut frame))?;
        self.on_disk(frames).await
    }

    pub(crate) fn clean(&self, segment: CleanSegment) {
        self.written.lock().expect(UNPOISONED).writer.add(segment);
        self.cleaned.notify_waiters();
    }

    pub(crate) fn end(&self) -> SpoolEnd {
        self.written.lock().expect(UNPOISONED).writer.end()
    }

    pub(crate) fn has_room(&self) -> bool {
        !self.is_broken() && self.written.lock().expect(UNPOISONED).writer.has_room()
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// Resolves when nothing can be written any more.
    pub(crate) async fn breaks(&self) {
        let breaks = self.breaks.notified();
        if !self.is_broken() {
            breaks.await;
        }
    }

    /// Answers how many frames there are then.
    fn write<T>(
        &self,
        write: impl FnOnce(&mut Writer) -> Result<T, SpoolError>,
    ) -> Result<(T, u64), SpoolError> {
        if self.is_broken() {
            return Err(io::Error::other("an earlier write failed").into());
        }
        let mut written = self.written.lock().expect(UNPOISONED);
        let value = write(&mut written.writer)?;
        written.frames += 1;
        let frames = written.frames;
        drop(written);
        self.grown.notify_one();
        Ok((value, frames))
    }

    async fn on_disk(&self, frames: u64) -> Result<(), SpoolError> {
        let Some(disk) = &self.disk else {
            return Ok(());
        };
        let mut synced = disk.frames.subscribe();
        disk.wanted.notify_one();
        let there = synced.wait_for(|there| there.is_none_or(|there| there >= frames));
        match there.await.map(|there| *there) {
            Ok(Some(_)) => Ok(()),
            Ok(None) | Err(_) => Err(io::Error::other("it cannot be brought to disk").into()),
        }
    }

    fn break_by(&self, error: &io::Error) {
        tracing::error!(%error, "the spool cannot be written: nothing is let through any more");
        self.broken.store(true, Ordering::Relaxed);
        self.breaks.notify_waiters();
    }
}

/// Something whose beginning is written, and whose end has its room.
#[must_use = "the room is kept until the end is written"]
pub(crate) struct Begun {
    promise: Promise,
    /// So many must be on disk for it to be there.
    frames: u64,
    /// There was no room at first: things may have changed meanwhile.
    pub waited: bool,
}

/// Brings to disk what was written, as often as somebody waits for it.
async fn sync(disk: Arc<Disk>, spool: std::sync::Weak<Spool>) {
    loop {
        disk.wanted.notified().await;
        let Some(spool) = spool.upgrade() else {
            return;
        };
        let frames = spool.written.lock().expect(UNPOISONED).frames;
        let files = disk.clone();
        let synced = tokio::task::spawn_blocking(move || {
            // The one that was left for the other may have the frame, too.
            files.files.iter().try_for_each(File::sync_data)
        });
        match synced
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
        {
            Ok(()) => drop(disk.frames.send_replace(Some(frames))),
            Err(error) => {
                disk.frames.send_replace(None);
                return spool.break_by(&error);
            }
        }
    }
}
