//! The thread that counts: what comes together is written together, and answered when it is written.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use super::counters::{Change, Counters, Part, Used};
use super::journal::{Journal, JournalError};
use crate::link::frame::Settled;
use crate::policy::{Charge, Room};

/// Requests that may be under way at once.
const MAX_HELD: usize = 65_536;
/// What is written together, at most.
const BATCH: usize = 1024;

type Reply = Box<dyn FnOnce(Room) + Send>;

enum Ask {
    Take(Taking),
    Settle(Key, Settled),
    /// Nothing more is known of this session's requests: they may have gone out.
    Forget(u64),
}

struct Taking {
    key: Key,
    charges: Vec<Charge>,
    reply: Reply,
}

/// A session's request.
type Key = (u64, u64);

/// Where charges are taken.
pub struct Ledger {
    asks: Sender<Ask>,
    state: Arc<Mutex<State>>,
    sessions: AtomicU64,
}

#[derive(Default)]
struct State {
    counters: Counters,
    /// Why nothing can be counted.
    trouble: Option<String>,
}

/// One forwarder's.
pub struct Session {
    id: u64,
    asks: Sender<Ask>,
}

impl Ledger {
    /// What is damaged is no error here: who has no limits goes on, and all others are refused.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(path: &Path) -> std::io::Result<Self> {
        let (asks, asked) = channel();
        let mut state = State::default();
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
        let writer = Writer {
            state: state.clone(),
            journal,
            held: HashMap::new(),
        };
        std::thread::Builder::new()
            .name("limits".into())
            .spawn(move || writer.run(&asked))?;
        Ok(Self {
            asks,
            state,
            sessions: AtomicU64::new(0),
        })
    }

    pub fn session(&self) -> Session {
        Session {
            id: self.sessions.fetch_add(1, Ordering::Relaxed),
            asks: self.asks.clone(),
        }
    }

    /// Why requests with limits are refused, if they are.
    pub fn trouble(&self) -> Option<String> {
        lock(&self.state).trouble.clone()
    }

    /// What is used of the agent's limits now.
    pub fn of(&self, agent: &str) -> Vec<Used> {
        lock(&self.state).counters.of(now(), agent)
    }
}

impl Session {
    pub fn take(
        &self,
        token: u64,
        charges: Vec<Charge>,
        reply: impl FnOnce(Room) + Send + 'static,
    ) {
        let taking = Taking {
            key: (self.id, token),
            charges,
            reply: Box::new(reply),
        };
        // The thread ends only with the daemon.
        let _ = self.asks.send(Ask::Take(taking));
    }

    pub fn settle(&self, token: u64, settled: Settled) {
        let _ = self.asks.send(Ask::Settle((self.id, token), settled));
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.asks.send(Ask::Forget(self.id));
    }
}

impl State {
    fn note(&mut self, error: Option<&JournalError>) {
        if let Some(error) = error {
            tracing::error!(%error, "requests that have limits are refused");
        }
        self.trouble = error.map(ToString::to_string);
    }
}

struct Writer {
    state: Arc<Mutex<State>>,
    journal: Option<Journal>,
    held: HashMap<Key, Vec<Part>>,
}

impl Writer {
    fn run(mut self, asked: &Receiver<Ask>) {
        while let Ok(first) = asked.recv() {
            let rest = asked.try_iter().take(BATCH - 1);
            let asks: Vec<Ask> = std::iter::once(first).chain(rest).collect();
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
        let mut state = lock(&self.state);
        match &written {
            Err(error) => state.note(Some(error)),
            Ok(()) if !batch.changes.is_empty() => state.note(None),
            Ok(()) => {}
        }
        for (key, reply, mut room) in batch.replies {
            if let (Err(error), Room::Taken(_)) = (&written, &room) {
                for part in self.held.remove(&key).into_iter().flatten() {
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

    fn count(&mut self, ask: Ask, batch: &mut Batch) {
        let counters = &mut lock(&self.state).counters;
        match ask {
            Ask::Take(Taking { key, reply, .. }) if self.held.len() >= MAX_HELD => {
                let why = format!("more than {MAX_HELD} requests with limits are under way");
                batch.replies.push((key, reply, Room::Unavailable(why)));
            }
            Ask::Take(Taking {
                key,
                charges,
                reply,
            }) => {
                let room = match counters.take(now(), &charges) {
                    Ok(taken) => {
                        batch.durable |= charges.iter().any(Charge::is_budget);
                        batch.changes.extend(taken.changes);
                        self.held.insert(key, taken.parts);
                        Room::Taken(taken.used)
                    }
                    Err(room) => room,
                };
                batch.replies.push((key, reply, room));
            }
            Ask::Settle(key, settled) => {
                for part in self.held.remove(&key).into_iter().flatten() {
                    let back = match settled {
                        Settled::Kept => false,
                        Settled::Refused => part.is_budget,
                        Settled::Unsent => true,
                    };
                    if back {
                        batch.changes.extend(counters.give_back(&part));
                    } else {
                        counters.keep(&part);
                    }
                }
            }
            Ask::Forget(session) => self.held.retain(|(of, _), parts| {
                if *of == session {
                    parts.iter().for_each(|part| counters.keep(part));
                }
                *of != session
            }),
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

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Counters are changed one whole request at a time.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn now() -> i64 {
    Timestamp::now().as_millisecond()
}
