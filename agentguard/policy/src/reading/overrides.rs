//! What else than its first line says which request it is: headers and a parameter by which servers take another method, path
//! or host.

use std::borrow::Cow;

use http::HeaderMap;
use http::header::HeaderName;
use percent_encoding::percent_decode_str;

use crate::body::{Body, Fields};
use crate::facts::{decode_form, php_name};
use crate::host::{HostName, parse_port, show, split_port};
use crate::path::CanonicalPath;

/// The parameter, in a query or a form, by which frameworks take another method.
pub(crate) const METHOD_PARAMETER: &str = "_method";

/// What a header says that some servers take in place of the request's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    Method,
    Path,
    Host,
    /// `Forwarded` (RFC 7239), of which `host` is a part.
    Forwarded,
}

/// By their names with `-`. CGI makes `_` of every character that is neither a letter nor a digit (RFC 3875 section 4.1.18).
const HEADERS: [(&str, Says); 13] = [
    ("forwarded", Says::Forwarded),
    ("x-forwarded-host", Says::Host),
    ("x-forwarded-server", Says::Host),
    ("x-forwarded-uri", Says::Path),
    ("x-host", Says::Host),
    ("x-http-host-override", Says::Host),
    ("x-http-method", Says::Method),
    ("x-http-method-override", Says::Method),
    ("x-method-override", Says::Method),
    ("x-original-host", Says::Host),
    ("x-original-uri", Says::Path),
    ("x-original-url", Says::Path),
    ("x-rewrite-url", Says::Path),
];

