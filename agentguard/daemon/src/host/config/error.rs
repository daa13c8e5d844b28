//! What is wrong with a configuration file, and where.

use std::ops::Range;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration `{}`: {source}; check --config and AGENTGUARD_CONFIG", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    /// `place` is `file:line:column`, both counted from 1.
    #[error("{place}: {message}")]
    Invalid { place: String, message: String },
}

impl ConfigError {
    pub(super) fn from_toml(path: &Path, text: &str, error: &toml::de::Error) -> Self {
        let message = error.message().trim().replace('\n', ", ");
        let message = match quoted_names(&message) {
            Some((wrong, known)) => {
                let guess = known
                    .iter()
                    .map(|name| (strsim::damerau_levenshtein(wrong, name), *name))
                    .filter(|(distance, name)| *distance <= 2.max(name.len() / 3))
                    .min();
                match guess {
                    Some((_, name)) => format!("unknown key `{wrong}`, did you mean `{name}`?"),
                    None => format!(
                        "unknown key `{wrong}`, expected one of {}",
                        known.join(", ")
                    ),
                }
            }
            None => in_words(&message),
        };
        let message = match key_at(text, error.span()) {
            Some(key) if !message.contains(key) => format!("`{key}`: {message}"),
            _ => message,
        };
        Self::Invalid {
            place: place(path, text, error.span()),
            message,
        }
    }

    pub(super) fn at_key(path: &Path, text: &str, key: &str, message: String) -> Self {
        let span = key_span(text, key);
        Self::Invalid {
            place: place(path, text, span),
            message: format!("`{key}`: {message}"),
        }
    }
}

/// Takes serde's "unknown field `x`, expected one of `a`, `b`" apart.
fn quoted_names(message: &str) -> Option<(&str, Vec<&str>)> {
    let rest = message.strip_prefix("unknown field `")?;
    let (wrong, rest) = rest.split_once('`')?;
    let known = rest.split('`').skip(1).step_by(2).collect();
    Some((wrong, known))
}

/// serde's names of Rust's types, as people say them.
fn in_words(message: &str) -> String {
    [
        ("expected u8", "expected a whole number from 0 to 255"),
        ("expected u16", "expected a whole number from 0 to 65535"),
        (
            "expected u32",
            "expected a whole number from 0 to 4294967295",
        ),
        ("expected u64", "expected a whole number"),
        ("expected usize", "expected a whole number"),
    ]
    .iter()
    .fold(message.to_owned(), |text, (from, to)| {
        text.replace(from, to)
    })
}

/// The key whose value a span is in.
fn key_at(text: &str, span: Option<Range<usize>>) -> Option<&str> {
    let before = text.get(..span?.start)?;
    let line = before.rsplit('\n').next()?;
    let (key, _) = line.split_once('=')?;
    Some(key.trim())
}

/// Where `key = …` stands; keys that are checked after parsing have names of their own, so the first one is it.
fn key_span(text: &str, key: &str) -> Option<Range<usize>> {
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let indent = line.len() - line.trim_start().len();
        let after = line.trim_start().strip_prefix(key);
        if after.is_some_and(|rest| rest.trim_start().starts_with('=')) {
            return Some(start + indent..start + indent + key.len());
        }
        start += line.len();
    }
    None
}

fn place(path: &Path, text: &str, span: Option<Range<usize>>) -> String {
    let Some(before) = span.and_then(|span| text.get(..span.start)) else {
        return path.display().to_string();
    };
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    format!("{}:{line}:{column}", path.display())
}
