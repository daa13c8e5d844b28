//! What permitted requests take of their limits: asked of the daemon, which counts, before a byte goes out, and given
//! back where none did.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentguard_link::frame::ToDaemon;
use agentguard_policy::{Denial, Owed, Permit, Room, Settlement};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

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
    awaited: HashMap<u64, oneshot::Sender<(Room, Held)>>,
}

/// What a request holds of its limits. Dropped, the daemon is told what has become of it.
pub struct Held {
    of: Option<(Arc<Charges>, u64)>,
    pub settled: Settlement,
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
    pub async fn take(self: &Arc<Self>, permit: Permit<Owed>) -> Result<(Permit, Held), Denial> {
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
            charges: permit.charges().to_vec(),
        });
        let (room, held) = match timeout(PATIENCE, answer).await {
            Ok(Ok(answered)) => answered,
            // Should it come after all, it is given back.
            _ => {
                self.state.lock().expect(UNPOISONED).awaited.remove(&token);
                let silent = Room::Unavailable("the daemon does not answer".into());
                (silent, Held::nothing())
            }
        };
        permit.answered(&room).map(|permit| (permit, held))
    }

    /// The daemon's answer. Whoever waited for it may be gone, now or before it is heard: what was taken goes with it.
    pub fn arrived(self: &Arc<Self>, token: u64, room: Room) {
        let held = Held {
            of: matches!(room, Room::Taken(_)).then(|| (self.clone(), token)),
            settled: Settlement::Unsent,
        };
        let awaited = self.state.lock().expect(UNPOISONED).awaited.remove(&token);
        if let Some(tell) = awaited {
            let _ = tell.send((room, held));
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
            settled: Settlement::Unsent,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_hears_is_given_back_once() {
        let (said, mut heard) = mpsc::unbounded_channel();
        let charges = Arc::new(Charges::new(said));
        let wait_for = |token| {
            let (tell, answer) = oneshot::channel();
            let mut state = charges.state.lock().unwrap();
            state.awaited.insert(token, tell);
            answer
        };
        let mut settled = |token| match heard.try_recv() {
            Ok(ToDaemon::Settle { token: of, settled }) => {
                of == token && settled == Settlement::Unsent
            }
            Ok(other) => panic!("{other:?}"),
            Err(_) => false,
        };
        let taken = || Room::Taken(vec![1]);
        charges.arrived(1, taken());
        assert!(settled(1), "nobody has waited");
        drop(wait_for(2));
        charges.arrived(2, taken());
        assert!(settled(2), "gone before the answer");
        let answer = wait_for(3);
        charges.arrived(3, taken());
        assert!(!settled(3), "held until it is heard");
        drop(answer);
        assert!(settled(3), "gone before it is heard");
        let answer = wait_for(4);
        charges.arrived(4, Room::Reused { charge: 0 });
        drop(answer);
        assert!(!settled(4), "nothing was taken");
    }
}
