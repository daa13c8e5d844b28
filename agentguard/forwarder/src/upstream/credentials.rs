//! Credentials of a connection rather than of a request: after an NTLM or Negotiate handshake (RFC 4559, MS-NTHT) a server
//! takes whatever comes on the connection for the user's who made it.

use http::{HeaderMap, header};

const SCHEMES: [&str; 2] = ["ntlm", "negotiate"];

/// Whether a request or an answer has part in such a handshake.
pub(super) fn of_a_connection(headers: &HeaderMap) -> bool {
    [header::AUTHORIZATION, header::WWW_AUTHENTICATE]
        .iter()
        .flat_map(|name| headers.get_all(name))
        // Several challenges may stand in one line (RFC 9110 section 11.6.1).
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .any(|challenge| {
            let challenge = challenge.trim_ascii_start();
            let scheme = challenge.split(|byte| *byte == b' ').next();
            let is = |name: &&str| {
                scheme.is_some_and(|it| it.trim_ascii().eq_ignore_ascii_case(name.as_bytes()))
            };
            SCHEMES.iter().any(is)
        })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn only_schemes_that_authenticate_a_connection() {
        let has = |name, value: &'static str| {
            of_a_connection(&HeaderMap::from_iter([(
                name,
                HeaderValue::from_static(value),
            )]))
        };
        for value in [
            "NTLM",
            "ntlm TlRMTVNT",
            "Negotiate",
            "Basic realm=\"a\", NTLM",
            "NEGOTIATE  oYG=",
        ] {
            assert!(has(header::WWW_AUTHENTICATE, value), "{value}");
            assert!(has(header::AUTHORIZATION, value), "{value}");
            assert!(!has(header::COOKIE, value), "{value}");
        }
        for value in [
            "",
            "Basic ntlm",
            "Bearer Negotiate",
            "Digest realm=\"NTLM\"",
            "NTLMx",
            "Bearer a,b",
        ] {
            assert!(!has(header::WWW_AUTHENTICATE, value), "{value}");
        }
    }
}