/// What a request may also be, part by part.
#[derive(Debug, Default)]
pub(super) struct Overrides<'i> {
    pub methods: Vec<(String, Cow<'i, str>)>,
    pub paths: Vec<(OtherTarget, Cow<'i, str>)>,
    pub hosts: Vec<((HostName, u16), Cow<'i, str>)>,
    /// As a record has them.
    pub facts: Vec<(String, String)>,
}

/// Where an override leads: its own query, or the request's.
#[derive(Debug)]
pub(super) struct OtherTarget {
    pub path: CanonicalPath,
    pub query: Option<String>,
}

impl<'i> Overrides<'i> {
    /// `port`: the request's own.
    ///
    /// # Errors
    /// Says which of them is none that could be judged.
    pub(super) fn of(
        query: Option<&str>,
        headers: &'i HeaderMap,
        body: &Body,
        port: u16,
    ) -> Result<Self, String> {
        let mut found = Self::default();
        for (name, value) in headers {
            if let Some(says) = says(name) {
                found.take(name, says, value.as_bytes(), port)?;
            }
        }
        for value in method_parameters(query.unwrap_or_default()) {
            found.takes_method(METHOD_PARAMETER.into(), &value, "query._method".into());
        }
        if let Body::Read(Fields(fields)) = body
            && let Some(value) = fields.get(crate::body::METHOD_FIELD)
        {
            for value in value.shown().split(',') {
                found.takes_method(METHOD_PARAMETER.into(), value, "body._method".into());
            }
        }
        Ok(found)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.methods.is_empty() && self.paths.is_empty() && self.hosts.is_empty()
    }

    fn takes_method(&mut self, by: Cow<'i, str>, value: &str, fact: String) {
        let value = value.trim();
        if value.is_empty() {
            return;
        }
        self.methods.push((value.to_ascii_uppercase(), by));
        self.facts.push((fact, value.to_owned()));
    }

    fn take(
        &mut self,
        name: &'i HeaderName,
        says: Says,
        value: &[u8],
        port: u16,
    ) -> Result<(), String> {
        let name = name.as_str();
        let unusable = |why: &str| format!("header `{name}` {why}, which some servers heed");
        let text = std::str::from_utf8(value).map_err(|_| unusable("is not UTF-8"))?;
        let values = text.split(',').map(str::trim).filter(|it| !it.is_empty());
        let fact = format!("header.{name}");
        match says {
            Says::Method => {
                values.for_each(|value| self.takes_method(name.into(), value, fact.clone()));
            }
            Says::Path => {
                // Its query may have what no record keeps.
                let path = text.split('?').next().unwrap_or(text);
                self.facts.push((fact, path.to_owned()));
                for text in targets(text.trim()) {
                    let target = OtherTarget::parse(text).map_err(|why| {
                        unusable(&format!("names a path that cannot be judged ({why})"))
                    })?;
                    for value in method_parameters(target.query.as_deref().unwrap_or_default()) {
                        self.takes_method(name.into(), &value, "query._method".into());
                    }
                    self.paths.push((target, name.into()));
                }
            }
            Says::Host | Says::Forwarded => {
                self.facts.push((fact, text.to_owned()));
                for value in values {
                    let hosts: Vec<&str> = match says {
                        Says::Forwarded => forwarded_hosts(value).collect(),
                        Says::Host | Says::Method | Says::Path => vec![value],
                    };
                    for value in hosts {
                        let host = host(value, port)
                            .map_err(|why| unusable(&format!("names no host ({why})")))?;
                        self.hosts.push((host, name.into()));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Whether some servers take a header of this name for the request's own method, path or host.
pub fn leads_elsewhere(name: &HeaderName) -> bool {
    says(name).is_some()
}

/// What begins with `//` is a path, and to who reads URLs a host and a path behind it (RFC 3986 section 4.2).
fn targets(text: &str) -> impl Iterator<Item = &str> {
    let behind_host = text.strip_prefix("//").map(|rest| {
        let path = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        &rest[path..]
    });
    [text].into_iter().chain(behind_host)
}

impl OtherTarget {
    fn parse(text: &str) -> Result<Self, String> {
        let target = match text.split_once("://") {
            Some((scheme, rest)) if scheme.bytes().all(|b| b.is_ascii_alphabetic()) => {
                &rest[rest.find(['/', '?']).unwrap_or(rest.len())..]
            }
            _ => text,
        };
        let target = target.split('#').next().unwrap_or(target);
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        let path = match path.starts_with('/') || path.is_empty() {
            true => CanonicalPath::parse(path),
            false => CanonicalPath::parse(&format!("/{path}")),
        };
        Ok(Self { path: path?, query })
    }
}

fn says(name: &HeaderName) -> Option<Says> {
    let name = name.as_str();
    if !name.starts_with('x') && !name.starts_with('f') {
        return None;
    }
    let same = |known: &str| {
        known.len() == name.len()
            && known.bytes().zip(name.bytes()).all(|(known, byte)| {
                known == byte || known == b'-' && !byte.is_ascii_alphanumeric()
            })
    };
    let found = HEADERS.iter().find(|(known, _)| same(known));
    found.map(|(_, says)| *says)
}

/// Whether a record's fact is one of these, so that a replay has what it had.
pub(crate) fn is_override(fact: &str) -> bool {
    match fact.split_once('.') {
        Some(("header", name)) => name.parse().is_ok_and(|name| says(&name).is_some()),
        Some(("query" | "body", name)) => name == METHOD_PARAMETER,
        _ => false,
    }
}

fn forwarded_hosts(element: &str) -> impl Iterator<Item = &str> {
    let pairs = element.split(';').filter_map(|pair| pair.split_once('='));
    let hosts = pairs.filter(|(name, _)| name.trim().eq_ignore_ascii_case("host"));
    hosts.map(|(_, value)| value.trim().trim_matches('"'))
}

fn host(text: &str, port: u16) -> Result<(HostName, u16), String> {
    let (name, own) = split_port(text)?;
    let port = own.map_or(Ok(port), parse_port)?;
    Ok((HostName::parse(name)?, port))
}

/// Values of the parameter that names a method, however its name is written.
fn method_parameters(query: &str) -> impl Iterator<Item = String> {
    let pairs = query.split(['&', ';']);
    let pairs = pairs.filter_map(|pair| pair.split_once('='));
    // Almost every name is a plain one of another length.
    let pairs =
        pairs.filter(|(name, _)| name.len() == METHOD_PARAMETER.len() || name.contains(['%', '+']));
    pairs.filter_map(|(name, value)| {
        let name = name.replace('+', " ");
        let name = percent_decode_str(&name).decode_utf8_lossy();
        // PHP takes a name up to its NUL.
        let name = name.split('\0').next().unwrap_or(&name);
        let value = || decode_form(value).unwrap_or_else(|_| show(value));
        is_method_parameter(name).then(value)
    })
}

/// Whether some server takes the name of a parameter for [`METHOD_PARAMETER`].
pub(crate) fn is_method_parameter(name: &str) -> bool {
    php_name(name).eq_ignore_ascii_case(METHOD_PARAMETER)
}
