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
    /// The name given in TLS or to `CONNECT`; the address for TLS that was given none.
    pub name: Option<HostName>,
    /// What the connection itself was for, where it has no name: an address.
    pub address: HostName,
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

    /// As `Host` or `:authority`, with a port where the request wrote one: signatures cover it as it is. A request that names
    /// no host gets the port unless it is the scheme's own.
    pub(crate) fn authority(&self, scheme: &Scheme, parts: &Parts) -> String {
        let named = match parts.uri.authority() {
            Some(authority) => Some(authority.as_str()),
            None => parts
                .headers
                .get(header::HOST)
                .and_then(|host| host.to_str().ok()),
        };
        let has_port = match named {
            // Behind the bracket of an IPv6 address.
            Some(named) => named.rsplit(']').next().is_some_and(|it| it.contains(':')),
            None => self.port != default_port(scheme),
        };
        match (has_port, self.port) {
            (false, _) => self.host.id(443),
            (true, 443) => format!("{}:443", self.host.id(443)),
            (true, port) => self.host.id(port),
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
    // A client that was told to use a proxy names the place in the target and connects to the proxy's port.
    let to_proxy = entrance.name.is_none()
        && !entrance.tunnel
        && !entrance.http2
        && parts.uri.authority().is_some();
    let default = match to_proxy {
        true => default_port(&entrance.scheme),
        false => entrance.port,
    };
    let named = parts.uri.authority().map(|a| parse(a, default));
    let hosted = host.as_ref().map(|a| parse(a, default));
    let target = match (named.transpose()?, hosted.transpose()?) {
        (Some(named), Some(hosted)) if named != hosted => {
            return Err("`Host` and the request's target name different places".into());
        }
        (Some(target), _) | (None, Some(target)) => target,
        // As HTTP/1.0 may: it is for whom its connection is.
        (None, None) => RequestTarget {
            host: entrance.name.as_ref().unwrap_or(&entrance.address).clone(),
            port: entrance.port,
        },
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
    if target.port != entrance.port && !to_proxy {
        return Err(format!(
            "the request is for port {}, its connection for port {}",
            target.port, entrance.port
        ));
    }
    Ok(target)
}

/// Where `CONNECT` wants to go (RFC 9110 section 9.3.6); without a port, which clients leave out, it is 443.
pub(crate) fn connect_target(parts: &Parts) -> Result<RequestTarget, String> {
    debug_assert_eq!(parts.method, Method::CONNECT);
    let authority = parts.uri.authority().ok_or("`CONNECT` without a host")?;
    parse(authority, default_port(&Scheme::HTTPS))
}

fn host_header(headers: &HeaderMap, version: Version) -> Result<Option<Authority>, String> {
    let mut lines = headers.get_all(header::HOST).iter();
    let Some(line) = lines.next() else {
        // RFC 9112 section 3.2.
        return match version {
            Version::HTTP_11 => Err("`Host` is missing".into()),
            _ => Ok(None),
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
    // Behind the bracket of an IPv6 address.
    let behind = text.rsplit(']').next().unwrap_or(text);
    let port = match behind.rsplit_once(':') {
        Some((_, "")) => return Err("a colon without a port".into()),
        Some((_, port)) => digits(port).ok_or("the request's port is none")?,
        None => default,
    };
    if port == 0 {
        return Err("port 0 in the request's host".into());
    }
    let host = HostName::parse(authority.host())
        .map_err(|error| format!("the request's host: {error}"))?;
    Ok(RequestTarget { host, port })
}

fn digits(text: &str) -> Option<u16> {
    let all = text.bytes().all(|byte| byte.is_ascii_digit());
    all.then(|| text.parse().ok()).flatten()
}

fn default_port(scheme: &Scheme) -> u16 {
    if *scheme == Scheme::HTTPS { 443 } else { 80 }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn entrance(scheme: &Scheme, name: Option<&str>, port: u16) -> Entrance {
        Entrance {
            scheme: scheme.clone(),
            name: name.map(|name| HostName::parse(name).unwrap()),
            address: HostName::parse("192.0.2.1").unwrap(),
            port,
            tunnel: false,
            http2: false,
        }
    }

    fn parts(target: &str, host: Option<&str>) -> Parts {
        let mut request = Request::builder().uri(target);
        if let Some(host) = host {
            request = request.header(header::HOST, host);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_host_without_a_port_is_its_connections() {
        let tls = Scheme::HTTPS;
        let plain = Scheme::HTTP;
        let cases = [
            (&tls, 443, "/", "a.test", Some(("a.test", "a.test"))),
            (&tls, 443, "/", "a.test:443", Some(("a.test", "a.test:443"))),
            (&tls, 8443, "/", "A.test.", Some(("a.test:8443", "a.test"))),
            (
                &tls,
                8443,
                "/",
                "a.test:8443",
                Some(("a.test:8443", "a.test:8443")),
            ),
            (
                &tls,
                8443,
                "https://a.test/",
                "a.test",
                Some(("a.test:8443", "a.test")),
            ),
            (&tls, 8443, "/", "a.test:443", None),
            (&tls, 443, "/", "a.test:8443", None),
            (&tls, 443, "/", "a.test:65979", None),
            (&tls, 443, "/", "a.test:-1", None),
            (&tls, 443, "/", "a.test:+443", None),
            (&plain, 8080, "/", "a.test", Some(("a.test:8080", "a.test"))),
            (&plain, 8080, "/", "a.test:80", None),
            (
                &plain,
                80,
                "/",
                "a.test:80",
                Some(("a.test:80", "a.test:80")),
            ),
            (&plain, 443, "/", "a.test", Some(("a.test", "a.test"))),
        ];
        for (scheme, port, line, host, expected) in cases {
            let parts = parts(line, Some(host));
            let target = target(&entrance(scheme, Some("a.test"), port), &parts);
            let got = target.map(|it| (it.id(), it.authority(scheme, &parts)));
            let got = got.as_ref().ok().map(|(id, host)| (&**id, &**host));
            assert_eq!(got, expected, "{scheme} {port} {line} {host}");
        }
    }

    #[test]
    fn what_a_proxy_is_asked_for_has_its_schemes_port() {
        let plain = Scheme::HTTP;
        let proxy = entrance(&plain, None, 3128);
        let parts = parts("http://a.test/x", Some("a.test"));
        let target = target(&proxy, &parts).unwrap();
        assert_eq!(target.id(), "a.test:80");
        assert_eq!(target.authority(&plain, &parts), "a.test");
    }

    #[test]
    fn addresses_have_ports_behind_their_brackets() {
        let tls = Scheme::HTTPS;
        for (port, host, id) in [(443, "[::1]", "[::1]"), (8443, "[::1]:8443", "[::1]:8443")] {
            let parts = parts("/", Some(host));
            let target = target(&entrance(&tls, None, port), &parts).unwrap();
            assert_eq!(target.id(), id);
            assert_eq!(target.authority(&tls, &parts), host);
        }
    }

    #[test]
    fn http_1_0_without_a_host_is_for_whom_its_connection_is() {
        let plain = Scheme::HTTP;
        let mut parts = parts("/", None);
        for (name, expected) in [(None, "192.0.2.1:8080"), (Some("a.test"), "a.test:8080")] {
            let entrance = entrance(&plain, name, 8080);
            parts.version = Version::HTTP_10;
            let target = target(&entrance, &parts).unwrap();
            assert_eq!(target.id(), expected);
            assert_eq!(target.authority(&plain, &parts), expected);
            parts.version = Version::HTTP_11;
            assert!(super::target(&entrance, &parts).is_err());
        }
    }
}
