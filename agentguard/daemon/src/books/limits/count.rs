//! One counter: what counts until when, and the keys that it tells apart.

use std::collections::{BTreeMap, HashMap};

use super::counters::Amount;

/// A key's value, as its digest.
type Digest = [u8; 16];

#[derive(Debug, Default)]
pub(super) struct Count {
    /// Until when → how much.
    pub entries: BTreeMap<i64, u64>,
    pub keys: HashMap<Digest, KeyCount>,
}

/// What one key has been charged for.
#[derive(Debug)]
pub(super) struct KeyCount {
    pub until: i64,
    pub amount: u64,
    pub request: Digest,
    /// Requests with it that are under way.
    pub holders: u32,
    /// One of them has gone out.
    pub kept: bool,
}

impl Count {
    pub(super) fn used(&self, now: i64) -> u64 {
        self.counting(now)
            .fold(0, |sum, (_, amount)| sum.saturating_add(amount))
    }

    /// What counts, and until when; what stops first comes first.
    pub(super) fn counting(&self, now: i64) -> impl Iterator<Item = (i64, u64)> + Clone {
        let counting = self.entries.range(now.saturating_add(1)..);
        counting.map(|(until, amount)| (*until, *amount))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.keys.is_empty()
    }

    pub(super) fn add(&mut self, until: i64, amount: u64) {
        let sum = self.entries.entry(until).or_default();
        *sum = sum.saturating_add(amount);
    }

    /// Whether it is one more.
    pub(super) fn insert(&mut self, value: Digest, keyed: KeyCount) -> bool {
        self.keys.insert(value, keyed).is_none()
    }

    /// Drops what has stopped to count by `past`. What would count beyond `far` was charged by a clock that has been set back
    /// since: it counts to `until`, as if it were charged now. Whether there was any.
    pub(super) fn settle(&mut self, past: i64, far: i64, until: i64) -> bool {
        let first = self.entries.first_key_value();
        if first.is_some_and(|(first, _)| *first <= past) {
            self.entries = self.entries.split_off(&past.saturating_add(1));
        }
        let last = self.entries.last_key_value().map(|(last, _)| *last);
        if far == i64::MAX || last.is_none_or(|last| last < far) {
            return false;
        }
        for (_, amount) in self.entries.split_off(&far) {
            self.add(until, amount);
        }
        for keyed in self.keys.values_mut().filter(|keyed| keyed.until >= far) {
            keyed.until = until;
        }
        true
    }

    pub(super) fn subtract(&mut self, amount: &Amount) {
        if let Some(sum) = self.entries.get_mut(&amount.until) {
            *sum = sum.saturating_sub(amount.amount);
            if *sum == 0 {
                self.entries.remove(&amount.until);
            }
        }
    }
}
