//! An agent's client connections, as its share of places sees them: which of them has been idle for longest goes first when
//! the agent has no place left.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

/// Said of a connection that went first.
pub(crate) const GIVEN_UP: &str =
    "this agent has its share of connections, and this one had been idle for longest";

/// One connection's.
pub(crate) struct Seat {
    number: u64,
    opened: Instant,
    /// What is under way on it: requests, tunnels.
    busy: AtomicU32,
    /// Milliseconds after `opened`.
    idle_since: AtomicU64,
    given_up: CancellationToken,
}

/// Held while something is under way.
pub(crate) struct Occupied(Arc<Seat>);

/// One agent's.
#[derive(Default)]
pub(crate) struct Seats(Mutex<SeatTable>);

#[derive(Default)]
struct SeatTable {
    last: u64,
    taken: BTreeMap<u64, Arc<Seat>>,
}

impl Seats {
    pub(crate) fn take(&self) -> Arc<Seat> {
        let mut table = self.0.lock().expect(UNPOISONED);
        table.last += 1;
        let seat = Arc::new(Seat {
            number: table.last,
            opened: Instant::now(),
            busy: AtomicU32::new(0),
            idle_since: AtomicU64::new(0),
            given_up: CancellationToken::new(),
        });
        table.taken.insert(seat.number, seat.clone());
        seat
    }

    pub(crate) fn leave(&self, seat: &Seat) {
        self.0.lock().expect(UNPOISONED).taken.remove(&seat.number);
    }

    /// Has the connection go that has been idle for longest; false: none is.
    pub(crate) fn give_up_one(&self) -> bool {
        let mut table = self.0.lock().expect(UNPOISONED);
        let idle = table
            .taken
            .values()
            .filter_map(|seat| Some((seat.idle()?, seat)));
        let Some((_, seat)) = idle.min_by_key(|(since, _)| *since) else {
            return false;
        };
        seat.given_up.cancel();
        let number = seat.number;
        table.taken.remove(&number);
        true
    }
}

impl Seat {
    pub(crate) fn occupy(self: &Arc<Self>) -> Occupied {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Occupied(self.clone())
    }

    /// Resolves when the connection is to go.
    pub(crate) async fn given_up(&self) {
        self.given_up.cancelled().await;
    }

    /// Since when nothing is under way.
    fn idle(&self) -> Option<Instant> {
        let idle = self.busy.load(Ordering::Relaxed) == 0;
        let since = Duration::from_millis(self.idle_since.load(Ordering::Relaxed));
        idle.then(|| self.opened + since)
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        let seat = &self.0;
        let now = u64::try_from(seat.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        seat.idle_since.store(now, Ordering::Relaxed);
        seat.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

const UNPOISONED: &str = "nothing panics with the lock held";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_been_idle_for_longest_goes_first_and_who_is_busy_not_at_all() {
        let seats = Seats::default();
        let [busy, second, first] = [0; 3].map(|_| seats.take());
        let request = busy.occupy();
        second.idle_since.store(5, Ordering::Relaxed);
        let gone = |seat: &Arc<Seat>| seat.given_up.is_cancelled();
        assert!(seats.give_up_one());
        assert!(gone(&first) && !gone(&second));
        assert!(seats.give_up_one());
        assert!(gone(&second) && !gone(&busy));
        assert!(!seats.give_up_one(), "the one that is left is busy");
        drop(request);
        assert!(busy.idle().unwrap() <= busy.opened + Duration::from_secs(60));
        seats.leave(&busy);
        assert!(!seats.give_up_one(), "none is left");
    }
}
