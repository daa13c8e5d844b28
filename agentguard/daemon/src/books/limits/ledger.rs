//! The thread that counts: what comes together is written together, and answered when it is written.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use agentguard_policy::Settlement;
use agentguard_policy::{Charge, Room};
use jiff::Timestamp;
use tokio::sync::mpsc::{self, OwnedPermit, Receiver, Sender};

use crate::lock::lock;

use super::counters::{Change, Counters, Part, Usage};
use super::journal::{Journal, JournalError};

/// Requests that may be under way at once, and the bytes that their counters' names may have.
const MAX_HELD: (usize, usize) = (65_536, 64 << 20);
/// What may wait to be counted; over it those who ask wait, too.
const QUEUE: usize = 1024;
/// Bytes of one counter's names, and of all that one request is charged for.
const MAX_NAMES: (usize, usize) = (4096, 64 * 1024);
/// What is written together, at most.
const BATCH: usize = 1024;

type Reply = Box<dyn FnOnce(Room) + Send>;

enum Ask {
    Take(Taking),
    Settle(Key, Settlement),
    /// Nothing more is known of this session's requests: they may have gone out.
    Forget(u64),
}

struct Taking {
    key: Key,
    charges: Vec<Charge>,
    bytes: usize,
    reply: Reply,
}

/// A session's request.
type Key = (u64, u64);

/// Where charges are taken.
pub struct Ledger {
    asks: Sender<Ask>,
    state: Arc<Mutex<LedgerState>>,
    sessions: AtomicU64,
}

#[derive(Default)]
struct LedgerState {
    counters: Counters,
    /// Why nothing can be counted.
    trouble: Option<String>,
}

/// One forwarder's.
pub struct Session {
    id: u64,
    asks: Sender<Ask>,
    /// A place in the queue for its end.
    end: Option<OwnedPermit<Ask>>,
}

impl Ledger {
    /// What is damaged is no error here: who has no limits goes on, and all others are refused.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(path: &Path) -> std::io::Result<Self> {
        let (asks, asked) = mpsc::channel(QUEUE);
        let mut state = LedgerState::default();
        let journal = match Journal::open(path, now()) {
            Ok((journal, counters)) => {
                state.counters = counters;
                Some(journal)
            }
            Err(error) => {
                state.note(Some(&error));
                None
            }
        };
        let state = Arc::new(Mutex::new(state));
        let writer = JournalWriter {
            state: state.clone(),
            journal,
            held: HashMap::new(),
            held_bytes: 0,
        };
        std::thread::Builder::new()
            .name("limits".into())
            .spawn(move || writer.run(asked))?;
        Ok(Self {
            asks,
            state,
            sessions: AtomicU64::new(0),
        })
    }

    pub async fn session(&self) -> Session {
        Session::new(self.sessions.fetch_add(1, Ordering::Relaxed), &self.asks).await
    }

    /// Why requests with limits are refused, if they are.
    pub fn trouble(&self) -> Option<String> {
        lock(&self.state).trouble.clone()
    }

    /// What is used of the agent's limits now.
    pub fn of(&self, agent: &str) -> Vec<Usage> {
        lock(&self.state).counters.of(now(), agent)
    }
}

impl Session {
    // The thread ends only with the daemon: until then there is somebody to send to.
    async fn new(id: u64, asks: &Sender<Ask>) -> Self {
        Self {
            id,
            asks: asks.clone(),
            end: asks.clone().reserve_owned().await.ok(),
        }
    }

    /// Waits while too many wait already.
    pub async fn take(
        &self,
        token: u64,
        charges: Vec<Charge>,
        reply: impl FnOnce(Room) + Send + 'static,
    ) {
        let Some(bytes) = weigh(&charges) else {
            let why = "the names of its limits are too long to be counted".to_owned();
            return reply(Room::Unavailable(why));
        };
        let taking = Taking {
            key: (self.id, token),
            charges,
            bytes,
            reply: Box::new(reply),
        };
        let _ = self.asks.send(Ask::Take(taking)).await;
    }

    pub async fn settle(&self, token: u64, settled: Settlement) {
        let settle = Ask::Settle((self.id, token), settled);
        let _ = self.asks.send(settle).await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(place) = self.end.take() {
            place.send(Ask::Forget(self.id));
        }
    }
}

impl LedgerState {
    fn note(&mut self, error: Option<&JournalError>) {
        if let Some(error) = error {
            tracing::error!(%error, "requests that have limits are refused");
        }
        self.trouble = error.map(ToString::to_string);
    }
}

struct JournalWriter {
    state: Arc<Mutex<LedgerState>>,
    journal: Option<Journal>,
    held: HashMap<Key, Held>,
    held_bytes: usize,
}

/// What a request that is under way has taken.
struct Held {
    parts: Vec<Part>,
    bytes: usize,
}

impl JournalWriter {
    fn run(mut self, mut asked: Receiver<Ask>) {
        while let Some(first) = asked.blocking_recv() {
            let rest = std::iter::from_fn(|| asked.try_recv().ok());
            let asks = std::iter::once(first).chain(rest).take(BATCH).collect();
            self.answer(asks);
        }
    }

