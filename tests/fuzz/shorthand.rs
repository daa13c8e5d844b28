//! An entry of `allow` decides as the Cedar policy does that it is said to stand for.

use agentguard_policy::{CanonicalPath, Policy, acts_on_terminal, lower};
use http::HeaderMap;

use super::policy::{Request, ids, sources};

pub(crate) const SEEDS: &[&[u8]] = &[
    b"GET /**",
    b"POST /v1/orders",
    b"ANY /a/*/b*/**",
    b"PROPFIND /d/%C3%BC/*.git/**",
    b"GET /a/**/c@d;e/",
    b"connect",
];
pub(crate) const WORDS: &[&str] = &[
    "GET ", "ANY ", "get ", "CONNECT ", "connect", "*", "**", "/", "/**", "/*/", "//", "..", "%2F",
    "%2f", "%40", "%C3%BC", "?", "#", "\"", "\\", "\") };", "\n", "\t", " ", "@", ";", "\u{fc}",
    "\0", "Host::", "\u{202e}",
];
const MANIFEST: &str = "name = \"b\"\nserial = 1\n";
const HEAD: &str =
    "[agent]\nname = \"a\"\nowner = \"o\"\nrisk = \"low\"\n[[reach]]\nhost = \"h\"\n";

pub(crate) fn check(input: &[u8]) -> String {
    let Ok(entry) = std::str::from_utf8(input) else {
        return "no text".into();
    };
    let quoted = toml::Value::String(entry.to_owned()).to_string();
    let agent = format!("{HEAD}allow = [{quoted}]\n");
    let short = sources(&[("bundle.toml", MANIFEST), ("agents/a.toml", &agent)]);
    let cedar = lower::cedar(&short);
    let policy = match Policy::compile(&short, &ids(&short)) {
        Ok(policy) => policy,
        Err(found) => {
            let first = found.first().expect("what is wrong with it");
            assert_eq!(first.file, "agents/a.toml", "{first:?}");
            assert!(!acts(&first.message), "{first:?}");
            return kind(&first.message);
        }
    };
    assert_eq!(cedar.matches("@id(").count(), 1, "{cedar}");
    // Ids of this form are the shorthand's own.
    let (_, rest) = cedar.split_once("\")").expect("an id");
    let rule = format!("@id(\"r\"){rest}");
    let long = sources(&[
        ("bundle.toml", MANIFEST),
        ("agents/a.toml", HEAD),
        ("rules/r.cedar", &rule),
    ]);
    let long = Policy::compile(&long, &ids(&long)).unwrap_or_else(|why| panic!("{rule}\n{why:?}"));
    let (method, pattern) = entry.split_once(' ').unwrap_or((entry, "/"));
    let pattern = pattern.trim();
    let (mut permitted, mut denied) = (0, 0);
    let paths = [
        pattern.replace("**", "x/y").replace('*', "z"),
        pattern.replace("**", "").replace('*', ""),
        pattern.to_owned(),
        pattern.replace("**", "%2F").replace('*', "%2A"),
        pattern.replace("%2F", "/").replace("%40", "@"),
        format!("{pattern}/x"),
        "/".into(),
    ];
    for path in paths {
        let Ok(path) = CanonicalPath::parse(&path) else {
            continue;
        };
        for method in [method, "GET", "LOCK"] {
            let (path, headers, body) = (&path, &HeaderMap::new(), &[][..]);
            let request = Request {
                method,
                path,
                headers,
                body,
            };
            let by = [&policy, &long].map(|policy| request.decide(policy, 0).map(|_| ()));
            assert_eq!(by[0], by[1], "{method} {path} by {entry:?}");
            match by[0] {
                Ok(()) => permitted += 1,
                Err(_) => denied += 1,
            }
        }
    }
    format!("{permitted} {denied}")
}

/// A message without what it quotes, which may have quotes in it.
pub(crate) fn kind(message: &str) -> String {
    let before = message.split('`').next().unwrap_or_default();
    let behind = message.rsplit('`').next().unwrap_or_default();
    format!("{before}…{behind}")
}

/// Whether a terminal would do something at the sight of it.
pub(crate) fn acts(message: &str) -> bool {
    message.chars().any(|c| c != '\n' && acts_on_terminal(c))
}
