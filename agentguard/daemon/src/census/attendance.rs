//! Tells the forwarder since when each agent is up, and whether somebody's terminal shows it. An agent is attended while one
//! who started it by `run` is there and has a terminal: a process that is no agent's, whom no agent can be or speak for.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use agentguard_common::abi::AgentId;
use agentguard_link::state::Delta;
use agentguard_sys::peer::Peer;
use agentguard_sys::process;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Census;
use crate::forwarder::ForwarderLink;
use crate::lock::lock;

/// A terminal that hangs up leaves its processes without one, which nothing tells: it is looked at this often.
const LOOK: Duration = Duration::from_secs(1);
/// How long a `run` waits until the forwarder knows.
const TOLD_LIMIT: Duration = Duration::from_secs(2);

#[derive(Default)]
pub struct Attendance {
    changed: Notify,
    /// One at a time, so that what is told last is what holds.
    telling: tokio::sync::Mutex<()>,
}

impl Attendance {
    /// Something of it may have changed.
    pub fn changed(&self) {
        self.changed.notify_one();
    }
}

/// Tells of every change, until the daemon stops.
pub(crate) async fn serve(census: Arc<Census>, forwarder: ForwarderLink, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = census.attendance.changed.notified() => tell(&census, &forwarder).await,
            () = stop.cancelled() => return,
        }
    }
}

async fn tell(census: &Census, forwarder: &ForwarderLink) {
    let _one = census.attendance.telling.lock().await;
    let changes = lock(&census.lineage).presences.untold();
    if !changes.is_empty() {
        forwarder.tell(Delta::Presences(changes.clone())).await;
        lock(&census.lineage).presences.told(&changes);
    }
}

/// `agent` has been started by `starter`, who still waits: notes whether they have a terminal, for as long as they have, and
/// returns when the forwarder knows, so that no request of the agent's comes before.
pub(crate) async fn started(
    census: &Arc<Census>,
    forwarder: &ForwarderLink,
    agent: AgentId,
    starter: &Peer,
) {
    if let Ok(pidfd) = process::pidfd_open(starter.tgid)
        && starter.is_alive()
        && process::has_terminal(starter.tgid)
    {
        lock(&census.lineage).presences.terminal_came(agent);
        let (census, tgid) = (census.clone(), starter.tgid);
        tokio::spawn(async move {
            // The tgid is its own for as long as the descriptor says that it is there.
            while process::has_terminal(tgid) && process::pidfd_alive(pidfd.as_fd()) {
                tokio::time::sleep(LOOK).await;
            }
            lock(&census.lineage).presences.terminal_left(agent);
            census.attendance.changed();
        });
    }
    let told = async {
        tell(census, forwarder).await;
        forwarder.flush(TOLD_LIMIT).await
    };
    // Until it knows, the agent has just started and is not attended.
    if !matches!(tokio::time::timeout(TOLD_LIMIT, told).await, Ok(Ok(()))) {
        tracing::warn!("the forwarder does not know yet that an agent has started");
        census.attendance.changed();
    }
}
