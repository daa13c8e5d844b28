//! Peers that have gone without a word: a suspended host, a changed network, a NAT that forgot. TCP would try for a quarter
//! of an hour, and `TCP_USER_TIMEOUT` would cut peers that only do not read, too.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use agentguard_sys::socket;
use socket2::{SockRef, Socket};
use tokio::net::TcpStream;

/// What is sent and not acknowledged for so long goes nowhere.
const SILENT: Duration = Duration::from_secs(9);

/// The sockets to upstreams that are open.
#[derive(Default)]
pub(super) struct Silence {
    watched: Mutex<Vec<Weak<Watched>>>,
}

/// A socket by a descriptor of its own.
pub(crate) struct Watched {
    socket: Socket,
    silent: AtomicBool,
}

impl Silence {
    /// A connected one: until then its connect has a limit.
    pub(super) fn watch(&self, socket: &TcpStream) -> io::Result<Arc<Watched>> {
        let watched = Arc::new(Watched {
            socket: SockRef::from(socket).try_clone()?,
            silent: AtomicBool::new(false),
        });
        let mut all = self.watched.lock().expect(UNPOISONED);
        all.push(Arc::downgrade(&watched));
        Ok(watched)
    }

    /// Cuts the connections to peers that have gone.
    pub(super) fn sweep(&self) {
        self.watched.lock().expect(UNPOISONED).retain(|watched| {
            let watched = watched.upgrade();
            watched.is_some_and(|watched| watched.look())
        });
    }
}

impl Watched {
    /// Whether it was cut because its peer had gone.
    pub(crate) fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// Whether there is more to be seen of it.
    fn look(&self) -> bool {
        let Ok(progress) = socket::tcp_progress(&self.socket) else {
            return false;
        };
        let gone = progress.retransmits >= 3 && progress.since_ack >= SILENT;
        if gone {
            self.silent.store(true, Ordering::Relaxed);
            // What waits for it wakes up; an error says that it is gone already.
            let _ = self.socket.shutdown(std::net::Shutdown::Both);
        }
        !gone
    }
}

const UNPOISONED: &str = "nothing panics with the lock held";
