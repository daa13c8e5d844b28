//! Ends the agent's TLS connection with a leaf for the name it asked for.

use std::io::{self, ErrorKind};
use std::pin::pin;
use std::time::Duration;

use agentguard_policy::HostName;
use rustls::{AlertDescription, ProtocolVersion};
use tokio::io::{AsyncBufReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::admit::Arrival;
use super::io::{ClientStream, PeekedStream};
use super::leaf::LeafError;

/// How long a client may take to read why.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// A client that looks at its certificate after the handshake (Node, what pins) closes within this time if it refuses it.
const LOOK: Duration = Duration::from_secs(1);

/// What clients say of a certificate that they refuse (RFC 8446 section 6.2).
const OF_CERTIFICATES: [(AlertDescription, &str); 8] = [
    (AlertDescription::BadCertificate, "bad_certificate"),
    (
        AlertDescription::UnsupportedCertificate,
        "unsupported_certificate",
    ),
    (AlertDescription::CertificateRevoked, "certificate_revoked"),
    (AlertDescription::CertificateExpired, "certificate_expired"),
    (AlertDescription::CertificateUnknown, "certificate_unknown"),
    (AlertDescription::UnknownCA, "unknown_ca"),
    (AlertDescription::AccessDenied, "access_denied"),
    (
        AlertDescription::BadCertificateStatusResponse,
        "bad_certificate_status_response",
    ),
];

/// Fatal alerts that the forwarder sends itself (RFC 8446 section 6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Alert {
    AccessDenied = 49,
    InternalError = 80,
    UnrecognizedName = 112,
}

impl Alert {
    /// As a record of its own: type `alert`, `legacy_record_version` 1.2, two bytes, level `fatal`.
    pub(crate) fn bytes(self) -> [u8; 7] {
        [21, 3, 3, 0, 2, 2, self as u8]
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum TerminateError {
    #[error(transparent)]
    Leaf(#[from] LeafError),
    #[error("the daemon did not give a certificate for `{0}` in time")]
    LeafTimeout(String),
    #[error("the client refuses the certificate that it was given, it said `{0}`")]
    Refused(&'static str),
    #[error(
        "the client closed the connection without a word when it had been given the certificate, as one does that refuses it"
    )]
    Left,
    #[error("TLS with the client: {0}")]
    Handshake(io::Error),
    #[error("the client did not finish the TLS handshake in time")]
    HandshakeTimeout,
}

impl From<io::Error> for TerminateError {
    fn from(error: io::Error) -> Self {
        let tls = error.get_ref().and_then(|it| it.downcast_ref());
        if let Some(rustls::Error::AlertReceived(alert)) = tls
            && let Some((_, said)) = OF_CERTIFICATES.iter().find(|(of, _)| of == alert)
        {
            return Self::Refused(said);
        }
        let left = [
            ErrorKind::UnexpectedEof,
            ErrorKind::ConnectionReset,
            ErrorKind::BrokenPipe,
        ];
        match left.contains(&error.kind()) {
            true => Self::Left,
            false => Self::Handshake(error),
        }
    }
}

/// A terminated connection.
pub(crate) struct TerminatedConnection {
    pub stream: Box<TlsStream<PeekedStream<ClientStream>>>,
    /// Whether HTTP/2 was negotiated; else it is HTTP/1.1.
    pub http2: bool,
}

/// Hands the client a leaf for `name` and finishes the handshake when it is its agent's turn; each of the two within `limit`.
/// Returns with the client's first bytes, or after [`LOOK`] without.
pub(crate) async fn terminate(
    arrival: &Arrival,
    name: &HostName,
    mut stream: PeekedStream<ClientStream>,
    limit: Duration,
) -> Result<TerminatedConnection, TerminateError> {
    let Arrival {
        forwarder, life, ..
    } = arrival;
    let leaf = forwarder.leaves.config(life, name.as_str());
    let config = match timeout(limit, leaf).await {
        Ok(Ok(config)) => config,
        failed => {
            last_words(&mut stream, &Alert::InternalError.bytes()).await;
            return Err(match failed {
                Ok(Err(error)) => error.into(),
                _ => TerminateError::LeafTimeout(name.as_str().to_owned()),
            });
        }
    };
    let handshake = pin!(TlsAcceptor::from(config).accept(stream));
    let handshake = forwarder.shares.in_turn(&life.shares, handshake);
    let mut stream = timeout(limit, handshake)
        .await
        .map_err(|_| TerminateError::HandshakeTimeout)??;
    if let Ok(first) = timeout(LOOK, stream.fill_buf()).await
        && first?.is_empty()
    {
        return Err(TerminateError::Left);
    }
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok(TerminatedConnection {
        stream: Box::new(stream),
        http2,
    })
}

/// Tells the client why in its protocol's own words, and nothing more. It may be gone: nothing depends on it.
pub(crate) async fn last_words(stream: &mut (impl AsyncWrite + Unpin), words: &[u8]) {
    let send = async {
        stream.write_all(words).await?;
        stream.shutdown().await
    };
    let _ = timeout(LAST_WORDS, send).await;
}

/// `TLSv1.3`, as audit records have it.
pub(crate) fn version(negotiated: Option<ProtocolVersion>) -> &'static str {
    match negotiated {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "TLS",
    }
}
