//! Counters by agent, rule, host and task. Pure: the time is given, milliseconds since the Unix epoch.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::policy::{Charge, Counter, Key, Room};

/// Counters of one agent, which has one for each host or task where a limit is per those.
const MAX_COUNTERS: usize = 1024;
/// Keys that one counter tells apart while they count.
const MAX_KEYS: usize = 10_000;

/// A key's value, as its digest.
type Digest = [u8; 16];

#[derive(Debug, Default)]
pub struct Counters {
    all: BTreeMap<Counter, Count>,
    /// How many each agent has.
    of: HashMap<Option<String>, usize>,
}

#[derive(Debug, Default)]
struct Count {
    /// Until when → how much.
    entries: BTreeMap<i64, u64>,
    keys: HashMap<Digest, Keyed>,
}

/// What one key has been charged for.
#[derive(Debug)]
struct Keyed {
    until: i64,
    amount: u64,
    request: Digest,
    /// Requests with it that are under way.
    holders: u32,
    /// One of them has gone out.
    kept: bool,
}

/// What a request that is under way has taken of one counter.
#[derive(Debug)]
pub struct Part {
    counter: Counter,
    until: i64,
    amount: u64,
    key: Option<Key>,
    pub is_budget: bool,
}

/// What a request has taken.
#[derive(Debug)]
pub struct Taken {
    pub parts: Vec<Part>,
    pub changes: Vec<Change>,
    /// How much of each counter is used now.
    pub used: Vec<u64>,
}

/// A change of the counters, as the journal has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    Taken(Amount),
    GivenBack(Amount),
    /// Of what is among the amounts already.
    Key(Amount),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Amount {
    pub counter: Counter,
    /// Milliseconds since the Unix epoch.
    pub until: i64,
    pub amount: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Key>,
}

/// What is used of one counter now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    pub counter: Counter,
    pub used: u64,
    /// When the first of it stops to count.
    pub next: i64,
}

impl Counters {
    /// Takes all of it or nothing.
    ///
    /// # Errors
    /// What has no room.
    pub fn take(&mut self, now: i64, charges: &[Charge]) -> Result<Taken, Room> {
        let mut untils = Vec::with_capacity(charges.len());
        for (index, charge) in (0u32..).zip(charges) {
            untils.push(self.look(now, index, charge)?);
        }
        let (mut parts, mut changes, mut used) = (Vec::new(), Vec::new(), Vec::new());
        for (charge, until) in charges.iter().zip(untils) {
            let count = match self.all.get_mut(&charge.counter) {
                Some(count) => count,
                None => {
                    *self.of.entry(charge.counter.agent.clone()).or_default() += 1;
                    self.all.entry(charge.counter.clone()).or_default()
                }
            };
            let known = charge.key.and_then(|key| count.keys.get_mut(&key.value));
            let known = known.filter(|known| known.until > now);
            let until = match known {
                Some(known) => {
                    known.holders += 1;
                    known.until
                }
                None => {
                    *count.entries.entry(until).or_default() += charge.amount;
                    if let Some(key) = charge.key {
                        let keyed = Keyed {
                            until,
                            amount: charge.amount,
                            request: key.request,
                            holders: 1,
                            kept: false,
                        };
                        count.keys.insert(key.value, keyed);
                    }
                    changes.push(Change::Taken(Amount {
                        counter: charge.counter.clone(),
                        until,
                        amount: charge.amount,
                        key: charge.key,
                    }));
                    until
                }
            };
            used.push(count.used());
            parts.push(Part {
                counter: charge.counter.clone(),
                until,
                amount: charge.amount,
                key: charge.key,
                is_budget: charge.is_budget(),
            });
        }
        Ok(Taken {
            parts,
            changes,
            used,
        })
    }

    /// Until when the charge would count.
    fn look(&mut self, now: i64, index: u32, charge: &Charge) -> Result<i64, Room> {
        let until = charge.until(now).ok_or_else(|| {
            Room::Unavailable(format!("the time of `{}` cannot be told", charge.text))
        })?;
        let full = |used, until| Room::Full {
            charge: index,
            used,
            until,
        };
        if !self.all.contains_key(&charge.counter) {
            let agent = &charge.counter.agent;
            let count = |of: &HashMap<_, usize>| of.get(agent).copied().unwrap_or(0);
            if count(&self.of) >= MAX_COUNTERS {
                self.forget_what_is_over(now);
            }
            if count(&self.of) >= MAX_COUNTERS {
                return Err(Room::Unavailable(format!(
                    "more than {MAX_COUNTERS} hosts and tasks are counted for one agent"
                )));
            }
            return match charge.amount > charge.most {
                true => Err(full(0, None)),
                false => Ok(until),
            };
        }
        let count = self.all.get_mut(&charge.counter).expect("looked for");
        count.settle(now, now.saturating_add(charge.longest() * 2), until);
        if let Some(key) = charge.key {
            match count.keys.get(&key.value).filter(|known| known.until > now) {
                Some(known) if known.request == key.request => return Ok(until),
                Some(_) => return Err(Room::Reused { charge: index }),
                None => {}
            }
            if count.keys.len() >= MAX_KEYS {
                count.keys.retain(|_, known| known.until > now);
            }
            if count.keys.len() >= MAX_KEYS {
                let first = count.keys.values().map(|known| known.until).min();
                return Err(full(count.used(), first));
            }
        }
        let used = count.used();
        if used.saturating_add(charge.amount) <= charge.most {
            return Ok(until);
        }
        let mut left = used;
        let again = count.entries.iter().find_map(|(until, amount)| {
            left -= amount;
            (left.saturating_add(charge.amount) <= charge.most).then_some(*until)
        });
        Err(full(used, again))
    }

