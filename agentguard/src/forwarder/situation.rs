//! What rules read of the moment and of where the host is: gathered for a decision as far as its rules read it, and again
//! while what was permitted goes on.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

use super::tasks::Tasks;
use crate::policy::{Gathered, Input, Policy};

pub struct Situation {
    /// Whether the host's network is one that its configuration trusts, as the daemon last said.
    trusted: watch::Sender<bool>,
    labels: BTreeSet<String>,
    pub tasks: Tasks,
}

impl Situation {
    pub fn new(trusted: bool, labels: Vec<String>, tasks: Tasks) -> Self {
        Self {
            trusted: watch::Sender::new(trusted),
            labels: labels.into_iter().collect(),
            tasks,
        }
    }

    pub fn set_trusted(&self, trusted: bool) {
        self.trusted.send_replace(trusted);
    }

    /// Adds to what has been gathered for `input`.
    pub fn gather(&self, policy: &Policy, input: &Input<'_>, gathered: &mut Gathered) {
        let needs = policy.needs(input);
        if needs.has("time") {
            gathered.time = policy.moment(Timestamp::now());
        }
        if needs.has("network") {
            gathered.trusted_network = Some(*self.trusted.borrow());
        }
        if needs.has("host") {
            gathered.host_labels = Some(self.labels.clone());
        }
    }

    /// Resolves when something of what was gathered may be otherwise; windows begin and end on the minute.
    pub async fn changed(&self, gathered: &Gathered) {
        let mut trusted = self.trusted.subscribe();
        let minute = async {
            match gathered.time {
                Some(_) => tokio::time::sleep(to_the_minute(Timestamp::now())).await,
                None => std::future::pending().await,
            }
        };
        let network = async {
            let known = gathered
                .trusted_network
                .is_some_and(|is| is != *trusted.borrow_and_update());
            if gathered.trusted_network.is_none() || !known && trusted.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = minute => {}
            () = network => {}
        }
    }
}

/// A little more, so that the clock is surely past it.
fn to_the_minute(now: Timestamp) -> Duration {
    let into = u64::try_from(now.as_millisecond().rem_euclid(60_000)).unwrap_or(0);
    Duration::from_millis(60_005 - into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_of_network_is_seen_by_what_read_it() {
        let situation = Situation::new(true, Vec::new(), Tasks::default());
        let read = |trusted| Gathered {
            trusted_network: trusted,
            ..Gathered::default()
        };
        let soon = Duration::from_millis(20);
        let changed = |gathered: Gathered| {
            let situation = &situation;
            async move {
                tokio::time::timeout(soon, situation.changed(&gathered))
                    .await
                    .is_ok()
            }
        };
        assert!(!changed(read(Some(true))).await);
        assert!(changed(read(Some(false))).await, "it has changed meanwhile");
        let waiting = read(Some(true));
        let waiting = situation.changed(&waiting);
        situation.set_trusted(false);
        waiting.await;
        assert!(!changed(read(None)).await, "nobody has read it");
    }

    #[test]
    fn the_next_minute_is_at_most_one_away() {
        let at = |text: &str| to_the_minute(text.parse().unwrap()).as_millis();
        assert_eq!(at("2026-11-23T09:00:00Z"), 60_005);
        assert_eq!(at("2026-11-23T09:00:59.999Z"), 6);
    }
}
