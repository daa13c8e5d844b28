//! The paths that servers read in one path: those that it may stand for, and how a lenient server compares it.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use crate::body::folded;
use crate::path::{
    has_overlong, hex, hides_dots, is_delimiter, merge_slashes, normalise_encoding, push_encoded,
};

/// Readings of one path at most. One that has more is refused.
const MAX: usize = 16;

/// White space as a canonical path has it: what some servers trim off the ends of a segment.
static SPACES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let spaces =
        (' '..=char::MAX).filter(|c| c.is_whitespace() || matches!(c, '\u{200b}' | '\u{feff}'));
    let encoded = spaces.map(|space| {
        let mut text = String::new();
        let mut buffer = [0; 4];
        let bytes = space.encode_utf8(&mut buffer).bytes();
        bytes.for_each(|byte| push_encoded(&mut text, byte));
        text
    });
    encoded.collect()
});

/// A path, and what a server does to read it in the path that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PathReading {
    pub path: String,
    pub steps: Vec<&'static str>,
}

/// Every other path that a server may read in a canonical one: however often it decodes, with or without what stands behind
/// a `;`, where it takes an encoded `?` or `#` for the end, and what it makes of bytes that are no UTF-8. And in those that it
/// is for servers that leave its segments as they are (`unresolved`): no slashes are merged in them, and one that has dot
/// segments is read as it is.
///
/// # Errors
/// Says why the readings cannot be told: control characters, backslashes, overlong UTF-8 or dot segments in one of them, or
/// too many.
pub(crate) fn others(
    canonical: &str,
    unresolved: &[PathReading],
) -> Result<Vec<PathReading>, String> {
    let is_plain = |path: &str| !path.contains(['%', ';']);
    if is_plain(canonical) && unresolved.iter().all(|it| is_plain(&it.path)) {
        return Ok(Vec::new());
    }
    let has_dots = |path: &str| path.split('/').any(hides_dots);
    let mut readings = vec![PathReading {
        path: canonical.to_owned(),
        steps: Vec::new(),
    }];
    readings.extend(unresolved.iter().cloned());
    let given = readings.len();
    let mut found: BTreeSet<String> = readings.iter().map(|it| it.path.clone()).collect();
    let mut at = 0;
    while let Some(from) = readings.get(at).cloned() {
        at += 1;
        if has_dots(&from.path) {
            continue;
        }
        let merges = !from.path.contains("//");
        let tidy = |path: String| match merges {
            true => merge_slashes(&path),
            false => path,
        };
        let steps = [
            (decode(&from.path)?.map(tidy), "decoded once more"),
            (without_parameters(&from.path).map(tidy), "without `;…`"),
            (until_end(&from.path), "up to an encoded `?` or `#`"),
            (
                without_other_text(&from.path).map(tidy),
                "without what is no UTF-8",
            ),
            (from_latin1(&from.path), "as ISO 8859-1"),
        ];
        for (path, step) in steps {
            let Some(path) = path.filter(|path| !found.contains(path)) else {
                continue;
            };
            if has_dots(&path) {
                return Err("the path has a dot segment that only some servers see".into());
            }
            if readings.len() == MAX {
                return Err(format!("the path can be read in more than {MAX} ways"));
            }
            let mut steps = from.steps.clone();
            if !steps.contains(&step) {
                steps.push(step);
            }
            found.insert(path.clone());
            readings.push(PathReading { path, steps });
        }
    }
    readings.drain(..given);
    Ok(readings)
}