    /// The request has gone out: what it took stays taken.
    pub fn keep(&mut self, part: &Part) {
        if let Some(keyed) = self.keyed(part) {
            keyed.holders = keyed.holders.saturating_sub(1);
            keyed.kept = true;
        }
    }

    /// As if the request had not been; what others with its key still hold stays.
    pub fn give_back(&mut self, part: &Part) -> Option<Change> {
        if let Some(key) = part.key {
            let keyed = self.keyed(part)?;
            keyed.holders = keyed.holders.saturating_sub(1);
            if keyed.holders > 0 || keyed.kept {
                return None;
            }
            self.all.get_mut(&part.counter)?.keys.remove(&key.value);
        }
        let change = Amount {
            counter: part.counter.clone(),
            until: part.until,
            amount: part.amount,
            key: part.key,
        };
        self.all.get_mut(&part.counter)?.subtract(&change);
        Some(Change::GivenBack(change))
    }

    fn keyed(&mut self, part: &Part) -> Option<&mut Keyed> {
        let count = self.all.get_mut(&part.counter)?;
        let keyed = count.keys.get_mut(&part.key?.value)?;
        // Another has it by now.
        (keyed.until == part.until).then_some(keyed)
    }

    /// What the journal says, in its order.
    pub fn replay(&mut self, change: Change) {
        let (Change::Taken(amount) | Change::GivenBack(amount) | Change::Key(amount)) = &change;
        if !self.all.contains_key(&amount.counter) {
            *self.of.entry(amount.counter.agent.clone()).or_default() += 1;
        }
        let count = self.all.entry(amount.counter.clone()).or_default();
        match &change {
            Change::Taken(amount) => {
                let sum = count.entries.entry(amount.until).or_default();
                *sum = sum.saturating_add(amount.amount);
            }
            Change::GivenBack(amount) => {
                count.subtract(amount);
                amount.key.map(|key| count.keys.remove(&key.value));
                return;
            }
            Change::Key(_) => {}
        }
        if let Some(key) = amount.key {
            // Whether it has gone out is not known any more.
            let keyed = Keyed {
                until: amount.until,
                amount: amount.amount,
                request: key.request,
                holders: 0,
                kept: true,
            };
            count.keys.insert(key.value, keyed);
        }
    }

    /// What makes the same counters of none.
    pub fn snapshot(&mut self, now: i64) -> Vec<Change> {
        self.forget_what_is_over(now);
        let mut changes = Vec::new();
        for (counter, count) in &self.all {
            let amount = |until: i64, amount: u64, key| Amount {
                counter: counter.clone(),
                until,
                amount,
                key,
            };
            let entries = count.entries.iter();
            changes.extend(entries.map(|(until, sum)| Change::Taken(amount(*until, *sum, None))));
            let keys = count.keys.iter();
            changes.extend(keys.map(|(value, it)| {
                let key = Key {
                    value: *value,
                    request: it.request,
                };
                Change::Key(amount(it.until, it.amount, Some(key)))
            }));
        }
        changes
    }

    fn forget_what_is_over(&mut self, now: i64) {
        for count in self.all.values_mut() {
            count.settle(now, i64::MAX, i64::MAX);
            count.keys.retain(|_, known| known.until > now);
        }
        self.all.retain(|_, count| !count.entries.is_empty());
        self.of.clear();
        for counter in self.all.keys() {
            *self.of.entry(counter.agent.clone()).or_default() += 1;
        }
    }

    /// What is used of the agent's counters, and of those that all agents share.
    pub fn of(&self, now: i64, agent: &str) -> Vec<Used> {
        let its = self.all.iter().filter(|(counter, _)| {
            let of = counter.agent.as_deref();
            of.is_none_or(|of| of == agent)
        });
        let used = its.filter_map(|(counter, count)| {
            let counts = count.entries.range(now.saturating_add(1)..);
            let next = *counts.clone().next()?.0;
            Some(Used {
                counter: counter.clone(),
                used: counts.map(|(_, amount)| amount).sum(),
                next,
            })
        });
        used.collect()
    }
}

impl Count {
    fn used(&self) -> u64 {
        self.entries
            .values()
            .fold(0, |sum, amount| sum.saturating_add(*amount))
    }

    /// Drops what does not count any more. What would count beyond `far` was charged by a clock that has been set back
    /// since: it counts to `until`, as if it were charged now.
    fn settle(&mut self, now: i64, far: i64, until: i64) {
        self.entries = self.entries.split_off(&now.saturating_add(1));
        if far == i64::MAX {
            return;
        }
        for (_, amount) in self.entries.split_off(&far) {
            *self.entries.entry(until).or_default() += amount;
        }
        for keyed in self.keys.values_mut().filter(|keyed| keyed.until >= far) {
            keyed.until = until;
        }
    }

    fn subtract(&mut self, amount: &Amount) {
        if let Some(sum) = self.entries.get_mut(&amount.until) {
            *sum = sum.saturating_sub(amount.amount);
            if *sum == 0 {
                self.entries.remove(&amount.until);
            }
        }
    }
}
