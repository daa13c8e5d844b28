//! Host patterns: a name or everything below it, at one port.

use super::map::{is_below, parents};
use super::{HostName, RESERVED, show};

/// A host, or with `*.` in front all names below one (one or more labels, not the name itself), at one port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct HostPattern {
    pub name: HostName,
    pub below: bool,
    pub port: u16,
}

impl HostPattern {
    /// HTTPS (RFC 9110 section 4.2.2); left out of a host's id.
    pub(crate) const DEFAULT_PORT: u16 = 443;

    /// `name`, `name:port`, `*.name`, `*.name:port`, `[v6]:port`.
    pub(crate) fn parse(raw: &str) -> Result<Self, String> {
        let (host, port) = split_port(raw)?;
        let port = match port {
            None => Self::DEFAULT_PORT,
            Some(port) => parse_port(port)?,
        };
        let (below, host) = match host.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, host),
        };
        if host.contains('*') {
            return Err(format!(
                "`{}` has `*` where no wildcard can be: only `*.` in front of a name stands for names below it",
                show(raw)
            ));
        }
        let name = HostName::parse(host)?;
        if below && name.ip().is_some() {
            return Err(format!(
                "`{}` puts a wildcard in front of an address",
                show(raw)
            ));
        }
        if !below && name.as_str() == RESERVED {
            return Err(format!(
                "`{RESERVED}` is AgentGuard's own: every agent that reaches a host finds it there"
            ));
        }
        Ok(Self { name, below, port })
    }

    /// `*.parent:port`, for a parent that [`HostPattern::parents`] gave.
    pub(crate) fn below(parent: &str, port: u16) -> Option<Self> {
        let name = HostName::parse(parent).ok()?;
        Some(Self {
            name,
            below: true,
            port,
        })
    }

    pub(crate) fn id(&self) -> String {
        let star = if self.below { "*." } else { "" };
        format!("{star}{}", self.name.id(self.port))
    }

    /// The names above this one, nearest first; none above an address.
    pub(crate) fn parents(&self) -> impl Iterator<Item = &str> {
        parents(self.name.as_str())
    }

    /// Whether every host of `other` is one of this pattern's.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        self.port == other.port
            && if self.below {
                self.name == other.name && other.below
                    || is_below(other.name.as_str(), self.name.as_str())
            } else {
                self == other
            }
    }
}

/// Splits `host:port`; a bracketed or bare IPv6 literal keeps its colons.
pub(crate) fn split_port(raw: &str) -> Result<(&str, Option<&str>), String> {
    if raw.starts_with('[') {
        let end = raw
            .find(']')
            .ok_or_else(|| format!("`{}` has no closing bracket", show(raw)))?;
        let (host, rest) = raw.split_at(end + 1);
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(format!(
                "`{}` has text after its closing bracket",
                show(raw)
            )),
        };
    }
    match raw.matches(':').count() {
        0 => Ok((raw, None)),
        1 => Ok(raw
            .split_once(':')
            .map_or((raw, None), |(host, port)| (host, Some(port)))),
        _ => Ok((raw, None)),
    }
}

/// A port from 1 to 65535, in decimal without leading zeros.
pub(crate) fn parse_port(raw: &str) -> Result<u16, String> {
    raw.parse::<u16>()
        .ok()
        .filter(|port| {
            *port != 0 && raw.bytes().all(|b| b.is_ascii_digit()) && !raw.starts_with('0')
        })
        .ok_or_else(|| format!("`{}` is not a port from 1 to 65535", show(raw)))
}
