//! The upstream leg. [`Upstreams::send`] is the only way to it for requests, and takes a permit for each; a [`Fetcher`] sends
//! only what policy itself declares.

pub(crate) mod connect;
mod credentials;
mod dial;
pub(crate) mod exchange;
mod fault;
mod fetch;
mod host;
mod idle;
pub(crate) mod pool;
mod proxy;
mod race;
mod resend;
mod silence;
mod tasks;

use std::sync::Arc;
use std::time::Duration;

use agentguard_link::frame::{Limits, Upstream};
use agentguard_link::state::Names;
use agentguard_policy::HostSettings;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, Uri, header};
use http_body::Body as _;
use hyper::body::Incoming;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

pub(crate) use fault::UpstreamFault;
pub(crate) use fetch::Fetcher;
pub(crate) use silence::Watched;

use self::connect::{ConnectionFacts, Connector};
use self::dial::Dialer;
pub(crate) use self::dial::{Tag, tag};
use self::exchange::Lease;
use self::host::Connection;
use self::pool::{Pool, PoolKey, Pools, SessionPools};
use self::proxy::{Proxies, Reached};
use super::life::Life;
use super::record::Recorded;
use super::resolve::NameResolver;
use super::upload::Upload;

/// How often a request is sent again because nobody can have acted upon it. A server that takes ten requests on each
/// HTTP/2 connection refuses the last of a hundred ten times.
const RESENDS: u32 = 16;

/// The ways out of all agents.
pub(crate) struct Upstreams {
    connector: Arc<Connector>,
    head_timeout: Duration,
    pools: Pools,
}

/// One request to be sent, judged and canonical.
pub(crate) struct UpstreamCall {
    pub request: Request<Upload>,
    pub scheme: Scheme,
    /// As the host is judged; with the port unless it is the scheme's own.
    pub authority: Authority,
    pub target: PathAndQuery,
    /// Offer HTTP/2: the client speaks it, and the host may be spoken to in it.
    pub http2: bool,
    /// The request asks for a WebSocket, or for another tunnel.
    pub websocket: bool,
    /// By the host's file.
    pub settings: HostSettings,
    /// It has been sent, and its connection was closed under it.
    pub was_closed: bool,
}

/// The head of upstream's answer, its body to come.
pub(crate) struct UpstreamAnswer {
    pub response: Response<Incoming>,
    pub lease: Lease,
    pub facts: Arc<ConnectionFacts>,
}

