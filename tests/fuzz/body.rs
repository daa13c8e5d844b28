//! What rules read of a body is what other parsers read in it, or the request is refused.

use std::sync::LazyLock;

use agentguard_policy::{CanonicalPath, Policy};
use http::{HeaderMap, HeaderValue, header};
use serde_json::Value;

use super::policy::{Request, ids, sources};
use super::shorthand::kind;

/// The content type and encoding on the first line, then the body.
pub(crate) const SEEDS: &[&[u8]] = &[
    b"application/json\n{\"amount\": 12.5, \"region\": \"eu\", \"deep\": {\"n\": [7, 8]}, \"urgent\": true}",
    b"application/json\n{\"amount\": -1.2e3, \"other\": [{\"amount\": 1}, null, \"\\u0061\\ud83d\\ude00\"]}",
    b"application/json; charset=utf-8\n[1, 2]",
    b"application/vnd.x+json\n\"text\"",
    b"application/x-www-form-urlencoded\namount=12.5&region=e%75+x&other=%20",
    b"multipart/form-data; boundary=b\n--b\r\nContent-Disposition: form-data; name=\"region\"\r\n\r\neu\r\n--b\r\nContent-Disposition: form-data; name=\"f\"; filename=\"x\"\r\n\r\n\0\r\n--b--\r\n",
    b"application/json gzip\n\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xabVJ\xcc\xcd/\xcd+Q\xb22\xd4Q*JM\xcf\xcc\xcfS\xb2RJ-U\xaa\x05\x00=\xe9\x11\x94\x1a\x00\x00\x00",
    b"application/json deflate\nx\x9c\xabVJ\xcc\xcd/\xcd+Q\xb22\xd4Q*JM\xcf\xcc\xcfS\xb2RJ-U\xaa\x05\x00u\xee\x08\x88",
];
pub(crate) const WORDS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\\",
    "\\u0061",
    "\\ud83d",
    "\"amount\":",
    "\"Amount\":",
    "\"region\":",
    "\"deep\":{\"n\":[1]}",
    "null",
    "true",
    "1e5",
    "-0",
    "0.00001",
    "922337203685477.5807",
    "9223372036854775808",
    "NaN",
    "1.0",
    "01",
    "&",
    "=",
    "+",
    "%20",
    "%00",
    "%zz",
    ";",
    "amount=",
    "region=",
    "region[]=",
    "--b",
    "--b--",
    "\r\n",
    "\r\n\r\n",
    "\n",
    "Content-Disposition: form-data; name=\"amount\"",
    "Content-Type: text/plain",
    "; boundary=b",
    " gzip",
    " deflate",
    " br",
    " identity",
    "charset=utf-16",
    "\u{feff}",
    "\u{17f}",
    "\0",
    "\u{fc}",
];
/// Bytes that a compressed body may become.
const LIMIT: usize = 4096;
/// Of a value in the facts; what is longer is cut.
const WHOLE: usize = 256;

