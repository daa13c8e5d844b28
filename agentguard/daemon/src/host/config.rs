//! `agentguard.toml`: read once at start, every key checked. A key nobody knows is an error, never ignored.

mod error;
mod keys;
mod proxy;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use agentguard_audit::Durability;
use agentguard_link::frame::Limits;
use agentguard_record::guarantee::GuaranteeId;
use ipnet::IpNet;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

pub use self::error::ConfigError;
pub use self::keys::{ConfigKey, KEYS};
pub use self::proxy::{HostEntry, ProxyChoice};

/// Where the configuration is if neither `--config` nor `AGENTGUARD_CONFIG` says.
pub const DEFAULT_PATH: &str = "/etc/agentguard/agentguard.toml";

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub paths: PathsSection,
    pub policy: PolicySection,
    pub forwarder: ForwarderSection,
    pub upstream: UpstreamSection,
    pub audit: AuditSection,
    pub canary: CanarySection,
    pub host: HostSection,
    pub network: NetworkSection,
    pub roles: Vec<RoleGrant>,
    /// The file it was read from.
    #[serde(skip)]
    pub file: Option<PathBuf>,
}

/// `[paths]`; all absolute.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PathsSection {
    pub state: PathBuf,
    pub runtime: PathBuf,
    pub pins: PathBuf,
    pub trust: PathBuf,
    /// `auto`, or where the cgroup v2 hierarchy is mounted.
    pub cgroup: PathBuf,
}

impl Default for PathsSection {
    fn default() -> Self {
        Self {
            state: "/var/lib/agentguard".into(),
            runtime: "/run/agentguard".into(),
            pins: "/sys/fs/bpf/agentguard".into(),
            trust: "/etc/agentguard/trust".into(),
            cgroup: "auto".into(),
        }
    }
}

impl PathsSection {
    pub fn control_socket(&self) -> PathBuf {
        self.runtime.join("control.sock")
    }