    /// All of it is written before any of it is answered. Nobody waits for the disk who only looks.
    fn answer(&mut self, asks: Vec<Ask>) {
        let Some(mut journal) = self.journal.take() else {
            let why = lock(&self.state).trouble.clone().unwrap_or_default();
            for ask in asks {
                if let Ask::Take(taking) = ask {
                    (taking.reply)(Room::Unavailable(why.clone()));
                }
            }
            return;
        };
        let mut batch = Batch::default();
        for ask in asks {
            self.count(ask, &mut batch);
        }
        let written = match batch.changes.is_empty() {
            true => Ok(()),
            false => self.write(&mut journal, &batch),
        };
        self.journal = Some(journal);
        let state = self.state.clone();
        let mut state = lock(&state);
        match &written {
            Err(error) => state.note(Some(error)),
            Ok(()) if !batch.changes.is_empty() => state.note(None),
            Ok(()) => {}
        }
        for (key, reply, mut room) in batch.replies {
            if let (Err(error), Room::Taken(_)) = (&written, &room) {
                for part in self.release(&key) {
                    state.counters.give_back(&part);
                }
                room = Room::Unavailable(error.to_string());
            }
            reply(room);
        }
    }

    fn write(&self, journal: &mut Journal, batch: &Batch) -> Result<(), JournalError> {
        journal.append(&batch.changes, batch.durable)?;
        if journal.is_full() {
            let all = lock(&self.state).counters.snapshot(now());
            journal.rewrite(&all)?;
        }
        Ok(())
    }

    fn release(&mut self, key: &Key) -> Vec<Part> {
        let Some(held) = self.held.remove(key) else {
            return Vec::new();
        };
        self.held_bytes -= held.bytes;
        held.parts
    }

    fn is_full(&self, bytes: usize) -> bool {
        self.held.len() >= MAX_HELD.0 || self.held_bytes + bytes > MAX_HELD.1
    }

    fn count(&mut self, ask: Ask, batch: &mut Batch) {
        let state = self.state.clone();
        let counters = &mut lock(&state).counters;
        match ask {
            Ask::Take(Taking {
                key, reply, bytes, ..
            }) if self.is_full(bytes) || self.held.contains_key(&key) => {
                let why = "too many requests with limits are under way".to_owned();
                batch.replies.push((key, reply, Room::Unavailable(why)));
            }
            Ask::Take(Taking {
                key,
                charges,
                bytes,
                reply,
            }) => {
                let room = match counters.take(now(), &charges) {
                    Ok(taken) => {
                        batch.durable |= charges.iter().any(Charge::is_budget);
                        batch.changes.extend(taken.changes);
                        let parts = taken.parts;
                        self.held.insert(key, Held { parts, bytes });
                        self.held_bytes += bytes;
                        Room::Taken(taken.used)
                    }
                    Err(room) => room,
                };
                batch.replies.push((key, reply, room));
            }
            Ask::Settle(key, settled) => {
                for part in self.release(&key) {
                    let back = match settled {
                        Settlement::Kept => false,
                        Settlement::Refused => part.is_budget,
                        Settlement::Unsent => true,
                    };
                    if back {
                        batch.changes.extend(counters.give_back(&part));
                    } else {
                        counters.keep(&part);
                    }
                }
            }
            Ask::Forget(session) => {
                let its = self.held.extract_if(|(of, _), _| *of == session);
                for (_, held) in its {
                    self.held_bytes -= held.bytes;
                    held.parts.iter().for_each(|part| counters.keep(part));
                }
            }
        }
    }
}

/// What is written together.
#[derive(Default)]
struct Batch {
    changes: Vec<Change>,
    /// Some of it is on disk before it is answered.
    durable: bool,
    replies: Vec<(Key, Reply, Room)>,
}

/// Bytes of the names that are kept with what is charged; `None`: there are more than may be.
fn weigh(charges: &[Charge]) -> Option<usize> {
    charges.iter().try_fold(0usize, |sum, charge| {
        let counter = &charge.counter;
        let more = [&counter.agent, &counter.host, &counter.task];
        let more = more.into_iter().flatten().map(String::len).sum::<usize>();
        let names = counter.rule.len() + counter.unit.len() + more;
        let rest = charge.text.len() + charge.zone.as_ref().map_or(0, String::len);
        let sum = sum + names + rest + size_of::<Charge>();
        (names <= MAX_NAMES.0 && sum <= MAX_NAMES.1).then_some(sum)
    })
}

fn now() -> i64 {
    Timestamp::now().as_millisecond()
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn who_asks_waits_for_a_place_and_the_end_has_one() {
        let (asks, mut asked) = mpsc::channel(QUEUE);
        let session = Session::new(7, &asks).now_or_never().expect("a place");
        for token in 1..QUEUE {
            let taking = session.take(token as u64, Vec::new(), |_| {});
            assert!(taking.now_or_never().is_some(), "{token}");
        }
        assert!(session.take(0, Vec::new(), |_| {}).now_or_never().is_none());
        assert!(session.settle(0, Settlement::Kept).now_or_never().is_none());
        drop((session, asks));
        let mut last = None;
        while let Some(ask) = asked.blocking_recv() {
            last = Some(ask);
        }
        assert!(matches!(last, Some(Ask::Forget(7))));
    }
}
