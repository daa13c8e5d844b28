//! What others have written, on a terminal: agents choose names, paths and arguments, bundles their names, and nothing in
//! them may steer the terminal or turn the direction of its text.

use std::borrow::Cow;
use std::fmt::Write;

use agentguard_policy::acts_on_terminal;

/// With what acts on a terminal written as `\n` or `\u{202e}`.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match acts_on_terminal(c) {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    shown
}

/// JSON that says the same: what acts on a terminal can stand in its strings alone, where `\u202e` is the character, too.
pub(super) fn printable_json(json: &str) -> Cow<'_, str> {
    let acts = |c: char| c != '\n' && acts_on_terminal(c);
    if !json.contains(acts) {
        return json.into();
    }
    let mut shown = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        match acts(c) {
            true => write!(shown, "\\u{:04x}", u32::from(c)).expect("a string takes all"),
            false => shown.push(c),
        }
    }
    shown.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each kind: C0, DEL, C1, marks, embeddings and isolates.
    const ACTING: &str = "a\u{1b}\u{7f}\u{9b}\u{61c}\u{200f}\u{202e}\u{2066}z";

    #[test]
    fn nothing_acts_on_the_terminal() {
        assert_eq!(
            printable(ACTING),
            r"a\u{1b}\u{7f}\u{9b}\u{61c}\u{200f}\u{202e}\u{2066}z"
        );
        assert_eq!(printable("naïve 日本 \\u{1b}"), "naïve 日本 \\u{1b}");
    }

    #[test]
    fn json_stays_what_it_was() {
        let value = serde_json::json!({ ACTING: [ACTING, "naïve 日本", 1] });
        for json in [
            value.to_string(),
            serde_json::to_string_pretty(&value).unwrap(),
        ] {
            let shown = printable_json(&json);
            assert!(
                !shown.contains(|c| c != '\n' && acts_on_terminal(c)),
                "{shown}"
            );
            assert_eq!(
                serde_json::from_str::<serde_json::Value>(&shown).unwrap(),
                value
            );
        }
    }
}
