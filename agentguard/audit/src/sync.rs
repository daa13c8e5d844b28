//! Makes written records durable behind the writer's back: at most [`PERIOD`] after they were written.

use std::fs::File;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a written record may be without being on disk.
const PERIOD: Duration = Duration::from_millis(100);

/// A thread that calls `fdatasync` on what it is told has been written.
pub(super) struct Syncer {
    shared: Arc<SharedSync>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct SharedSync {
    state: Mutex<SyncState>,
    changed: Condvar,
}

#[derive(Default)]
struct SyncState {
    dirty: Option<(Arc<File>, Instant)>,
    syncing: bool,
    failed: Option<io::Error>,
    stop: bool,
}

impl Syncer {
    pub(super) fn start() -> io::Result<Self> {
        let shared = Arc::new(SharedSync::default());
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("audit-sync".into())
            .spawn(move || of_thread.run())?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// `file` has been written to.
    pub(super) fn written(&self, file: &Arc<File>) {
        let mut state = self.shared.lock();
        if state.dirty.is_none() {
            state.dirty = Some((file.clone(), Instant::now() + PERIOD));
            drop(state);
            self.shared.changed.notify_all();
        }
    }

    /// The writer has synced by itself.
    pub(super) fn synced(&self) {
        self.shared.lock().dirty = None;
    }

    /// Whether everything written was synced within `limit`.
    #[cfg(test)]
    pub(super) fn wait_until_clean(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.lock();
        while state.dirty.is_some() || state.syncing {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
        }
        true
    }

    /// Takes a failure that has happened since the last call.
    pub(super) fn failure(&self) -> Option<io::Error> {
        self.shared.lock().failed.take()
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // It has nothing to say, and the log is closing.
            let _ = thread.join();
        }
    }
}

impl SharedSync {
    fn lock(&self) -> MutexGuard<'_, SyncState> {
        self.state
            .lock()
            .expect("nothing panics with the lock held")
    }

    fn run(&self) {
        let mut state = self.lock();
        while !state.stop {
            let wait = state
                .dirty
                .as_ref()
                .map(|(_, due)| due.saturating_duration_since(Instant::now()));
            state = match wait {
                None => self
                    .changed
                    .wait(state)
                    .expect("nothing panics with the lock held"),
                Some(Duration::ZERO) => self.sync(state),
                Some(wait) => {
                    let waited = self.changed.wait_timeout(state, wait);
                    waited.expect("nothing panics with the lock held").0
                }
            };
        }
    }

    fn sync<'a>(&'a self, mut state: MutexGuard<'a, SyncState>) -> MutexGuard<'a, SyncState> {
        let Some((file, _)) = state.dirty.take() else {
            return state;
        };
        state.syncing = true;
        drop(state);
        let synced = file.sync_data();
        let mut state = self.lock();
        state.syncing = false;
        self.changed.notify_all();
        if let Err(error) = synced {
            state.failed = Some(error);
        }
        state
    }
}