/// Delimiters and percent signs decoded, which makes of `%2561` an `a`; not those before what is no UTF-8. `None`: nothing
/// changes.
fn decode(path: &str) -> Result<Option<String>, String> {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        let (before, triple) = rest.split_at(at);
        out.push_str(before);
        let run = doubled(triple);
        if !run.is_empty() {
            decode_doubled(run, &mut out)?;
            rest = &triple[run.len()..];
            continue;
        }
        let (triple, behind) = triple.split_at(3);
        rest = behind;
        match byte(triple) {
            Some(b'%') if byte(&format!("%{}", behind.get(..2).unwrap_or_default())).is_some() => {
                out.push('%');
            }
            Some(byte) if byte == b'/' || is_delimiter(byte) => out.push(char::from(byte)),
            _ => out.push_str(triple),
        }
    }
    out.push_str(rest);
    if out == path {
        return Ok(None);
    }
    let normal =
        normalise_encoding(&out).map_err(|why| format!("{why} once it is decoded again"))?;
    Ok(Some(normal))
}

/// The `%25XX` in front that stand for bytes beyond ASCII once they are decoded again.
fn doubled(text: &str) -> &str {
    let mut length = 0;
    while let Some(five) = text.get(length..length + 5)
        && doubled_byte(five).is_some_and(|byte| !byte.is_ascii())
    {
        length += 5;
    }
    &text[..length]
}

/// The byte that `%25XX` stands for.
fn doubled_byte(five: &str) -> Option<u8> {
    byte(&format!("%{}", five.strip_prefix("%25")?))
}

/// # Errors
/// Overlong sequences are another way to write dots and slashes.
fn decode_doubled(run: &str, out: &mut String) -> Result<(), String> {
    let fives = run.as_bytes().chunks(5).map(String::from_utf8_lossy);
    let bytes: Vec<u8> = fives.filter_map(|five| doubled_byte(&five)).collect();
    if has_overlong(&bytes) {
        return Err("the path has overlong UTF-8 once it is decoded again".into());
    }
    let mut rest = run;
    for chunk in bytes.utf8_chunks() {
        let valid = chunk.valid().bytes();
        valid.for_each(|byte| push_encoded(out, byte));
        rest = &rest[chunk.valid().len() * 5..];
        let (kept, behind) = rest.split_at(chunk.invalid().len() * 5);
        out.push_str(kept);
        rest = behind;
    }
    Ok(())
}

fn without_parameters(path: &str) -> Option<String> {
    if !path.contains(';') {
        return None;
    }
    let segments = path.split('/');
    let segments: Vec<_> = segments
        .map(|it| it.split(';').next().unwrap_or(it))
        .collect();
    Some(segments.join("/"))
}

/// Some servers leave bytes out that are no UTF-8.
fn without_other_text(path: &str) -> Option<String> {
    other_text(path, |_, _| {})
}

/// To some servers each such byte is a letter.
fn from_latin1(path: &str) -> Option<String> {
    other_text(path, |byte, out| {
        let mut buffer = [0; 2];
        let letter = char::from(byte).encode_utf8(&mut buffer);
        letter.bytes().for_each(|byte| push_encoded(out, byte));
    })
}

/// With what `put` makes of each byte that is no UTF-8. `None`: there is none.
fn other_text(path: &str, mut put: impl FnMut(u8, &mut String)) -> Option<String> {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    let mut found = false;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let mut run = Vec::new();
        while let Some(byte) = rest.get(..3).and_then(byte)
            && byte >= 0x80
        {
            run.push(byte);
            rest = &rest[3..];
        }
        if run.is_empty() {
            let (kept, behind) = rest.split_at(1);
            out.push_str(kept);
            rest = behind;
        }
        for chunk in run.utf8_chunks() {
            let valid = chunk.valid().bytes();
            valid.for_each(|byte| push_encoded(&mut out, byte));
            for byte in chunk.invalid() {
                found = true;
                put(*byte, &mut out);
            }
        }
    }
    out.push_str(rest);
    found.then_some(out)
}

fn until_end(path: &str) -> Option<String> {
    let ends = ["%3F", "%23"].into_iter().filter_map(|end| path.find(end));
    ends.min().map(|end| path[..end].to_owned())
}

