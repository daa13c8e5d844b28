//! What a page of somebody's makes a browser of the agent's ask is not the agent's own doing.

use http::{HeaderMap, header};

const OWN_ORIGINS: [&str; 2] = ["https://agentguard.internal", "http://agentguard.internal"];

/// A browser sends a page's simple requests to whatever host the page likes, and says whose they are (Fetch Standard, the
/// `Origin` header; Fetch Metadata, `Sec-Fetch-Site`).
pub(super) fn asks(headers: &HeaderMap) -> bool {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let mut sites = headers.get_all("sec-fetch-site").iter();
    origins.any(|it| !OWN_ORIGINS.iter().any(|own| it == own))
        || sites.any(|it| it == "cross-site" || it == "same-site")
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn pages_of_other_sites_are_known_by_what_browsers_say() {
        let site = "sec-fetch-site";
        for (headers, expected) in [
            (&[][..], false),
            (&[("origin", OWN_ORIGINS[0]), (site, "same-origin")], false),
            (&[(site, "none")], false),
            (&[("origin", "https://evil.example")], true),
            (&[("origin", "null")], true),
            (&[("origin", OWN_ORIGINS[0]), ("origin", "null")], true),
            (
                &[("origin", "https://agentguard.internal.evil.example")],
                true,
            ),
            (&[(site, "cross-site")], true),
            (&[(site, "same-site")], true),
        ] {
            let named = headers.iter().map(|(name, value)| {
                let name: http::HeaderName = name.parse().unwrap();
                (name, HeaderValue::from_static(value))
            });
            let mut map = HeaderMap::new();
            named.for_each(|(name, value)| {
                map.append(name, value);
            });
            assert_eq!(asks(&map), expected, "{headers:?}");
        }
    }
}
