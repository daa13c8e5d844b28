//! What a connection's first bytes are. Nothing is answered here, and what is not recognised is refused.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustls::server::{Accepted, Acceptor};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

use super::foreign::Foreign;
use super::io::PeekedStream;

/// DNS over TCP (RFC 7766) is known by the port that the agent asked for.
pub(crate) const DNS_PORT: u16 = 53;
/// How long a client may be silent that is connected where servers speak first. Those of TLS and HTTP speak at once.
const SILENCE: Duration = Duration::from_secs(1);
/// The longest ClientHello taken, with its record headers.
const MAX_HELLO: usize = 64 * 1024;
/// The longest method name taken.
const MAX_METHOD: usize = 32;
/// RFC 9113 section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// TLS record type `handshake` (RFC 8446 section 5.1).
const HANDSHAKE: u8 = 22;
/// `encrypted_client_hello` (RFC 9849).
const ECH: u16 = 0xfe0d;

/// How a connection begins.
#[derive(Debug)]
pub(crate) enum Opening {
    Tls(Hello),
    Http1,
    Http2,
    Dns,
}

/// What the forwarder needs of a ClientHello (RFC 8446 section 4.1.2).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Hello {
    /// As the client wrote it.
    pub server_name: Option<String>,
    /// Whether another name may be hidden in it.
    pub encrypted: bool,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SniffError {
    #[error("the connection ended before a request")]
    Closed,
    #[error("reading the first bytes: {0}")]
    Read(#[from] io::Error),
    /// With the alert to send.
    #[error("bad TLS ClientHello: {error}")]
    Hello {
        error: rustls::Error,
        alert: Vec<u8>,
    },
    #[error("the TLS ClientHello is longer than {MAX_HELLO} bytes")]
    HelloTooLong,
    #[error(
        "{0}, which is not judged here: a `[[reach]]` with `to` lets an agent speak it with an address and port"
    )]
    Foreign(Foreign),
    #[error("neither TLS nor HTTP")]
    Unknown,
}

/// Reads until it is known how the connection begins; the bytes read are in the stream that is returned.
pub(crate) async fn sniff<S>(
    mut stream: S,
    port: u16,
) -> (PeekedStream<S>, Result<Opening, SniffError>)
where
    S: AsyncRead + Unpin,
{
    if port == DNS_PORT {
        return (PeekedStream::new(Bytes::new(), stream), Ok(Opening::Dns));
    }
    let mut recogniser = Recogniser::default();
    let mut seen = BytesMut::with_capacity(2048);
    let result = loop {
        let silent = Foreign::at(port).filter(|_| seen.is_empty());
        let read = stream.read_buf(&mut seen);
        let read = match silent {
            Some(foreign) => match timeout(SILENCE, read).await {
                Ok(read) => read,
                Err(_silent) => break Err(SniffError::Foreign(foreign)),
            },
            None => read.await,
        };
        match read {
            Ok(0) => break Err(SniffError::Closed),
            Ok(_) => {}
            Err(error) => break Err(error.into()),
        }
        if let Some(result) = recogniser.feed(&seen).transpose() {
            break result;
        }
        seen.reserve(2048);
    };
    (PeekedStream::new(seen.freeze(), stream), result)
}

/// Recognises an opening from ever longer prefixes of it.
#[derive(Default)]
pub(crate) struct Recogniser {
    acceptor: Acceptor,
    /// Bytes that the acceptor has had.
    fed: usize,
}

impl Recogniser {
    /// `seen` is everything so far. `None`: more is needed.
    pub(crate) fn feed(&mut self, seen: &[u8]) -> Result<Option<Opening>, SniffError> {
        match seen.first() {
            None => Ok(None),
            Some(&HANDSHAKE) => Ok(self.hello(seen)?.map(Opening::Tls)),
            Some(_) => plain(seen),
        }
    }

    fn hello(&mut self, seen: &[u8]) -> Result<Option<Hello>, SniffError> {
        let mut fresh = &seen[self.fed..];
        while !fresh.is_empty() {
            self.fed += self.acceptor.read_tls(&mut fresh)?;
            match self.acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => return Ok(Some(hello(&accepted, seen))),
                Err((error, mut alert)) => {
                    let mut bytes = Vec::new();
                    alert.write_all(&mut bytes)?;
                    return Err(SniffError::Hello {
                        error,
                        alert: bytes,
                    });
                }
            }
        }
        if seen.len() > MAX_HELLO {
            return Err(SniffError::HelloTooLong);
        }
        Ok(None)
    }
}

fn hello(accepted: &Accepted, seen: &[u8]) -> Hello {
    Hello {
        server_name: accepted.client_hello().server_name().map(str::to_owned),
        // What cannot be walked although it was accepted hides something.
        encrypted: offers_ech(seen).unwrap_or(true),
    }
}

fn plain(seen: &[u8]) -> Result<Option<Opening>, SniffError> {
    if let Some(foreign) = Foreign::by(seen) {
        return Err(SniffError::Foreign(foreign));
    }
    // Before a request empty lines are read over (RFC 9112 section 2.2).
    let begins = seen.iter().position(|byte| !matches!(byte, b'\r' | b'\n'));
    let Some(seen) = begins.map(|at| &seen[at..]) else {
        return match seen.len() > MAX_METHOD {
            true => Err(SniffError::Unknown),
            false => Ok(None),
        };
    };
    let compared = seen.len().min(PREFACE.len());
    if seen[..compared] == PREFACE[..compared] {
        return Ok((compared == PREFACE.len()).then_some(Opening::Http2));
    }
    // A method is a token (RFC 9110 sections 5.6.2 and 9.1) and ends with a space.
    for (index, byte) in seen.iter().enumerate().take(MAX_METHOD + 1) {
        match byte {
            b' ' if index > 0 => return Ok(Some(Opening::Http1)),
            b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_'
            | b'`' | b'|' | b'~' => {}
            byte if byte.is_ascii_alphanumeric() => {}
            _ => return Err(SniffError::Unknown),
        }
    }
    if seen.len() > MAX_METHOD {
        return Err(SniffError::Unknown);
    }
    Ok(None)
}

/// Whether a ClientHello, in its records, has the ECH extension; `None` if it cannot be walked.
fn offers_ech(records: &[u8]) -> Option<bool> {
    let mut message = Vec::with_capacity(records.len());
    let mut rest = records;
    while let Some((&[kind, _, _, high, low], body)) = rest.split_first_chunk::<5>() {
        let length = usize::from(u16::from_be_bytes([high, low]));
        if kind != HANDSHAKE {
            break;
        }
        let (body, next) = body.split_at_checked(length)?;
        message.extend_from_slice(body);
        rest = next;
    }
    // Handshake type, length, legacy_version, random.
    let (_, rest) = message.split_at_checked(1 + 3 + 2 + 32)?;
    let (_session_id, rest) = vector(rest, 1)?;
    let (_cipher_suites, rest) = vector(rest, 2)?;
    let (_compression, rest) = vector(rest, 1)?;
    if rest.is_empty() {
        return Some(false);
    }
    let (mut extensions, _) = vector(rest, 2)?;
    while let Some((&[high, low], rest)) = extensions.split_first_chunk::<2>() {
        if u16::from_be_bytes([high, low]) == ECH {
            return Some(true);
        }
        (_, extensions) = vector(rest, 2)?;
    }
    Some(false)
}

/// A vector whose length takes `width` bytes (RFC 8446 section 3.4), and what follows it.
fn vector(bytes: &[u8], width: usize) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_at_checked(width)?;
    let length = length
        .iter()
        .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    rest.split_at_checked(length)
}
