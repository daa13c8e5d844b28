//! `multipart/form-data` bodies (RFC 7578), strictly: nothing before or behind the parts, no folded or repeated headers.

use std::collections::BTreeMap;

use super::form::FormFields;
use super::{BodyFault, BodyField, Value, media};
use crate::host::show;

/// Parts of one form.
const MAX_PARTS: usize = 1000;

pub(super) fn read(
    bytes: &[u8],
    boundary: &str,
    fields: &BTreeMap<String, BodyField>,
) -> Result<BTreeMap<String, Value>, BodyFault> {
    let delimiter = format!("\r\n--{boundary}");
    let delimiter = delimiter.as_bytes();
    // The first one has nothing in front of it.
    let Some(mut rest) = bytes.strip_prefix(&delimiter[2..]) else {
        return Err(fault("does not begin with its boundary"));
    };
    let mut found = FormFields::new(fields);
    for _ in 0..MAX_PARTS {
        if let Some(behind) = rest.strip_prefix(b"--") {
            return match behind {
                b"" | b"\r\n" => Ok(found.values),
                _ => Err(fault("goes on behind its last boundary")),
            };
        }
        let Some(part) = rest.strip_prefix(b"\r\n") else {
            return Err(fault("has a boundary that is not alone on its line"));
        };
        let Some(end) = find(part, delimiter) else {
            return Err(fault("does not end with its boundary"));
        };
        read_part(&part[..end], &mut found)?;
        rest = &part[end + delimiter.len()..];
    }
    Err(BodyFault::too_large(format!(
        "the form has more than {MAX_PARTS} parts"
    )))
}

fn read_part(part: &[u8], found: &mut FormFields<'_>) -> Result<(), BodyFault> {
    let end =
        find(part, b"\r\n\r\n").ok_or_else(|| fault("has a part without an end of its headers"))?;
    let head = std::str::from_utf8(&part[..end])
        .map_err(|_| fault("has a part whose headers are not UTF-8"))?;
    let content = &part[end + 4..];
    let mut disposition = None;
    let mut plain = true;
    for line in head.split("\r\n") {
        let (name, value) = line
            .split_once(':')
            .filter(|(name, _)| !name.is_empty() && !name.contains(char::is_whitespace))
            .ok_or_else(|| fault("has a part with a malformed header"))?;
        if value.contains(['\r', '\n', '\0']) {
            return Err(fault("has a part with a malformed header"));
        }
        let (value, first) = (value.trim(), disposition.is_none());
        match name.to_ascii_lowercase().as_str() {
            "content-disposition" if first => disposition = Some(value),
            "content-disposition" => return Err(fault("has a part with two names")),
            "content-transfer-encoding" => {
                let coding = value.to_ascii_lowercase();
                plain &= matches!(coding.as_str(), "7bit" | "8bit" | "binary");
            }
            "content-type" => plain &= is_utf8(value),
            _ => {}
        }
    }
    let (name, is_file) = disposition
        .and_then(name_of)
        .ok_or_else(|| fault("has a part without a good `Content-Disposition`"))?;
    if name == "_charset_" {
        return Err(fault("names its charset in a field"));
    }
    found.note_method(&name, || String::from_utf8_lossy(content).into_owned());
    if !found.wants(&name)? {
        return Ok(());
    }
    if is_file || !plain {
        return Err(fault(&format!(
            "has `{}` as a file, or encoded, and not as plain text in UTF-8",
            show(&name)
        )));
    }
    let text = std::str::from_utf8(content)
        .map_err(|_| fault(&format!("has `{}` not in UTF-8", show(&name))))?;
    found.add(&name, text)
}

/// The part's name, and whether it is a file.
fn name_of(disposition: &str) -> Option<(String, bool)> {
    let (kind, parameters) = media::parse(disposition)?;
    // `name*` is another way to say it, which RFC 7578 section 4.2 does not allow.
    if kind != "form-data" || parameters.iter().any(|(key, _)| key == "name*") {
        return None;
    }
    let is_file = parameters
        .iter()
        .any(|(key, _)| key.starts_with("filename"));
    let name = parameters.into_iter().find(|(key, _)| key == "name")?.1;
    // Browsers write quotes and line ends in names as `%22`, and servers may read them back.
    (!name.contains('%')).then_some((name, is_file))
}

fn is_utf8(content_type: &str) -> bool {
    media::parse(content_type).is_some_and(|(kind, parameters)| {
        let text = kind == "text/plain";
        text && parameters
            .iter()
            .all(|(name, value)| name == "charset" && value.eq_ignore_ascii_case("utf-8"))
    })
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(next) = haystack[at..].iter().position(|byte| *byte == needle[0]) {
        at += next;
        if haystack[at..].starts_with(needle) {
            return Some(at);
        }
        at += 1;
    }
    None
}

fn fault(what: &str) -> BodyFault {
    BodyFault::unreadable(format!("the form {what}"))
}
