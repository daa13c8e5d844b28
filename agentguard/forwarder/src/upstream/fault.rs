//! Why an upstream could not be used.

use std::io;

use agentguard_record::DenyReason;
use rustls::{AlertDescription, CertificateError, OtherError};

/// Nobody's decision: upstream's or the way's to it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub(crate) struct UpstreamFault {
    pub reason: DenyReason,
    /// One sentence's end: what `the server: …` continues with.
    pub detail: String,
    /// Nothing of the request has gone out.
    pub unsent: bool,
}

impl UpstreamFault {
    pub(crate) fn unreachable(detail: impl Into<String>) -> Self {
        Self {
            reason: DenyReason::UpstreamUnreachable,
            detail: detail.into(),
            unsent: false,
        }
    }

    pub(crate) fn timeout(detail: impl Into<String>) -> Self {
        Self {
            reason: DenyReason::UpstreamTimeout,
            detail: detail.into(),
            unsent: false,
        }
    }

    pub(crate) fn tls(detail: impl Into<String>) -> Self {
        Self {
            reason: DenyReason::UpstreamTls,
            detail: detail.into(),
            unsent: false,
        }
    }

    /// What went wrong behind a proxy; empty: there is none.
    pub(crate) fn through(mut self, proxy: &str) -> Self {
        if !proxy.is_empty() {
            self.detail = format!("{} (through the proxy `{proxy}`)", self.detail);
        }
        self
    }

    /// What went wrong in a TLS handshake; `rustls` puts its own error into the I/O error.
    pub(crate) fn handshake(error: &io::Error) -> Self {
        let inner = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match inner {
            Some(error) => Self::tls(refused(error)),
            None => Self::unreachable(format!("it ended the TLS handshake: {error}")),
        }
    }

    pub(crate) fn exchange(error: &hyper::Error) -> Self {
        if error.is_timeout() {
            Self::timeout("it did not answer in time")
        } else if error.is_parse_too_large() {
            Self::unreachable("its answer's head is longer than `forwarder.max_header_bytes`")
        } else if error.is_parse() {
            Self::unreachable(format!(
                "its answer breaks the rules of HTTP (RFC 9112): {error}"
            ))
        } else if error.is_incomplete_message() {
            Self::unreachable("it closed the connection without an answer")
        } else {
            let mut detail = error.to_string();
            let mut source = std::error::Error::source(error);
            while let Some(cause) = source {
                detail = format!("{detail}: {cause}");
                source = cause.source();
            }
            Self::unreachable(detail)
        }
    }
}

/// What a server did that TLS with it cannot go on.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "rustls adds kinds of errors, and only these have words of their own"
)]
fn refused(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(certificate) => named(certificate),
        rustls::Error::PeerIncompatible(_)
        | rustls::Error::AlertReceived(
            AlertDescription::HandshakeFailure
            | AlertDescription::ProtocolVersion
            | AlertDescription::InsufficientSecurity,
        ) => format!(
            "no TLS version and cipher suite in common ({error}); it needs TLS 1.3, or TLS 1.2 with ECDHE and AES-GCM or \
             ChaCha20-Poly1305"
        ),
        other => format!("TLS: {other}"),
    }
}

/// What is wrong with a server's certificate, and what helps.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "rustls adds kinds of errors, and only these have words of their own"
)]
fn named(error: &CertificateError) -> String {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet".into()
        }
        CertificateError::UnknownIssuer => {
            "its certificate's issuer is not trusted (`upstream.roots` adds one)".into()
        }
        CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => {
            "its certificate has no subjectAltName; a common name alone is not taken for one".into()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "its certificate is for another name".into()
        }
        CertificateError::Revoked => "its certificate has been revoked".into(),
        CertificateError::BadEncoding => "its certificate cannot be read as X.509".into(),
        CertificateError::BadSignature => "its certificate's signature is wrong".into(),
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "its certificate is signed in a way that is not taken; RSA, ECDSA over P-256, P-384 or P-521 and Ed25519 are, with SHA-2"
                .into()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate is not one for servers (extendedKeyUsage)".into()
        }
        CertificateError::Other(OtherError(inner)) => match inner.downcast_ref() {
            Some(webpki::Error::CaUsedAsEndEntity) => {
                "its certificate is a CA's (CA:TRUE), as self-signed ones often are; it needs one that a CA in `upstream.roots` \
                 has issued"
                    .into()
            }
            Some(webpki::Error::UnsupportedCertVersion) => {
                "its certificate is of X.509 version 1, which has no subjectAltName; it needs one of version 3".into()
            }
            Some(webpki::Error::EndEntityUsedAsCa) => {
                "a certificate in its chain has issued another and is no CA's".into()
            }
            _ => format!("its certificate was not accepted: {inner}"),
        },
        other => format!("its certificate was not accepted: {other}"),
    }
}
