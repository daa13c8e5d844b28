//! A path has one form, which stays what it is, and in which nothing is left that servers read differently.

use agentguard_policy::CanonicalPath;

pub(crate) const SEEDS: &[&[u8]] = &[
    b"/",
    b"/v1/catalog/items/1",
    b"/a//b/./c/../d/",
    b"/%7Euser/%41%2fb%2F..%3Bx",
    b"/b%C3%BCcher/a%20b;v=1/c@d",
    b"/..;/%2e%2e/%252e",
];
pub(crate) const WORDS: &[&str] = &[
    "/", "//", ".", "..", "/../", "/./", ";", "%2f", "%2F", "%2e", "%2E%2e", "%5c", "%00", "%0d",
    "%25", "%3b", "%3B", "%c0%ae", "%C3%BC", "%40", "%zz", "%", "\\", "?", "#", " ", "\u{fc}",
    "\u{202e}", "a", "~",
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
    assert_eq!(
        CanonicalPath::parse(text).as_ref(),
        Ok(&path),
        "{raw:?} is not settled"
    );
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
    assert_eq!(
        CanonicalPath::parse(&letters),
        Ok(path.clone()),
        "{letters:?}"
    );
    format!(
        "{} {}",
        lenient.len() != text.len(),
        raw.len() == text.len()
    )
}
