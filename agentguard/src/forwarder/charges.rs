//! What permitted requests take of their limits: asked of the daemon, which counts, before a byte goes out, and given
//! back where none did.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::link::frame::{Settled, ToDaemon};
use crate::policy::{Denial, Limited, Permit, Room};

/// How long the daemon may take to count.
const PATIENCE: Duration = Duration::from_secs(5);
const UNPOISONED: &str = "nothing panics with the lock held";

pub struct Charges {
    state: Mutex<State>,
    said: mpsc::UnboundedSender<ToDaemon>,
}

#[derive(Default)]
struct State {
    last: u64,
    awaited: HashMap<u64, oneshot::Sender<Room>>,
}

/// What a request holds of its limits. Dropped, the daemon is told what has become of it.
pub struct Held {
    of: Option<(Arc<Charges>, u64)>,
    pub settled: Settled,
}

impl Charges {
    /// `said`: what is to go to the daemon, in order.
    pub fn new(said: mpsc::UnboundedSender<ToDaemon>) -> Self {
        Self {
            state: Mutex::default(),
            said,
        }
    }

    /// Takes what the request needs, all of it or nothing.
    pub async fn take(self: &Arc<Self>, limited: Limited) -> Result<(Permit, Held), Denial> {
        let (tell, answer) = oneshot::channel();
        let token = {
            let mut state = self.state.lock().expect(UNPOISONED);
            state.last += 1;
            let token = state.last;
            state.awaited.insert(token, tell);
            token
        };
        self.say(ToDaemon::Charge {
            token,
            charges: limited.charges().to_vec(),
        });
        let room = match timeout(PATIENCE, answer).await {
            Ok(Ok(room)) => room,
            // Should it come after all, it is given back.
            _ => {
                self.state.lock().expect(UNPOISONED).awaited.remove(&token);
                Room::Unavailable("the daemon does not answer".into())
            }
        };
        let held = Held {
            of: matches!(room, Room::Taken(_)).then(|| (self.clone(), token)),
            settled: Settled::Unsent,
        };
        limited.answered(&room).map(|permit| (permit, held))
    }

    /// The daemon's answer.
    pub fn arrived(&self, token: u64, room: Room) {
        let awaited = self.state.lock().expect(UNPOISONED).awaited.remove(&token);
        let unheard = match awaited {
            Some(tell) => tell.send(room).err(),
            None => Some(room),
        };
        if let Some(Room::Taken(_)) = unheard {
            let settled = Settled::Unsent;
            self.say(ToDaemon::Settle { token, settled });
        }
    }

    fn say(&self, frame: ToDaemon) {
        // Without the link's task there is no daemon, and the forwarder ends.
        let _ = self.said.send(frame);
    }
}

impl Held {
    /// Of a request that no limit counts.
    pub fn nothing() -> Self {
        Self {
            of: None,
            settled: Settled::Unsent,
        }
    }

    pub fn is_nothing(&self) -> bool {
        self.of.is_none()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some((charges, token)) = self.of.take() {
            let settled = self.settled;
            charges.say(ToDaemon::Settle { token, settled });
        }
    }
}
