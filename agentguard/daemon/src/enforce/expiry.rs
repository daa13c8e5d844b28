//! A bundle that has expired holds no more: what the kernel lets through directly is closed, what the forwarder is asked it
//! refuses by itself. The wall clock counts, both ways.

use std::sync::Arc;
use std::time::Duration;

use agentguard_record::{Operation, Outcome};
use jiff::Timestamp;

use crate::books::records::{Item, Operated};
use crate::enforce::apply;
use crate::state::Shared;

/// The clock is looked at this often at least: it may be set.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How long before the end `status` begins to say so.
const WARN_BEFORE: Duration = Duration::from_secs(72 * 3600);

/// What an operator must be told of the bundle's end now.
pub fn alarm(expires: Option<Timestamp>, now: Timestamp) -> Option<String> {
    let expires = expires?;
    let left = expires.duration_since(now);
    if left.is_negative() || left.is_zero() {
        return Some(format!(
            "the bundle has expired at {expires}: every agent is denied everything; apply a newer one"
        ));
    }
    let soon = left.unsigned_abs() <= WARN_BEFORE;
    soon.then(|| {
        format!("the bundle expires at {expires}, and every agent is denied everything from then on; apply a newer one")
    })
}

/// Until the daemon stops.
pub async fn serve(shared: Arc<Shared>) {
    loop {
        let expires = shared
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
            () = shared.stop.cancelled() => return,
            () = shared.applied.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
        settle(&shared).await;
    }
}

/// Makes the kernel hold what the clock says.
async fn settle(shared: &Arc<Shared>) {
    let _one_at_a_time = shared.applying.lock().await;
    let Some(active) = shared.active.load_full() else {
        return;
    };
    let expired = active.policy.is_expired(Timestamp::now());
    if expired == shared.is_closed() {
        return;
    }
    let switched = apply::switch(shared, Some(active.clone()), Some(active.clone())).await;
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
    let record = Operated {
        uid: 0,
        operation: Operation::PolicyExpire,
        agent: None,
        resource: format!("{} {}", active.meta.name, active.meta.serial),
        outcome,
        detail,
        bundle: Some(active.meta.clone()),
    };
    shared.records.append(vec![Item::Operator(record)]).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_told_beforehand() {
        let at = |hours: i64| Timestamp::from_second(hours * 3600).unwrap();
        assert_eq!(alarm(None, at(0)), None);
        assert_eq!(alarm(Some(at(73)), at(0)), None);
        assert!(alarm(Some(at(72)), at(0)).unwrap().contains("expires at"));
        assert!(alarm(Some(at(1)), at(1)).unwrap().contains("has expired"));
        assert!(alarm(Some(at(1)), at(9)).unwrap().contains("has expired"));
    }
}
