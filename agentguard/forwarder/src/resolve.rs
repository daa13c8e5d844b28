//! Names to addresses for the upstream leg: the hosts map, then DNS, then [`address`](super::address)'s check. Opens no
//! file; what an agent's own resolver says plays no part.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agentguard_link::frame::Upstream;
use agentguard_link::state::Names;
use agentguard_link::ways::Ways;
use agentguard_policy::HostName;
use arc_swap::ArcSwap;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use tokio::time::timeout;

use super::address::{AddressRefusal, AllowedAddresses};

/// How long one try at one resolver may take. There are two, and the whole look-up ends after three times as long.
const TRY: Duration = Duration::from_secs(2);
/// How long the other family may lag behind the first usable answer (RFC 8305 section 3).
const GRACE: Duration = Duration::from_millis(50);
/// Bounds on how long an answer is believed, whatever its TTL says.
const TTL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
const NEGATIVE_TTL_MAX: Duration = Duration::from_secs(30);
/// What agents are told of the hosts map, which is read again within seconds.
const HOSTS_TTL: Duration = Duration::from_secs(5);
/// Responses kept.
const CACHE_RESPONSES: u64 = 4096;

/// The forwarder's only way from a name to addresses. Shared by every connection.
pub struct NameResolver {
    sources: ArcSwap<NameSources>,
    allowed: AllowedAddresses,
    ways: Ways,
    /// For one look-up.
    patience: Duration,
}

/// Where names are found. Look-ups that have begun go on with those that they began with.
struct NameSources {
    hosts: BTreeMap<String, Vec<IpAddr>>,
    resolvers: Vec<SocketAddr>,
    dns: Option<TokioResolver>,
}

/// Addresses that may be dialled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResolvedAddresses {
    /// Never empty; canonical (no IPv4-mapped), without repetition, the families interleaved from IPv6 on (RFC 8305
    /// section 4).
    pub addresses: Vec<IpAddr>,
    /// How much longer the answer may be believed: 1 to 300 s.
    pub ttl: Duration,
}

/// Records that are no addresses.
pub struct FoundRecords {
    pub records: Vec<RData>,
    /// How much longer they may be believed: 1 to 300 s.
    pub ttl: Duration,
}

impl FoundRecords {
    pub fn none() -> Self {
        Self {
            records: Vec::new(),
            ttl: TTL.0,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    V4,
    V6,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ResolveError {
    #[error("`{0}` does not exist (NXDOMAIN)")]
    NotFound(String),
    #[error("`{0}` has no address")]
    NoAddress(String),
    #[error("no resolver answered for `{0}` in time")]
    Timeout(String),
    #[error("the resolvers failed for `{name}`: {cause}")]
    Failed { name: String, cause: String },
    #[error(
        "`{0}` is not in the hosts map and no resolver is configured: set `upstream.resolvers` or fill /etc/resolv.conf"
    )]
    NoResolvers(String),
    /// Every address it has is refused.
    #[error("`{name}` has only addresses that may not be dialled: {} (`upstream.allow_addresses` lists exceptions)", list(.refused))]
    Refused {
        name: String,
        refused: Vec<(IpAddr, AddressRefusal)>,
    },
}

impl NameResolver {
    /// # Errors
    /// What hickory says when it cannot be built.
    pub fn new(upstream: &Upstream, names: &Names) -> Result<Self, ResolveError> {
        Self::with_patience(upstream, names, TRY)
    }

    /// `patience`: how long one try at one resolver may take; a look-up may take three times as long.
    fn with_patience(
        upstream: &Upstream,
        names: &Names,
        patience: Duration,
    ) -> Result<Self, ResolveError> {
        let dns = build(&names.resolvers, patience)?;
        Ok(Self {
            sources: ArcSwap::from_pointee(NameSources::new(names, dns)),
            allowed: AllowedAddresses::new(&upstream.allow_addresses),
            ways: upstream.ways.clone(),
            patience: patience * 3,
        })
    }

    /// Finds names there from now on. What has been kept of the same resolvers stays.
    pub fn learn(&self, names: &Names) {
        let before = self.sources.load();
        let dns = match before.resolvers == names.resolvers {
            true => Ok(before.dns.clone()),
            false => build(&names.resolvers, self.patience / 3),
        };
        match dns {
            Ok(dns) => self.sources.store(Arc::new(NameSources::new(names, dns))),
            Err(error) => tracing::error!(%error, "the host's new resolvers cannot be used"),
        }
    }

