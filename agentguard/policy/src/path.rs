//! The paths of requests: they are sent as they are written, and judged in every form in which servers read them.

use std::fmt;

use super::reading::{PathReading, others, without_space};

/// A request path in the form in which rules compare it: unreserved characters decoded, percent-encoding in upper case, dot
/// segments resolved, empty segments merged (RFC 3986 section 6.2.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CanonicalPath {
    path: String,
    /// As it is sent, if that is another spelling.
    written: Option<String>,
    /// What it is for a server that does not resolve or merge segments.
    unresolved: Vec<PathReading>,
    others: Result<Vec<PathReading>, String>,
}

impl CanonicalPath {
    /// `raw` is the path of the request target, without the query; empty means `/` (RFC 9110 section 4.2.3).
    ///
    /// # Errors
    /// Says why nobody can tell as which path a server reads `raw`: control characters, backslashes, invalid
    /// percent-encoding, overlong UTF-8, dot segments that only some servers see, and those that climb above the root.
    pub fn parse(raw: &str) -> Result<Self, String> {
        if raw.is_empty() {
            return Ok(Self {
                path: "/".into(),
                written: None,
                unresolved: Vec::new(),
                others: Ok(Vec::new()),
            });
        }
        if !raw.starts_with('/') {
            return Err("the path does not start with `/`".into());
        }
        let encoded = normalise_encoding(raw)?;
        if leads_up_from_odd_ones(&encoded) {
            return Err(
                "the path leads up (`..`) beside segments that some servers leave out".into(),
            );
        }
        let path = resolve_segments(&encoded)?;
        let unresolved = unresolved(&encoded, &path);
        let others = others(&path, &unresolved);
        Ok(Self {
            written: (raw != path).then(|| raw.to_owned()),
            path,
            unresolved,
            others,
        })
    }

    pub fn as_str(&self) -> &str {
        &self.path
    }

    /// As it is sent, if that is another spelling.
    pub(super) fn written(&self) -> Option<&str> {
        self.written.as_deref()
    }

    /// Every other path that it may stand for. `exact`: for a server that compares paths as they are sent.
    ///
    /// # Errors
    /// Says why they cannot be told.
    pub(super) fn others(&self, exact: bool) -> Result<impl Iterator<Item = &PathReading>, &str> {
        let others = match (&self.others, exact) {
            (_, true) => &[],
            (Ok(others), false) => &**others,
            (Err(why), false) => return Err(why),
        };
        Ok(self.unresolved.iter().chain(others))
    }

    /// Every path that it may stand for, itself first.
    #[cfg(test)]
    pub(super) fn readings(&self) -> Result<Vec<&str>, &str> {
        let others = self.others(false)?.map(|other| other.path.as_str());
        Ok(std::iter::once(self.path.as_str()).chain(others).collect())
    }
}

impl fmt::Display for CanonicalPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)
    }
}

/// Number of segments that are not empty.
pub(super) fn segment_count(path: &str) -> usize {
    path.split('/')
        .filter(|segment| !segment.is_empty())
        .count()
}

pub(super) fn normalise_encoding(raw: &str) -> Result<String, String> {
    let bytes = raw.as_bytes();
    let mut out = String::with_capacity(raw.len());
    let mut plain = Vec::with_capacity(raw.len());
    let mut at = 0;
    while at < bytes.len() {
        let (byte, encoded) = match bytes[at] {
            b'%' => {
                let digits = bytes
                    .get(at + 1..at + 3)
                    .and_then(|two| Some((hex(two[0])?, hex(two[1])?)));
                let (high, low) = digits.ok_or("the path has invalid percent-encoding")?;
                at += 3;
                (high << 4 | low, true)
            }
            byte => {
                at += 1;
                (byte, false)
            }
        };
        match byte {
            0..=0x1f | 0x7f => return Err("the path has a control character".into()),
            b'\\' => return Err("the path has a backslash, which some servers read as `/`".into()),
            b'?' | b'#' if !encoded => return Err("the path has a query or fragment".into()),
            b'/' if !encoded => out.push('/'),
            _ if is_unreserved(byte) || !encoded && is_delimiter(byte) => {
                out.push(char::from(byte))
            }
            _ => push_encoded(&mut out, byte),
        }
        plain.push(byte);
    }
    match has_overlong(&plain) {
        true => Err("the path has overlong UTF-8".into()),
        false => Ok(out),
    }
}

/// Whether some of it is another way to write an ASCII character, such as `%C0%AE` for a dot.
pub(super) fn has_overlong(bytes: &[u8]) -> bool {
    bytes.windows(2).any(|two| {
        matches!(
            two,
            [0xc0 | 0xc1, 0x80..=0xbf] | [0xe0, 0x80..=0x9f] | [0xf0, 0x80..=0x8f]
        )
    })
}