/// The forms in which lenient servers compare a path: letters folded, and each with and without what they leave out. The
/// path itself is one of them where `folds` says that patterns are folded too.
pub(crate) fn lenient(path: &str, folds: bool) -> Vec<PathReading> {
    let odd = |byte: u8| byte.is_ascii_uppercase() || matches!(byte, b'%' | b'.');
    let is_plain = !path.bytes().any(odd) && (path.len() == 1 || !path.ends_with('/'));
    if is_plain && !folds {
        return Vec::new();
    }
    let case = fold(path);
    let mut found: Vec<PathReading> = Vec::new();
    for (trims, closes, cuts) in [
        (false, false, false),
        (true, false, false),
        (false, true, false),
        (false, false, true),
        (true, true, false),
        (true, false, true),
        (false, true, true),
        (true, true, true),
    ] {
        let mut read = case.clone();
        let mut steps = Vec::new();
        let mut step = |on: bool, read: &mut String, name, change: fn(&str) -> String| {
            let changed = if on { change(read) } else { return };
            if changed != *read {
                *read = changed;
                if !steps.contains(&name) {
                    steps.push(name);
                }
            }
        };
        step(trims, &mut read, "trimmed", trimmed);
        step(closes, &mut read, "without its last slash", without_slash);
        step(cuts, &mut read, "without its extension", without_extension);
        step(trims, &mut read, "trimmed", trimmed);
        step(closes, &mut read, "without its last slash", without_slash);
        if case != path {
            steps.insert(0, "in lower case");
        }
        if found.iter().all(|known| known.path != read) && (folds || read != path) {
            found.push(PathReading { path: read, steps });
        }
    }
    found
}

/// Without white space, and dots at the end, around each segment.
fn trimmed(path: &str) -> String {
    let mut segments = Vec::new();
    for segment in path.split('/') {
        let mut rest = without_space(segment);
        let at_the_end = || SPACES.iter().map(|space| &**space).chain(["."]);
        while let Some(before) = at_the_end().find_map(|odd| rest.strip_suffix(odd)) {
            rest = before;
        }
        segments.push(rest);
    }
    merge_slashes(&segments.join("/"))
}

/// A segment, or a piece of one, without encoded white space around it.
pub(crate) fn without_space(segment: &str) -> &str {
    let mut rest = segment;
    while let Some(behind) = SPACES.iter().find_map(|space| rest.strip_prefix(&**space)) {
        rest = behind;
    }
    while let Some(before) = SPACES.iter().find_map(|space| rest.strip_suffix(&**space)) {
        rest = before;
    }
    rest
}

pub(crate) fn without_slash(path: &str) -> String {
    match path.strip_suffix('/') {
        None | Some("") => path.to_owned(),
        Some(open) => open.to_owned(),
    }
}

fn without_extension(path: &str) -> String {
    let name = path.rfind('/').map_or(0, |slash| slash + 1);
    match path[name..].rfind('.') {
        None | Some(0) => path.to_owned(),
        Some(dot) => path[..name + dot].to_owned(),
    }
}

/// A canonical path, or a piece of one, with its letters folded, those of other scripts too; percent-encoding stays as it is
/// written.
pub(crate) fn fold(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at].to_ascii_lowercase());
        rest = &rest[at..];
        let mut run = Vec::new();
        while let Some(byte) = rest.get(..3).and_then(byte)
            && byte >= 0x80
        {
            run.push(byte);
            rest = &rest[3..];
        }
        match std::str::from_utf8(&run) {
            Ok("") => {
                // An ASCII character that is encoded, or a piece of one that a pattern cuts.
                let is_whole = rest.get(..3).and_then(byte).is_some();
                let (kept, behind) = rest.split_at(if is_whole { 3 } else { 1 });
                out.push_str(kept);
                rest = behind;
            }
            Ok(letters) => {
                for letter in folded(letters).bytes() {
                    match letter {
                        b'a'..=b'z' => out.push(char::from(letter)),
                        _ => push_encoded(&mut out, letter),
                    }
                }
            }
            Err(_) => run.iter().for_each(|byte| push_encoded(&mut out, *byte)),
        }
    }
    out.push_str(&rest.to_ascii_lowercase());
    out
}

