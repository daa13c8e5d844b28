//! What must not be written down although it stands where records are made of: tokens of known forms.

use std::borrow::Cow;

/// What stands in a record for what is not told. No canonical path has it: `[` is encoded there.
pub const PRIVATE: &str = "[private]";

/// Tokens that can be told by how they begin: that, other bytes than letters and digits that they may have, how many bytes
/// follow at least.
const TOKENS: [(&str, &[u8], usize); 23] = [
    ("ghp_", b"_", 20),
    ("gho_", b"_", 20),
    ("ghu_", b"_", 20),
    ("ghs_", b"_", 20),
    ("ghr_", b"_", 20),
    ("github_pat_", b"_", 20),
    ("glpat-", b"-_", 16),
    ("xoxa-", b"-", 10),
    ("xoxb-", b"-", 10),
    ("xoxe-", b"-", 10),
    ("xoxp-", b"-", 10),
    ("xoxr-", b"-", 10),
    ("xoxs-", b"-", 10),
    ("xapp-", b"-", 10),
    ("sk-", b"-_", 20),
    ("sk_live_", b"", 16),
    ("rk_live_", b"", 16),
    ("whsec_", b"+/=", 16),
    ("npm_", b"", 30),
    ("AKIA", b"", 16),
    ("ASIA", b"", 16),
    ("AIza", b"-_", 30),
    // A JWT: `{"` in base64.
    ("eyJ", b"-_.", 16),
];

/// A token has a digit among its first bytes: what is none is not read to its end for each place where one could begin.
const NEAR: usize = 128;

/// The text with [`PRIVATE`] in place of what follows the beginning of each token. Of what begins and goes on like one, only
/// what has a digit is: words have none.
pub fn without_tokens(text: &str) -> Cow<'_, str> {
    let mut shown = String::new();
    let mut kept = 0;
    let mut at = 0;
    while at < text.len() {
        if let Some((start, end)) = token(text, at) {
            shown.push_str(&text[kept..start]);
            shown.push_str(PRIVATE);
            (kept, at) = (end, end);
        } else {
            at += 1;
        }
    }
    if kept == 0 {
        return text.into();
    }
    shown.push_str(&text[kept..]);
    shown.into()
}

/// Of a token that begins at this byte, what is to be left out.
fn token(text: &str, at: usize) -> Option<(usize, usize)> {
    let bytes = text.as_bytes();
    if at > 0 && bytes[at - 1].is_ascii_alphanumeric() && !ends_encoded(&bytes[..at]) {
        return None;
    }
    let (begin, others, least) = TOKENS
        .iter()
        .find(|(begin, ..)| bytes[at..].starts_with(begin.as_bytes()))?;
    let start = at + begin.len();
    let rest = &bytes[start..];
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || others.contains(byte);
    let near = rest.iter().take(NEAR).take_while(|byte| is_part(byte));
    let near = &rest[..near.count()];
    if near.len() < *least || !near.iter().any(u8::is_ascii_digit) {
        return None;
    }
    let length = rest.iter().take_while(|byte| is_part(byte)).count();
    Some((start, start + length))
}

/// `%2F`: another character's end, not a letter before.
fn ends_encoded(before: &[u8]) -> bool {
    let last = before.last_chunk::<3>();
    last.is_some_and(|[percent, high, low]| {
        *percent == b'%' && high.is_ascii_hexdigit() && low.is_ascii_hexdigit()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Read for each of its beginnings to its end, it would take hours.
    #[test]
    fn what_begins_like_a_token_again_and_again_is_read_once() {
        let text = "-eyJ".repeat(1 << 20);
        assert_eq!(without_tokens(&text), text);
    }

    #[test]
    fn tokens_are_left_out_wherever_they_stand() {
        for (text, shown) in [
            (
                "/x/ghp_0123456789abcdefghijABCDEFGHIJ/y",
                "/x/ghp_[private]/y",
            ),
            (
                "/x%2Fghp_0123456789abcdefghijABCDEFGHIJ",
                "/x%2Fghp_[private]",
            ),
            (
                "/github_pat_11ABCDEFG0123456789_abc",
                "/github_pat_[private]",
            ),
            ("/xoxb-1234567890-abcdef.json", "/xoxb-[private].json"),
            ("--key=sk-proj-0123456789abcdefghij", "--key=sk-[private]"),
            ("/AKIA0123456789ABCDEF", "/AKIA[private]"),
            (
                "/a/eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln-_x/AKIA0123456789ABCDEF/é",
                "/a/eyJ[private]/AKIA[private]/é",
            ),
            ("", ""),
            ("/é/v1/orders", "/é/v1/orders"),
            // No beginning of a word, too short, words.
            (
                "/task-2026-11-29-and-some-more",
                "/task-2026-11-29-and-some-more",
            ),
            (
                "/disk-0123456789abcdefghijkl",
                "/disk-0123456789abcdefghijkl",
            ),
            ("/ghp_short1", "/ghp_short1"),
            (
                "/sk-learn-in-a-nutshell-for-all",
                "/sk-learn-in-a-nutshell-for-all",
            ),
            ("/sk", "/sk"),
        ] {
            assert_eq!(without_tokens(text), shown, "{text}");
            assert_eq!(without_tokens(shown), shown, "again");
        }
    }
}
