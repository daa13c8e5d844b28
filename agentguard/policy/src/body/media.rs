//! What a body says of itself: `Content-Type`, in the one form that every server reads alike.

use http::{HeaderMap, header};

use super::BodyFault;
use crate::host::show;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum MediaKind {
    Json,
    Form,
    Multipart { boundary: String },
    Other(String),
}

impl MediaKind {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Json => "JSON",
            Self::Form => "a form",
            Self::Multipart { .. } => "a form of several parts",
            Self::Other(kind) => kind,
        }
    }
}

/// The body's kind. A charset other than UTF-8, or two kinds, are a fault.
pub(super) fn kind(headers: &HeaderMap) -> Result<MediaKind, BodyFault> {
    let mut lines = headers.get_all(header::CONTENT_TYPE).iter();
    let Some(line) = lines.next() else {
        return Err(BodyFault::unreadable("the body has no `Content-Type`"));
    };
    if lines.next().is_some() {
        return Err(BodyFault::ambiguous(
            "`Content-Type` is there more than once",
        ));
    }
    let text = line
        .to_str()
        .map_err(|_| BodyFault::unreadable("`Content-Type` is not ASCII"))?;
    let (essence, parameters) = parse(text).ok_or_else(|| {
        BodyFault::unreadable(format!("`Content-Type` is malformed: `{}`", show(text)))
    })?;
    let mut boundary = None;
    for (name, value) in parameters {
        match name.as_str() {
            "charset" if !value.eq_ignore_ascii_case("utf-8") => {
                return Err(BodyFault::unreadable(format!(
                    "the body's charset is `{}`, not UTF-8",
                    show(&value)
                )));
            }
            "boundary" => boundary = Some(value),
            _ => {}
        }
    }
    Ok(match essence.as_str() {
        "application/json" => MediaKind::Json,
        "application/x-www-form-urlencoded" => MediaKind::Form,
        "multipart/form-data" => MediaKind::Multipart {
            boundary: boundary
                .filter(|boundary| is_boundary(boundary))
                .ok_or_else(|| BodyFault::unreadable("the form's parts have no good boundary"))?,
        },
        other if other.starts_with("application/") && other.ends_with("+json") => MediaKind::Json,
        _ => MediaKind::Other(format!("of the type `{}`", show(&essence))),
    })
}

/// A value and its parameters (RFC 9110 section 5.6.6), in lower case but for the parameters' values. `None`: malformed, or
/// a parameter is there twice.
pub(super) fn parse(text: &str) -> Option<(String, Vec<(String, String)>)> {
    let (essence, mut rest) = match text.split_once(';') {
        Some((essence, rest)) => (essence, Some(rest)),
        None => (text, None),
    };
    let essence = essence.trim_matches([' ', '\t']).to_ascii_lowercase();
    let token = |text: &str| !text.is_empty() && text.bytes().all(is_token);
    if !essence.split('/').all(token) {
        return None;
    }
    let mut parameters: Vec<(String, String)> = Vec::new();
    while let Some(text) = rest {
        let text = text.trim_start_matches([' ', '\t']);
        if text.is_empty() {
            break;
        }
        let (name, value) = text.split_once('=')?;
        let name = name.to_ascii_lowercase();
        if !token(&name) || parameters.iter().any(|(known, _)| *known == name) {
            return None;
        }
        let (value, behind) = match value.strip_prefix('"') {
            Some(quoted) => {
                let (value, behind) = quoted.split_once('"')?;
                // Clients and servers escape quotes differently.
                if value.contains('\\') {
                    return None;
                }
                (value, behind)
            }
            None => {
                let end = value.find(';').unwrap_or(value.len());
                let (value, behind) = value.split_at(end);
                let value = value.trim_end_matches([' ', '\t']);
                if !token(value) {
                    return None;
                }
                (value, behind)
            }
        };
        parameters.push((name, value.to_owned()));
        let behind = behind.trim_start_matches([' ', '\t']);
        rest = match behind.strip_prefix(';') {
            Some(more) => Some(more),
            None if behind.is_empty() => None,
            None => return None,
        };
    }
    Some((essence, parameters))
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// RFC 2046 section 5.1.1.
fn is_boundary(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(&byte);
    (1..=70).contains(&text.len()) && text.bytes().all(good) && !text.ends_with(' ')
}