static POLICY: LazyLock<Policy> = LazyLock::new(|| {
    let fields = |prefix: &str| {
        format!(
            "amount = {{ type = \"decimal\", at = \"{prefix}amount\" }}
region = {{ type = \"string\", at = \"{prefix}region\" }}
urgent = {{ type = \"bool\", at = \"{prefix}urgent\" }}\n"
        )
    };
    let host = format!(
        "[host]\nname = \"h\"\n[[body]]\non = \"POST /json\"\n{}n = {{ type = \"long\", at = \"/deep/n/0\" }}\n[[body]]\non = \"POST /form\"\n{}",
        fields("/"),
        fields("")
    );
    let sources = sources(&[
        ("bundle.toml", "name = \"b\"\nserial = 1\n"),
        (
            "agents/a.toml",
            "[agent]\nname = \"a\"\nowner = \"o\"\nrisk = \"low\"\n[[reach]]\nhost = \"h\"\nallow = [\"POST /**\"]\n",
        ),
        ("hosts/h.toml", &host),
        (
            "rules/r.cedar",
            "@id(\"r\") forbid (principal, action == Action::\"POST\", resource == Host::\"h\")
            when { context.body has region && context.body.region == \"nowhere\"
                && (context.body has amount || context.body has urgent || context.body has n) };",
        ),
    ]);
    Policy::compile(&sources, &ids(&sources)).unwrap_or_else(|why| panic!("{why:?}"))
});

pub(crate) fn check(input: &[u8]) -> String {
    let end = input
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap_or(input.len());
    let body = input.get(end + 1..).unwrap_or_default();
    let first = String::from_utf8_lossy(&input[..end]);
    let (media, encoding) = match first.rsplit_once(' ') {
        Some((media, encoding)) if !encoding.contains(['=', '/']) => (media, Some(encoding)),
        _ => (&*first, None),
    };
    let mut headers = HeaderMap::new();
    let Ok(value) = HeaderValue::from_str(media) else {
        return "no header".into();
    };
    headers.insert(header::CONTENT_TYPE, value);
    if let Some(encoding) = encoding {
        let Ok(value) = HeaderValue::from_str(encoding) else {
            return "no header".into();
        };
        headers.insert(header::CONTENT_ENCODING, value);
    }
    let ways = ["/json", "/form"].map(|path| {
        let path = &CanonicalPath::parse(path).expect("a path");
        let (method, headers) = ("POST", &headers);
        let request = Request {
            method,
            path,
            headers,
            body,
        };
        request
            .decide(&POLICY, LIMIT)
            .map(|permit| permit.facts().clone())
    });
    let mut said = Vec::new();
    for (way, facts) in ["json", "form"].into_iter().zip(&ways) {
        let facts = match facts {
            Ok(facts) => facts,
            Err(why) => {
                let said_of = why.split_once(": ").map_or(why.as_str(), |(_, why)| why);
                said.push(format!("{way} {}", kind(said_of)));
                continue;
            }
        };
        let fact = |name: &str| facts.get(&format!("body.{name}")).map(String::as_str);
        let names = ["amount", "region", "urgent", "n"];
        said.push(format!(
            "{way} {:?}",
            names.map(|name| fact(name).is_some())
        ));
        if encoding.is_some() || body.is_empty() {
            let long = fact("region").filter(|text| text.len() > WHOLE);
            assert!(
                long.is_none_or(|text| text.contains(" bytes, sha256:")),
                "{long:?}"
            );
            continue;
        }
        match way {
            "json" => same_as_json(body, fact),
            _ if media.contains("urlencoded") => same_as_form(body, fact),
            _ => {}
        }
    }
    said.join(", ")
}

fn same_as_json<'f>(body: &[u8], fact: impl Fn(&str) -> Option<&'f str>) {
    let read: Value = match serde_json::from_slice(body) {
        Ok(read) => read,
        // It reads numbers as doubles, which have a largest one; the product keeps the digits.
        Err(why) if why.to_string().starts_with("number out of range") => return,
        Err(why) => panic!("no JSON: {why}"),
    };
    for (name, pointer) in [
        ("amount", "/amount"),
        ("region", "/region"),
        ("urgent", "/urgent"),
        ("n", "/deep/n/0"),
    ] {
        let (ours, theirs) = (fact(name), read.pointer(pointer));
        assert_eq!(
            ours.is_some(),
            theirs.is_some(),
            "{name}: {ours:?} {theirs:?}"
        );
        let (Some(ours), Some(theirs)) = (ours, theirs) else {
            continue;
        };
        let same = match name {
            "amount" => {
                let (ours, theirs) = (ours.parse::<f64>(), theirs.as_f64());
                ours.ok()
                    .zip(theirs)
                    .is_some_and(|(ours, theirs)| (ours - theirs).abs() <= theirs.abs() * 1e-12)
            }
            "n" => {
                let ours: i64 = ours.parse().expect("a long");
                let whole = theirs.as_i64();
                whole.map_or(theirs.as_f64() == Some(ours as f64), |it| it == ours)
            }
            "urgent" => theirs
                .as_bool()
                .is_some_and(|value| value.to_string() == ours),
            _ => theirs
                .as_str()
                .is_some_and(|text| text == ours || text.len() > WHOLE),
        };
        assert!(same, "{name}: {ours} is not {theirs}");
    }
}

fn same_as_form<'f>(body: &[u8], fact: impl Fn(&str) -> Option<&'f str>) {
    let text = std::str::from_utf8(body).expect("a form is text");
    let plain = |text: &str| -> Vec<u8> {
        let mut pieces = text.split('%');
        let mut bytes = pieces
            .next()
            .unwrap_or_default()
            .replace('+', " ")
            .into_bytes();
        for piece in pieces {
            let (digits, rest) = piece.split_at(2);
            bytes.push(u8::from_str_radix(digits, 16).expect("two digits"));
            bytes.extend(rest.replace('+', " ").bytes());
        }
        bytes
    };
    for name in ["amount", "region", "urgent"] {
        let pairs = text
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let theirs: Vec<_> = pairs
            .filter(|(of, _)| plain(of) == name.as_bytes())
            .map(|(_, value)| plain(value))
            .collect();
        let ours = fact(name);
        assert_eq!(
            theirs.len(),
            usize::from(ours.is_some()),
            "{name}: {ours:?} {theirs:?}"
        );
        if let ("region", Some(ours), Some(theirs)) = (name, ours, theirs.first()) {
            assert!(
                ours.as_bytes() == theirs || theirs.len() > WHOLE,
                "{ours} is not {theirs:?}"
            );
        }
    }
}