    /// Where to dial for `host`: both families, only addresses that may be dialled.
    pub async fn addresses(&self, host: &HostName) -> Result<Vec<IpAddr>, ResolveError> {
        if let Some(known) = self.known(host) {
            return self.dialable(host, known, HOSTS_TTL).map(|it| it.addresses);
        }
        let (v4, v6) = both(self.ask(host, Family::V4), self.ask(host, Family::V6)).await;
        let found = match (v4, v6) {
            (Ok((mut a, ttl_a)), Ok((b, ttl_b))) => {
                a.extend(b);
                (a, ttl_a.min(ttl_b))
            }
            (Ok(found), Err(_)) | (Err(_), Ok(found)) => found,
            (Err(a), Err(b)) => return Err(more_telling(a, b)),
        };
        self.dialable(host, found.0, found.1).map(|it| it.addresses)
    }

    /// One family's addresses of `host`, as an agent that asks for A or AAAA may see them.
    pub async fn family(
        &self,
        host: &HostName,
        family: Family,
    ) -> Result<ResolvedAddresses, ResolveError> {
        let (found, ttl) = match self.known(host) {
            Some(known) => (known, HOSTS_TTL),
            None => self.ask(host, family).await?,
        };
        let of_family: Vec<IpAddr> = found.into_iter().filter(|ip| family.has(ip)).collect();
        if of_family.is_empty() {
            return Err(ResolveError::NoAddress(host.as_str().into()));
        }
        self.dialable(host, of_family, ttl)
    }

    /// Whether the host's name is for a proxy to look up, and for nobody here.
    pub fn leaves_to_proxy(&self, host: &HostName) -> bool {
        self.ways.of(host).is_some()
    }

    /// Records of `name` that are no addresses, perhaps none. What the hosts map has is not asked for.
    pub async fn records(
        &self,
        name: &HostName,
        kind: RecordType,
    ) -> Result<FoundRecords, ResolveError> {
        if self.known(name).is_some() {
            return Ok(FoundRecords::none());
        }
        match self.look_up(name, kind).await {
            Ok((lookup, ttl)) => {
                let answers = lookup.answers().iter();
                let of_kind = answers.filter(|record| record.record_type() == kind);
                let records = of_kind.map(|record| record.data.clone()).collect();
                Ok(FoundRecords { records, ttl })
            }
            Err(ResolveError::NoAddress(_)) => Ok(FoundRecords::none()),
            Err(error) => Err(error),
        }
    }

    /// Whether `ip` may be dialled at all.
    pub fn check_address(&self, ip: IpAddr) -> Result<(), AddressRefusal> {
        self.allowed.check(ip)
    }

    /// What needs no DNS: a literal, or an entry of the hosts map.
    fn known(&self, host: &HostName) -> Option<Vec<IpAddr>> {
        match host.ip() {
            Some(ip) => Some(vec![ip.to_canonical()]),
            None => self
                .sources
                .load()
                .hosts
                .get(host.as_str())
                .map(|ips| ips.iter().map(IpAddr::to_canonical).collect()),
        }
    }

    async fn ask(
        &self,
        host: &HostName,
        family: Family,
    ) -> Result<(Vec<IpAddr>, Duration), ResolveError> {
        let kind = match family {
            Family::V4 => RecordType::A,
            Family::V6 => RecordType::AAAA,
        };
        let (lookup, ttl) = self.look_up(host, kind).await?;
        let found: Vec<IpAddr> = ips(&lookup).collect();
        if found.is_empty() {
            return Err(ResolveError::NoAddress(host.as_str().into()));
        }
        Ok((found, ttl))
    }

    /// What the resolvers answer, and for how long it may be believed.
    async fn look_up(
        &self,
        name: &HostName,
        kind: RecordType,
    ) -> Result<(Lookup, Duration), ResolveError> {
        let name = name.as_str();
        let sources = self.sources.load_full();
        let Some(dns) = &sources.dns else {
            return Err(ResolveError::NoResolvers(name.into()));
        };
        let mut fqdn = Name::from_ascii(name).map_err(|error| ResolveError::Failed {
            name: name.into(),
            cause: error.to_string(),
        })?;
        fqdn.set_fqdn(true);
        match timeout(self.patience, dns.lookup(fqdn, kind)).await {
            Err(_elapsed) => Err(ResolveError::Timeout(name.into())),
            Ok(Err(error)) => Err(explain(name, &error)),
            Ok(Ok(lookup)) => {
                let left = lookup
                    .valid_until()
                    .saturating_duration_since(Instant::now());
                Ok((lookup, left.clamp(TTL.0, TTL.1)))
            }
        }
    }

