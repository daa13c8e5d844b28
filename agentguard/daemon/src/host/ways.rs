//! The ways out that the forwarder takes: what the configuration says, with the credentials of the proxies' file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use agentguard_link::ways::{HostSet, Proxy, Secret, Ways};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::config::{HostEntry, UpstreamSection};

/// Of the file with credentials.
const MAX_BYTES: u64 = 64 * 1024;

#[derive(Debug, thiserror::Error)]
#[error("`upstream.proxy_credentials_file`: `{}` {reason}", path.display())]
pub struct CredentialsError {
    path: PathBuf,
    reason: String,
}

/// What is this machine's own is reached directly: a proxy would look for it on its own.
pub(super) fn gather(section: &UpstreamSection) -> Result<Ways, CredentialsError> {
    let own = [
        HostSet::Name("localhost".into()),
        HostSet::Addresses(IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::LOCALHOST, 8))),
        HostSet::Addresses(IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128))),
    ];
    let mut own_ways: Vec<_> = section.proxies.iter().collect();
    own_ways.sort_by_key(|(hosts, _)| std::cmp::Reverse(specificity(hosts)));
    let own_ways = own_ways
        .into_iter()
        .map(|(hosts, way)| (hosts.0.clone(), way.0.clone()));
    let direct = section.no_proxy.iter().map(|hosts| hosts.0.clone());
    let mut ways = Ways {
        listed: own_ways
            .chain(direct.chain(own).map(|hosts| (hosts, None)))
            .collect(),
        otherwise: section.proxy.0.clone(),
    };
    if let Some(path) = section.credentials_file() {
        let failed = |reason| CredentialsError {
            path: path.to_owned(),
            reason,
        };
        let text = read(path).map_err(failed)?;
        let credentials = parse(&text).map_err(failed)?;
        give(&mut ways, credentials).map_err(failed)?;
    }
    Ok(ways)
}

/// Longer names and prefixes are more specific, and what is only below a name is more so than the name with all below it.
fn specificity(hosts: &HostEntry) -> (usize, bool) {
    match &hosts.0 {
        HostSet::Name(name) => (name.len(), false),
        HostSet::Below(name) => (name.len(), true),
        HostSet::Addresses(net) => (net.prefix_len().into(), true),
    }
}

fn read(path: &Path) -> Result<String, String> {
    let cannot = |error: io::Error| format!("cannot be read: {error}");
    let file = File::open(path).map_err(cannot)?;
    let meta = file.metadata().map_err(cannot)?;
    if !meta.is_file() {
        return Err("is no file".into());
    }
    if meta.uid() != 0 || meta.mode() & 0o077 != 0 {
        let mode = meta.mode() & 0o7777;
        return Err(format!(
            "is not root's alone (owner {}, mode {mode:04o}): `chown root` and `chmod 600` it",
            meta.uid()
        ));
    }
    let mut text = String::new();
    let mut file = file.take(MAX_BYTES + 1);
    file.read_to_string(&mut text).map_err(cannot)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(format!("is longer than {MAX_BYTES} bytes"));
    }
    Ok(text)
}

/// `HOST:PORT USER:PASSWORD` (RFC 7617 section 2) by their proxies.
fn parse(text: &str) -> Result<BTreeMap<&str, Secret>, String> {
    let mut found = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let credentials = line.split_once(' ').filter(|(_, credentials)| {
            credentials.contains(':') && !credentials.chars().any(char::is_control)
        });
        let Some((proxy, credentials)) = credentials else {
            let number = number + 1;
            return Err(format!("is not `HOST:PORT USER:PASSWORD` in line {number}"));
        };
        let value = Secret(format!("Basic {}", BASE64.encode(credentials)));
        if found.insert(proxy, value).is_some() {
            return Err(format!("has `{proxy}` twice"));
        }
    }
    Ok(found)
}

