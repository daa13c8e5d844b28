//! What rules may read of request bodies: fields that `hosts/*.toml` declares, taken strictly from bytes that are all there.
//! What two programs could read differently, or cannot be read as declared, is a [`BodyFault`] and never an absent field.

mod decimal;
mod encoding;
mod form;
mod json;
mod media;
mod multipart;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use agentguard_record::DenyReason;
use http::HeaderMap;

pub(super) use self::decimal::{decimal, units};
use self::media::MediaKind;
use super::glob::PathPattern;

/// One `[[body]]`: fields of the bodies of some requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BodyBlock {
    /// `None`: every method.
    pub(super) method: Option<&'static str>,
    pub(super) path: PathPattern,
    pub(super) form: Form,
    pub(super) fields: BTreeMap<String, BodyField>,
}

/// What a block's fields are found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// JSON Pointers (RFC 6901).
    Json,
    /// Names of form fields, `application/x-www-form-urlencoded` or `multipart/form-data`.
    Fields,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct BodyField {
    pub kind: FieldType,
    /// A pointer's unescaped segments, or one name.
    pub at: Vec<String>,
    /// Records have its digest alone.
    pub private: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum FieldType {
    String,
    Decimal,
    Long,
    Bool,
    Strings,
}

impl FieldType {
    pub(crate) const NAMES: [&str; 5] = ["string", "decimal", "long", "bool", "strings"];

    pub(crate) fn parse(name: &str) -> Option<Self> {
        let all = [
            Self::String,
            Self::Decimal,
            Self::Long,
            Self::Bool,
            Self::Strings,
        ];
        all.into_iter()
            .zip(Self::NAMES)
            .find_map(|(kind, known)| (known == name).then_some(kind))
    }

    pub(crate) const fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// As Cedar's schema has it.
    pub(crate) const fn cedar(self) -> &'static str {
        match self {
            Self::String => "String",
            Self::Decimal => "decimal",
            Self::Long => "Long",
            Self::Bool => "Bool",
            Self::Strings => "Set<String>",
        }
    }
}

/// What came of reading a request's body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Body {
    /// Nobody has read it. A rule that needs it refuses.
    #[default]
    Unread,
    Read(Fields),
    Faulty(BodyFault),
}

/// The declared fields that a body has, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(pub(super) BTreeMap<String, Value>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    String(String),
    /// In Cedar's notation, with 1 to 4 fraction digits.
    Decimal(String),
    Long(i64),
    Bool(bool),
    Strings(BTreeSet<String>),
}

impl Value {
    /// As a record shows it.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::String(text) | Self::Decimal(text) => text.clone(),
            Self::Long(number) => number.to_string(),
            Self::Bool(value) => value.to_string(),
            Self::Strings(texts) => texts.iter().cloned().collect::<Vec<_>>().join(", "),
        }
    }
}

impl Fields {
    /// About what they take in memory.
    pub fn bytes(&self) -> usize {
        let values = self.0.iter();
        let values = values.map(|(name, value)| name.len() + value.shown().len() + 96);
        values.sum::<usize>() + 256
    }
}

/// Where a form's `_method` is kept among its fields, under a name that none can have.
pub(super) const METHOD_FIELD: &str = "_method=";

/// Why a body's fields cannot be known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BodyFault {
    pub(super) reason: DenyReason,
    pub(super) why: String,
}

impl BodyFault {
    pub fn unreadable(why: impl Into<String>) -> Self {
        Self {
            reason: DenyReason::BodyUnreadable,
            why: why.into(),
        }
    }

    pub fn ambiguous(why: impl Into<String>) -> Self {
        Self {
            reason: DenyReason::BodyAmbiguous,
            why: why.into(),
        }
    }

    pub fn too_large(why: impl Into<String>) -> Self {
        Self {
            reason: DenyReason::BodyTooLarge,
            why: why.into(),
        }
    }

    /// Of a request that can be read as others, of which not all can be judged.
    pub(super) fn unjudgeable(why: impl Into<String>) -> Self {
        Self {
            reason: DenyReason::ProtocolRefused,
            why: why.into(),
        }
    }

    /// Of a look-up.
    pub fn unavailable(why: impl Into<String>) -> Self {
        Self {
            reason: DenyReason::AttributeUnavailable,
            why: why.into(),
        }
    }
}

impl BodyBlock {
    /// What the block declares of a whole body. `limit`: bytes that a compressed one may become.
    pub fn read(&self, headers: &HeaderMap, bytes: &[u8], limit: usize) -> Body {
        match self.fields_of(headers, bytes, limit) {
            Ok(fields) => Body::Read(Fields(fields)),
            Err(fault) => Body::Faulty(fault),
        }
    }

