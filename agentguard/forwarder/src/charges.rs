//! What permitted requests take of their limits: asked of the daemon, which counts, before a byte goes out, and given
//! back where none did.

use std::sync::Arc;

use agentguard_common::abi::AgentId;
use agentguard_link::calls::to_daemon::TakeRoom;
use agentguard_link::calls::{Silent, Token};
use agentguard_policy::{Denial, Owed, Permit, Room, Settlement};

use super::daemon::Daemon;

pub(crate) struct Charges(Arc<Daemon>);

/// What a request holds of its limits. Dropped, the daemon is told what has become of it.
pub(crate) struct HeldCharge {
    of: Option<(Arc<Daemon>, Token)>,
    pub settled: Settlement,
}

impl Charges {
    pub(crate) fn new(daemon: Arc<Daemon>) -> Self {
        Self(daemon)
    }

    /// Takes what the agent's request needs, all of it or nothing.
    pub(crate) async fn take(
        &self,
        agent: AgentId,
        permit: Permit<Owed>,
    ) -> Result<(Permit, HeldCharge), Denial> {
        let charges = permit.charges().to_vec();
        let (room, held) = match self.0.call(TakeRoom { agent, charges }).await {
            // Nothing is awaited in between: what was taken is held by somebody at any time.
            Ok((token, room)) => {
                let held = HeldCharge::of(&self.0, token, &room);
                (room, held)
            }
            Err(Silent::TooMany(_)) => {
                let why = "too many requests with limits are under way";
                (Room::Unavailable(why.into()), HeldCharge::nothing())
            }
            Err(Silent::Late(..) | Silent::Gone | Silent::Senseless(_)) => {
                let why = "the daemon does not answer";
                (Room::Unavailable(why.into()), HeldCharge::nothing())
            }
        };
        permit.answered(&room).map(|permit| (permit, held))
    }
}

impl HeldCharge {
    /// What the daemon's answer to the call with this token has given.
    pub(crate) fn of(daemon: &Arc<Daemon>, token: Token, room: &Room) -> Self {
        Self {
            of: matches!(room, Room::Taken(_)).then(|| (daemon.clone(), token)),
            settled: Settlement::Unsent,
        }
    }

    /// Of a request that no limit counts.
    pub(crate) fn nothing() -> Self {
        Self {
            of: None,
            settled: Settlement::Unsent,
        }
    }
}

impl Drop for HeldCharge {
    fn drop(&mut self) {
        if let Some((daemon, token)) = self.of.take() {
            daemon.settle(token, self.settled);
        }
    }
}
