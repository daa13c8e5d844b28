//! A bundle's errors with the source lines they are on.

use std::fmt::Write as _;

use agentguard_policy::{Diagnostic, Sources, acts_on_terminal};

use super::layout::{WIDTH, blanked, count, paint, wrap};

/// Every error with its line, then one line that sums them up.
pub fn diagnostics_text(sources: &Sources, found: &[Diagnostic], colour: bool) -> String {
    let mut text = String::new();
    for one in found {
        for (index, line) in wrap("error: ", &blanked(&one.message), "       ")
            .into_iter()
            .enumerate()
        {
            let line = match line.strip_prefix("error:").filter(|_| index == 0) {
                Some(rest) => format!(
                    "{}{}",
                    paint(colour, "1;31", "error:"),
                    paint(colour, "1", rest)
                ),
                None => paint(colour, "1", &line),
            };
            let _ = writeln!(text, "{line}");
        }
        excerpt(&mut text, sources, one, colour);
        text.push('\n');
    }
    let mut files: Vec<_> = found.iter().map(|one| &one.file).collect();
    files.dedup();
    let _ = writeln!(
        text,
        "{} the bundle is not valid: {} in {}",
        paint(colour, "1;31", "error:"),
        count(found.len(), "error"),
        count(files.len(), "file")
    );
    text
}

fn excerpt(text: &mut String, sources: &Sources, one: &Diagnostic, colour: bool) {
    let blue = |part: &str| paint(colour, "1;34", part);
    let file = blanked(&one.file);
    let (Some(line), Some(column)) = (one.line, one.column) else {
        let _ = writeln!(text, " {} {file}", blue("-->"));
        help(text, " ", one, colour);
        return;
    };
    let number = line.to_string();
    let margin = " ".repeat(number.len());
    let _ = writeln!(text, "{margin}{} {file}:{line}:{column}", blue("-->"));
    let source = sources
        .files
        .get(&one.file)
        .and_then(|text| text.lines().nth(line as usize - 1));
    if let Some(source) = source {
        let (shown, before, marked) = window(source, column as usize - 1, WIDTH - number.len() - 3);
        let _ = writeln!(text, "{margin} {}", blue("|"));
        let _ = writeln!(text, "{} {} {shown}", blue(&number), blue("|"));
        let marks = paint(colour, "1;31", &"^".repeat(marked));
        let _ = writeln!(text, "{margin} {} {}{marks}", blue("|"), " ".repeat(before));
    }
    help(text, &format!("{margin} "), one, colour);
}

fn help(text: &mut String, margin: &str, one: &Diagnostic, colour: bool) {
    let Some(help) = &one.help else {
        return;
    };
    let head = format!("{margin}= help: ");
    for line in wrap(&head, &blanked(help), &format!("{margin}        ")) {
        let line = match line.split_once("= help:") {
            Some((before, rest)) => format!("{before}{}{rest}", paint(colour, "1;34", "= help:")),
            None => line,
        };
        let _ = writeln!(text, "{line}");
    }
}

/// The part of a source line around `column` that fits, how many columns of it are before the marks, and how many marks.
fn window(source: &str, column: usize, width: usize) -> (String, usize, usize) {
    let chars: Vec<char> = source
        .chars()
        .map(|c| if acts_on_terminal(c) { ' ' } else { c })
        .collect();
    let column = column.min(chars.len());
    let rest = &chars[column..];
    let word = |c: &char| c.is_alphanumeric() || matches!(c, '_' | '-' | '@' | ':');
    let token = match rest.first() {
        Some('"') => quotation(rest),
        Some(first) if word(first) => {
            let end = rest.iter().position(|c| !word(c)).unwrap_or(rest.len());
            // An entity: `Host::"…"`.
            let quoted = rest[..end].ends_with(&[':', ':']) && rest.get(end) == Some(&'"');
            if quoted {
                end + quotation(&rest[end..])
            } else {
                end
            }
        }
        _ => 1,
    };
    let start = if column + token > width {
        column.saturating_sub(width / 4)
    } else {
        0
    };
    let shown: String = chars[start..].iter().take(width).collect();
    let marked = token.min(width.saturating_sub(column - start)).max(1);
    (shown.trim_end().to_owned(), column - start, marked)
}

/// Characters from a quotation mark to the next.
fn quotation(rest: &[char]) -> usize {
    let end = rest.iter().skip(1).position(|c| *c == '"');
    end.map_or(rest.len(), |end| end + 2)
}
