//! A bundle that has expired holds no more: what the kernel lets through directly is closed, what the forwarder is asked it
//! refuses by itself. The wall clock counts, both ways.

use std::sync::Arc;
use std::time::Duration;

use agentguard_record::{Actor, Operation, Outcome};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{Enforce, apply};
use crate::books::Books;
use crate::books::alarms::Alarm;
use crate::books::records::OperatorEntry;
use crate::census::Census;
use crate::roster::Roster;
use crate::roster::change::Changes;

/// The clock is looked at this often at least: it may be set.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How long before the end `status` begins to say so.
const WARN_BEFORE: Duration = Duration::from_secs(72 * 3600);

/// What an operator must be told of the bundle's end now.
pub(crate) fn alarm(expires: Option<Timestamp>, now: Timestamp) -> Option<Alarm> {
    let expires = expires?;
    let left = expires.duration_since(now);
    if left.is_negative() || left.is_zero() {
        return Some(Alarm::BundleExpired(expires));
    }
    let soon = left.unsigned_abs() <= WARN_BEFORE;
    soon.then_some(Alarm::BundleExpires(expires))
}

/// Closes agents when their bundle's time is over.
pub(crate) struct Expiry {
    pub roster: Arc<Roster>,
    pub changes: Arc<Changes>,
    pub census: Arc<Census>,
    pub enforce: Arc<Enforce>,
    pub books: Arc<Books>,
    pub stop: CancellationToken,
}

impl Expiry {
    /// Until the daemon stops.
    pub(crate) async fn serve(self) {
        loop {
            let expires = self
                .roster
                .active
                .load()
                .as_ref()
                .and_then(|active| active.policy.expires());
            let wait = expires.map_or(Duration::MAX, |expires| {
                let left = Timestamp::now().duration_until(expires);
                // What is over is looked at again as well: the clock may have been wrong.
                match Duration::try_from(left) {
                    Ok(left) if !left.is_zero() => left.min(LOOK_EVERY),
                    _ => LOOK_EVERY,
                }
            });
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.roster.applied.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
            self.settle().await;
        }
    }

    /// Makes the kernel hold what the clock says.
    async fn settle(&self) {
        let Self {
            roster,
            census,
            enforce,
            ..
        } = self;
        let change = self.changes.bundle().await;
        let Some(active) = roster.active.load_full() else {
            return;
        };
        let expired = active.policy.is_expired(Timestamp::now());
        if expired == enforce.is_closed() {
            return;
        }
        let switched = apply::switch(&change, roster, census, enforce, Some(active.clone())).await;
        let (outcome, detail) = match switched {
            Ok(()) if expired => (Outcome::Deny, "expired: agents are closed".to_owned()),
            Ok(()) => (
                Outcome::Allow,
                "not expired by the clock as it is now".to_owned(),
            ),
            Err(error) => (Outcome::Error, format!("the kernel was not told: {error}")),
        };
        tracing::warn!(
            bundle = active.meta.name,
            serial = active.meta.serial,
            "{detail}"
        );
        let record = OperatorEntry {
            by: Actor::Daemon,
            operation: Operation::PolicyExpire,
            agent: None,
            resource: format!("{} {}", active.meta.name, active.meta.serial),
            outcome,
            detail,
            bundle: Some(active.meta.clone()),
        };
        self.books.operated(record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_told_beforehand() {
        let at = |hours: i64| Timestamp::from_second(hours * 3600).unwrap();
        assert_eq!(alarm(None, at(0)), None);
        assert_eq!(alarm(Some(at(73)), at(0)), None);
        assert_eq!(
            alarm(Some(at(72)), at(0)),
            Some(Alarm::BundleExpires(at(72)))
        );
        for now in [at(1), at(9)] {
            assert_eq!(alarm(Some(at(1)), now), Some(Alarm::BundleExpired(at(1))));
        }
    }
}
