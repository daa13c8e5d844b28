//! Requests that turn their connection into another protocol (RFC 9110 section 7.8): a WebSocket at every host, and at a
//! host whose file lists it any other protocol, whose bytes nobody judges.

use agentguard_policy::{HostSettings, show};
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Version};

use super::headers::{has_token, tokens};
use super::refusal::Refusal;

/// Offers that a server need not take up, and that are left out: HTTP goes on without them.
const LEFT_OUT: [&str; 4] = ["h2c", "http", "tls", "websocket"];

/// What a request asks its connection to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Upgrade {
    /// RFC 6455 section 4.1.
    WebSocket,
    /// As the client has written it; listed in the host's file.
    Listed(HeaderValue),
}

impl Upgrade {
    /// What the request asks for, if it does.
    ///
    /// # Errors
    /// It asks for a protocol that the host's file does not list.
    pub(crate) fn of(parts: &Parts, settings: &HostSettings) -> Result<Option<Self>, Refusal> {
        let headers = &parts.headers;
        // There is none over HTTP/2 (RFC 9113 section 8.2.2), and HTTP/1.0's is to be ignored.
        let asks = parts.version == Version::HTTP_11
            && headers.contains_key(header::UPGRADE)
            && has_token(headers, header::CONNECTION, "upgrade");
        if !asks {
            return Ok(None);
        }
        let mut offers = tokens(headers, header::UPGRADE);
        let first = offers.next();
        if parts.method == Method::GET
            && offers.next().is_none()
            && first.is_some_and(|it| it.eq_ignore_ascii_case("websocket"))
        {
            return Ok(Some(Self::WebSocket));
        }
        let mut unlisted = None;
        for offer in tokens(headers, header::UPGRADE) {
            if settings.upgrades_to(offer) {
                let value = HeaderValue::from_str(offer);
                let value = value.map_err(|_| Refusal::protocol("`Upgrade` cannot be sent on"))?;
                return Ok(Some(Self::Listed(value)));
            }
            let name = offer.split('/').next().unwrap_or(offer);
            if !LEFT_OUT.iter().any(|it| it.eq_ignore_ascii_case(name)) {
                unlisted.get_or_insert(offer);
            }
        }
        match unlisted {
            None => Ok(None),
            Some(offer) => Err(Refusal::protocol(format!(
                "the request asks for a tunnel (`Upgrade: {}`), whose bytes could not be judged; \
                 where that is meant, the host's file says `upgrade = [\"{}\"]`",
                show(offer),
                show(&offer.to_ascii_lowercase()),
            ))),
        }
    }

    pub(crate) fn as_header(&self) -> HeaderValue {
        match self {
            Self::WebSocket => HeaderValue::from_static("websocket"),
            Self::Listed(protocol) => protocol.clone(),
        }
    }

    /// Whether an answer that changes protocols changes to this one.
    pub(crate) fn is_granted_by(&self, headers: &HeaderMap) -> bool {
        let mut granted = headers.get_all(header::UPGRADE).iter();
        let this = granted.next().is_some_and(|it| {
            it.as_bytes()
                .eq_ignore_ascii_case(self.as_header().as_bytes())
        });
        this && granted.next().is_none() && has_token(headers, header::CONNECTION, "upgrade")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(method: Method, lines: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder().method(method);
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn of(method: Method, lines: &[(&str, &str)]) -> Result<Option<String>, String> {
        let settings = HostSettings {
            upgrade: vec!["tcp".into(), "spdy/3.1".into()],
            ..HostSettings::default()
        };
        match Upgrade::of(&parts(method, lines), &settings) {
            Ok(upgrade) => Ok(upgrade.map(|it| it.as_header().to_str().unwrap().to_owned())),
            Err(refusal) => Err(refusal.detail),
        }
    }

    #[test]
    fn what_is_asked_for() {
        type Lines = &'static [(&'static str, &'static str)];
        let cases: [(Method, Lines, Option<&str>); 12] = [
            (
                Method::GET,
                &[("connection", "Upgrade"), ("upgrade", "WebSocket")],
                Some("websocket"),
            ),
            (
                Method::GET,
                &[
                    ("connection", "keep-alive, upgrade"),
                    ("upgrade", "websocket"),
                ],
                Some("websocket"),
            ),
            (Method::GET, &[("upgrade", "websocket")], None),
            (
                Method::POST,
                &[("connection", "upgrade"), ("upgrade", "websocket")],
                None,
            ),
            (
                Method::GET,
                &[
                    ("connection", "upgrade"),
                    ("upgrade", "websocket"),
                    ("upgrade", "h2c"),
                ],
                None,
            ),
            (
                Method::GET,
                &[
                    ("connection", "upgrade, http2-settings"),
                    ("upgrade", "h2c"),
                ],
                None,
            ),
            (
                Method::OPTIONS,
                &[("connection", "upgrade"), ("upgrade", "TLS/1.2, HTTP/2.0")],
                None,
            ),
            (
                Method::POST,
                &[("connection", "Upgrade"), ("upgrade", "tcp")],
                Some("tcp"),
            ),
            (
                Method::POST,
                &[("connection", "Upgrade"), ("upgrade", "SPDY/3.1")],
                Some("SPDY/3.1"),
            ),
            (
                Method::POST,
                &[("connection", "Upgrade"), ("upgrade", "foo, tcp")],
                Some("tcp"),
            ),
            (Method::POST, &[("upgrade", "tcp")], None),
            (Method::POST, &[("upgrade", "foo")], None),
        ];
        for (method, lines, expected) in cases {
            assert_eq!(
                of(method, lines),
                Ok(expected.map(str::to_owned)),
                "{lines:?}"
            );
        }
        let refused = of(
            Method::GET,
            &[("connection", "upgrade"), ("upgrade", "Foo/1")],
        );
        let refused = refused.unwrap_err();
        assert!(refused.contains("`Upgrade: Foo/1`"), "{refused}");
        assert!(refused.contains("upgrade = [\"foo/1\"]"), "{refused}");
    }

    #[test]
    fn an_answer_grants_what_was_asked_for_and_nothing_else() {
        let tcp = Upgrade::Listed(HeaderValue::from_static("tcp"));
        let granted = |upgrade: &Upgrade, lines: &[(&str, &str)]| {
            upgrade.is_granted_by(&parts(Method::GET, lines).headers)
        };
        let connection = ("connection", "Upgrade");
        assert!(granted(&tcp, &[connection, ("upgrade", "TCP")]));
        assert!(granted(
            &Upgrade::WebSocket,
            &[connection, ("upgrade", "websocket")]
        ));
        for lines in [
            &[connection, ("upgrade", "websocket")][..],
            &[connection, ("upgrade", "tcp"), ("upgrade", "h2c")],
            &[("upgrade", "tcp")],
            &[connection],
        ] {
            assert!(!granted(&tcp, lines), "{lines:?}");
        }
    }
}
