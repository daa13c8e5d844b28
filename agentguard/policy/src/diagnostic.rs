//! Where a bundle is wrong: positions in its files, and the report that collects every finding.

use serde::{Deserialize, Serialize};

use super::host::acts_on_terminal;

/// One thing wrong with a bundle, and where. Lines and columns count from 1, columns in characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    /// Path below the bundle's folder.
    pub file: String,
    pub line: Option<u32>,
    pub column: Option<u32>,
    pub message: String,
    pub help: Option<String>,
}

/// A byte offset in one of the bundle's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub file: u32,
    pub offset: u32,
}

impl Place {
    pub(crate) fn new(file: u32, offset: usize) -> Self {
        Self {
            file,
            offset: u32::try_from(offset).unwrap_or(u32::MAX),
        }
    }
}

/// A file's text with the start of each line.
pub(super) struct SourceText<'s> {
    pub name: &'s str,
    pub text: &'s str,
    lines: Vec<u32>,
}

impl<'s> SourceText<'s> {
    pub(crate) fn new(name: &'s str, text: &'s str) -> Self {
        let starts = text
            .bytes()
            .enumerate()
            .filter(|(_, byte)| *byte == b'\n')
            .map(|(at, _)| at + 1);
        let lines = std::iter::once(0)
            .chain(starts)
            .map(|at| u32::try_from(at).unwrap_or(u32::MAX))
            .collect();
        Self { name, text, lines }
    }

    /// Line and column of a byte offset, from 1.
    fn line_column(&self, offset: u32) -> (u32, u32) {
        let line = self.lines.partition_point(|start| *start <= offset).max(1);
        let start = self.lines[line - 1] as usize;
        let end = (offset as usize).clamp(start, self.text.len());
        let column = self.text.as_bytes()[start..end]
            .iter()
            .filter(|byte| (**byte & 0xC0) != 0x80)
            .count();
        (
            u32::try_from(line).unwrap_or(u32::MAX),
            u32::try_from(column + 1).unwrap_or(u32::MAX),
        )
    }
}

/// The bundle's files and everything found wrong with them.
pub(super) struct Report<'s> {
    texts: Vec<SourceText<'s>>,
    found: Vec<Diagnostic>,
}

impl<'s> Report<'s> {
    pub(crate) fn new(texts: Vec<SourceText<'s>>) -> Self {
        Self {
            texts,
            found: Vec::new(),
        }
    }

    pub(crate) fn texts(&self) -> impl Iterator<Item = (u32, &'s str, &'s str)> + '_ {
        (0u32..)
            .zip(&self.texts)
            .map(|(file, text)| (file, text.name, text.text))
    }

    pub(crate) fn text(&self, file: u32) -> &'s str {
        self.texts[file as usize].text
    }

    pub(crate) fn error(&mut self, at: Place, message: impl Into<String>) {
        self.push(at, message.into(), None);
    }

    pub(crate) fn error_help(
        &mut self,
        at: Place,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.push(at, message.into(), Some(help.into()));
    }

    pub(crate) fn error_with(
        &mut self,
        at: Place,
        message: impl Into<String>,
        help: Option<String>,
    ) {
        self.push(at, message.into(), help);
    }

    /// What concerns a file as a whole, or one that is not there.
    pub(crate) fn file_error(
        &mut self,
        file: &str,
        message: impl Into<String>,
        help: Option<String>,
    ) {
        self.found.push(Diagnostic {
            file: file.to_owned(),
            line: None,
            column: None,
            message: harmless(message.into()),
            help: help.map(harmless),
        });
    }

    /// `file:line`, to name another place in a message.
    pub(crate) fn name(&self, at: Place) -> String {
        let (file, line, _) = self.position(at);
        format!("{file}:{line}")
    }

    pub(crate) fn position(&self, at: Place) -> (&'s str, u32, u32) {
        let text = &self.texts[at.file as usize];
        let (line, column) = text.line_column(at.offset);
        (text.name, line, column)
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.found.is_empty()
    }

    pub(crate) fn count(&self) -> usize {
        self.found.len()
    }

    /// Everything found, by file and position.
    pub(crate) fn into_found(mut self) -> Vec<Diagnostic> {
        self.found
            .sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
        self.found.dedup();
        self.found
    }

    fn push(&mut self, at: Place, message: String, help: Option<String>) {
        let (file, line, column) = self.position(at);
        self.found.push(Diagnostic {
            file: file.to_owned(),
            line: Some(line),
            column: Some(column),
            message: harmless(message),
            help: help.map(harmless),
        });
    }
}

/// What Cedar and TOML quote of a bundle may have in it what acts on a terminal.
fn harmless(text: String) -> String {
    let acts = |c: char| c != '\n' && acts_on_terminal(c);
    if !text.contains(acts) {
        return text;
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match acts(c) {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    shown
}

/// The known word that `word` was probably meant to be.
pub(super) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let folded = word.to_ascii_lowercase();
    known
        .into_iter()
        .map(|candidate| {
            let distance = strsim::damerau_levenshtein(&folded, &candidate.to_ascii_lowercase());
            (distance, candidate)
        })
        .filter(|(distance, candidate)| *distance <= 1 + candidate.chars().count().min(12) / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// "did you mean …", if something is near.
pub(super) fn did_you_mean<'k>(
    word: &str,
    known: impl IntoIterator<Item = &'k str>,
) -> Option<String> {
    nearest(word, known).map(|candidate| format!("did you mean `{candidate}`?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_lines_and_characters_from_one() {
        let text = SourceText::new("f", "ab\nü=x\n");
        let cases = [
            (0, (1, 1)),
            (2, (1, 3)),
            (3, (2, 1)),
            (5, (2, 2)),
            (8, (3, 1)),
            (99, (3, 1)),
        ];
        for (offset, expected) in cases {
            assert_eq!(text.line_column(offset), expected, "offset {offset}");
        }
    }

    #[test]
    fn near_words_are_offered_and_far_ones_are_not() {
        let known = ["host", "allow", "tls"];
        assert_eq!(nearest("allows", known), Some("allow"));
        assert_eq!(nearest("HOST", known), Some("host"));
        assert_eq!(nearest("destination", known), None);
    }
}