    /// `None`: find it in `/proc/mounts`.
    pub fn cgroup_root(&self) -> Option<&Path> {
        (self.cgroup != Path::new("auto")).then_some(self.cgroup.as_path())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicySection {
    /// The bundle in force until one has been applied.
    pub bundle: PathBuf,
    /// Guarantees a bundle may require that this host may lack.
    #[serde(deserialize_with = "guarantees")]
    pub accept_gaps: Vec<GuaranteeId>,
}

fn guarantees<'de, D: Deserializer<'de>>(list: D) -> Result<Vec<GuaranteeId>, D::Error> {
    let words = Vec::<String>::deserialize(list)?;
    let ids = words.iter().map(|word| word.parse());
    ids.collect::<Result<_, _>>().map_err(D::Error::custom)
}

impl Default for PolicySection {
    fn default() -> Self {
        Self {
            bundle: "/etc/agentguard/policies".into(),
            accept_gaps: Vec::new(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ForwarderSection {
    /// Must exist, and is not root.
    pub user: String,
    /// 0: chosen at start.
    pub port: u16,
    pub refused_names: RefusedNames,
    pub max_connections: u32,
    pub max_header_bytes: u32,
    pub head_timeout_ms: u32,
    pub upstream_connect_timeout_ms: u32,
    pub upstream_head_timeout_ms: u32,
    pub idle_timeout_ms: u32,
    /// Of a request's body that a rule reads, as it is sent and decoded.
    pub max_judged_body_bytes: u32,
    /// Of all such bodies at one time.
    pub max_judged_bodies_bytes: u32,
    /// How long a client may take to send one.
    pub judged_body_timeout_ms: u32,
}

impl Default for ForwarderSection {
    fn default() -> Self {
        Self {
            user: "agentguard".into(),
            port: 0,
            refused_names: RefusedNames::Guard,
            max_connections: 4096,
            max_header_bytes: 65_536,
            head_timeout_ms: 15_000,
            upstream_connect_timeout_ms: 10_000,
            upstream_head_timeout_ms: 3_600_000,
            idle_timeout_ms: 120_000,
            max_judged_body_bytes: 1 << 20,
            max_judged_bodies_bytes: 64 << 20,
            judged_body_timeout_ms: 30_000,
        }
    }
}

/// What an agent's resolver is told of a name that policy refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RefusedNames {
    /// AgentGuard's own address, where requests are refused in words.
    Guard,
    /// That there is no such name.
    Nxdomain,
}

impl ForwarderSection {
    pub fn limits(&self) -> Limits {
        Limits {
            max_connections: self.max_connections,
            max_header_bytes: self.max_header_bytes,
            head_timeout_ms: self.head_timeout_ms,
            upstream_connect_timeout_ms: self.upstream_connect_timeout_ms,
            upstream_head_timeout_ms: self.upstream_head_timeout_ms,
            idle_timeout_ms: self.idle_timeout_ms,
            max_judged_body_bytes: self.max_judged_body_bytes,
            max_judged_bodies_bytes: self.max_judged_bodies_bytes,
            judged_body_timeout_ms: self.judged_body_timeout_ms,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpstreamSection {
    /// PEM files with trust anchors besides the system's.
    pub roots: Vec<PathBuf>,
    /// Besides `/etc/hosts` and DNS, and before them.
    pub hosts: BTreeMap<String, Addresses>,
    /// Empty: those of `/etc/resolv.conf`. An address without a port means port 53.
    pub resolvers: Vec<Resolver>,
    /// Of the addresses refused otherwise: loopback, link-local, private, metadata, multicast, unspecified.
    pub allow_addresses: Vec<IpNet>,
    /// By which way every host is reached that the next two do not name.
    pub proxy: ProxyChoice,
    pub proxies: BTreeMap<HostEntry, ProxyChoice>,
    /// Reached directly, where `proxies` does not say otherwise.
    pub no_proxy: Vec<HostEntry>,
    /// Of lines `HOST:PORT USER:PASSWORD`; empty: none.
    pub proxy_credentials_file: PathBuf,
}

impl UpstreamSection {
    pub fn credentials_file(&self) -> Option<&Path> {
        let file = self.proxy_credentials_file.as_path();
        (file != Path::new("")).then_some(file)
    }
}

/// One address or a list of them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "an IP address, or a list of them, in quotes")]
pub enum Addresses {
    One(IpAddr),
    Many(Vec<IpAddr>),
}

impl Addresses {
    pub fn to_vec(&self) -> Vec<IpAddr> {
        match self {
            Self::One(one) => vec![*one],
            Self::Many(many) => many.clone(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolver(pub SocketAddr);

impl<'de> Deserialize<'de> for Resolver {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .or_else(|_| text.parse().map(|ip: IpAddr| SocketAddr::new(ip, 53)))
            .map(Self)
            .map_err(|_| {
                serde::de::Error::custom(format!(
                    "`{text}` is not an address such as \"192.0.2.53\" or \"192.0.2.53:53\""
                ))
            })
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditSection {
    pub durability: Durability,
}

/// The daemon's own attempts at what must be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CanarySection {
    /// Seconds between two.
    pub every_s: u32,
    pub on_failure: OnFailure,
}

impl Default for CanarySection {
    fn default() -> Self {
        Self {
            every_s: 30,
            on_failure: OnFailure::Close,
        }
    }
}

/// What rules can know of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HostSection {
    /// `context.host.labels`.
    pub labels: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetworkSection {
    /// Networks that are trusted, any of them: `context.network.trusted`.
    pub trusted: Vec<TrustedNetwork>,
}

/// One network: all keys that are there hold, and one is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrustedNetwork {
    /// An interface of this name is up; the next two are of it.
    pub interface: Option<String>,
    /// The host has an address in this range.
    pub source: Option<IpNet>,
    /// A default route goes to this address.
    pub gateway: Option<IpAddr>,
    /// The resolver's configuration searches this domain.
    pub domain: Option<String>,
}

/// What a failure does besides the alarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// Every agent is held, as by a kill, until one passes.
    Close,
    Alarm,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleGrant {
    pub group: String,
    pub role: Role,
}

/// What a caller of the control API who is not root may do; each may also do what the ones before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Viewer,
    Responder,
    Admin,
}

impl Config {
    /// Reads `explicit`, which must be there, or the default file, which need not.
    pub fn load(explicit: Option<&Path>) -> Result<Self, ConfigError> {
        let path = explicit.unwrap_or(Path::new(DEFAULT_PATH));
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(Self {
                file: Some(path.to_owned()),
                ..Self::parse(path, &text)?
            }),
            Err(e) if explicit.is_none() && e.kind() == std::io::ErrorKind::NotFound => {
                Ok(Self::default())
            }
            Err(source) => Err(ConfigError::Read {
                path: path.to_owned(),
                source,
            }),
        }
    }

    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self =
            toml::from_str(text).map_err(|e| ConfigError::from_toml(path, text, &e))?;
        config
            .check()
            .map_err(|(key, message)| ConfigError::at_key(path, text, key, message))?;
        Ok(config)
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        for (key, path) in [
            ("state", &self.paths.state),
            ("runtime", &self.paths.runtime),
            ("pins", &self.paths.pins),
            ("trust", &self.paths.trust),
            ("bundle", &self.policy.bundle),
        ] {
            if !path.is_absolute() {
                return Err((key, format!("`{}` is not an absolute path", path.display())));
            }
        }
        if self.paths.cgroup_root().is_some_and(|p| !p.is_absolute()) {
            let cgroup = self.paths.cgroup.display();
            return Err((
                "cgroup",
                format!("`{cgroup}` is neither `auto` nor an absolute path"),
            ));
        }
        if let Some(file) = self.upstream.credentials_file()
            && !file.is_absolute()
        {
            let message = format!("`{}` is not an absolute path", file.display());
            return Err(("proxy_credentials_file", message));
        }
        let f = &self.forwarder;
        if f.user.is_empty() || f.user == "root" || f.user == "0" {
            return Err((
                "user",
                "the forwarder runs as a user of its own, never as root".into(),
            ));
        }
        let bounded = KEYS
            .iter()
            .filter_map(|key| Some((key, key.bounds.as_ref()?)));
        for (key, bounds) in bounded {
            let value = (bounds.of)(self);
            if !(bounds.min..=bounds.max).contains(&value) {
                return Err((key.key, format!("{value} is not between {bounds}")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
