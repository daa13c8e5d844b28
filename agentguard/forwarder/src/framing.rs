//! Which body framing a request's own bytes asked for. The parser settles `Content-Length` next to `Transfer-Encoding` by
//! itself and does not tell; two servers that settle it differently are how requests are smuggled (RFC 9112 section 6.3).

use http::request::Parts;
use http::{Method, Version, header};

use super::refusal::Refusal;

/// Longest head that is kept to be looked at, bytes.
const MAX_HEAD: usize = 64 * 1024;

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
    fn the_next_head_begins_after_take() {
        let mut heads = Heads::default();
        heads.feed(b"GET /a HTTP/1.1\r\n\r\nrest");
        assert_eq!(heads.take(), b"GET /a HTTP/1.1\r\n\r\n");
        heads.feed(b"GET /b HTTP/1.1\r\n");
        heads.feed(b"\r\n");
        assert_eq!(heads.take(), b"GET /b HTTP/1.1\r\n\r\n");
    }
}
