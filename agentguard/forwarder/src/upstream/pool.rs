//! An agent's upstream connections between requests: which of them a request may go out on.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use agentguard_common::abi::AgentId;
use agentguard_policy::HostName;
use http::Method;
use uuid::Uuid;

use super::connect::{Connector, Way};
use super::host::{HostPool, Need};
use super::resend::is_idempotent;
use crate::life::Life;

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct PoolKey {
    pub tls: bool,
    pub host: HostName,
    pub port: u16,
    /// HTTP/2 was offered.
    pub http2: bool,
    /// Whose process asks: what one user of an agent's has done on a connection is not another's.
    pub uid: u32,
    /// The tasks that it is permitted on: what was done for one is not another's.
    pub tasks: Vec<Uuid>,
}

/// Every agent's connections.
pub(crate) struct Pools {
    connector: Arc<Connector>,
    by_agent: Mutex<HashMap<AgentId, Arc<Pool>>>,
}

/// One agent's connections, for as long as it lives: never shared with another agent.
pub(crate) struct Pool {
    way: Arc<Way>,
    hosts: Mutex<HashMap<PoolKey, Arc<HostPool>>>,
}

/// The connections that requests of one client connection go out on: its agent's, and those that nobody else may use because
/// somebody has authenticated on them.
pub(crate) struct SessionPools {
    shared: Arc<Pool>,
    own: OnceLock<Pool>,
    pub uid: u32,
    /// A request has gone out.
    used: AtomicBool,
}

impl SessionPools {
    pub(crate) fn new(shared: Arc<Pool>, uid: u32) -> Self {
        Self {
            shared,
            own: OnceLock::new(),
            uid,
            used: AtomicBool::new(false),
        }
    }

    /// What a request needs of its connection. One that a client connection is bound to is as good as it is.
    pub(super) fn need(&self, key: &PoolKey, method: &Method) -> Need {
        let first = !self.used.swap(true, Ordering::Relaxed);
        let bound = self.own.get().is_some_and(|own| own.has(key));
        let once = !bound && !is_idempotent(method);
        Need {
            fresh: first && once,
            once,
            ..Need::default()
        }
    }

    /// Where connections for `key` come from. `authenticates`: from now on, for this key, the client connection's own, each
    /// of which carries one request at a time.
    pub(crate) fn of(&self, key: &mut PoolKey, authenticates: bool) -> &Pool {
        let own = match authenticates {
            true => self
                .own
                .get_or_init(|| Pool::new(self.shared.way.renewed())),
            // Almost nobody authenticates so.
            false => match self.own.get() {
                Some(own) => own,
                None => return &self.shared,
            },
        };
        let bound = PoolKey {
            http2: false,
            ..key.clone()
        };
        if !authenticates && !own.has(&bound) {
            return &self.shared;
        }
        *key = bound;
        own
    }
}

impl Pools {
    pub(crate) fn new(connector: Arc<Connector>) -> Self {
        Self {
            connector,
            by_agent: Mutex::default(),
        }
    }

    /// Looked up once per connection of the agent's. Who lives on after a kill begins with an empty one.
    pub(crate) fn of(&self, life: &Arc<Life>) -> Arc<Pool> {
        let mut pools = self.by_agent.lock().expect(UNPOISONED);
        let known = pools.get(&life.agent);
        if let Some(known) = known.filter(|known| Arc::ptr_eq(&known.way.life, life)) {
            return known.clone();
        }
        let pool = Arc::new(Pool::new(Way::new(&self.connector, life)));
        pools.insert(life.agent, pool.clone());
        drop(pools);
        let ends = Arc::downgrade(&pool);
        life.on_end(move || {
            if let Some(pool) = ends.upgrade() {
                pool.clear();
            }
        });
        pool
    }

    /// Drops what has been idle for too long.
    pub(crate) fn sweep(&self) {
        let pools: Vec<_> = self
            .by_agent
            .lock()
            .expect(UNPOISONED)
            .values()
            .cloned()
            .collect();
        pools.iter().for_each(|pool| pool.sweep());
    }
}

impl Pool {
    fn new(way: Way) -> Self {
        Self {
            way: Arc::new(way),
            hosts: Mutex::default(),
        }
    }

    fn has(&self, key: &PoolKey) -> bool {
        self.hosts.lock().expect(UNPOISONED).contains_key(key)
    }

    pub(crate) fn host(&self, key: &PoolKey) -> Arc<HostPool> {
        let mut hosts = self.hosts.lock().expect(UNPOISONED);
        if let Some(host) = hosts.get(key) {
            return host.clone();
        }
        let host = Arc::new(HostPool::new(key.clone(), self.way.clone()));
        hosts.insert(key.clone(), host.clone());
        host
    }

    /// Drops every connection; none is taken back any more.
    pub(crate) fn clear(&self) {
        for (_, host) in self.hosts.lock().expect(UNPOISONED).drain() {
            host.close();
        }
    }

    /// Drops what has been idle for too long.
    fn sweep(&self) {
        self.hosts.lock().expect(UNPOISONED).retain(|_, host| {
            let in_use = host.sweep();
            in_use || Arc::strong_count(host) > 1
        });
    }
}

const UNPOISONED: &str = "nothing panics with the lock held";
