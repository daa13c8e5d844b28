//! Aligned output for people, within 100 columns; colour only where it is seen.

use std::io::IsTerminal;

use super::printable::printable;

const COLUMNS: usize = 100;

/// Rows below a header, each column as wide as it needs to be; the widest are cut if the whole would be too wide.
pub(super) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|name| name.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(printable(cell).chars().count());
        }
    }
    let spaces = 2 * widths.len().saturating_sub(1);
    while widths.iter().sum::<usize>() + spaces > COLUMNS {
        let Some(widest) = widths.iter_mut().max() else {
            break;
        };
        *widest -= 1;
    }
    let head: Vec<String> = header.iter().map(|name| (*name).to_owned()).collect();
    let mut text = String::new();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let cell = cut(&printable(cell), *width);
            let padding = width - cell.chars().count();
            line.push_str(&cell);
            line.push_str(&" ".repeat(padding + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `name   value` lines; long values go on below, aligned.
pub(super) fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let room = COLUMNS.saturating_sub(width + 2).max(20);
    let mut text = String::new();
    for (name, value) in fields {
        let mut name = *name;
        for line in wrap(&printable(value), room) {
            text.push_str(format!("{name:width$}  {line}").trim_end());
            text.push('\n');
            name = "";
        }
    }
    text
}

fn wrap(text: &str, room: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is always a line");
        let used = line.chars().count();
        if used > 0 && used + 1 + word.chars().count() > room {
            lines.push(word.to_owned());
            continue;
        }
        if used > 0 {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    Red,
    Yellow,
    Green,
}

/// `text` in colour if stdout is a terminal and `NO_COLOR` is not set.
pub(super) fn coloured(text: &str, colour: Colour) -> String {
    paint(text, colour, is_coloured())
}

pub(super) fn is_coloured() -> bool {
    std::io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn paint(text: &str, colour: Colour, wanted: bool) -> String {
    if !wanted {
        return text.to_owned();
    }
    let code = match colour {
        Colour::Red => 31,
        Colour::Yellow => 33,
        Colour::Green => 32,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = vec![
            vec!["a".to_owned(), "long value".to_owned(), "1".to_owned()],
            vec!["bbbbbb".to_owned(), "x".to_owned(), "22".to_owned()],
        ];
        assert_eq!(
            table(&["NAME", "WHAT", "N"], &rows),
            "NAME    WHAT        N\na       long value  1\nbbbbbb  x           22\n"
        );
    }

    #[test]
    fn no_line_is_wider_than_the_screen() {
        let rows = vec![vec!["n".repeat(90), "w".repeat(90), "short".to_owned()]];
        let text = table(&["A", "B", "C"], &rows);
        assert!(
            text.lines().all(|line| line.chars().count() <= COLUMNS),
            "{text}"
        );
        assert!(text.contains("short") && text.contains('…'));
        let text = fields(&[("name", "word ".repeat(60)), ("n", "x".to_owned())]);
        assert!(
            text.lines().all(|line| line.chars().count() <= COLUMNS),
            "{text}"
        );
        assert!(text.ends_with("n     x\n"), "{text}");
    }

    #[test]
    fn nothing_steers_the_terminal() {
        let text = table(&["A"], &[vec!["x\x1b[2Jy".to_owned()]]);
        assert!(!text.contains('\x1b'));
        assert_eq!(paint("x", Colour::Red, false), "x");
        assert_eq!(paint("x", Colour::Red, true), "\x1b[31mx\x1b[0m");
    }
}