/// Whether a server that decodes, cuts or trims segments before it resolves dots may come elsewhere: `/x/;y/../z` is `/z` to one.
fn leads_up_from_odd_ones(encoded: &str) -> bool {
    let is_odd = |segment: &str| segment.len() > 2 && segment.bytes().all(|byte| byte == b'.');
    encoded.split('/').any(|segment| segment == "..")
        && (encoded.contains(['%', ';']) || encoded.split('/').any(is_odd))
}

/// `encoded` as it is, with its dot segments resolved alone (RFC 3986 section 5.2.4), and as a reference that names a host, which
/// it is to servers that read it as a URL.
fn unresolved(encoded: &str, canonical: &str) -> Vec<PathReading> {
    let mut found = Vec::new();
    if encoded == canonical {
        return found;
    }
    let mut add = |path: String, step| {
        if path != canonical && found.iter().all(|it: &PathReading| it.path != path) {
            let steps = vec![step];
            found.push(PathReading { path, steps });
        }
    };
    add(encoded.to_owned(), "as it is written");
    add(without_dots(encoded), "with its empty segments");
    if encoded.starts_with("//") {
        // RFC 3986 section 4.2, and WHATWG URL, for which there may be more slashes.
        let named = encoded.trim_start_matches('/');
        let path = without_dots(named.find('/').map_or("/", |at| &named[at..]));
        add(merge_slashes(&path), "behind the name of a host");
        add(path, "behind the name of a host");
    }
    found
}

fn without_dots(encoded: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = encoded.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        match segment {
            "." => {}
            ".." => {
                kept.pop();
            }
            _ => {
                kept.push(segment);
                continue;
            }
        }
        if segments.peek().is_none() {
            kept.push("");
        }
    }
    format!("/{}", kept.join("/"))
}

/// Resolves dot segments and merges empty ones; a trailing slash stays.
fn resolve_segments(encoded: &str) -> Result<String, String> {
    let mut kept: Vec<&str> = Vec::new();
    let mut trailing = false;
    for segment in encoded.split('/').skip(1) {
        trailing = true;
        match segment {
            "" | "." => {}
            ".." => {
                kept.pop().ok_or("the path climbs above the root")?;
            }
            _ if hides_dots(segment) => {
                return Err("the path has a dot segment that only some servers see".into());
            }
            _ => {
                kept.push(segment);
                trailing = false;
            }
        }
    }
    let mut path = String::with_capacity(encoded.len());
    for segment in &kept {
        path.push('/');
        path.push_str(segment);
    }
    if trailing || kept.is_empty() {
        path.push('/');
    }
    Ok(path)
}

/// A dot segment behind an encoded slash (`a%2F..`), with a parameter that some servers cut off (`..;x`) or white space that
/// some trim (`..%20`).
pub(super) fn hides_dots(segment: &str) -> bool {
    segment.split("%2F").any(|piece| {
        let name = piece.split(';').next().unwrap_or(piece);
        let name = name.split("%3B").next().unwrap_or(name);
        matches!(without_space(name), "." | "..")
    })
}

pub(super) fn merge_slashes(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if c != '/' || !out.ends_with('/') {
            out.push(c);
        }
    }
    out
}

pub(super) fn push_encoded(out: &mut String, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    out.push(char::from(DIGITS[usize::from(byte >> 4)]));
    out.push(char::from(DIGITS[usize::from(byte & 15)]));
}

