//! Counters by agent, rule, host and task. Pure: the time is given, milliseconds since the Unix epoch.

use std::collections::{BTreeMap, HashMap};

use agentguard_policy::{Charge, Counter, LimitKey, Room};
use serde::{Deserialize, Serialize};

use super::count::{Count, KeyCount};

/// Counters of one agent, which has one for each host or task where a limit is per those.
const MAX_COUNTERS: usize = 1024;
/// Keys that one agent's counters tell apart together while they count.
const MAX_KEYS: usize = 10_000;

#[derive(Debug, Default)]
pub(crate) struct Counters {
    all: BTreeMap<Counter, Count>,
    /// What each agent has.
    of: HashMap<Option<String>, Share>,
    /// Counters that were looked through for what is over.
    #[cfg(test)]
    pub visited: usize,
}

/// What one agent has of the counters.
#[derive(Debug)]
struct Share {
    counters: usize,
    keys: usize,
    /// None of its counters is over before.
    counter_over: i64,
    /// None of its keys is.
    key_over: i64,
}

/// What a request that is under way has taken of one counter.
#[derive(Debug)]
pub(crate) struct Part {
    counter: Counter,
    until: i64,
    amount: u64,
    key: Option<LimitKey>,
    pub is_budget: bool,
}

/// What a request has taken.
#[derive(Debug)]
pub(crate) struct Withdrawal {
    pub parts: Vec<Part>,
    pub changes: Vec<Change>,
    /// How much of each counter is used now.
    pub used: Vec<u64>,
}

/// A change of the counters, as the journal has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Change {
    Taken(Amount),
    GivenBack(Amount),
    /// Of what is among the amounts already.
    Key(Amount),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Amount {
    pub counter: Counter,
    /// Milliseconds since the Unix epoch.
    pub until: i64,
    pub amount: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<LimitKey>,
}