/// The byte that `%XX` stands for.
fn byte(triple: &str) -> Option<u8> {
    match *triple.as_bytes() {
        [b'%', high, low] => Some(hex(high)? << 4 | hex(low)?),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(found: &[PathReading]) -> Vec<&str> {
        found.iter().map(|reading| reading.path.as_str()).collect()
    }

    #[test]
    fn a_path_stands_for_others() {
        let cases: [(&str, &[&str]); 17] = [
            ("/a/b", &[]),
            ("/a%20b/%C3%BC", &[]),
            ("/a%2Fb", &["/a/b"]),
            ("/a%2F%2Fb", &["/a/b"]),
            ("/a;v=1/b;w", &["/a/b"]),
            ("/;x/a", &["/a"]),
            ("/a%3Bv=1/b", &["/a;v=1/b", "/a/b"]),
            ("/%2561dmin", &["/admin"]),
            ("/a%252Fb", &["/a%2Fb", "/a/b"]),
            ("/a%3Fx/b", &["/a"]),
            ("/a%23/b;c", &["/a%23/b", "/a"]),
            ("/50%25off", &[]),
            ("/50%25ab", &[]),
            ("/%25C3%25bc", &["/%C3%BC"]),
            ("/%25AB%25C3%25BC/%2561", &["/%25AB%C3%BC/a"]),
            ("/%25C0/%252F", &["/%25C0/%2F", "/%25C0/"]),
            ("/u/a%40b", &["/u/a@b"]),
        ];
        for (path, expected) in cases {
            let found = others(path, &[]).unwrap();
            assert_eq!(paths(&found), expected, "{path}");
        }
    }

    #[test]
    fn what_cannot_be_told_is_refused() {
        for path in [
            "/a%2500",
            "/a%250d%250a",
            "/a%255Cb",
            "/%252e%252e/a",
            "/a/%252e/b",
            "/a/..%3Fx",
            "/%25c0%25ae/",
            "/%25ab%25e0%2580%25ae",
            "/%25c0%2525ae",
            "/a/..%2520/b",
            "/%2525252525252525252525252525252525252525252561",
            "/%2525252525252525252525252525252525252525252525252561",
        ] {
            let found = others(path, &[]);
            assert!(found.is_err(), "{path}: {found:?}");
        }
    }

    #[test]
    fn lenient_servers_compare_a_path_in_few_forms() {
        let cases: [(&str, &[&str]); 14] = [
            ("/admin/users", &[]),
            ("/", &[]),
            ("/Admin", &["/admin"]),
            ("/admin/", &["/admin"]),
            ("/admin%20/x", &["/admin/x"]),
            ("/admin./x", &["/admin/x"]),
            ("/orders.json", &["/orders"]),
            ("/orders.JSON", &["/orders.json", "/orders"]),
            ("/orders.json/", &["/orders.json", "/orders"]),
            ("/orders%20.json", &["/orders%20", "/orders"]),
            ("/.env", &[]),
            ("/%C3%9C", &["/%C3%BC"]),
            ("/%E2%84%AAey", &["/key"]),
            ("/a%2FB", &["/a%2Fb"]),
        ];
        for (path, expected) in cases {
            assert_eq!(paths(&lenient(path, false)), expected, "{path}");
        }
        assert_eq!(paths(&lenient("/admin", true)), ["/admin"]);
    }

    #[test]
    fn folding_leaves_what_is_encoded() {
        for (text, expected) in [
            ("/A%2FB", "/a%2Fb"),
            ("/%C3%", "/%C3%"),
            ("%", "%"),
            ("/%C3%9C%C3%9CB", "/%C3%BC%C3%BCb"),
            ("A%E2%84", "a%E2%84"),
        ] {
            assert_eq!(fold(text), expected, "{text}");
        }
    }
}
