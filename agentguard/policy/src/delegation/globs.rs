//! Whether one glob of `[exec]` allows no more than another.

/// What a pattern is made of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum GlobPart {
    Byte(u8),
    /// `?`: one byte but `/`.
    One,
    /// `*`: any number of bytes but `/`.
    Star,
    /// `**`: any number of bytes.
    Deep,
}

/// Whether `wide` surely matches everything that `narrow` matches. Of some overlapping patterns it cannot be told: `false`.
pub(super) fn covers(wide: &str, narrow: &str) -> bool {
    let (wide, narrow) = (parts(wide), parts(narrow));
    // Of the rows for each rest of `wide`, from its end: whether that rest covers each rest of `narrow`.
    let mut next: Vec<bool> = (0..=narrow.len()).map(|at| at == narrow.len()).collect();
    for part in wide.iter().rev() {
        let mut row = vec![false; narrow.len() + 1];
        for at in (0..=narrow.len()).rev() {
            let here = narrow.get(at).copied();
            row[at] = match part {
                GlobPart::Deep => next[at] || here.is_some() && row[at + 1],
                GlobPart::Star => next[at] || here.is_some_and(stays_in_segment) && row[at + 1],
                GlobPart::One => here.is_some_and(is_one) && next[at + 1],
                GlobPart::Byte(_) => here == Some(*part) && next[at + 1],
            };
        }
        next = row;
    }
    next[0]
}

fn is_one(part: GlobPart) -> bool {
    match part {
        GlobPart::One => true,
        GlobPart::Byte(byte) => byte != b'/',
        GlobPart::Star | GlobPart::Deep => false,
    }
}

fn stays_in_segment(part: GlobPart) -> bool {
    !matches!(part, GlobPart::Deep | GlobPart::Byte(b'/'))
}

fn parts(pattern: &str) -> Vec<GlobPart> {
    let mut parts = Vec::with_capacity(pattern.len());
    let mut bytes = pattern.bytes().peekable();
    while let Some(byte) = bytes.next() {
        parts.push(match byte {
            b'?' => GlobPart::One,
            b'*' if bytes.next_if_eq(&b'*').is_some() => GlobPart::Deep,
            b'*' => GlobPart::Star,
            byte => GlobPart::Byte(byte),
        });
    }
    parts
}

#[cfg(test)]
mod tests {
    use agentguard_common::glob::matches;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_covers_what() {
        for (wide, narrow, expected) in [
            ("/usr/bin/git", "/usr/bin/git", true),
            ("/usr/bin/*", "/usr/bin/git", true),
            ("/usr/bin/*", "/usr/bin/python3*", true),
            ("/usr/bin/*", "/usr/bin/**", false),
            ("/usr/**", "/usr/bin/*", true),
            ("/usr/**", "/usr/**/git", true),
            ("/usr/bin/py*", "/usr/bin/*", false),
            ("/usr/bin/a?", "/usr/bin/a*", false),
            ("/usr/bin/a*", "/usr/bin/a?", true),
            ("/opt/?", "/opt//", false),
            ("/opt/*a", "/opt/b*a", true),
            ("/opt/git", "/usr/bin/git", false),
        ] {
            assert_eq!(covers(wide, narrow), expected, "{wide} {narrow}");
        }
    }

    proptest! {
        /// Never wider: what the narrow one matches, the wide one does.
        #[test]
        fn what_is_covered_is_matched(
            wide in "/([ab/?]|\\*{1,2}){0,6}",
            narrow in "/([ab/?]|\\*{1,2}){0,6}",
            path in "/[ab/]{0,6}",
        ) {
            if covers(&wide, &narrow) && matches(narrow.as_bytes(), path.as_bytes(), false) {
                prop_assert!(matches(wide.as_bytes(), path.as_bytes(), false), "{wide} {narrow} {path}");
            }
        }
    }
}