impl Upstreams {
    /// Of the trust anchors those that cannot be read are left out, as browsers do.
    pub(crate) fn new(
        resolver: Arc<NameResolver>,
        upstream: &Upstream,
        names: &Names,
        limits: &Limits,
        tag: Tag,
    ) -> anyhow::Result<Self> {
        let mut store = RootCertStore::empty();
        let ders = upstream
            .roots
            .iter()
            .map(|der| CertificateDer::from(der.as_slice()));
        let (_, ignored) = store.add_parsable_certificates(ders);
        if ignored > 0 {
            tracing::warn!(ignored, "trust anchors that cannot be read");
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(store)
            .with_no_client_auth();
        let connector = Arc::new(Connector {
            dialer: Dialer {
                resolver,
                tag,
                connect_timeout: Duration::from_millis(limits.upstream_connect_timeout_ms.into()),
                proxies: Arc::new(Proxies::new(upstream, names, tls.clone())?),
                slow: Arc::default(),
                silence: Arc::default(),
            },
            tls,
            max_header_bytes: limits.max_header_bytes,
        });
        Ok(Self {
            head_timeout: Duration::from_millis(limits.upstream_head_timeout_ms.into()),
            pools: Pools::new(connector.clone()),
            connector,
        })
    }

    /// Finds proxies there from now on.
    pub(crate) fn learn(&self, names: &Names) {
        self.connector.dialer.proxies.learn(names);
    }

    /// The connections that are kept for an agent.
    pub(crate) fn pool(&self, life: &Arc<Life>) -> Arc<Pool> {
        self.pools.of(life)
    }

    /// Drops connections that have been idle for too long, and those to peers that have gone.
    pub(crate) fn sweep(&self) {
        self.connector.dialer.silence.sweep();
        self.pools.sweep();
    }

    /// Spends the permit: sends `call` for its agent to its host, over a connection of that agent's alone, and returns at the
    /// head of the answer. `holds`: whether it is permitted still, when there is a connection for it.
    pub(crate) async fn send(
        &self,
        pools: &SessionPools,
        recorded: Recorded,
        mut call: UpstreamCall,
        holds: &mut (dyn FnMut() -> bool + Send),
    ) -> Result<UpstreamAnswer, UpstreamFault> {
        let permit = recorded.permit();
        let tasks = permit.covered().iter().flat_map(|covering| &covering.tasks);
        let mut key = PoolKey {
            tls: call.scheme == Scheme::HTTPS,
            host: permit.host().clone(),
            port: permit.port(),
            http2: call.http2,
            uid: pools.uid,
            tasks: tasks.copied().collect(),
        };
        let authenticates = credentials::of_a_connection(call.request.headers());
        let host = pools.of(&mut key, authenticates).host(&key);
        let mut need = pools.need(&key, call.request.method());
        need.idle = call.settings.idle_timeout;
        need.patience = call.settings.head_timeout.unwrap_or(self.head_timeout);
        for sends in 0..=RESENDS {
            let taken = match call.websocket {
                true => host.open().await.map(|new| (Connection::Http1(new), None)),
                false => host.take(&mut need).await,
            };
            let unsent = sends == 0;
            let (connection, turn) = taken.map_err(|fault| UpstreamFault { unsent, ..fault })?;
            if !holds() {
                let over = UpstreamFault::unreachable("it is not permitted any more");
                return Err(UpstreamFault { unsent, ..over });
            }
            match self.exchange(&host, connection, turn, call).await {
                Ok(mut answer) => {
                    if credentials::of_a_connection(answer.response.headers()) {
                        answer.lease.bind(pools.of(&mut key, true).host(&key));
                    }
                    return Ok(answer);
                }
                Err((_, Some(unsent))) => call = unsent,
                Err((fault, None)) => return Err(fault),
            }
        }
        Err(UpstreamFault::unreachable(
            "it closes each connection before a request can be sent",
        ))
    }

    /// A connection to the permit's host for bytes that are passed on as they are.
    pub(crate) async fn connect(
        &self,
        life: &Arc<Life>,
        recorded: Recorded,
    ) -> Result<Reached, UpstreamFault> {
        let permit = recorded.permit();
        let dialer = &self.connector.dialer;
        let (host, port) = (permit.host(), permit.port());
        dialer.reach(life, host, port, false).await
    }

    /// For what the forwarder asks as itself.
    pub(crate) fn fetcher(&self) -> Fetcher {
        Fetcher {
            dialer: self.connector.dialer.clone(),
            tls: self.connector.tls(&[b"http/1.1"]),
            life: Life::own(),
        }
    }
}

impl UpstreamCall {
    /// HTTP/1.1: origin-form and `Host` (RFC 9112 section 3.2).
    ///
    /// A server that does not read a body finds nothing behind it that it may take for the next request: it has been told that
    /// there is none (RFC 9112 section 9.6).
    fn as_http1(&mut self) {
        *self.request.uri_mut() = Uri::from(self.target.clone());
        let is_last = self.is_last();
        let chunked = self.request.body().size_hint().exact().is_none();
        let headers = self.request.headers_mut();
        if is_last {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if chunked {
            // hyper sends no body of unknown length with the methods that give it no meaning, unless it is told to.
            headers.insert(
                header::TRANSFER_ENCODING,
                HeaderValue::from_static("chunked"),
            );
        }
        headers.remove(header::TE);
        // Gone if it was tried over HTTP/2 before.
        headers.entry(header::HOST).or_insert_with(|| {
            HeaderValue::from_str(self.authority.as_str()).expect("an authority is visible ASCII")
        });
    }

    /// Whether no other request may follow this one on an HTTP/1.1 connection.
    fn is_last(&self) -> bool {
        !self.settings.reads_bodies && !self.request.body().is_empty()
    }

    /// HTTP/2: `:scheme` and `:authority` instead of `Host` (RFC 9113 section 8.3.1).
    fn as_http2(&mut self) {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(self.target.clone());
        *self.request.uri_mut() = Uri::from_parts(parts).expect("all three parts are there");
        let headers = self.request.headers_mut();
        for name in [header::HOST, header::CONNECTION, header::TRANSFER_ENCODING] {
            headers.remove(name);
        }
    }
}
