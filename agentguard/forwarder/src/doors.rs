//! Where connections come in: the forwarder's own listeners, and those of other network namespaces that it was handed.
//! What is accepted inside goes out by sockets of the forwarder's own namespace.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use agentguard_common::abi::FlowKey;
use agentguard_link::frame::ToDaemon;
use agentguard_link::listen::{BoundSockets, Sockets};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::accept;
use super::admit::Door;
use super::forwarder::Forwarder;
use super::origin::OriginSource;
use super::outbox::Outbox;

/// The namespaces that are served, by cookie.
pub(crate) struct Doors {
    door: Arc<Door>,
    outbox: Outbox,
    open: HashMap<u64, CancellationToken>,
}

impl Doors {
    pub(crate) fn new(
        forwarder: Arc<Forwarder>,
        origins: Arc<dyn OriginSource>,
        outbox: Outbox,
    ) -> Self {
        let places = forwarder.limits.max_connections as usize;
        Self {
            door: Arc::new(Door {
                forwarder,
                origins,
                places: Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS))),
            }),
            outbox,
            open: HashMap::new(),
        }
    }

    /// Accepts and answers on these sockets of a namespace, in the place of earlier ones.
    pub(crate) fn open(&mut self, netns: u64, bound: BoundSockets) -> io::Result<()> {
        self.close(netns);
        let stop = CancellationToken::new();
        for sockets in bound.serve()? {
            self.serve(netns, sockets, &stop);
        }
        self.open.insert(netns, stop);
        Ok(())
    }

    pub(crate) fn close(&mut self, netns: u64) {
        if let Some(stop) = self.open.remove(&netns) {
            stop.cancel();
        }
    }

    fn serve(&self, netns: u64, sockets: Sockets, stop: &CancellationToken) {
        let accepting = accept::accept(self.door.clone(), sockets.tcp, stop.clone());
        let origins = self.door.origins.clone();
        let dns = self.door.forwarder.dns.clone();
        let whose = move |mark, flow: &FlowKey| origins.question(mark, flow);
        let answering = dns.serve_datagrams(sockets.udp, netns, whose);
        let (outbox, stop) = (self.outbox.clone(), stop.clone());
        tokio::spawn(async move {
            let error = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                error = accepting => error,
                Err(error) = answering => error,
            };
            tracing::error!(%error, netns, "a listener is gone");
            outbox.say(ToDaemon::Lost { netns });
        });
    }
}

impl Drop for Doors {
    fn drop(&mut self) {
        for stop in self.open.values() {
            stop.cancel();
        }
    }
}
