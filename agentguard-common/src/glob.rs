//! The globs of `[[identify]]`: one step machine, run by the kernel programs and by userspace. `?` is one byte and `*` any
//! number of bytes, neither of them `/`; `**` is any number of any bytes. Everything else stands for itself.

use crate::abi::PATH_LEN;

/// Where a match stands. Starts as [`Match::default`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Match {
    pattern: u32,
    text: u32,
    /// Where to go on when the last `*` or `**` has to take one byte more: pattern position + 1 (0: nowhere), text.
    star: u32,
    star_text: u32,
    deep: u32,
    deep_text: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    More,
    Yes,
    No,
}

/// A pattern or a text, of which the first `len` bytes count.
#[derive(Clone, Copy)]
pub struct Bytes<'a> {
    pub bytes: &'a [u8; PATH_LEN],
    pub len: u32,
}

/// Bytes of a cgroup's path that are looked at. Of a longer one its beginning counts, so that what is deep below a folder
/// that a pattern names is still below it.
pub const LONGEST: usize = PATH_LEN - 1;

/// What follows the last byte.
const END: u32 = 256;
const SLASH: u32 = b'/' as u32;
const STAR: u32 = b'*' as u32;
const QUESTION: u32 = b'?' as u32;

impl Bytes<'_> {
    /// The byte at `index`, or [`END`] from `len` on. Not an `Option`: the compiler leaves the payload of a `None` to
    /// chance, which may be a pointer, and the verifier refuses to compute with it.
    #[inline(always)]
    fn at(&self, index: u32) -> u32 {
        if index < self.len {
            // The mask is what the verifier sees; `len` is at most PATH_LEN.
            self.bytes[(index as usize) & (PATH_LEN - 1)] as u32
        } else {
            END
        }
    }
}

impl Match {
    /// Goes one step on. With `below`, a text that goes on with `/` after the pattern's end matches too: the pattern names
    /// a folder and the text something in it.
    #[inline(always)]
    pub fn step(&mut self, pattern: Bytes<'_>, text: Bytes<'_>, below: bool) -> Step {
        let p = pattern.at(self.pattern);
        let t = text.at(self.text);
        if p == STAR {
            if pattern.at(self.pattern + 1) == STAR {
                self.pattern += 2;
                self.deep = self.pattern + 1;
                self.deep_text = self.text;
                self.star = 0;
            } else {
                self.pattern += 1;
                self.star = self.pattern + 1;
                self.star_text = self.text;
            }
            return Step::More;
        }
        if p == END && (t == END || (below && t == SLASH)) {
            return Step::Yes;
        }
        if t != END && (p == t || (p == QUESTION && t != SLASH)) {
            self.pattern += 1;
            self.text += 1;
            return Step::More;
        }
        self.back(text)
    }

    /// Lets the last `*` take one byte more, or the last `**`.
    #[inline(always)]
    fn back(&mut self, text: Bytes<'_>) -> Step {
        let next = text.at(self.star_text);
        if self.star != 0 && next != END && next != SLASH {
            self.star_text += 1;
            self.pattern = self.star - 1;
            self.text = self.star_text;
            return Step::More;
        }
        if self.deep != 0 && self.deep_text < text.len {
            self.deep_text += 1;
            self.pattern = self.deep - 1;
            self.text = self.deep_text;
            self.star = 0;
            return Step::More;
        }
        Step::No
    }
}

/// Whether `text` matches `pattern`, and with `below` also whether a folder above it does. Longer patterns than
/// [`PATH_LEN`] bytes never match, nor do longer texts, but with `below`: then [`LONGEST`] bytes of it stand for it, as in
/// the kernel.
pub fn matches(pattern: &[u8], text: &[u8], below: bool) -> bool {
    let text = if below {
        text.get(..LONGEST).unwrap_or(text)
    } else {
        text
    };
    let mut p = [0; PATH_LEN];
    let mut t = [0; PATH_LEN];
    let (Some(into_p), Some(into_t)) = (p.get_mut(..pattern.len()), t.get_mut(..text.len())) else {
        return false;
    };
    into_p.copy_from_slice(pattern);
    into_t.copy_from_slice(text);
    let p = Bytes {
        bytes: &p,
        len: pattern.len() as u32,
    };
    let t = Bytes {
        bytes: &t,
        len: text.len() as u32,
    };
    let mut state = Match::default();
    loop {
        match state.step(p, t, below) {
            Step::More => {}
            Step::Yes => return true,
            Step::No => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn table() {
        for (pattern, text, below, expected) in [
            ("/usr/bin/python3*", "/usr/bin/python3.11", false, true),
            ("/usr/bin/python3*", "/usr/bin/python2", false, false),
            ("/usr/bin/*", "/usr/bin/x/y", false, false),
            ("/usr/**", "/usr/bin/x/y", false, true),
            ("/usr/**/y", "/usr/bin/x/y", false, true),
            ("/**/a*b", "/x/a/y/ab", false, true),
            ("/a?c", "/abc", false, true),
            ("/a?c", "/a/c", false, false),
            ("/a*b*c", "/aXbYbZc", false, true),
            ("/a*b/d*c", "/abXb/dc", false, true),
            ("", "", false, true),
            ("*", "", false, true),
            ("**", "/any/thing", false, true),
            (
                "/system.slice/x.service",
                "/system.slice/x.service/sub",
                true,
                true,
            ),
            (
                "/system.slice/x.service",
                "/system.slice/x.service/sub",
                false,
                false,
            ),
            (
                "/system.slice/x.service",
                "/system.slice/x.service2",
                true,
                false,
            ),
            ("/docker/*", "/docker/abc/init", true, true),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes(), below),
                expected,
                "{pattern} {text} {below}"
            );
        }
    }

    #[test]
    fn deep_below_is_below() {
        extern crate std;
        let deep = std::format!("/system.slice/docker-1.scope/{}", "x/".repeat(PATH_LEN));
        let pattern = b"/system.slice/docker-*.scope";
        assert!(matches(pattern, deep.as_bytes(), true));
        assert!(!matches(pattern, deep.as_bytes(), false));
        assert!(!matches(b"/system.slice/podman-*", deep.as_bytes(), true));
        assert!(
            !matches(b"/**", deep.as_bytes(), false),
            "no file of this name is known whole"
        );
    }

    /// What the glob means, without any cleverness.
    fn reference(p: &[u8], t: &[u8], below: bool) -> bool {
        match (p, t) {
            ([b'*', b'*', p @ ..], _) => {
                (0..=t.len()).any(|n| reference(p, t.get(n..).unwrap_or_default(), below))
            }
            ([b'*', p @ ..], _) => (0..=t.len())
                .take_while(|n| !t.iter().take(*n).any(|b| *b == b'/'))
                .any(|n| reference(p, t.get(n..).unwrap_or_default(), below)),
            ([b'?', p @ ..], [c, t @ ..]) if *c != b'/' => reference(p, t, below),
            ([], []) => true,
            ([], [b'/', ..]) => below,
            ([a, p @ ..], [b, t @ ..]) if a == b => reference(p, t, below),
            _ => false,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn equals_reference(p in "[ab/*?]{0,10}", t in "[ab/]{0,10}", below: bool) {
            prop_assert_eq!(matches(p.as_bytes(), t.as_bytes(), below), reference(p.as_bytes(), t.as_bytes(), below));
        }
    }
}
