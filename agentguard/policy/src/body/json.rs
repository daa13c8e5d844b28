//! JSON (RFC 8259) read once from front to end, for fields at JSON Pointers (RFC 6901). A parser of its own: numbers keep
//! their text, keys that are there twice are found at every depth, and nothing is taken that RFC 8259 does not have.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::{BodyFault, BodyField, FieldType, Value, decimal, folded, from_number, unfit};
use crate::host::show;

/// Arrays and objects within each other.
const MAX_DEPTH: usize = 64;

pub(super) fn read(
    text: &str,
    fields: &BTreeMap<String, BodyField>,
) -> Result<BTreeMap<String, Value>, BodyFault> {
    let mut parser = Parser {
        text,
        at: 0,
        depth: 0,
        found: BTreeMap::new(),
    };
    let wanted: Vec<DeclaredField<'_>> = fields
        .iter()
        .map(|(name, field)| DeclaredField { name, field })
        .collect();
    parser.space();
    parser.value(&wanted, 0)?;
    parser.space();
    if parser.at < text.len() {
        return Err(parser.fault("there is more than one value"));
    }
    Ok(parser.found)
}

#[derive(Clone, Copy)]
struct DeclaredField<'f> {
    name: &'f str,
    field: &'f BodyField,
}

/// A value as far as a field can want it.
enum JsonValue<'t> {
    Null,
    Bool(bool),
    Number(&'t str),
    Text(Cow<'t, str>),
    Array(Vec<JsonValue<'t>>),
    Object,
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
    depth: usize,
    found: BTreeMap<String, Value>,
}

impl<'t> Parser<'t> {
    /// The value at `at`. `wanted`: the fields whose pointers lead here by their first `level` segments.
    fn value(
        &mut self,
        wanted: &[DeclaredField<'_>],
        level: usize,
    ) -> Result<JsonValue<'t>, BodyFault> {
        let item = match self.peek() {
            Some(b'{') => self.nested(|parser| parser.object(wanted, level))?,
            Some(b'[') => self.nested(|parser| parser.array(wanted, level))?,
            Some(b'"') => JsonValue::Text(self.string()?),
            Some(b'-' | b'0'..=b'9') => JsonValue::Number(self.number()?),
            Some(b't') => self.word("true", JsonValue::Bool(true))?,
            Some(b'f') => self.word("false", JsonValue::Bool(false))?,
            Some(b'n') => self.word("null", JsonValue::Null)?,
            Some(_) => return Err(self.fault("there is no value")),
            None => return Err(self.fault("it ends too early")),
        };
        for DeclaredField { name, field } in wanted {
            if field.at.len() == level {
                let value = convert(name, field.kind, &item)?;
                self.found.insert((*name).to_owned(), value);
            }
        }
        Ok(item)
    }

    fn nested(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<JsonValue<'t>, BodyFault>,
    ) -> Result<JsonValue<'t>, BodyFault> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(BodyFault::too_large(format!(
                "the body has more than {MAX_DEPTH} arrays and objects within each other"
            )));
        }
        self.at += 1;
        self.space();
        let item = read(self)?;
        self.depth -= 1;
        Ok(item)
    }

    fn object(
        &mut self,
        wanted: &[DeclaredField<'_>],
        level: usize,
    ) -> Result<JsonValue<'t>, BodyFault> {
        let mut keys = HashSet::new();
        if self.take(b'}') {
            return Ok(JsonValue::Object);
        }
        loop {
            if self.peek() != Some(b'"') {
                return Err(self.fault("an object's key is missing"));
            }
            let key = self.string()?;
            check_key(&key, wanted, level)?;
            self.space();
            if !self.take(b':') {
                return Err(self.fault("an object's key has no `:`"));
            }
            self.space();
            let inside = below(wanted, level, &key);
            self.value(&inside, level + 1)?;
            if let Some(twice) = keys.replace(key) {
                return Err(BodyFault::ambiguous(format!(
                    "the body has the key `{}` more than once in one object",
                    show(&twice)
                )));
            }
            if self.ends(b'}')? {
                return Ok(JsonValue::Object);
            }
        }
    }

    fn array(
        &mut self,
        wanted: &[DeclaredField<'_>],
        level: usize,
    ) -> Result<JsonValue<'t>, BodyFault> {
        let kept = wanted.iter().any(|wanted| {
            wanted.field.at.len() == level && wanted.field.kind == FieldType::Strings
        });
        let mut items = Vec::new();
        if self.take(b']') {
            return Ok(JsonValue::Array(items));
        }
        for index in 0_usize.. {
            // Almost no array is on a field's way.
            let inside = match wanted {
                [] => Vec::new(),
                _ => below(wanted, level, &index.to_string()),
            };
            let item = self.value(&inside, level + 1)?;
            if kept {
                items.push(item);
            }
            if self.ends(b']')? {
                break;
            }
        }
        Ok(JsonValue::Array(items))
    }

    /// Behind an element: whether that was the last one.
    fn ends(&mut self, close: u8) -> Result<bool, BodyFault> {
        self.space();
        if self.take(close) {
            return Ok(true);
        }
        if !self.take(b',') {
            return Err(self.fault("an array or object is not closed"));
        }
        self.space();
        Ok(false)
    }

    fn number(&mut self) -> Result<&'t str, BodyFault> {
        let rest = &self.text[self.at..];
        let Some(end) = decimal::end(rest) else {
            return Err(self.fault("a number is not written as JSON writes them"));
        };
        self.at += end;
        Ok(&rest[..end])
    }

    fn word(&mut self, word: &str, item: JsonValue<'t>) -> Result<JsonValue<'t>, BodyFault> {
        if !self.text[self.at..].starts_with(word) {
            return Err(self.fault("there is no value"));
        }
        self.at += word.len();
        Ok(item)
    }

    fn string(&mut self) -> Result<Cow<'t, str>, BodyFault> {
        self.at += 1;
        let mut owned: Option<String> = None;
        let mut start = self.at;
        loop {
            match self.peek() {
                Some(b'"') => {
                    let rest = &self.text[start..self.at];
                    self.at += 1;
                    return Ok(match owned {
                        Some(text) => Cow::Owned(text + rest),
                        None => Cow::Borrowed(rest),
                    });
                }
                Some(b'\\') => {
                    let text = owned.get_or_insert_default();
                    text.push_str(&self.text[start..self.at]);
                    self.at += 1;
                    let escaped = self.escaped()?;
                    owned.get_or_insert_default().push(escaped);
                    start = self.at;
                }
                Some(0..0x20) => return Err(self.fault("a string has a control character")),
                Some(_) => self.at += 1,
                None => return Err(self.fault("a string is not closed")),
            }
        }
    }

    fn escaped(&mut self) -> Result<char, BodyFault> {
        let letter = self.peek();
        self.at += 1;
        Ok(match letter {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode(),
            _ => return Err(self.fault("a string has an escape that JSON does not have")),
        })
    }

    /// Behind `\u`. Half a pair alone is no character, and parsers differ in what they make of it.
    fn unicode(&mut self) -> Result<char, BodyFault> {
        let high = self.hex()?;
        let code = match high {
            0xd800..0xdc00 if self.text[self.at..].starts_with("\\u") => {
                self.at += 2;
                match self.hex()? {
                    low @ 0xdc00..0xe000 => 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00),
                    _ => high,
                }
            }
            code => code,
        };
        char::from_u32(code).ok_or_else(|| self.fault("a string has half a surrogate pair"))
    }

    fn hex(&mut self) -> Result<u32, BodyFault> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4);
        let digits = digits.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let code = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let Some(code) = code else {
            return Err(self.fault("a string has an escape that JSON does not have"));
        };
        self.at += 4;
        Ok(code)
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn fault(&self, what: &str) -> BodyFault {
        BodyFault::unreadable(format!(
            "the body is not JSON: at byte {}, {what}",
            self.at + 1
        ))
    }
}

