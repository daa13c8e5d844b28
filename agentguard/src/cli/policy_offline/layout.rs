//! Lines of human output: width, colour, and nothing that acts on a terminal.

use agentguard_policy::acts_on_terminal;

/// Columns of human output.
pub(super) const WIDTH: usize = 100;

/// `head` and the text, broken at spaces; a word that is longer than a line stays whole.
pub(super) fn wrap(head: &str, text: &str, indent: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = head.to_owned();
    let mut empty = true;
    for word in text.split(' ') {
        if !empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            lines.push(std::mem::replace(&mut line, indent.to_owned()));
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    lines.push(line);
    lines
}

pub(super) fn clip(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut clipped: String = text.chars().take(width.saturating_sub(1)).collect();
    clipped.push('…');
    clipped
}

/// As many characters on one line, for what is wrapped and marked below: what would act on the terminal is a space.
pub(super) fn blanked(text: &str) -> String {
    text.chars()
        .map(|c| if acts_on_terminal(c) { ' ' } else { c })
        .collect()
}

pub(super) fn paint(colour: bool, code: &str, text: &str) -> String {
    if colour {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

pub(super) fn count(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}
