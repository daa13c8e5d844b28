//! Why an upstream could not be used.

use std::io;

use agentguard_record::DenyReason;
use rustls::CertificateError;

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

    /// What went wrong in a TLS handshake; `rustls` puts its own error into the I/O error.
    pub(crate) fn handshake(error: &io::Error) -> Self {
        let inner = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match inner {
            Some(rustls::Error::InvalidCertificate(certificate)) => Self::tls(named(certificate)),
            Some(other) => Self::tls(format!("TLS: {other}")),
            None => Self::unreachable(format!("it ended the TLS handshake: {error}")),
        }
    }

    pub(crate) fn exchange(error: &hyper::Error) -> Self {
        if error.is_timeout() {
            Self::timeout("it did not answer in time")
        } else if error.is_parse() {
            Self::unreachable(format!("its answer is not HTTP: {error}"))
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
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "its certificate is for another name".into()
        }
        CertificateError::Revoked => "its certificate has been revoked".into(),
        CertificateError::BadSignature => "its certificate's signature is wrong".into(),
        other => format!("its certificate was not accepted: {other}"),
    }
}