    fn dialable(
        &self,
        host: &HostName,
        found: Vec<IpAddr>,
        ttl: Duration,
    ) -> Result<ResolvedAddresses, ResolveError> {
        let (mut v4, mut v6, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        for ip in found {
            let of_family = if ip.is_ipv4() { &mut v4 } else { &mut v6 };
            match self.check_address(ip) {
                Ok(()) if !of_family.contains(&ip) => of_family.push(ip),
                Ok(()) => {}
                Err(why) => refused.push((ip, why)),
            }
        }
        let addresses = interleave(v6, v4);
        if addresses.is_empty() {
            let name = host.as_str().to_owned();
            return Err(match refused.is_empty() {
                true => ResolveError::NoAddress(name),
                false => ResolveError::Refused { name, refused },
            });
        }
        Ok(ResolvedAddresses { addresses, ttl })
    }
}

impl Family {
    fn has(self, ip: &IpAddr) -> bool {
        ip.is_ipv4() == (self == Self::V4)
    }
}

impl NameSources {
    fn new(names: &Names, dns: Option<TokioResolver>) -> Self {
        Self {
            hosts: names.hosts.clone(),
            resolvers: names.resolvers.clone(),
            dns,
        }
    }
}

/// `None` if there are no servers.
fn build(
    servers: &[SocketAddr],
    patience: Duration,
) -> Result<Option<TokioResolver>, ResolveError> {
    if servers.is_empty() {
        return Ok(None);
    }
    let servers = servers.iter().map(|server| {
        let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
        for connection in &mut connections {
            connection.port = server.port();
        }
        NameServerConfig::new(server.ip(), true, connections)
    });
    let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    let options = builder.options_mut();
    options.use_hosts_file = ResolveHosts::Never;
    options.timeout = patience;
    options.attempts = 1;
    options.try_tcp_on_error = true;
    options.cache_size = CACHE_RESPONSES;
    options.positive_min_ttl = Some(TTL.0);
    options.positive_max_ttl = Some(TTL.1);
    options.negative_min_ttl = Some(TTL.0);
    options.negative_max_ttl = Some(NEGATIVE_TTL_MAX);
    let built = builder.build();
    built.map(Some).map_err(|error| ResolveError::Failed {
        name: ".".into(),
        cause: error.to_string(),
    })
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "records that are no addresses, those to come too"
)]
fn ips(lookup: &Lookup) -> impl Iterator<Item = IpAddr> {
    lookup
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(a) => Some(IpAddr::V4(a.0)),
            RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0).to_canonical()),
            _ => None,
        })
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the resolver's errors grow, and only these have words of their own"
)]
fn explain(name: &str, error: &NetError) -> ResolveError {
    let name = name.to_owned();
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
            ResponseCode::NXDomain => ResolveError::NotFound(name),
            _ => ResolveError::NoAddress(name),
        },
        NetError::Timeout => ResolveError::Timeout(name),
        other => ResolveError::Failed {
            name,
            cause: other.to_string(),
        },
    }
}

/// Both answers; once one is usable, the other has [`GRACE`] left.
async fn both<T>(
    a: impl Future<Output = Result<T, ResolveError>>,
    b: impl Future<Output = Result<T, ResolveError>>,
) -> (Result<T, ResolveError>, Result<T, ResolveError>) {
    let late = || Err(ResolveError::Timeout(String::new()));
    tokio::pin!(a, b);
    tokio::select! {
        first = &mut a => match first {
            Ok(found) => (Ok(found), timeout(GRACE, b).await.unwrap_or_else(|_| late())),
            Err(error) => (Err(error), b.await),
        },
        first = &mut b => match first {
            Ok(found) => (timeout(GRACE, a).await.unwrap_or_else(|_| late()), Ok(found)),
            Err(error) => (a.await, Err(error)),
        },
    }
}

/// Of two failures the one that says more about the name.
fn more_telling(a: ResolveError, b: ResolveError) -> ResolveError {
    let rank = |error: &ResolveError| match error {
        ResolveError::NotFound(_) => 0,
        ResolveError::Refused { .. } => 1,
        ResolveError::NoResolvers(_) => 2,
        ResolveError::Failed { .. } => 3,
        ResolveError::Timeout(_) => 4,
        ResolveError::NoAddress(_) => 5,
    };
    if rank(&b) < rank(&a) { b } else { a }
}

fn interleave(a: Vec<IpAddr>, b: Vec<IpAddr>) -> Vec<IpAddr> {
    let mut all = Vec::with_capacity(a.len() + b.len());
    let (mut a, mut b) = (a.into_iter(), b.into_iter());
    loop {
        match (a.next(), b.next()) {
            (None, None) => return all,
            (x, y) => all.extend(x.into_iter().chain(y)),
        }
    }
}

fn list(refused: &[(IpAddr, AddressRefusal)]) -> String {
    let each: Vec<String> = refused
        .iter()
        .map(|(ip, why)| format!("{ip} ({why})"))
        .collect();
    each.join(", ")
}

#[cfg(test)]
pub(super) mod stub;
#[cfg(test)]
mod tests;
