//! Ways out as the configuration writes them.

use std::str::FromStr;

use agentguard_link::ways::{HostSet, Proxy};
use agentguard_policy::HostName;
use http::Uri;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// A proxy's URL, or `direct`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxyChoice(pub Option<Proxy>);

/// Whom a way is for: a name with all below it, `.name` or `*.name` for those below alone, an address or a range.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostEntry(pub HostSet);

impl FromStr for ProxyChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "write `http://proxy.example:3128`, `https://…`, or `direct`";
        if text == "direct" {
            return Ok(Self(None));
        }
        if text.contains('@') {
            return Err(
                "credentials belong in the file that `proxy_credentials_file` names".into(),
            );
        }
        let uri: Uri = text
            .parse()
            .map_err(|_| format!("`{text}` is no URL; {FORM}"))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            Some(other) => return Err(format!("`{other}` is no proxy's protocol here; {FORM}")),
            None => return Err(format!("`{text}` has no scheme; {FORM}")),
        };
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(format!(
                "`{text}` has more than a scheme, a host and a port; {FORM}"
            ));
        }
        let authority = uri.authority().expect("a URL with a scheme has one");
        let port = authority
            .port_u16()
            .filter(|port| *port != 0)
            .ok_or_else(|| format!("`{text}` has no port; {FORM}"))?;
        let host = HostName::parse(authority.host())?;
        Ok(Self(Some(Proxy {
            tls,
            host: host.as_str().to_owned(),
            port,
            authorization: None,
        })))
    }
}

impl FromStr for HostEntry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(net) = text.parse() {
            return Ok(Self(HostSet::Addresses(net)));
        }
        let below = text.strip_prefix("*.").or_else(|| text.strip_prefix('.'));
        let name = HostName::parse(below.unwrap_or(text)).map_err(|why| {
            format!("{why}; write a name, `.name` for all below it, an address or a range")
        })?;
        if let Some(ip) = name.ip() {
            return Ok(Self(HostSet::Addresses(ip.into())));
        }
        let name = name.as_str().to_owned();
        Ok(Self(match below {
            Some(_) => HostSet::Below(name),
            None => HostSet::Name(name),
        }))
    }
}

impl<'de> Deserialize<'de> for ProxyChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

impl<'de> Deserialize<'de> for HostEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

fn parsed<'de, D: Deserializer<'de>, T: FromStr<Err = String>>(from: D) -> Result<T, D::Error> {
    String::deserialize(from)?.parse().map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies() {
        for (text, expected) in [
            ("direct", Ok(None)),
            ("http://Proxy.Corp:3128", Ok(Some("http://proxy.corp:3128"))),
            (
                "https://proxy.corp:443/",
                Ok(Some("https://proxy.corp:443")),
            ),
            (
                "http://[2001:db8::1]:3128",
                Ok(Some("http://[2001:db8::1]:3128")),
            ),
            ("http://proxy.corp", Err("has no port")),
            ("proxy.corp:3128", Err("has no scheme")),
            (
                "socks5://proxy.corp:1080",
                Err("`socks5` is no proxy's protocol"),
            ),
            (
                "http://u:p@proxy.corp:3128",
                Err("`proxy_credentials_file`"),
            ),
            ("http://proxy.corp:3128/x", Err("more than a scheme")),
            ("", Err("is no URL")),
        ] {
            match (text.parse::<ProxyChoice>(), expected) {
                (Ok(choice), Ok(expected)) => {
                    let shown = choice.0.map(|it| it.to_string());
                    assert_eq!(shown.as_deref(), expected, "{text}");
                }
                (Err(why), Err(expected)) => assert!(why.contains(expected), "{text}: {why}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
        for text in [
            "http://u:pass@p.corp:1/x",
            "http://u:pass word@p.corp:1",
            "u:pass@p.corp",
        ] {
            let why = text.parse::<ProxyChoice>().expect_err(text);
            assert!(
                !why.contains("pass@") && !why.contains("pass word"),
                "{why}"
            );
        }
    }

    #[test]
    fn hosts() {
        let name = |name: &str| Some(HostSet::Name(name.into()));
        let below = |name: &str| Some(HostSet::Below(name.into()));
        let net = |net: &str| Some(HostSet::Addresses(net.parse().unwrap()));
        for (text, expected) in [
            ("Corp.example", name("corp.example")),
            (".corp.example", below("corp.example")),
            ("*.corp.example", below("corp.example")),
            ("10.0.0.0/8", net("10.0.0.0/8")),
            ("10.0.0.1", net("10.0.0.1/32")),
            ("[::1]", net("::1/128")),
            ("fd00::/8", net("fd00::/8")),
            ("corp.example:443", None),
            ("", None),
            ("*", None),
        ] {
            let found = text.parse::<HostEntry>().ok().map(|it| it.0);
            assert_eq!(found, expected, "{text}");
        }
    }
}