    fn fields_of(
        &self,
        headers: &HeaderMap,
        bytes: &[u8],
        limit: usize,
    ) -> Result<BTreeMap<String, Value>, BodyFault> {
        // No body has no fields, whatever its headers say.
        if bytes.is_empty() {
            return Ok(BTreeMap::new());
        }
        let kind = media::kind(headers)?;
        let bytes = encoding::decode(headers, bytes, limit)?;
        match (self.form, &kind) {
            (Form::Json, MediaKind::Json) => json::read(text(&bytes)?, &self.fields),
            (Form::Fields, MediaKind::Form) => form::read(text(&bytes)?, &self.fields),
            (Form::Fields, MediaKind::Multipart { boundary }) => {
                multipart::read(&bytes, boundary, &self.fields)
            }
            _ => Err(BodyFault::unreadable(format!(
                "the body is {}, and the fields that decide here are those of {}",
                kind.name(),
                match self.form {
                    Form::Json => "JSON",
                    Form::Fields => "a form",
                }
            ))),
        }
    }
}

impl Body {
    /// That of a request without one.
    pub fn none() -> Self {
        Self::Read(Fields::default())
    }
}

/// Fields of JSON text.
pub(super) fn json_fields(
    text: &str,
    fields: &BTreeMap<String, BodyField>,
) -> Result<Fields, BodyFault> {
    json::read(text, fields).map(Fields)
}

/// Fields of a whole answer, which has to be JSON whatever is in it.
pub(super) fn json_answer(
    headers: &HeaderMap,
    bytes: &[u8],
    fields: &BTreeMap<String, BodyField>,
    limit: usize,
) -> Result<Fields, BodyFault> {
    match media::kind(headers)? {
        MediaKind::Json => {}
        other @ (MediaKind::Form | MediaKind::Multipart { .. } | MediaKind::Other(_)) => {
            let why = format!("the body is {}, not JSON", other.name());
            return Err(BodyFault::unreadable(why));
        }
    }
    let bytes = encoding::decode(headers, bytes, limit)?;
    json_fields(text(&bytes)?, fields)
}

fn text(bytes: &[u8]) -> Result<&str, BodyFault> {
    let text =
        std::str::from_utf8(bytes).map_err(|_| BodyFault::unreadable("the body is not UTF-8"))?;
    if text.starts_with('\u{feff}') {
        return Err(BodyFault::unreadable(
            "the body starts with a byte order mark",
        ));
    }
    Ok(text)
}

/// A declared field's value, written as text: that of forms, where numbers are written as in JSON.
fn from_text(name: &str, kind: FieldType, text: &str) -> Result<Value, BodyFault> {
    if text.contains('\0') {
        return Err(BodyFault::unreadable(format!("field `{name}` has a NUL")));
    }
    match kind {
        FieldType::String => Ok(Value::String(text.to_owned())),
        FieldType::Strings => Ok(Value::Strings([text.to_owned()].into())),
        FieldType::Bool => match text {
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            _ => Err(unfit(name, kind)),
        },
        FieldType::Decimal | FieldType::Long => from_number(name, kind, text),
    }
}

fn from_number(name: &str, kind: FieldType, text: &str) -> Result<Value, BodyFault> {
    let value = match kind {
        FieldType::Decimal => decimal(text).map(Value::Decimal),
        FieldType::Long => decimal::long(text).map(Value::Long),
        FieldType::String | FieldType::Bool | FieldType::Strings => None,
    };
    value.ok_or_else(|| unfit(name, kind))
}

fn unfit(name: &str, kind: FieldType) -> BodyFault {
    let expected = match kind {
        FieldType::String => "a string without NUL",
        FieldType::Decimal => {
            "a number of at most 4 fraction digits between -922337203685477.5808 and 922337203685477.5807"
        }
        FieldType::Long => "a whole number of 64 bits",
        FieldType::Bool => "true or false",
        FieldType::Strings => "a list of strings without NUL",
    };
    BodyFault::unreadable(format!("field `{name}` is not {expected}"))
}

/// A name as the most lenient servers compare names.
pub(super) fn folded(name: &str) -> String {
    let folded: String = name
        .chars()
        .flat_map(char::to_uppercase)
        .flat_map(char::to_lowercase)
        .collect();
    // U+0130, which becomes a plain `i` where one character becomes one (Java's Character.toLowerCase, Go's unicode.ToLower).
    folded.replace("i\u{307}", "i")
}
