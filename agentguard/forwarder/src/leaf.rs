//! Leaf certificates for names that agents connect to: asked of the daemon once per name, kept as ready TLS
//! configurations. The CA key never comes here.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use agentguard_link::frame::Leaf;
use lru::LruCache;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{NoServerSessionStorage, ProducesTickets};
use tokio::sync::{mpsc, oneshot};

/// Names whose configuration is kept.
const KEPT: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// Names that may be awaited from the daemon at once.
const MAX_WANTED: usize = 1024;
/// A leaf is asked for anew after this time: well before it expires, whenever the daemon's clock is right.
const RENEW_AFTER: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone, Debug, thiserror::Error)]
pub enum LeafError {
    #[error("no certificate for `{name}`: {cause}")]
    Refused { name: String, cause: String },
    #[error("the daemon gave a certificate for `{name}` that cannot be used: {cause}")]
    Unusable { name: String, cause: String },
    #[error("too many certificates are awaited")]
    TooMany,
    #[error("the daemon is gone")]
    Gone,
}

type Waiting = Vec<oneshot::Sender<Result<Arc<ServerConfig>, LeafError>>>;

/// TLS configurations by server name.
pub struct Leaves {
    state: Mutex<State>,
    /// Names to ask the daemon for.
    wanted: mpsc::UnboundedSender<String>,
    /// One for all names: a session is resumed only for the name it was made for.
    tickets: Arc<dyn ProducesTickets>,
}

struct State {
    kept: LruCache<String, Kept>,
    waiting: HashMap<String, Waiting>,
}

struct Kept {
    config: Arc<ServerConfig>,
    since: SystemTime,
}

impl Leaves {
    /// `wanted` gets each name at most once until [`Self::arrived`] answers it.
    pub fn new(wanted: mpsc::UnboundedSender<String>) -> Result<Self, rustls::Error> {
        Ok(Self {
            state: Mutex::new(State {
                kept: LruCache::new(KEPT),
                waiting: HashMap::new(),
            }),
            wanted,
            tickets: aws_lc_rs::Ticketer::new()?,
        })
    }

    /// The configuration with a leaf for `name`, asked of the daemon if need be.
    pub async fn config(&self, name: &str) -> Result<Arc<ServerConfig>, LeafError> {
        let answer = {
            let mut state = self.state.lock().expect(UNPOISONED);
            if let Some(kept) = state.kept.get(name) {
                // A clock that was set back counts as too old, too.
                if kept.since.elapsed().is_ok_and(|age| age < RENEW_AFTER) {
                    return Ok(kept.config.clone());
                }
            }
            let (tell, answer) = oneshot::channel();
            if let Some(waiting) = state.waiting.get_mut(name) {
                waiting.push(tell);
            } else if state.waiting.len() >= MAX_WANTED {
                return Err(LeafError::TooMany);
            } else {
                self.wanted
                    .send(name.to_owned())
                    .map_err(|_| LeafError::Gone)?;
                state.waiting.insert(name.to_owned(), vec![tell]);
            }
            answer
        };
        answer.await.unwrap_or(Err(LeafError::Gone))
    }

    /// The daemon's answer for `name`.
    pub fn arrived(&self, name: &str, result: Result<Leaf, String>) {
        let result = match result {
            Ok(leaf) => self.configure(leaf).map_err(|error| LeafError::Unusable {
                name: name.to_owned(),
                cause: error.to_string(),
            }),
            Err(cause) => Err(LeafError::Refused {
                name: name.to_owned(),
                cause,
            }),
        };
        let mut state = self.state.lock().expect(UNPOISONED);
        if let Ok(config) = &result {
            let kept = Kept {
                config: config.clone(),
                since: SystemTime::now(),
            };
            state.kept.put(name.to_owned(), kept);
        }
        for waiting in state.waiting.remove(name).into_iter().flatten() {
            // Whoever has stopped waiting needs no answer.
            let _ = waiting.send(result.clone());
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
