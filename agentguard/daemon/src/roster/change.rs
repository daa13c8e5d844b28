//! One change at a time, of which bundle is in force and of who is stopped. Functions that make part of a change take its
//! guard, and none of them takes [`Changes`]: nothing below can wait for what is held above it.
//!
//! There are two guards, and the order is their type: a [`BundleChange`] leads to a [`StopChange`], and nothing leads back.
//! One guard for both would make a kill wait while a bundle is compiled, written and followed by a look at all processes.
//! As it is, a kill flips the kernel before it waits for anything, and then waits at most while another change of who is
//! stopped or whose agents are, or the switch of a bundle in the kernel and the forwarder, is under way.

use tokio::sync::{Mutex, MutexGuard};

#[derive(Default)]
pub struct Changes {
    bundle: Mutex<()>,
    stops: Mutex<()>,
}

/// Nobody else changes which bundle is in force, or whose its agents are.
pub struct BundleChange<'c> {
    changes: &'c Changes,
    _alone: MutexGuard<'c, ()>,
}

/// Nobody else changes who is stopped.
pub struct StopChange<'c> {
    _alone: MutexGuard<'c, ()>,
}

impl Changes {
    pub async fn bundle(&self) -> BundleChange<'_> {
        BundleChange {
            changes: self,
            _alone: self.bundle.lock().await,
        }
    }

    pub async fn stops(&self) -> StopChange<'_> {
        StopChange {
            _alone: self.stops.lock().await,
        }
    }
}

impl BundleChange<'_> {
    /// For a change of the bundle or of owners that may also stop agents, or let them go on.
    pub async fn stops(&self) -> StopChange<'_> {
        self.changes.stops().await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_kill_does_not_wait_for_a_bundle_that_is_being_prepared() {
        let changes = Changes::default();
        let bundle = changes.bundle().await;
        let soon = Duration::from_millis(50);
        drop(timeout(soon, changes.stops()).await.unwrap());
        assert!(timeout(soon, changes.bundle()).await.is_err());
        let _stops = bundle.stops().await;
        assert!(timeout(soon, changes.stops()).await.is_err());
    }
}
