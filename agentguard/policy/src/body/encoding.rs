//! `Content-Encoding`: bodies are judged as the server will decode them, within bounds.

use std::borrow::Cow;
use std::io::Read;

use flate2::bufread::{GzDecoder, ZlibDecoder};
use http::{HeaderMap, header};

use super::BodyFault;
use crate::host::show;

/// The decoded body, of at most `limit` bytes.
pub(super) fn decode<'b>(
    headers: &HeaderMap,
    bytes: &'b [u8],
    limit: usize,
) -> Result<Cow<'b, [u8]>, BodyFault> {
    let mut lines = headers.get_all(header::CONTENT_ENCODING).iter();
    let (first, second) = (lines.next(), lines.next());
    let Some(coding) = first else {
        return Ok(Cow::Borrowed(bytes));
    };
    if second.is_some() {
        return Err(BodyFault::ambiguous(
            "`Content-Encoding` is there more than once",
        ));
    }
    let coding = String::from_utf8_lossy(coding.as_bytes()).to_ascii_lowercase();
    match coding.trim() {
        "" | "identity" => Ok(Cow::Borrowed(bytes)),
        "gzip" | "x-gzip" => {
            let mut decoder = GzDecoder::new(bytes);
            let decoded = whole(&mut decoder, limit)?;
            ended(decoder.into_inner())?;
            Ok(Cow::Owned(decoded))
        }
        // RFC 9110 section 8.4.1.2: in the zlib format, whatever some clients send.
        "deflate" => {
            let mut decoder = ZlibDecoder::new(bytes);
            let decoded = whole(&mut decoder, limit)?;
            ended(decoder.into_inner())?;
            Ok(Cow::Owned(decoded))
        }
        other => Err(BodyFault::unreadable(format!(
            "the body is encoded as `{}`, and only gzip and deflate are decoded here",
            show(other)
        ))),
    }
}

fn whole(decoder: &mut impl Read, limit: usize) -> Result<Vec<u8>, BodyFault> {
    let mut decoded = Vec::new();
    let read = decoder.take(limit as u64 + 1).read_to_end(&mut decoded);
    if decoded.len() > limit {
        return Err(BodyFault::too_large(format!(
            "the body is longer than {limit} bytes when it is decoded"
        )));
    }
    match read {
        Ok(_) => Ok(decoded),
        Err(error) => Err(BodyFault::unreadable(format!(
            "the body cannot be decoded: {error}"
        ))),
    }
}

/// What follows the end is read by some servers, as a second member, and not by others.
fn ended(rest: &[u8]) -> Result<(), BodyFault> {
    if rest.is_empty() {
        return Ok(());
    }
    Err(BodyFault::ambiguous(
        "the encoded body goes on behind its end",
    ))
}
