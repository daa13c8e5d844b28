//! The daemon's parts, together. Only the composition and the control API have them all: what they call is given the parts
//! that it uses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_util::sync::CancellationToken;

use crate::books::Books;
use crate::census::Census;
use crate::enforce::Enforce;
use crate::enforce::apply::Installer;
use crate::enforce::kill::KillSwitch;
use crate::enforce::stop::Stopper;
use crate::forwarder::ForwarderLink;
use crate::host::Host;
use crate::host::tls::ca::Authority;
use crate::roster::Roster;
use crate::roster::change::Changes;
use crate::roster::registration::Registrar;
use crate::roster::tasks::Supervision;
use crate::serve::Searches;

#[derive(Clone)]
pub struct Parts {
    pub host: Arc<Host>,
    pub roster: Arc<Roster>,
    pub changes: Arc<Changes>,
    pub census: Arc<Census>,
    pub enforce: Arc<Enforce>,
    pub books: Arc<Books>,
    pub forwarder: ForwarderLink,
    pub authority: Arc<Authority>,
    pub searches: Arc<Searches>,
    pub ending: Ending,
}

/// How the daemon ends.
#[derive(Clone, Default)]
pub struct Ending {
    pub stop: CancellationToken,
    unload: Arc<AtomicBool>,
}

impl Ending {
    /// Ends the daemon, and takes the programs away.
    pub fn unload(&self) {
        self.unload.store(true, Ordering::Release);
        self.stop.cancel();
    }

    pub fn is_unload(&self) -> bool {
        self.unload.load(Ordering::Acquire)
    }
}

impl Parts {
    pub fn stopper(&self) -> Stopper {
        Stopper {
            roster: self.roster.clone(),
            census: self.census.clone(),
            enforce: self.enforce.clone(),
            forwarder: self.forwarder.clone(),
        }
    }

    pub fn kill_switch(&self) -> KillSwitch {
        KillSwitch {
            changes: self.changes.clone(),
            stopper: self.stopper(),
            books: self.books.clone(),
        }
    }

    pub fn installer(&self) -> Installer {
        Installer {
            host: self.host.clone(),
            changes: self.changes.clone(),
            stopper: self.stopper(),
            books: self.books.clone(),
        }
    }

    pub fn registrar(&self) -> Registrar {
        Registrar {
            changes: self.changes.clone(),
            stopper: self.stopper(),
            books: self.books.clone(),
        }
    }

    pub fn supervision(&self) -> Supervision {
        Supervision {
            host: self.host.clone(),
            roster: self.roster.clone(),
            census: self.census.clone(),
            books: self.books.clone(),
            forwarder: self.forwarder.clone(),
        }
    }
}
