//! What the forwarder needs of this host's files to find and trust upstreams; it opens none itself. Also the bundle of
//! trust anchors that agents are given.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use agentguard_link::frame::Upstream;
use agentguard_link::state::Names;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::ways::{self, CredentialsError};
use crate::host::config::UpstreamSection;

/// Where distributions keep their trust anchors as one file. The first that is there is the system's.
pub const SYSTEM_BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// `hosts(5)` and `resolv.conf(5)`.
pub(super) const HOSTS: &str = "/etc/hosts";
pub(super) const RESOLV_CONF: &str = "/etc/resolv.conf";

#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("`upstream.roots`: cannot read `{}`: {reason}", path.display())]
    Roots { path: PathBuf, reason: String },
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

/// The system's trust anchors, PEM; empty on a host that has none.
pub fn system_roots() -> String {
    SYSTEM_BUNDLES
        .iter()
        .find_map(|path| std::fs::read_to_string(path).ok())
        .unwrap_or_default()
}

/// `system`: PEM. A certificate in it that cannot be read is left out; in a configured file it is an error.
pub fn gather(section: &UpstreamSection, system: &str) -> Result<Upstream, UpstreamError> {
    let mut roots: Vec<Vec<u8>> = CertificateDer::pem_slice_iter(system.as_bytes())
        .filter_map(|der| Some(der.ok()?.to_vec()))
        .collect();
    for path in &section.roots {
        let unreadable = |reason: String| UpstreamError::Roots {
            path: path.clone(),
            reason,
        };
        let before = roots.len();
        for der in CertificateDer::pem_file_iter(path).map_err(|e| unreadable(e.to_string()))? {
            roots.push(der.map_err(|e| unreadable(e.to_string()))?.to_vec());
        }
        if roots.len() == before {
            return Err(unreadable("it has no certificate".into()));
        }
    }
    Ok(Upstream {
        roots,
        allow_addresses: section.allow_addresses.clone(),
        ways: ways::gather(section)?,
    })
}

/// Where names are found now: by the configuration, then by the host's files.
pub fn names(section: &UpstreamSection) -> Names {
    let mut hosts = parse_hosts(&read(HOSTS));
    for (name, addresses) in &section.hosts {
        hosts.insert(name.to_ascii_lowercase(), addresses.to_vec());
    }
    let resolvers = match section.resolvers.as_slice() {
        [] => parse_resolvers(&read(RESOLV_CONF)),
        configured => configured.iter().map(|r| r.0).collect(),
    };
    Names { hosts, resolvers }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(path)).unwrap_or_default()
}

/// `hosts(5)`.
fn parse_hosts(text: &str) -> BTreeMap<String, Vec<IpAddr>> {
    let mut hosts: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or("").split_whitespace();
        let Some(Ok(address)) = words.next().map(str::parse) else {
            continue;
        };
        for name in words {
            hosts
                .entry(name.to_ascii_lowercase())
                .or_default()
                .push(address);
        }
    }
    hosts
}

/// `resolv.conf(5)`; without a name server the one on this host is asked, as the C library does.
fn parse_resolvers(text: &str) -> Vec<SocketAddr> {
    let found: Vec<SocketAddr> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next()? == "nameserver").then_some(())?;
            Some(SocketAddr::new(words.next()?.parse().ok()?, 53))
        })
        .collect();
    if found.is_empty() {
        return vec![SocketAddr::from(([127, 0, 0, 1], 53))];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_resolvers_as_the_c_library_reads_them() {
        let hosts =
            parse_hosts("127.0.0.1 localhost # me\n::1\tLocalHost two\n# 1.2.3.4 no\nx y\n");
        assert_eq!(hosts["localhost"].len(), 2);
        assert_eq!(hosts["two"], ["::1".parse::<IpAddr>().unwrap()]);
        assert_eq!(hosts.len(), 2);
        let found = parse_resolvers(
            "search x\nnameserver 192.0.2.1\n#nameserver 192.0.2.2\nnameserver ::1\n",
        );
        assert_eq!(found.len(), 2);
        assert_eq!(parse_resolvers("")[0].to_string(), "127.0.0.1:53");
    }

    #[test]
    fn a_configured_root_must_be_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pem");
        std::fs::write(&path, "no certificate").unwrap();
        let section = UpstreamSection {
            roots: vec![path],
            ..UpstreamSection::default()
        };
        let error = gather(&section, "").unwrap_err().to_string();
        assert!(
            error.contains("x.pem") && error.contains("no certificate"),
            "{error}"
        );
        assert!(
            gather(&UpstreamSection::default(), "junk")
                .unwrap()
                .roots
                .is_empty()
        );
    }
}
