//! How long a message's body is (RFC 9112 section 6.3). The parser settles `Content-Length` next to `Transfer-Encoding` of a
//! request by itself and does not tell; two servers that settle it differently are how requests are smuggled.

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Version, header};

use super::refusal::Refusal;

/// Longest head that is kept to be looked at, bytes.
const MAX_HEAD: usize = 64 * 1024;
/// Of a header line's share in the limit for a head, bytes: the library clears a table of as many lines for each head, which
/// with a thousand was a tenth of all that a request costs.
const LINE: usize = 256;
/// Header lines that every limit has room for, and that the table of headers has room for.
const MIN_LINES: usize = 100;
const MAX_LINES: usize = 16 * 1024;

/// How many header lines or trailers a message may have, where its head may have so many bytes.
pub(crate) fn max_lines(max_header_bytes: u32) -> usize {
    (max_header_bytes as usize / LINE).clamp(MIN_LINES, MAX_LINES)
}

/// The bytes of a request's head as they came, collected while no other request is being answered.
#[derive(Default)]
pub(crate) struct Heads {
    seen: Vec<u8>,
    whole: bool,
}

impl Heads {
    /// Takes what was read.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        if self.whole || self.seen.len() > MAX_HEAD {
            return;
        }
        let mut bytes = bytes;
        // Empty lines before a request are no part of it (RFC 9112 section 2.2).
        while self.seen.is_empty()
            && let [b'\r' | b'\n', rest @ ..] = bytes
        {
            bytes = rest;
        }
        let from = self.seen.len().saturating_sub(3);
        self.seen.extend_from_slice(bytes);
        if let Some(end) = end_of_head(&self.seen[from..]) {
            self.seen.truncate(from + end);
            self.whole = true;
        }
    }

    /// The head of the request that is being parsed; the next one begins.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        self.whole = false;
        std::mem::take(&mut self.seen)
    }
}

/// One framing of the body, and one that every server understands.
pub(crate) fn check(parts: &Parts, head: &[u8]) -> Result<(), Refusal> {
    let Some(coding) = parts.headers.get(header::TRANSFER_ENCODING) else {
        return Ok(());
    };
    if !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
        return Err(Refusal::protocol("a transfer coding other than `chunked`"));
    }
    if parts.version < Version::HTTP_2 && !is_chunked_only(head, &parts.method, parts.headers.len())
    {
        let detail = "the request's length is given in more than one way";
        return Err(Refusal::protocol(detail));
    }
    Ok(())
}

/// Brings an answer's length into the one form in which it goes on, as an intermediary has to (RFC 9112 section 6.3). Why it
/// cannot be passed on.
pub(crate) fn repair(headers: &mut HeaderMap) -> Result<(), &'static str> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Err(
                "its answer has a transfer coding other than `chunked`, which was not asked for",
            );
        }
        headers.remove(header::CONTENT_LENGTH);
        return Ok(());
    }
    let lines = headers.get_all(header::CONTENT_LENGTH).iter();
    let mut lengths = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    let (Some(first), Some(second)) = (lengths.next(), lengths.next()) else {
        return Ok(());
    };
    let first = first.trim_ascii();
    if std::iter::once(second)
        .chain(lengths)
        .any(|other| other.trim_ascii() != first)
    {
        return Err("its answer has more than one `Content-Length`, and they differ");
    }
    let one = HeaderValue::from_bytes(first).expect("a part of a value is a value");
    headers.insert(header::CONTENT_LENGTH, one);
    Ok(())
}

/// Whether `head` is `method`'s, has all `fields` that were parsed, and one framing: `Transfer-Encoding` once and no
/// `Content-Length`. A head of which any part was read together with an earlier request is not there to be looked at, and
/// does not: what is left of it may look like a head of its own.
fn is_chunked_only(head: &[u8], method: &Method, fields: usize) -> bool {
    let mut lines = head.split(|byte| *byte == b'\n');
    let Some(first) = lines.next() else {
        return false;
    };
    let named = first.strip_prefix(method.as_str().as_bytes());
    if !named.is_some_and(|rest| rest.starts_with(b" ")) {
        return false;
    }
    let (mut codings, mut seen) = (0, 0);
    for line in lines.take_while(|line| !line.trim_ascii_end().is_empty()) {
        seen += 1;
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        if name.eq_ignore_ascii_case(b"content-length") {
            return false;
        }
        codings += usize::from(name.eq_ignore_ascii_case(b"transfer-encoding"));
    }
    codings == 1 && seen == fields
}

