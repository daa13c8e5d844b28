//! By which way the forwarder reaches a host: directly, or by a proxy that is asked for it by name.

use std::fmt;

use agentguard_policy::HostName;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Ways {
    /// The first that has a host counts; `None`: directly.
    pub listed: Vec<(HostSet, Option<Proxy>)>,
    /// Of every other host.
    pub otherwise: Option<Proxy>,
}

/// Hosts that an operator names at once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum HostSet {
    /// All names below this one.
    Below(String),
    /// A name, and all below it.
    Name(String),
    /// Hosts that are named by an address in here. No name is resolved for it.
    Addresses(IpNet),
}

/// A proxy that speaks HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proxy {
    /// It is spoken to over TLS.
    pub tls: bool,
    /// As a [`HostName`].
    pub host: String,
    pub port: u16,
    pub authorization: Option<Secret>,
}

/// A value of `Proxy-Authorization`, which no log shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(pub String);

impl Ways {
    pub fn of(&self, host: &HostName) -> Option<&Proxy> {
        let listed = self.listed.iter().find(|(hosts, _)| hosts.has(host));
        listed.map_or(self.otherwise.as_ref(), |(_, proxy)| proxy.as_ref())
    }
}

impl HostSet {
    fn has(&self, host: &HostName) -> bool {
        let is_below = |name: &str| {
            let above = host.as_str().strip_suffix(name);
            host.ip().is_none() && above.is_some_and(|above| above.ends_with('.'))
        };
        match self {
            Self::Below(name) => is_below(name),
            Self::Name(name) => host.as_str() == name || is_below(name),
            Self::Addresses(net) => host.ip().is_some_and(|ip| net.contains(&ip)),
        }
    }
}

/// `http://proxy.corp:3128`
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        match self.host.contains(':') {
            true => write!(f, "{scheme}://[{}]:{}", self.host, self.port),
            false => write!(f, "{scheme}://{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_has_the_host_counts() {
        let proxy = |host: &str| Proxy {
            tls: false,
            host: host.to_owned(),
            port: 3128,
            authorization: Some(Secret("Basic dTpw".into())),
        };
        let ways = Ways {
            listed: vec![
                (
                    HostSet::Name("api.partner.example".into()),
                    Some(proxy("p2")),
                ),
                (HostSet::Below("partner.example".into()), None),
                (HostSet::Name("corp.example".into()), None),
                (HostSet::Addresses("10.0.0.0/8".parse().unwrap()), None),
            ],
            otherwise: Some(proxy("p1")),
        };
        for (host, expected) in [
            ("api.partner.example", Some("p2")),
            ("v2.api.partner.example", Some("p2")),
            ("other.partner.example", None),
            ("partner.example", Some("p1")),
            ("corp.example", None),
            ("git.corp.example", None),
            ("xcorp.example", Some("p1")),
            ("10.1.2.3", None),
            ("11.1.2.3", Some("p1")),
            ("2001:db8::1", Some("p1")),
        ] {
            let found = ways.of(&HostName::parse(host).unwrap());
            assert_eq!(found.map(|it| it.host.as_str()), expected, "{host}");
        }
        assert!(!format!("{ways:?}").contains("dTpw"));
        assert_eq!(proxy("::1").to_string(), "http://[::1]:3128");
    }
}