/// What is used of one counter now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
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
    pub(crate) fn take(&mut self, now: i64, charges: &[Charge]) -> Result<Withdrawal, Room> {
        let mut untils = Vec::with_capacity(charges.len());
        for (index, charge) in (0u32..).zip(charges) {
            untils.push(self.look(now, index, charge)?);
        }
        let (mut parts, mut changes, mut used) = (Vec::new(), Vec::new(), Vec::new());
        for (charge, until) in charges.iter().zip(untils) {
            let (share, count) = self.share(&charge.counter);
            let known = charge.key.and_then(|key| count.keys.get_mut(&key.value));
            let known = known.filter(|known| known.until > now);
            let until = match known {
                Some(known) => {
                    known.holders += 1;
                    known.until
                }
                None => {
                    share.counter_over = share.counter_over.min(until);
                    count.add(until, charge.amount);
                    if let Some(key) = charge.key {
                        let keyed = KeyCount {
                            until,
                            amount: charge.amount,
                            request: key.request,
                            holders: 1,
                            kept: false,
                        };
                        share.key_over = share.key_over.min(keyed.until);
                        share.keys += usize::from(count.insert(key.value, keyed));
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
            used.push(count.used(now));
            parts.push(Part {
                counter: charge.counter.clone(),
                until,
                amount: charge.amount,
                key: charge.key,
                is_budget: charge.is_budget(),
            });
        }
        Ok(Withdrawal {
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
        let agent = &charge.counter.agent;
        // Those before it may be new as well.
        let before = index as usize;
        if !self.all.contains_key(&charge.counter) {
            if self.has(agent).0 + before >= MAX_COUNTERS {
                self.forget_what_is_over(agent, now);
            }
            if self.has(agent).0 + before >= MAX_COUNTERS {
                return Err(Room::Unavailable(format!(
                    "more than {MAX_COUNTERS} hosts and tasks are counted for one agent"
                )));
            }
        }
        if let Some(count) = self.all.get_mut(&charge.counter) {
            let far = now.saturating_add(charge.longest().saturating_mul(2));
            // A clock that has been ahead and is set back finds again what had stopped to count meanwhile.
            let past = now.saturating_sub(charge.longest());
            if count.settle(past, far, until)
                && let Some(share) = self.of.get_mut(agent)
            {
                share.counter_over = share.counter_over.min(until);
                share.key_over = share.key_over.min(until);
            }
        }
        if let Some(key) = charge.key {
            let known = self.all.get(&charge.counter);
            let known = known.and_then(|count| count.keys.get(&key.value));
            match known.filter(|known| known.until > now) {
                Some(known) if known.request == key.request => return Ok(until),
                Some(_) => return Err(Room::Reused { charge: index }),
                None => {}
            }
            if self.has(agent).1 + before >= MAX_KEYS {
                self.forget_what_is_over(agent, now);
            }
            if self.has(agent).1 + before >= MAX_KEYS {
                let used = self
                    .all
                    .get(&charge.counter)
                    .map_or(0, |count| count.used(now));
                let first = self.of.get(agent).map(|share| share.key_over);
                return Err(full(used, first));
            }
        }
        let Some(count) = self.all.get(&charge.counter) else {
            return match charge.amount > charge.most {
                true => Err(full(0, None)),
                false => Ok(until),
            };
        };
        let used = count.used(now);
        if used.saturating_add(charge.amount) <= charge.most {
            return Ok(until);
        }
        let mut left = used;
        let again = count.counting(now).find_map(|(until, amount)| {
            left = left.saturating_sub(amount);
            (left.saturating_add(charge.amount) <= charge.most).then_some(until)
        });
        Err(full(used, again))
    }

    /// The request has gone out: what it took stays taken.
    pub(crate) fn keep(&mut self, part: &Part) {
        if let Some(keyed) = self.keyed(part) {
            keyed.holders = keyed.holders.saturating_sub(1);
            keyed.kept = true;
        }
    }

    /// As if the request had not been; what others with its key still hold stays.
    pub(crate) fn give_back(&mut self, part: &Part) -> Option<Change> {
        if let Some(key) = part.key {
            let keyed = self.keyed(part)?;
            keyed.holders = keyed.holders.saturating_sub(1);
            if keyed.holders > 0 || keyed.kept {
                return None;
            }
            self.all.get_mut(&part.counter)?.keys.remove(&key.value)?;
            self.of.get_mut(&part.counter.agent)?.keys -= 1;
        }
        let change = Amount {
            counter: part.counter.clone(),
            until: part.until,
            amount: part.amount,
            key: part.key,
        };
        self.all.get_mut(&part.counter)?.subtract(&change);
        self.forget_if_empty(&part.counter);
        Some(Change::GivenBack(change))
    }

    fn forget_if_empty(&mut self, counter: &Counter) {
        if self.all.get(counter).is_some_and(Count::is_empty) {
            self.all.remove(counter);
            if let Some(share) = self.of.get_mut(&counter.agent) {
                share.counters -= 1;
            }
        }
    }

    fn keyed(&mut self, part: &Part) -> Option<&mut KeyCount> {
        let count = self.all.get_mut(&part.counter)?;
        let keyed = count.keys.get_mut(&part.key?.value)?;
        // Another has it by now.
        (keyed.until == part.until).then_some(keyed)
    }

    /// What the journal says, in its order.
    pub(crate) fn replay(&mut self, change: Change) {
        let (Change::Taken(amount) | Change::GivenBack(amount) | Change::Key(amount)) = &change;
        let (share, count) = self.share(&amount.counter);
        share.counter_over = share.counter_over.min(amount.until);
        match &change {
            Change::Taken(amount) => count.add(amount.until, amount.amount),
            Change::GivenBack(amount) => {
                count.subtract(amount);
                let key = amount.key.and_then(|key| count.keys.remove(&key.value));
                share.keys -= usize::from(key.is_some());
                self.forget_if_empty(&amount.counter);
                return;
            }
            Change::Key(_) => {}
        }
        if let Some(key) = amount.key {
            // Whether it has gone out is not known any more.
            let keyed = KeyCount {
                until: amount.until,
                amount: amount.amount,
                request: key.request,
                holders: 0,
                kept: true,
            };
            share.key_over = share.key_over.min(keyed.until);
            share.keys += usize::from(count.insert(key.value, keyed));
        }
    }

    /// What makes the same counters of none.
    pub(crate) fn snapshot(&mut self, now: i64) -> Vec<Change> {
        let agents: Vec<_> = self.of.keys().cloned().collect();
        for agent in agents {
            self.forget_what_is_over(&agent, now);
        }
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
                let key = LimitKey {
                    value: *value,
                    request: it.request,
                };
                Change::Key(amount(it.until, it.amount, Some(key)))
            }));
        }
        changes
    }

    /// The counter, and what its agent has.
    fn share(&mut self, counter: &Counter) -> (&mut Share, &mut Count) {
        let share = self.of.entry(counter.agent.clone()).or_insert(Share {
            counters: 0,
            keys: 0,
            counter_over: i64::MAX,
            key_over: i64::MAX,
        });
        let count = self.all.entry(counter.clone()).or_insert_with(|| {
            share.counters += 1;
            Count::default()
        });
        (share, count)
    }

    /// How many counters and keys.
    fn has(&self, agent: &Option<String>) -> (usize, usize) {
        let share = self.of.get(agent);
        share.map_or((0, 0), |share| (share.counters, share.keys))
    }

    /// Of this agent alone, and only if there can be any: nobody waits for what another has.
    fn forget_what_is_over(&mut self, agent: &Option<String>, now: i64) {
        let Some(share) = self.of.get_mut(agent) else {
            return;
        };
        if share.counter_over.min(share.key_over) > now {
            return;
        }
        let first = Counter {
            agent: agent.clone(),
            rule: String::new(),
            unit: String::new(),
            host: None,
            task: None,
        };
        let (mut keys, mut counter_over, mut key_over) = (0, i64::MAX, i64::MAX);
        let mut over = Vec::new();
        let its = self.all.range_mut(first..);
        for (counter, count) in its.take_while(|(counter, _)| counter.agent == *agent) {
            #[cfg(test)]
            {
                self.visited += 1;
            }
            count.settle(now, i64::MAX, i64::MAX);
            count.keys.retain(|_, known| known.until > now);
            keys += count.keys.len();
            let last = count.entries.last_key_value().map(|(until, _)| *until);
            let untils = count.keys.values().map(|known| known.until);
            key_over = untils.clone().min().unwrap_or(i64::MAX).min(key_over);
            match last.into_iter().chain(untils).max() {
                Some(last) => counter_over = counter_over.min(last),
                None => over.push(counter.clone()),
            }
        }
        for counter in &over {
            self.all.remove(counter);
        }
        share.counters -= over.len();
        share.keys = keys;
        (share.counter_over, share.key_over) = (counter_over, key_over);
        if share.counters == 0 {
            self.of.remove(agent);
        }
    }

    /// What is used of the agent's counters, and of those that all agents share.
    pub(crate) fn of(&self, now: i64, agent: &str) -> Vec<Usage> {
        let its = self.all.iter().filter(|(counter, _)| {
            let of = counter.agent.as_deref();
            of.is_none_or(|of| of == agent)
        });
        let used = its.filter_map(|(counter, count)| {
            let (next, _) = count.counting(now).next()?;
            Some(Usage {
                counter: counter.clone(),
                used: count.used(now),
                next,
            })
        });
        used.collect()
    }
}
