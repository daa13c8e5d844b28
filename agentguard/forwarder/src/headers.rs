//! Header fields that are the hop's own, in both directions (RFC 9110 section 7.6.1).

use agentguard_policy::leads_elsewhere;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;

use super::refusal::Refusal;
use super::upgrade::Upgrade;

/// Fields that never go further, named in `Connection` or not.
static HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Framing, routing, request modifiers and credentials, besides `If-…` and what leads elsewhere.
const OF_HEAD: [&str; 17] = [
    "authorization",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "expect",
    "host",
    "max-forwards",
    "proxy-authorization",
    "range",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A field that no trailer may be (RFC 9110 section 6.5.1): a server that takes trailers for header fields would heed what nobody
/// has judged.
pub(crate) fn of_head(trailers: &HeaderMap) -> Option<&HeaderName> {
    trailers.keys().find(|name| {
        let plain = name.as_str().replace('_', "-");
        OF_HEAD.contains(&&*plain) || plain.starts_with("if-") || leads_elsewhere(name)
    })
}

/// Takes out what is the hop's own; keeps `TE: trailers`, which gRPC needs end to end, where `trailers` is wanted.
pub(crate) fn strip(headers: &mut HeaderMap, trailers: bool) {
    let trailers = trailers && has_token(headers, header::TE, "trailers");
    // Almost no message names further fields.
    if let Some(named) = named(headers) {
        for name in named {
            headers.remove(name);
        }
    }
    for name in &HOP {
        headers.remove(name);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Takes out what is this hop's own, but for the change of protocol that the request may ask for.
pub(crate) fn clean(
    parts: &mut Parts,
    authority: &str,
    upgrade: Option<&Upgrade>,
) -> Result<(), Refusal> {
    let headers = &mut parts.headers;
    strip(headers, true);
    headers.remove(header::EXPECT);
    let host = HeaderValue::from_str(authority)
        .map_err(|_| Refusal::protocol("the request's host cannot be sent on"))?;
    headers.insert(header::HOST, host);
    join_cookies(headers);
    if let Some(upgrade) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, upgrade.as_header());
    }
    Ok(())
}

/// One `Cookie` line for what HTTP/2 allows in several (RFC 9113 section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut lines = headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(second)) = (lines.next(), lines.next()) else {
        return;
    };
    let mut joined = first.as_bytes().to_vec();
    for line in std::iter::once(second).chain(lines) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(line.as_bytes());
    }
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(header::COOKIE, joined);
    }
}

/// The fields that `Connection` names, but for those that [`HOP`] has and those that no hop may claim.
fn named(headers: &HeaderMap) -> Option<Vec<HeaderName>> {
    let names: Vec<_> = tokens(headers, header::CONNECTION)
        .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
        .filter(|name| !HOP.contains(name))
        .collect();
    (!names.is_empty()).then_some(names)
}

pub(crate) fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|have| have.eq_ignore_ascii_case(token))
}

pub(crate) fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&str, &str)]) -> HeaderMap {
        let parse = |(name, value): &(&str, &str)| {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            (name, HeaderValue::from_str(value).unwrap())
        };
        lines.iter().map(parse).collect()
    }

    #[test]
    fn what_a_head_alone_may_have_is_no_trailer() {
        for name in [
            "Authorization",
            "x_http-method.override",
            "If-Match",
            "content_length",
        ] {
            assert!(
                of_head(&map(&[("grpc-status", "0"), (name, "x")])).is_some(),
                "{name}"
            );
        }
        assert_eq!(
            of_head(&map(&[("digest", "x"), ("x-amz-checksum-crc32", "x")])),
            None
        );
    }

    #[test]
    fn what_is_the_hops_own_goes() {
        type Lines = &'static [(&'static str, &'static str)];
        let cases: [(Lines, &[&str]); 5] = [
            (&[("accept", "*/*"), ("connection", "close")], &["accept"]),
            (
                &[
                    ("x-a", "1"),
                    ("connection", "X-A , x-b"),
                    ("x-b", "2"),
                    ("x-c", "3"),
                ],
                &["x-c"],
            ),
            (
                &[
                    ("connection", "x-a"),
                    ("connection", "x-b"),
                    ("x-a", "1"),
                    ("x-b", "2"),
                ],
                &[],
            ),
            (
                &[
                    ("te", "gzip, Trailers"),
                    ("upgrade", "h2c"),
                    ("keep-alive", "1"),
                ],
                &["te"],
            ),
            (
                &[
                    ("te", "gzip"),
                    ("proxy-authorization", "x"),
                    ("transfer-encoding", "chunked"),
                ],
                &[],
            ),
        ];
        for (lines, left) in cases {
            let mut headers = map(lines);
            strip(&mut headers, true);
            let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
            names.sort_unstable();
            assert_eq!(names, left, "{lines:?}");
        }
        let mut headers = map(&[("te", "trailers")]);
        strip(&mut headers, false);
        assert!(headers.is_empty());
    }
}