fn give(ways: &mut Ways, credentials: BTreeMap<&str, Secret>) -> Result<(), String> {
    let listed = ways.listed.iter_mut().map(|(_, proxy)| proxy);
    let mut proxies: Vec<&mut Proxy> = listed
        .chain([&mut ways.otherwise])
        .filter_map(Option::as_mut)
        .collect();
    for (at, value) in credentials {
        let mut known = false;
        for proxy in &mut proxies {
            let shown = proxy.to_string();
            if shown
                .split_once("://")
                .is_some_and(|(_, place)| place.eq_ignore_ascii_case(at))
            {
                proxy.authorization = Some(value.clone());
                known = true;
            }
        }
        if !known {
            // Words that are the wrong way round are a password.
            let port = at.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
            let place = match port {
                Some(Ok(_)) => format!("`{at}`"),
                Some(Err(_)) | None => "something".into(),
            };
            return Err(format!(
                "has credentials for {place}, which is no proxy of `[upstream]`"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use agentguard_policy::HostName;

    use super::*;

    fn section(text: &str) -> UpstreamSection {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn the_most_specific_way_counts() {
        let ways = gather(&section(
            r#"
proxy = "http://p1.corp:3128"
no_proxy = [".corp.example", "10.0.0.0/8"]
proxies = { "partner.example" = "http://p2.corp:3128", "api.partner.example" = "direct", "git.corp.example" = "https://p3.corp:443", "two.example" = "http://p4.corp:1", ".two.example" = "http://p5.corp:1" }
"#,
        ))
        .unwrap();
        for (host, expected) in [
            ("x.example", Some("http://p1.corp:3128")),
            ("partner.example", Some("http://p2.corp:3128")),
            ("api.partner.example", None),
            ("git.corp.example", Some("https://p3.corp:443")),
            ("x.corp.example", None),
            ("two.example", Some("http://p4.corp:1")),
            ("x.two.example", Some("http://p5.corp:1")),
            ("10.1.1.1", None),
            ("localhost", None),
            ("127.0.0.2", None),
            ("::1", None),
            ("192.0.2.1", Some("http://p1.corp:3128")),
        ] {
            let found = ways.of(&HostName::parse(host).unwrap());
            assert_eq!(
                found.map(ToString::to_string).as_deref(),
                expected,
                "{host}"
            );
        }
    }

    #[test]
    fn credentials_are_of_one_proxy_and_roots_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials");
        let with = |text: &str, mode: u32| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let file = path.display();
            let section = section(&format!(
                "proxy = \"http://p1.corp:3128\"\nproxies = {{ \"x.example\" = \"http://p2.corp:3128\" }}\nproxy_credentials_file = \"{file}\"\n"
            ));
            gather(&section).map_err(|error| error.to_string())
        };
        let ways = with("# the proxy\n\np1.corp:3128 user:pass word:#\n", 0o600).unwrap();
        let value = ways.otherwise.unwrap().authorization.unwrap();
        assert_eq!(
            value.0,
            format!("Basic {}", BASE64.encode("user:pass word:#"))
        );
        let other = ways.listed[0].1.clone().unwrap();
        assert_eq!(other.authorization, None);
        for (text, mode, expected) in [
            (
                "p1.corp:3128 u:p\n",
                0o640,
                "is not root's alone (owner 0, mode 0640)",
            ),
            ("p1.corp:3128 u:p\n", 0o604, "is not root's alone"),
            (
                "p1.corp:3128 user\n",
                0o600,
                "is not `HOST:PORT USER:PASSWORD` in line 1",
            ),
            (
                "p3.corp:3128 u:p\n",
                0o600,
                "`p3.corp:3128`, which is no proxy",
            ),
            (
                "p1.corp:3128 u:p\np1.corp:3128 u:q\n",
                0o600,
                "has `p1.corp:3128` twice",
            ),
        ] {
            let error = with(text, mode).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
            assert!(!error.contains("u:p"), "{error}");
        }
        fs::remove_file(&path).unwrap();
        let section = section(&format!("proxy_credentials_file = \"{}\"", path.display()));
        let error = gather(&section).unwrap_err().to_string();
        assert!(error.contains("cannot be read"), "{error}");
    }
}
