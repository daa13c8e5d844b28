//! What runs beside the control API, from the start to the end: each service has the parts that it uses.

use agentguard_kernel::Events;
use agentguard_link::frame::Start;
use agentguard_sys::network::NetworkChanges;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::Parts;
use crate::books::events::EventReader;
use crate::census::adoption::Adoption;
use crate::census::attendance;
use crate::census::namespaces::{Look, NamespaceServer};
use crate::enforce::canary::{Canary, CanaryParts};
use crate::enforce::expiry::Expiry;
use crate::enforce::orders::OrderIntake;
use crate::forwarder::{self, Order, Spool, SupervisorParts};
use crate::host::startup::StartError;
use crate::host::{names, network};
use crate::roster::tasks::TaskClock;

/// What services are asked and told through.
pub(crate) struct Inboxes {
    pub events: Events,
    /// Who asks for the kernel's ring to be read.
    pub drains: mpsc::Receiver<oneshot::Sender<()>>,
    pub looks: mpsc::Receiver<Look>,
    pub network: NetworkChanges,
    pub orders: mpsc::Receiver<Order>,
    pub spool: Spool,
}

/// The services whose end the daemon waits for.
pub(crate) struct Services {
    events: JoinHandle<()>,
    namespaces: JoinHandle<()>,
    adoption: JoinHandle<()>,
    pub supervisor: JoinHandle<()>,
}

impl Services {
    /// `start`: what a new forwarder starts with. Must be called when the first bundle is in force.
    pub(crate) fn spawn(parts: &Parts, inboxes: Inboxes, start: Start) -> Self {
        let Parts {
            host,
            roster,
            changes,
            census,
            enforce,
            books,
            forwarder,
            authority,
            searches: _,
            ending,
        } = parts;
        let stop = || ending.stop.clone();
        let events = EventReader {
            host: host.clone(),
            roster: roster.clone(),
            census: census.clone(),
            enforce: enforce.clone(),
            books: books.clone(),
            stop: stop(),
        };
        let expiry = Expiry {
            roster: roster.clone(),
            changes: changes.clone(),
            census: census.clone(),
            enforce: enforce.clone(),
            books: books.clone(),
            stop: stop(),
        };
        let namespaces = NamespaceServer {
            roster: roster.clone(),
            census: census.clone(),
            enforce: enforce.clone(),
            books: books.clone(),
            forwarder: forwarder.clone(),
            stop: stop(),
        };
        let adoption = Adoption {
            roster: roster.clone(),
            changes: changes.clone(),
            census: census.clone(),
            enforce: enforce.clone(),
            books: books.clone(),
            forwarder: forwarder.clone(),
            stop: stop(),
        };
        let orders = OrderIntake {
            kill_switch: parts.kill_switch(),
            state: host.config.paths.state.clone(),
            stop: stop(),
        };
        let tasks = TaskClock {
            roster: roster.clone(),
            books: books.clone(),
            forwarder: forwarder.clone(),
            stop: stop(),
        };
        let supervisor = SupervisorParts {
            host: host.clone(),
            roster: roster.clone(),
            census: census.clone(),
            enforce: enforce.clone(),
            books: books.clone(),
            authority: authority.clone(),
            forwarder: forwarder.clone(),
        };
        let network = network::serve(host.clone(), forwarder.clone(), inboxes.network, stop());
        let told = start.state.names.clone();
        let names = names::serve(host.clone(), forwarder.clone(), told, stop());
        let attendance = attendance::serve(census.clone(), forwarder.clone(), stop());
        let events = tokio::spawn(events.serve(inboxes.events, inboxes.drains));
        tokio::spawn(expiry.serve());
        let namespaces = tokio::spawn(namespaces.serve(inboxes.looks));
        let adoption = tokio::spawn(adoption.serve());
        tokio::spawn(network);
        tokio::spawn(names);
        tokio::spawn(orders.serve());
        tokio::spawn(tasks.serve());
        tokio::spawn(attendance);
        let supervisor = tokio::spawn(forwarder::supervise(
            supervisor.into(),
            inboxes.orders,
            start,
            inboxes.spool,
        ));
        Self {
            events,
            namespaces,
            adoption,
            supervisor,
        }
    }

    /// When the forwarder has stopped, and the daemon has been told to.
    pub(crate) async fn ended(self) {
        let _ = self.supervisor.await;
        let _ = self.events.await;
        let _ = self.namespaces.await;
        let _ = self.adoption.await;
    }
}

/// The canary is a service that is asked for a round before it is left alone.
pub(crate) fn canary(parts: &Parts) -> Result<Canary, StartError> {
    let used = CanaryParts {
        host: parts.host.clone(),
        enforce: parts.enforce.clone(),
        books: parts.books.clone(),
        forwarder: parts.forwarder.clone(),
        authority: parts.authority.clone(),
    };
    Canary::open(
        used,
        parts.roster.clone(),
        parts.changes.clone(),
        parts.ending.stop.clone(),
    )
}
