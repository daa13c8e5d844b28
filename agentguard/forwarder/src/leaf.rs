//! Leaf certificates for names that agents connect to: asked of the daemon once per agent and name, kept as ready TLS
//! configurations. The CA key never comes here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use agentguard_common::abi::AgentId;
use agentguard_link::calls::Silent;
use agentguard_link::calls::to_daemon::{IssueLeaf, Leaf};
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use lru::LruCache;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{NoServerSessionStorage, ProducesTickets};

use super::daemon::Daemon;
use super::life::Life;

/// Names whose configuration is kept for one agent; the one that it has not used for longest goes first.
const KEPT: usize = 1024;
/// A leaf is asked for anew after this time: well before it expires, whenever the daemon's clock is right.
const RENEW_AFTER: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum LeafError {
    #[error("no certificate for `{name}`: {cause}")]
    Refused { name: String, cause: String },
    #[error("the daemon gave a certificate for `{name}` that cannot be used: {cause}")]
    Unusable { name: String, cause: String },
    #[error("too many certificates are awaited")]
    TooMany,
    #[error("the daemon gave no certificate for `{0}` in time")]
    Late(String),
    #[error("the daemon is gone")]
    Gone,
}

/// HTTP's names (RFC 7301 section 6), in our order of preference; the client's offer decides which of them are on the table.
const ALPN: [&[u8]; 4] = [b"h2", b"http/1.1", b"http/1.0", b"http/0.9"];

type Configured = Result<Arc<ServerConfig>, LeafError>;
type Coming = BoxFuture<'static, Configured>;

/// TLS configurations by agent and server name.
pub(crate) struct Leaves {
    by_agent: Mutex<HashMap<AgentId, LeafTable>>,
    daemon: Arc<Daemon>,
    /// One for all names: a session is resumed only for the name it was made for.
    tickets: Arc<dyn ProducesTickets>,
}

/// One agent's.
struct LeafTable {
    kept: LruCache<String, CachedLeaf>,
    /// Names that somebody waits for.
    coming: HashMap<String, WeakShared<Coming>>,
}

struct CachedLeaf {
    config: Arc<ServerConfig>,
    since: SystemTime,
}

impl Leaves {
    pub(crate) fn new(daemon: Arc<Daemon>) -> Result<Self, rustls::Error> {
        Ok(Self {
            by_agent: Mutex::default(),
            daemon,
            tickets: aws_lc_rs::Ticketer::new()?,
        })
    }

    /// The configuration with a leaf for `name`, asked of the daemon if need be: once, for all the agent's connections that
    /// wait for it.
    pub(crate) async fn config(self: &Arc<Self>, life: &Arc<Life>, name: &str) -> Configured {
        let coming = {
            let mut by_agent = self.by_agent.lock().expect(UNPOISONED);
            let table = by_agent.entry(life.agent).or_default();
            if let Some(kept) = table.kept(name) {
                return Ok(kept);
            }
            table.coming(name, || {
                self.clone()
                    .when_there_is_room(life.clone(), name.to_owned())
            })
        };
        coming.await
    }

    /// Asks when few enough of the agent's names are asked for.
    async fn when_there_is_room(self: Arc<Self>, life: Arc<Life>, name: String) -> Configured {
        let room = life.shares.leaves.clone().acquire_owned().await;
        // On a task of its own: those who wait may go, and the next who needs it does not ask again.
        let asking = tokio::spawn(async move {
            let _room = room;
            self.ask(life.agent, name).await
        });
        asking.await.unwrap_or(Err(LeafError::Gone))
    }

    async fn ask(self: Arc<Self>, agent: AgentId, name: String) -> Configured {
        let answer = self.daemon.call(IssueLeaf(name.clone())).await;
        let configured = self.configured(&name, answer);
        if let Ok(config) = &configured {
            let mut by_agent = self.by_agent.lock().expect(UNPOISONED);
            by_agent.entry(agent).or_default().keep(name, config);
        }
        configured
    }