/// Where the empty line after a head ends; a bare LF ends a line as the parser has it.
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == b'\n') {
        rest = &rest[at + 1..];
        let gap = match rest {
            [b'\n', ..] => 1,
            [b'\r', b'\n', ..] => 2,
            _ => continue,
        };
        return Some(bytes.len() - rest.len() + gap);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_framing_or_none() {
        let cases = [
            (
                "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
                true,
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\ntransfer-ENCODING:chunked\r\n\r\n",
                true,
            ),
            (
                "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
                false,
            ),
            (
                "POST / HTTP/1.1\r\ncontent-length:1\r\nTransfer-Encoding: chunked\r\n\r\n",
                false,
            ),
            (
                "POST / HTTP/1.1\nContent-Length: 1\nTransfer-Encoding: chunked\n\n",
                false,
            ),
            (
                "POST / HTTP/1.1\r\nTransfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n",
                false,
            ),
            (
                "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
                false,
            ),
            (
                "POSTER / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
                false,
            ),
            ("", false),
        ];
        for (head, expected) in cases {
            // In every two pieces it can come in, with a body behind it.
            let bytes = format!("{head}0\r\n\r\nContent-Length: 9\r\n");
            for cut in 0..=bytes.len() {
                let mut heads = Heads::default();
                heads.feed(&bytes.as_bytes()[..cut]);
                heads.feed(&bytes.as_bytes()[cut..]);
                let fields = head.matches(':').count();
                let got = is_chunked_only(&heads.take(), &Method::POST, fields);
                assert_eq!(got, expected, "{head:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn what_is_left_of_a_head_is_no_head() {
        let first = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let head = "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nX: POST /x HTTP/1.1\r\n\
                    Transfer-Encoding: chunked\r\n\r\n";
        // Its beginning comes together with the request before it.
        for cut in 0..=head.len() {
            let mut heads = Heads::default();
            heads.feed(&[first, &head.as_bytes()[..cut]].concat());
            assert_eq!(heads.take(), first);
            heads.feed(&head.as_bytes()[cut..]);
            let left = heads.take();
            assert!(!is_chunked_only(&left, &Method::POST, 4), "cut at {cut}");
        }
    }

    #[test]
    fn an_answers_length_is_repaired_or_refused() {
        type Lines = &'static [(&'static str, &'static str)];
        type Lengths = Result<&'static [&'static str], ()>;
        let cases: [(Lines, Lengths); 10] = [
            (&[], Ok(&[])),
            (&[("content-length", "2")], Ok(&["2"])),
            (&[("content-length", "2, 2")], Ok(&["2"])),
            (
                &[("content-length", "2"), ("content-length", " 2 ,2")],
                Ok(&["2"]),
            ),
            (&[("content-length", "2, 3")], Err(())),
            (&[("content-length", "2"), ("content-length", "3")], Err(())),
            (
                &[("content-length", "1"), ("transfer-encoding", "Chunked")],
                Ok(&[]),
            ),
            (&[("transfer-encoding", "gzip, chunked")], Err(())),
            (
                &[
                    ("transfer-encoding", "gzip"),
                    ("transfer-encoding", "chunked"),
                ],
                Err(()),
            ),
            (&[("transfer-encoding", "identity")], Err(())),
        ];
        for (lines, expected) in cases {
            let parse = |(name, value): &(&'static str, &'static str)| {
                let name = header::HeaderName::from_static(name);
                (name, HeaderValue::from_static(value))
            };
            let mut headers: HeaderMap = lines.iter().map(parse).collect();
            let repaired = repair(&mut headers).map_err(drop);
            let left = headers.get_all(header::CONTENT_LENGTH).iter();
            let left: Vec<&str> = left.map(|it| it.to_str().unwrap()).collect();
            assert_eq!(repaired.map(|()| &left[..]), expected, "{lines:?}");
        }
    }

    #[test]
    fn empty_lines_before_a_head_are_not_its_own() {
        let mut heads = Heads::default();
        heads.feed(b"\r\n\r");
        heads.feed(b"\nGET /a HTTP/1.1\r\n\r\n");
        assert_eq!(heads.take(), b"GET /a HTTP/1.1\r\n\r\n");
    }

    #[test]
    fn the_next_head_begins_after_take() {
        let mut heads = Heads::default();
        heads.feed(b"GET /a HTTP/1.1\r\n\r\nrest");
        assert_eq!(heads.take(), b"GET /a HTTP/1.1\r\n\r\n");
        heads.feed(b"GET /b HTTP/1.1\r\n");
        heads.feed(b"\r\n");
        assert_eq!(heads.take(), b"GET /b HTTP/1.1\r\n\r\n");
    }
}
