//! A path has one form in which it is compared, which stays what it is. However a server reads it as it was sent, what is forbidden
//! there stays forbidden.

use std::sync::LazyLock;

use agentguard_policy::{CanonicalPath, Policy};
use http::HeaderMap;

use super::policy::{Request, ids, sources};

/// What is forbidden is `/admin` and everything below it.
static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    let files = [
        ("bundle.toml", "name = \"b\"\nserial = 1\n"),
        (
            "agents/a.toml",
            "[agent]\nname = \"a\"\nowner = \"o\"\n[[reach]]\nhost = \"h\"\nallow = [\"ANY /**\"]\n",
        ),
        (
            "rules/r.cedar",
            "@id(\"no\") forbid (principal, action, resource) when { context.routes.contains(\"/Admin/**\") };",
        ),
    ];
    let sources = sources(&files);
    Policy::compile(&sources, &ids(&sources)).expect("a good bundle")
});

pub(crate) const SEEDS: &[&[u8]] = &[
    b"/",
    b"/v1/catalog/items/1",
    b"/a//b/./c/../d/",
    b"/%7Euser/%41%2fb%2F..%3Bx",
    b"/b%C3%BCcher/a%20b;v=1/c@d",
    b"/..;/%2e%2e/%252e",
    b"/x/../Admin%20;v=1/users.json",
    b"/%2561dmin%3bx/%252fusers%3F",
];
pub(crate) const WORDS: &[&str] = &[
    "/", "//", ".", "..", "/../", "/./", ";", "%2f", "%2F", "%2e", "%2E%2e", "%5c", "%00", "%0d",
    "%25", "%3b", "%3B", "%c0%ae", "%C3%BC", "%40", "%zz", "%", "\\", "?", "#", " ", "\u{fc}",
    "\u{202e}", "a", "~", "admin", "ADMIN", "%61", "%2561", "%3f", "%23", "%20", "%C2%A0", ".json",
];

pub(crate) fn check(input: &[u8]) -> String {
    let Ok(raw) = std::str::from_utf8(input) else {
        return "no text".into();
    };
    let path = match CanonicalPath::parse(raw) {
        Ok(path) => path,
        Err(why) => return why,
    };
    let text = path.as_str();
    let form = |raw: &str| CanonicalPath::parse(raw).map(|path| path.to_string());
    assert_eq!(form(text).as_deref(), Ok(text), "{raw:?} is not settled");
    assert!(
        text.starts_with('/') && text.is_ascii() && !text.contains("//"),
        "{text:?}"
    );
    let bad =
        |c: char| c.is_ascii_control() || matches!(c, '\\' | '?' | '#' | ' ' | '"' | '<' | '>');
    assert!(!text.contains(bad), "{text:?}");
    let lenient = text.replace("%2F", "/").replace("%3B", ";");
    for segment in lenient.split('/') {
        let name = segment.split(';').next().unwrap_or_default();
        assert!(name != "." && name != "..", "{raw:?} has dots as {text:?}");
    }
    // However it is spelt, it is the same.
    let letters = text
        .replace('a', "%61")
        .replace('.', "%2E")
        .replace("%2F", "%2f");
    assert_eq!(form(&letters).as_deref(), Ok(text), "{letters:?}");
    let is_refused = is_refused(&path);
    for how in 0..Server::ALL {
        let read = Server(how).reads(raw.as_bytes());
        let below = read.strip_prefix("/admin");
        if below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
            assert!(is_refused, "{raw:?} is {read:?} to {how:b}");
        }
    }
    format!(
        "{} {} {is_refused}",
        lenient.len() != text.len(),
        raw.len() == text.len()
    )
}

fn is_refused(path: &CanonicalPath) -> bool {
    let request = Request {
        method: "GET",
        path,
        headers: &HeaderMap::new(),
        body: b"",
    };
    request.decide(&POLICY, 0).is_err()
}

/// A server that does some of what servers do to a path, a bit each.
struct Server(u32);

impl Server {
    const ALL: u32 = 1 << 8;

    fn does(&self, bit: u32) -> bool {
        self.0 & 1 << bit != 0
    }

    fn reads(&self, path: &[u8]) -> String {
        let mut path = path.to_vec();
        if self.does(0) {
            path = without_parameters(&path);
        }
        // Once to three times.
        for _ in 0..=self.does(1) as u32 + self.does(2) as u32 {
            path = decoded(&path);
            if self.does(3) {
                let end = path.iter().position(|byte| matches!(byte, b'?' | b'#'));
                path.truncate(end.unwrap_or(path.len()));
            }
            if self.does(0) {
                path = without_parameters(&path);
            }
        }
        let text = String::from_utf8_lossy(&path).into_owned();
        let mut kept: Vec<&str> = Vec::new();
        for segment in text.split('/') {
            match segment {
                "" | "." => {}
                ".." => drop(kept.pop()),
                _ => kept.push(segment),
            }
        }
        let spare = |c: char| c.is_whitespace() || c == '.';
        if self.does(4) {
            for segment in &mut kept {
                *segment = segment.trim_start().trim_end_matches(spare);
            }
            kept.retain(|segment| !segment.is_empty());
        }
        let mut read: String = kept.iter().map(|segment| format!("/{segment}")).collect();
        if self.does(5) {
            let name = read.rfind('/').map_or(0, |at| at + 1);
            let dot = read[name..].rfind('.').filter(|dot| *dot > 0);
            read.truncate(dot.map_or(read.len(), |dot| name + dot));
        }
        if self.does(6) {
            read = read.to_lowercase();
        }
        if self.does(7) && text.ends_with('/') {
            read.push('/');
        }
        read
    }
}

fn without_parameters(path: &[u8]) -> Vec<u8> {
    let segments = path.split(|byte| *byte == b'/');
    let segments: Vec<_> = segments
        .map(|it| it.split(|byte| *byte == b';').next().unwrap_or(it))
        .collect();
    segments.join(&b'/')
}

fn decoded(path: &[u8]) -> Vec<u8> {
    let hex = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
    let (mut out, mut at) = (Vec::new(), 0);
    while let Some(byte) = path.get(at) {
        let digits = hex(path.get(at + 1)).zip(hex(path.get(at + 2)));
        match digits.filter(|_| *byte == b'%') {
            Some((high, low)) => {
                out.push((high << 4 | low) as u8);
                at += 3;
            }
            None => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    out
}