    fn configured(&self, name: &str, answer: Result<Result<Leaf, String>, Silent>) -> Configured {
        let name = name.to_owned();
        match answer {
            Ok(Ok(leaf)) => self.configure(leaf).map_err(|error| LeafError::Unusable {
                name,
                cause: error.to_string(),
            }),
            Ok(Err(cause)) => Err(LeafError::Refused { name, cause }),
            Err(Silent::TooMany(_)) => Err(LeafError::TooMany),
            Err(Silent::Late(..) | Silent::Senseless(_)) => Err(LeafError::Late(name)),
            Err(Silent::Gone) => Err(LeafError::Gone),
        }
    }

    fn configure(&self, leaf: Leaf) -> Result<Arc<ServerConfig>, rustls::Error> {
        let chain = leaf.chain.into_iter().map(CertificateDer::from).collect();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf.key));
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = ALPN.map(<[u8]>::to_vec).to_vec();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = self.tickets.clone();
        Ok(Arc::new(config))
    }
}

impl Default for LeafTable {
    fn default() -> Self {
        Self {
            kept: LruCache::unbounded(),
            coming: HashMap::new(),
        }
    }
}

impl LeafTable {
    fn kept(&mut self, name: &str) -> Option<Arc<ServerConfig>> {
        let kept = self.kept.get(name)?;
        // A clock that was set back counts as too old, too.
        let is_fresh = kept.since.elapsed().is_ok_and(|age| age < RENEW_AFTER);
        is_fresh.then(|| kept.config.clone())
    }

    fn keep(&mut self, name: String, config: &Arc<ServerConfig>) {
        let kept = CachedLeaf {
            config: config.clone(),
            since: SystemTime::now(),
        };
        self.kept.put(name, kept);
        if self.kept.len() > KEPT {
            self.kept.pop_lru();
        }
    }

    /// What all who need this name wait for; it ends when nobody does any more.
    fn coming<F>(&mut self, name: &str, ask: impl FnOnce() -> F) -> Shared<Coming>
    where
        F: Future<Output = Configured> + Send + 'static,
    {
        let known = self.coming.get(name).and_then(WeakShared::upgrade);
        if let Some(known) = known.filter(|known| known.peek().is_none()) {
            return known;
        }
        self.coming.retain(|_, coming| coming.upgrade().is_some());
        let coming = ask().boxed().shared();
        let waits = coming.downgrade().expect("it has not been polled");
        self.coming.insert(name.to_owned(), waits);
        coming
    }
}

const UNPOISONED: &str = "nothing panics with the lock held";

#[cfg(test)]
mod tests {
    use agentguard_link::calls::to_daemon::DaemonCall;
    use agentguard_link::frame::ToDaemon;
    use tokio::sync::mpsc;

    use super::*;
    use crate::life::Lives;

    #[tokio::test]
    async fn one_agents_names_keep_no_others_waiting() {
        // A daemon that does not answer.
        let (out, mut asked) = mpsc::unbounded_channel();
        let leaves = Arc::new(Leaves::new(Arc::new(Daemon::new(out))).unwrap());
        let lives = Lives::default();
        let wait = |agent, name: String| {
            let (leaves, life) = (leaves.clone(), lives.of(agent));
            tokio::spawn(async move { leaves.config(&life, &name).await })
        };
        let (greedy, other) = (AgentId(2), AgentId(3));
        let waiting: Vec<_> = (0..100)
            .map(|index| wait(greedy, format!("{index}.test")))
            .collect();
        let of_other = wait(other, "other.test".into());
        let mut names = Vec::new();
        while !names.contains(&"other.test".to_owned()) {
            match asked.recv().await.unwrap() {
                ToDaemon::Call {
                    call: DaemonCall::Leaf(name),
                    ..
                } => names.push(name),
                frame => panic!("{frame:?}"),
            }
        }
        tokio::task::yield_now().await;
        let more = std::iter::from_fn(|| asked.try_recv().ok()).count();
        assert!(names.len() - 1 + more <= 8, "{names:?}, and {more} more");
        waiting.iter().for_each(|wait| wait.abort());
        of_other.abort();
    }

    #[test]
    fn the_name_that_was_not_used_for_longest_goes_first() {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(rustls::server::ResolvesServerCertUsingSni::new()));
        let config = Arc::new(config);
        let mut table = LeafTable::default();
        table.keep("used".into(), &config);
        for index in 0..2 * KEPT {
            table.keep(format!("{index}.test"), &config);
            assert!(table.kept("used").is_some());
        }
        assert_eq!(table.kept.len(), KEPT);
    }
}
