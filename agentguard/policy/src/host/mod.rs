//! Names and addresses of hosts in the one form that is judged, dialled and logged.

mod map;
mod pattern;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};

pub(super) use self::map::HostMap;
pub(super) use self::pattern::{HostPattern, parse_port, split_port};

/// A DNS name or IP literal as it is judged, dialled and logged: lower case, no trailing dot, A-labels, canonical IP
/// (IPv6 without brackets, RFC 5952; an IPv4-mapped one as IPv4).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(String);

/// The forwarder's own name, at which agents find it.
pub(crate) const RESERVED: &str = "agentguard.internal";

/// Octets of a name without its trailing dot, and of a label (RFC 1035 section 2.3.4).
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

impl HostName {
    /// `raw` without a port; an IPv6 literal with or without its brackets.
    ///
    /// # Errors
    /// Says why `raw` is no host name, or not the only way to write one (`127.1`, `0x7f.1`, `%65xample.com`).
    pub fn parse(raw: &str) -> Result<Self, String> {
        if raw.is_empty() {
            return Err("the host name is empty".into());
        }
        // A U-label is never longer than its A-label in characters, and IDNA needs no more to refuse it.
        if raw.len() > 4 * MAX_NAME {
            return Err(format!("the host name is longer than {MAX_NAME} octets"));
        }
        if let Some(inner) = raw.strip_prefix('[') {
            let inner = inner
                .strip_suffix(']')
                .ok_or_else(|| format!("`{}` has no closing bracket", show(raw)))?;
            return ipv6(inner);
        }
        if raw.contains(':') {
            return ipv6(raw);
        }
        if raw.contains('%') {
            return Err(format!(
                "`{}` has percent-encoding in a host name",
                show(raw)
            ));
        }
        let lower = ascii_name(raw)?;
        let name = lower.strip_suffix('.').unwrap_or(&lower);
        check_labels(name)?;
        if ends_in_number(name) {
            if !raw.is_ascii() {
                return Err(format!(
                    "`{}` is an address in letters of another script",
                    show(raw)
                ));
            }
            return canonical_ipv4(name).map(|ip| Self(ip.to_string()));
        }
        Ok(Self(name.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The IP, if this is a literal.
    pub fn ip(&self) -> Option<IpAddr> {
        // Names never start with a digit-only last label or hold a colon, so this cannot take a name for an address.
        self.0.parse().ok()
    }

    /// The host's id in policies and audit records: the name, with the port unless it is 443, IPv6 in brackets.
    pub fn id(&self, port: u16) -> String {
        let open = if self.0.contains(':') { "[" } else { "" };
        let close = if open.is_empty() { "" } else { "]" };
        if port == HostPattern::DEFAULT_PORT {
            format!("{open}{}{close}", self.0)
        } else {
            format!("{open}{}{close}:{port}", self.0)
        }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<IpAddr> for HostName {
    fn from(ip: IpAddr) -> Self {
        Self(ip.to_canonical().to_string())
    }
}

/// Input as a message may carry it: bounded, without characters that act on a terminal.
pub fn show(raw: &str) -> String {
    const MAX: usize = 80;
    let mut shown = String::new();
    for c in raw.chars().take(MAX) {
        if acts_on_terminal(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    if raw.chars().nth(MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// Control characters, and those that change the direction of text (Unicode TR 9).
pub fn acts_on_terminal(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn ascii_name(raw: &str) -> Result<String, String> {
    let lower = raw.to_ascii_lowercase();
    if lower.is_ascii() && !lower.starts_with("xn--") && !lower.contains(".xn--") {
        return Ok(lower);
    }
    // UTS 46 non-transitional processing, and validity of the A-labels that are already there.
    Uts46::new()
        .to_ascii(
            raw.as_bytes(),
            AsciiDenyList::EMPTY,
            Hyphens::CheckFirstLast,
            DnsLength::Ignore,
        )
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| format!("`{}` is not a valid internationalised name", show(raw)))
}

fn check_labels(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("the host name is empty".into());
    }
    if name.len() > MAX_NAME {
        return Err(format!("the host name is longer than {MAX_NAME} octets"));
    }
    for label in name.split('.') {
        if label.is_empty() {
            return Err(format!("`{}` has an empty label", show(name)));
        }
        if label.len() > MAX_LABEL {
            return Err(format!(
                "label `{}` is longer than {MAX_LABEL} octets",
                show(label)
            ));
        }
        if label.starts_with('-') || label.ends_with('-') {
            return Err(format!("label `{}` starts or ends with `-`", show(label)));
        }
        if let Some(bad) = label
            .chars()
            .find(|c| !(c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_')))
        {
            return Err(format!(
                "`{}` has `{}`, which no host name has",
                show(name),
                bad.escape_default()
            ));
        }
    }
    Ok(())
}

/// Whether some parsers would read the name as an IPv4 address (WHATWG URL, "ends in a number").
fn ends_in_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    let hex = last
        .strip_prefix("0x")
        .is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
    hex || !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit())
}

fn canonical_ipv4(name: &str) -> Result<Ipv4Addr, String> {
    name.parse()
        .map_err(|_| format!("`{}` is an IPv4 address in a form that programs read differently; write four decimal numbers", show(name)))
}

fn ipv6(inner: &str) -> Result<HostName, String> {
    if inner.contains('%') {
        return Err(format!(
            "`{}` has a zone id, which names an interface of this host only",
            show(inner)
        ));
    }
    let ip: Ipv6Addr = inner
        .parse()
        .map_err(|_| format!("`{}` is not an IPv6 address", show(inner)))?;
    Ok(HostName::from(IpAddr::V6(ip)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_have_one_spelling() {
        let cases = [
            ("API.Supplier.Example", "api.supplier.example"),
            ("api.supplier.example.", "api.supplier.example"),
            ("bücher.example", "xn--bcher-kva.example"),
            ("BÜCHER.example", "xn--bcher-kva.example"),
            ("xn--BCHER-kva.example", "xn--bcher-kva.example"),
            ("bücher。example", "xn--bcher-kva.example"),
            ("_dmarc.example", "_dmarc.example"),
            ("localhost", "localhost"),
            ("3com.example", "3com.example"),
            ("10.0.0.1", "10.0.0.1"),
            ("10.0.0.1.", "10.0.0.1"),
            ("[::1]", "::1"),
            ("2001:DB8:0:0::1", "2001:db8::1"),
            ("[::ffff:10.0.0.1]", "10.0.0.1"),
        ];
        for (raw, expected) in cases {
            assert_eq!(
                HostName::parse(raw).as_ref().map(HostName::as_str),
                Ok(expected),
                "{raw}"
            );
        }
    }

    #[test]
    fn what_two_parsers_could_read_differently_is_refused() {
        let long_label = format!("{}.example", "a".repeat(64));
        let long_name = format!("{}example", "a.".repeat(124));
        let cases = [
            "",
            ".",
            "..",
            "a..b",
            ".a",
            "127.1",
            "0x7f.1",
            "0x7f000001",
            "2130706433",
            "１.1.1.1",
            "127。0。0。1",
            "01.2.3.4",
            "1.2.3.4.5",
            "256.1.1.1",
            "a.1",
            "a.0x1f",
            "a.0x",
            "fe80::1%eth0",
            "[fe80::1%25eth0]",
            "[::1",
            "::1]",
            "[1.2.3.4]",
            "a\0b.example",
            "a b",
            "a%2eb",
            "a/b",
            "a@b",
            "a#b",
            "a?b",
            "a\\b",
            "-a.example",
            "a-.example",
            "xn--.example",
            "xn--a.example",
            "a:80",
            "*.example",
            "a,b",
            "exa\u{ad}mple\u{202e}.com:1",
            &long_label,
            &long_name,
        ];
        for raw in cases {
            assert!(
                HostName::parse(raw).is_err(),
                "{raw:?} was accepted as {:?}",
                HostName::parse(raw)
            );
        }
    }

    #[test]
    fn ids_leave_out_the_default_port() {
        let cases = [
            ("origin.test", 443, "origin.test"),
            ("origin.test", 8443, "origin.test:8443"),
            ("::1", 443, "[::1]"),
            ("::1", 80, "[::1]:80"),
            ("10.0.0.1", 80, "10.0.0.1:80"),
        ];
        for (raw, port, expected) in cases {
            assert_eq!(HostName::parse(raw).unwrap().id(port), expected);
        }
    }

    proptest! {
        #[test]
        fn parsing_is_idempotent_and_never_panics(raw in "\\PC{0,40}|[a-zA-Z0-9.:%\\[\\]_-]{0,40}|[üßé.a-z0-9-]{0,20}") {
            if let Ok(name) = HostName::parse(&raw) {
                prop_assert_eq!(HostName::parse(name.as_str()), Ok(name.clone()));
                prop_assert!(name.as_str().len() <= MAX_NAME);
                prop_assert_eq!(name.as_str().to_ascii_lowercase(), name.as_str());
                let pattern = HostPattern::parse(&name.id(8443)).unwrap();
                prop_assert_eq!(pattern, HostPattern { name, below: false, port: 8443 });
            }
        }


    }
}
