//! Who asks on the control socket, as who acts.

use std::sync::Arc;

use agentguard_record::Actor;
use agentguard_sys::peer::Peer;
use agentguard_sys::user;
use tokio::task::spawn_blocking;

/// With its name, which is looked up off the runtime's workers: it may come from elsewhere.
pub(super) async fn actor(peer: Arc<Peer>) -> Actor {
    let uid = peer.uid;
    let name = spawn_blocking(move || user::name(uid)).await;
    Actor::Peer {
        uid,
        // Without a name it is looked up again where it is written.
        user: name.ok(),
    }
}
