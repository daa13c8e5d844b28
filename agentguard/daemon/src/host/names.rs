//! Watches the files in which the host says where names are found, and tells the forwarder when they say something else.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use agentguard_link::state::{Delta, Names};
use tokio_util::sync::CancellationToken;

use super::Host;
use super::upstream::{self, HOSTS, RESOLV_CONF};
use crate::forwarder::ForwarderLink;

/// A change counts when a second look finds nothing newer: a file that is being written, or is gone for a moment, is left
/// alone.
const LOOK: Duration = Duration::from_secs(1);

/// Which file it is behind its links, and when it was changed.
type Version = (u64, u64, u64, i64, i64, i64, i64);

/// Tells the forwarder of every change, until the daemon stops. `told`: what it was started with.
pub(crate) async fn serve(
    host: Arc<Host>,
    forwarder: ForwarderLink,
    mut told: Names,
    stop: CancellationToken,
) {
    let (mut read, mut seen) = (None, versions());
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        let now = versions();
        if std::mem::replace(&mut seen, now) != now || read == Some(now) {
            continue;
        }
        read = Some(now);
        let names = upstream::names(&host.config.upstream);
        if names != told {
            tracing::info!(
                resolvers = ?names.resolvers,
                hosts = names.hosts.len(),
                "names are found elsewhere"
            );
            told.clone_from(&names);
            forwarder.tell(Delta::Names(names)).await;
        }
    }
}

fn versions() -> [Option<Version>; 2] {
    [HOSTS, RESOLV_CONF].map(|path| {
        let file = std::fs::metadata(path).ok()?;
        Some((
            file.dev(),
            file.ino(),
            file.size(),
            file.mtime(),
            file.mtime_nsec(),
            file.ctime(),
            file.ctime_nsec(),
        ))
    })
}