pub(super) fn hex(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

/// RFC 3986 section 2.3.
const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// What a path can hold unencoded besides unreserved characters and `/` (RFC 3986 section 3.3).
pub(super) const fn is_delimiter(byte: u8) -> bool {
    matches!(
        byte,
        b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@'
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_path_has_one_spelling() {
        let cases = [
            ("", "/"),
            ("/", "/"),
            ("//", "/"),
            ("/a//b///c", "/a/b/c"),
            ("/a/", "/a/"),
            ("/a/./b", "/a/b"),
            ("/a/.", "/a/"),
            ("/a/b/..", "/a/"),
            ("/a/b/../c", "/a/c"),
            ("/a/%2e%2E/c", "/c"),
            ("/%7Euser/%41", "/~user/A"),
            ("/a%20b%c3%bc", "/a%20b%C3%BC"),
            ("/bücher<x>\"{}", "/b%C3%BCcher%3Cx%3E%22%7B%7D"),
            ("/a%2fb", "/a%2Fb"),
            ("/a;v=1/b:c@d", "/a;v=1/b:c@d"),
            ("/...", "/..."),
            ("/a..b", "/a..b"),
            ("/100%25", "/100%25"),
        ];
        for (raw, expected) in cases {
            assert_eq!(
                CanonicalPath::parse(raw)
                    .as_ref()
                    .map(CanonicalPath::as_str),
                Ok(expected),
                "{raw}"
            );
        }
    }

    #[test]
    fn what_servers_could_read_differently_is_refused() {
        let cases = [
            "a",
            "*",
            "/..",
            "/a/../..",
            "/%2e%2e",
            "/a%00",
            "/a%0d%0a",
            "/a\0",
            "/a\tb",
            "/a\\b",
            "/a%5Cb",
            "/a%5c..%5cb",
            "/%",
            "/%4",
            "/%zz",
            "/a%+1b",
            "/%c0%ae%c0%ae/",
            "/%e0%80%af",
            "/%ff%c0%ae",
            "/x/;y/../z",
            "/x/%2f/../z",
            "/x/%20/../z",
            "/x/.../../z",
            "/x/%ff/%2e%2e/z",
            "/a%2f..%2fb",
            "/a%2F..",
            "/..%2Fb",
            "/a%2f.",
            "/a/..;/b",
            "/a/.;x",
            "/..%3bx",
            "/a?b",
            "/a#b",
            "/a/..%20/b",
            "/a/%20../b",
            "/a/%c2%a0.%20;x",
            "/a%2f..%e3%80%80",
        ];
        for raw in cases {
            assert!(
                CanonicalPath::parse(raw).is_err(),
                "{raw:?} was accepted as {:?}",
                CanonicalPath::parse(raw)
            );
        }
    }

    #[test]
    fn a_path_stays_one_where_only_its_readings_cannot_be_told() {
        for raw in [
            "/%252E%252E/",
            "/a%2500",
            "/a%3B..%3Fx%2F..%23",
            "/a/..%2520",
        ] {
            let path = CanonicalPath::parse(raw).unwrap();
            assert_eq!(path.as_str(), raw);
            assert!(path.readings().is_err(), "{raw}: {:?}", path.readings());
        }
    }

    #[test]
    fn it_stands_for_what_servers_read_in_it() {
        let cases: [(&str, &[&str]); 16] = [
            ("/a/b", &["/a/b"]),
            ("/a%2Fb", &["/a%2Fb", "/a/b"]),
            ("/a%2F%2Fb%2f/c", &["/a%2F%2Fb%2F/c", "/a/b/c"]),
            ("/u/a%40b%20c", &["/u/a%40b%20c", "/u/a@b%20c"]),
            ("/%252F", &["/%252F", "/%2F", "/"]),
            ("/%61dmin;x/y", &["/admin;x/y", "/admin/y"]),
            ("//", &["/", "//"]),
            ("//x/a", &["/x/a", "//x/a", "/a"]),
            (
                "///x/../a//b",
                &["/a/b", "///x/../a//b", "///a//b", "/a//b"],
            ),
            ("/a//b", &["/a/b", "/a//b"]),
            ("/a/./b", &["/a/b", "/a/./b"]),
            ("/a/%2e%2E", &["/", "/a/.."]),
            ("/a//../b", &["/b", "/a//../b", "/a/b"]),
            ("//a%2Fb", &["/a%2Fb", "//a%2Fb", "/", "/a/b", "//a/b"]),
            ("/a;x//b", &["/a;x/b", "/a;x//b", "/a/b", "/a//b"]),
            ("/caf%E9/b", &["/caf%E9/b", "/caf/b", "/caf%C3%A9/b"]),
        ];
        for (raw, expected) in cases {
            let path = CanonicalPath::parse(raw).unwrap();
            assert_eq!(path.readings().unwrap(), expected, "{raw}");
        }
    }

    proptest! {
        #[test]
        fn parsing_is_idempotent_and_leaves_no_dot_segments(
            raw in "\\PC{0,30}|/([a-c./;%]|%2[efEF]|%5[cC]|%3[bB]|%40|%00|ü){0,20}",
        ) {
            if let Ok(path) = CanonicalPath::parse(&raw) {
                let again = CanonicalPath::parse(path.as_str()).unwrap();
                prop_assert_eq!(again.as_str(), path.as_str());
                prop_assert!(again.written.is_none() && again.unresolved.is_empty());
                prop_assert_eq!(path.written().unwrap_or(path.as_str()), if raw.is_empty() { "/" } else { &raw });
                for reading in again.readings().unwrap_or_default() {
                    prop_assert!(reading.starts_with('/') && !reading.contains("//"), "{}", reading);
                    for segment in reading.split('/') {
                        let name = segment.split(';').next().unwrap();
                        prop_assert!(name != "." && name != "..", "{} from {}", reading, raw);
                    }
                    prop_assert!(reading.is_ascii() && !reading.contains(['\\', '?', '#']));
                }
            }
        }
    }
}
