//! What a request says about where it goes must agree with itself and with its connection: SNI, `Host`, `:authority`,
//! the target's form, the port. What is judged here is what is dialled.

use agentguard_policy::HostName;
use http::request::Parts;
use http::uri::{Authority, Scheme};
use http::{HeaderMap, Method, Version, header};

/// How the agent came in: what its requests must agree with.
#[derive(Clone, Debug)]
pub(crate) struct Entrance {
    pub scheme: Scheme,
    /// The name given in TLS, or to `CONNECT`.
    pub name: Option<HostName>,
    /// The port that the connection was for.
    pub port: u16,
    /// `CONNECT` has opened this; there is no second one inside.
    pub tunnel: bool,
    /// HTTP/2 on this leg.
    pub http2: bool,
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestTarget {
    pub host: HostName,
    pub port: u16,
}

impl RequestTarget {
    /// As a host id in policies and records: the port unless it is 443.
    pub(crate) fn id(&self) -> String {
        self.host.id(self.port)
    }

    /// As `Host` or `:authority`: the port unless it is the scheme's own.
    pub(crate) fn authority(&self, scheme: &Scheme) -> String {
        // The id of the default port has none.
        let port = if self.port == default_port(scheme) {
            default_port(&Scheme::HTTPS)
        } else {
            self.port
        };
        match self.host.id(port) {
            id if self.port == 443 && *scheme != Scheme::HTTPS => format!("{id}:443"),
            id => id,
        }
    }
}

/// The one place that all parts of the request name, or how they disagree.
pub(crate) fn target(entrance: &Entrance, parts: &Parts) -> Result<RequestTarget, String> {
    let host = host_header(&parts.headers, parts.version)?;
    if let Some(scheme) = parts.uri.scheme()
        && *scheme != entrance.scheme
    {
        return Err(format!(
            "the request's scheme is `{scheme}`, its connection's is `{}`",
            entrance.scheme
        ));
    }
    let default = default_port(&entrance.scheme);
    let named = parts.uri.authority().map(|a| parse(a, default));
    let hosted = host.as_ref().map(|a| parse(a, default));
    let target = match (named.transpose()?, hosted.transpose()?) {
        (Some(named), Some(hosted)) if named != hosted => {
            return Err("`Host` and the request's target name different places".into());
        }
        (Some(target), _) | (None, Some(target)) => target,
        (None, None) => return Err("the request names no host".into()),
    };
    if let Some(name) = &entrance.name
        && target.host != *name
    {
        return Err(format!(
            "the request is for `{}`, its connection for `{}`",
            target.host.as_str(),
            name.as_str()
        ));
    }
    // A client that was told to use a proxy names the place in the target and connects to the proxy's port.
    let to_proxy = entrance.name.is_none() && !entrance.http2 && parts.uri.authority().is_some();
    if target.port != entrance.port && !to_proxy {
        return Err(format!(
            "the request is for port {}, its connection for port {}",
            target.port, entrance.port
        ));
    }
    Ok(target)
}

/// Where `CONNECT` wants to go (RFC 9110 section 9.3.6): always with a port.
pub(crate) fn connect_target(parts: &Parts) -> Result<RequestTarget, String> {
    debug_assert_eq!(parts.method, Method::CONNECT);
    let authority = parts
        .uri
        .authority()
        .ok_or("`CONNECT` without a host and port")?;
    if authority.port_u16().is_none() {
        return Err("`CONNECT` without a port".into());
    }
    parse(authority, 0)
}

fn host_header(headers: &HeaderMap, version: Version) -> Result<Option<Authority>, String> {
    let mut lines = headers.get_all(header::HOST).iter();
    let Some(line) = lines.next() else {
        // RFC 9112 section 3.2.
        return if version == Version::HTTP_11 {
            Err("`Host` is missing".into())
        } else {
            Ok(None)
        };
    };
    if lines.next().is_some() {
        return Err("`Host` is there more than once".into());
    }
    Authority::try_from(line.as_bytes())
        .map(Some)
        .map_err(|_| "`Host` is not a host".into())
}

fn parse(authority: &Authority, default: u16) -> Result<RequestTarget, String> {
    let text = authority.as_str();
    if text.contains('@') {
        return Err("user information in the request's host".into());
    }
    let port = match authority.port() {
        Some(port) => port.as_u16(),
        None if text.ends_with(':') => return Err("a colon without a port".into()),
        None => default,
    };
    if port == 0 {
        return Err("port 0 in the request's host".into());
    }
    let host = HostName::parse(authority.host())
        .map_err(|error| format!("the request's host: {error}"))?;
    Ok(RequestTarget { host, port })
}

fn default_port(scheme: &Scheme) -> u16 {
    if *scheme == Scheme::HTTPS { 443 } else { 80 }
}
