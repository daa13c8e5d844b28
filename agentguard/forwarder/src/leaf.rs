//! Leaf certificates for names that agents connect to: asked of the daemon once per name, kept as ready TLS
//! configurations. The CA key never comes here.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use agentguard_link::calls::Silent;
use agentguard_link::calls::to_daemon::{IssueLeaf, Leaf};
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use lru::LruCache;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{NoServerSessionStorage, ProducesTickets};

use super::daemon::Daemon;

/// Names whose configuration is kept.
const KEPT: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
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

type Configured = Result<Arc<ServerConfig>, LeafError>;
/// What all who need one name wait for.
type Coming = Shared<BoxFuture<'static, Configured>>;

/// TLS configurations by server name.
pub(crate) struct Leaves {
    state: Mutex<LeafTable>,
    daemon: Arc<Daemon>,
    /// One for all names: a session is resumed only for the name it was made for.
    tickets: Arc<dyn ProducesTickets>,
}

struct LeafTable {
    kept: LruCache<String, CachedLeaf>,
    /// Names that the daemon is being asked for.
    coming: HashMap<String, Coming>,
}

struct CachedLeaf {
    config: Arc<ServerConfig>,
    since: SystemTime,
}

impl Leaves {
    pub(crate) fn new(daemon: Arc<Daemon>) -> Result<Self, rustls::Error> {
        Ok(Self {
            state: Mutex::new(LeafTable {
                kept: LruCache::new(KEPT),
                coming: HashMap::new(),
            }),
            daemon,
            tickets: aws_lc_rs::Ticketer::new()?,
        })
    }

    /// The configuration with a leaf for `name`, asked of the daemon if need be: once, for all connections that wait for it.
    pub(crate) async fn config(self: &Arc<Self>, name: &str) -> Configured {
        let coming = {
            let mut state = self.state.lock().expect(UNPOISONED);
            if let Some(kept) = state.kept.get(name) {
                // A clock that was set back counts as too old, too.
                if kept.since.elapsed().is_ok_and(|age| age < RENEW_AFTER) {
                    return Ok(kept.config.clone());
                }
            }
            if let Some(coming) = state.coming.get(name) {
                coming.clone()
            } else {
                // On a task of its own: those who wait may go, and the next who needs it does not ask again.
                let asking = tokio::spawn(self.clone().ask(name.to_owned()));
                let asked = asking.map(|asked| asked.unwrap_or(Err(LeafError::Gone)));
                let coming = asked.boxed().shared();
                state.coming.insert(name.to_owned(), coming.clone());
                coming
            }
        };
        coming.await
    }

    async fn ask(self: Arc<Self>, name: String) -> Configured {
        let answer = self.daemon.call(IssueLeaf(name.clone())).await;
        let configured = self.configured(&name, answer);
        let mut state = self.state.lock().expect(UNPOISONED);
        state.coming.remove(&name);
        if let Ok(config) = &configured {
            let kept = CachedLeaf {
                config: config.clone(),
                since: SystemTime::now(),
            };
            state.kept.put(name, kept);
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
        // In our order of preference; the client's offer decides which of them are on the table.
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = self.tickets.clone();
        Ok(Arc::new(config))
    }
}

const UNPOISONED: &str = "nothing panics with the lock held";
