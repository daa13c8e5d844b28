//! One connection of an agent's that speaks HTTP: what its requests share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentguard_common::abi::Origin;

use super::clock::SessionClock;
use super::forwarder::Forwarder;
use super::framing::Heads;
use super::identity::Entrance;
use super::life::Life;
use super::order::Place;
use super::origin;
use super::record::RecordEntry;
use super::seat::Seat;
use super::tunnel::Tunnel;
use super::upstream::pool::SessionPools;

const UNPOISONED: &str = "nothing panics with the lock held";

/// One connection of an agent's that speaks HTTP.
pub(crate) struct Session {
    pub forwarder: Arc<Forwarder>,
    pub life: Arc<Life>,
    pub origin: Origin,
    pub entrance: Entrance,
    /// Upstream connections kept for its requests.
    pub pools: SessionPools,
    /// The connection's record, until a request takes it.
    unused: Mutex<Option<RecordEntry>>,
    /// What the connection becomes after the last answer.
    next: Mutex<Option<Tunnel>>,
    pub clock: Arc<SessionClock>,
    pub place: Arc<Place>,
    heads: Mutex<Heads>,
    /// How often all that was written had gone to the client.
    flushes: AtomicU64,
}

impl Session {
    pub(crate) fn new(
        forwarder: Arc<Forwarder>,
        life: Arc<Life>,
        origin: Origin,
        entrance: Entrance,
        entry: RecordEntry,
        seat: Arc<Seat>,
    ) -> Self {
        let limits = &forwarder.limits;
        let clock = SessionClock::new(
            Duration::from_millis(limits.head_timeout_ms.into()),
            Duration::from_millis(limits.idle_timeout_ms.into()),
            seat,
        );
        Self {
            pools: SessionPools::new(forwarder.upstreams.pool(&life), origin.uid),
            place: Place::new(&life, origin.tgid),
            forwarder,
            life,
            origin,
            entrance,
            unused: Mutex::new(Some(entry)),
            next: Mutex::new(None),
            clock: Arc::new(clock),
            heads: Mutex::default(),
            flushes: AtomicU64::new(0),
        }
    }

    /// The record for the next request: the connection's own for the first one.
    pub(crate) fn entry(&self) -> Option<RecordEntry> {
        match self.unused() {
            Some(mut entry) => {
                entry.restart();
                Some(entry)
            }
            None => self.forwarder.records.open(&self.life, &self.origin),
        }
    }

    /// Takes note of bytes that came over HTTP/1.1. HTTP/2's idle connections talk, too, and its heads have one framing.
    pub(crate) fn arrived(&self, bytes: &[u8]) {
        if self.clock.is_head() {
            self.heads.lock().expect(UNPOISONED).feed(bytes);
        }
    }

    /// The bytes of the head that has just been parsed.
    pub(crate) fn head(&self) -> Vec<u8> {
        self.heads.lock().expect(UNPOISONED).take()
    }

    /// All that was written over HTTP/1.1 has gone to the client.
    pub(crate) fn flushed(&self) {
        self.flushes.fetch_add(1, Ordering::Relaxed);
    }

    /// Grows when all that was written has gone to the client (HTTP/1.1).
    pub(crate) fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Relaxed)
    }

    /// What takes the connection over when the answer has been sent.
    pub(crate) fn becomes(&self, tunnel: Tunnel) {
        *self.next.lock().expect(UNPOISONED) = Some(tunnel);
    }

    /// What the connection becomes.
    pub(crate) fn next(&self) -> Option<Tunnel> {
        self.next.lock().expect(UNPOISONED).take()
    }

    /// The record of a connection that no request has taken.
    pub(crate) fn unused(&self) -> Option<RecordEntry> {
        self.unused.lock().expect(UNPOISONED).take()
    }

    /// The connection, where no request says more.
    pub(crate) fn resource(&self) -> String {
        match &self.entrance.name {
            Some(name) => name.id(self.entrance.port),
            None => origin::place(&self.origin),
        }
    }
}