/// Keys that some servers take for one on a field's way: in other case, or with what comes behind a NUL.
fn check_key(key: &str, wanted: &[DeclaredField<'_>], level: usize) -> Result<(), BodyFault> {
    if key.contains('\0') {
        return Err(BodyFault::ambiguous("the body has a key with a NUL"));
    }
    for segment in wanted
        .iter()
        .filter_map(|wanted| wanted.field.at.get(level))
    {
        if segment != key && folded(segment) == folded(key) {
            return Err(BodyFault::ambiguous(format!(
                "the body's key `{}` can also be read as `{segment}`",
                show(key)
            )));
        }
    }
    Ok(())
}

fn below<'f>(wanted: &[DeclaredField<'f>], level: usize, segment: &str) -> Vec<DeclaredField<'f>> {
    let on_the_way =
        |wanted: &&DeclaredField<'_>| wanted.field.at.get(level).is_some_and(|s| s == segment);
    wanted.iter().filter(on_the_way).copied().collect()
}

fn convert(name: &str, kind: FieldType, item: &JsonValue<'_>) -> Result<Value, BodyFault> {
    let plain = |text: &str| !text.contains('\0');
    match (kind, item) {
        (FieldType::String, JsonValue::Text(text)) if plain(text) => {
            Ok(Value::String(text.clone().into_owned()))
        }
        (FieldType::Bool, JsonValue::Bool(value)) => Ok(Value::Bool(*value)),
        (FieldType::Decimal | FieldType::Long, JsonValue::Number(text)) => {
            from_number(name, kind, text)
        }
        (FieldType::Strings, JsonValue::Array(items)) => {
            let texts = items.iter().map(|item| match item {
                JsonValue::Text(text) if plain(text) => Some(text.clone().into_owned()),
                JsonValue::Null
                | JsonValue::Bool(_)
                | JsonValue::Number(_)
                | JsonValue::Text(_)
                | JsonValue::Array(_)
                | JsonValue::Object => None,
            });
            let texts: Option<BTreeSet<String>> = texts.collect();
            texts.map(Value::Strings).ok_or_else(|| unfit(name, kind))
        }
        _ => Err(unfit(name, kind)),
    }
}
