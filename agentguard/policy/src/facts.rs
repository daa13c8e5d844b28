//! What rules read of a request: query parameters, headers, fields of the body and what was looked up of it, and how the
//! audit record shows them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use http::HeaderMap;
use sha2::{Digest as _, Sha256};

use super::body::{Body, BodyFault, BodyField, Fields, Value};
use super::context::Context;
use super::reads::{Names, Reads};
use super::requests::{NeededBody, RequestNeeds};

/// Bytes of one fact's value that a record keeps.
pub(super) const MAX_VALUE: usize = 256;
/// Facts of one request that a record keeps, when rules read names that are not known before.
const MAX_FACTS: usize = 64;

/// Values of which a record has the digest alone.
pub(super) const SECRET_HEADERS: [&str; 8] = [
    "authorization",
    "proxy-authorization",
    "cookie",
    "x-api-key",
    "api-key",
    "x-auth-token",
    "x-amz-security-token",
    "x-goog-api-key",
];
pub(super) const SECRET_PARAMETERS: [&str; 12] = [
    "access_token",
    "refresh_token",
    "id_token",
    "token",
    "api_key",
    "apikey",
    "key",
    "client_secret",
    "password",
    "sig",
    "x-amz-signature",
    "x-amz-security-token",
];

/// The values that rules read, by name.
#[derive(Debug, Default)]
pub(super) struct Values {
    pub query: BTreeMap<String, String>,
    pub headers: BTreeMap<String, String>,
    pub body: BTreeMap<String, Value>,
    pub lookup: BTreeMap<String, Value>,
    /// Fields of the body, and facts that were looked up, of which a record has the digest alone.
    private: BTreeSet<String>,
    private_lookup: BTreeSet<String>,
}

impl Values {
    /// `exact`: no server takes a parameter's name for another.
    ///
    /// # Errors
    /// Says what of the things that rules read has more than one meaning, or cannot be known.
    pub(crate) fn read(
        reads: &Reads,
        query: Option<&str>,
        exact: bool,
        headers: &HeaderMap,
        needed: &RequestNeeds<'_>,
        context: &Context,
    ) -> Result<Self, BodyFault> {
        let query = if reads.query.is_empty() {
            BTreeMap::new()
        } else {
            let query = query.unwrap_or_default();
            read_query(&reads.query, query, exact).map_err(BodyFault::ambiguous)?
        };
        let mut values = Self {
            query,
            headers: read_headers(&reads.headers, headers).map_err(BodyFault::ambiguous)?,
            ..Self::default()
        };
        match (&needed.body, &context.body) {
            (None, _) => {}
            (Some(NeededBody { block, fields }), Body::Read(Fields(all))) => {
                let read = all
                    .iter()
                    .filter(|(name, _)| fields.contains(name.as_str()));
                values.body = read
                    .map(|(name, value)| (name.clone(), value.clone()))
                    .collect();
                values.private = private(&block.fields).collect();
            }
            (Some(_), Body::Faulty(fault)) => return Err(fault.clone()),
            (Some(_), Body::Unread) => return Err(BodyFault::unreadable("it has not been read")),
        }
        let mut known = BTreeSet::new();
        for lookup in &needed.lookups {
            let mut answers = context.lookups.iter();
            let answer = match answers.find(|(of, _)| of == *lookup) {
                Some((_, Ok(answer))) => answer,
                Some((_, Err(unavailable))) => return Err(unavailable.fault.clone()),
                None => return Err(BodyFault::unavailable("nobody has asked for it")),
            };
            let fields = lookup.fields().iter();
            let new: Vec<_> = fields.filter(|(name, _)| known.insert(*name)).collect();
            for (name, field) in new {
                if let Some(value) = answer.0.get(name) {
                    values.lookup.insert(name.clone(), value.clone());
                    if field.private {
                        values.private_lookup.insert(name.clone());
                    }
                }
            }
        }
        Ok(values)
    }

    /// Adds the values as a record may show them.
    pub(crate) fn record(&self, facts: &mut BTreeMap<String, String>) {
        let query = self.query.iter().map(|(name, value)| {
            let secret = SECRET_PARAMETERS.contains(&name.to_ascii_lowercase().as_str());
            (format!("query.{}", bounded(name)), shown(value, secret))
        });
        let headers = self.headers.iter().map(|(name, value)| {
            let secret = SECRET_HEADERS.contains(&name.as_str());
            (format!("header.{}", bounded(name)), shown(value, secret))
        });
        let body = self.body.iter().map(|(name, value)| {
            let private = self.private.contains(name);
            (format!("body.{name}"), shown(&value.shown(), private))
        });
        let lookup = self.lookup.iter().map(|(name, value)| {
            let private = self.private_lookup.contains(name);
            (format!("lookup.{name}"), shown(&value.shown(), private))
        });
        let own = self.body.len() + self.lookup.len();
        let count = self.query.len() + self.headers.len() + own;
        let facts_of = body.chain(lookup).chain(query).chain(headers);
        facts.extend(facts_of.take(MAX_FACTS));
        if count > MAX_FACTS {
            facts.insert("omitted".into(), (count - MAX_FACTS).to_string());
        }
    }
}

/// Names of the private fields.
fn private(fields: &BTreeMap<String, BodyField>) -> impl Iterator<Item = String> {
    let private = fields.iter().filter(|(_, field)| field.private);
    private.map(|(name, _)| name.clone())
}

/// A value as a record may show it: bounded, a secret one as its digest.
fn shown(value: &str, secret: bool) -> String {
    if secret {
        format!("sha256:{}", digest(value))
    } else {
        bounded(value)
    }
}

/// The fact that has the path as it was sent, where it is written in another form than rules compare.
pub(super) const SENT_PATH: &str = "sent_path";

/// At most [`MAX_VALUE`] bytes; what is cut off is named by the whole value's length and digest.
pub(super) fn bounded(value: &str) -> String {
    if value.len() <= MAX_VALUE {
        return value.to_owned();
    }
    let cut = value.floor_char_boundary(MAX_VALUE);
    format!(
        "{}… ({} bytes, sha256:{})",
        &value[..cut],
        value.len(),
        digest(value)
    )
}

fn digest(value: &str) -> String {
    Sha256::digest(value)
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

pub(super) fn read_query(
    names: &Names,
    query: &str,
    exact: bool,
) -> Result<BTreeMap<String, String>, String> {
    if query.contains(';') {
        return Err("the query has `;`, at which some servers split it".into());
    }
    let mut found = BTreeMap::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode_form(name).map_err(query_fault)?;
        let read = match exact {
            true => names.has(&name).then(|| name.clone()),
            false => read_name(names, &name),
        };
        let Some(read) = read else {
            continue;
        };
        if read != name {
            return Err(format!(
                "query parameter `{}` can also be read as `{}`",
                super::host::show(&name),
                super::host::show(&read)
            ));
        }
        let value = decode_form(value).map_err(query_fault)?;
        if found.insert(name.clone(), value).is_some() {
            return Err(format!(
                "query parameter `{}` is there more than once",
                super::host::show(&name)
            ));
        }
    }
    Ok(found)
}

fn query_fault(why: &str) -> String {
    format!("the query {why}")
}

/// The name among those that rules read which some server would take `name` for: in another case, `name[]`, and as PHP folds
/// names.
pub(super) fn read_name(names: &Names, name: &str) -> Option<String> {
    match names {
        Names::All => Some(name.to_owned()),
        Names::These(names) if names.contains(name) => Some(name.to_owned()),
        Names::These(names) => {
            let base = name.split_once('[').map_or(name, |(base, _)| base);
            let folded = php_name(name);
            let read = names.iter().find(|read| {
                read.eq_ignore_ascii_case(base) || php_name(read).eq_ignore_ascii_case(&folded)
            });
            read.cloned()
        }
    }
}

/// The variable that PHP makes of a parameter: without spaces in front, with `_` for spaces, dots and an open bracket that
/// nothing closes, and without what is in brackets.
pub(super) fn php_name(name: &str) -> Cow<'_, str> {
    let name = name.trim_start_matches(' ');
    let name = match name.find('[') {
        Some(at) if at > 0 && name[at..].contains(']') => &name[..at],
        _ => name,
    };
    let odd = |c: char| matches!(c, ' ' | '.' | '[' | '+');
    match name.contains(odd) {
        true => Cow::Owned(name.replace(odd, "_")),
        false => Cow::Borrowed(name),
    }
}

/// `application/x-www-form-urlencoded` (WHATWG URL section 5.1), strict.
pub(super) fn decode_form(raw: &str) -> Result<String, &'static str> {
    if !raw.contains(['%', '+']) {
        return Ok(raw.to_owned());
    }
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
                let value = digit()
                    .zip(digit())
                    .and_then(|(high, low)| u8::try_from(high << 4 | low).ok());
                value.ok_or("has invalid percent-encoding")?
            }
            byte => byte,
        });
    }
    let text = String::from_utf8(bytes).map_err(|_| "is not UTF-8")?;
    if text.contains('\0') {
        return Err("has a NUL");
    }
    Ok(text)
}

pub(super) fn read_headers(
    names: &Names,
    headers: &HeaderMap,
) -> Result<BTreeMap<String, String>, String> {
    let mut found = BTreeMap::new();
    match names {
        Names::These(names) if names.is_empty() => {}
        Names::These(names) => {
            for name in names {
                if let Some(value) = header(headers, name)? {
                    found.insert(name.clone(), value);
                }
            }
            // Gateways that turn headers into variables cannot tell `x_a` from `x-a`.
            let alias = headers.keys().map(http::HeaderName::as_str).find(|name| {
                name.contains('_')
                    && !names.contains(*name)
                    && names.contains(&name.replace('_', "-"))
            });
            if let Some(alias) = alias {
                return Err(format!(
                    "header `{alias}` can also be read as `{}`",
                    alias.replace('_', "-")
                ));
            }
        }
        Names::All => {
            for name in headers.keys() {
                if let Some(value) = header(headers, name.as_str())? {
                    found.insert(name.as_str().to_owned(), value);
                }
            }
        }
    }
    Ok(found)
}

fn header(headers: &HeaderMap, name: &str) -> Result<Option<String>, String> {
    let mut values = Vec::new();
    for value in headers.get_all(name) {
        let text = std::str::from_utf8(value.as_bytes())
            .map_err(|_| format!("header `{name}` is not UTF-8"))?;
        values.push(text);
    }
    match values[..] {
        [] => Ok(None),
        [one] => Ok(Some(one.to_owned())),
        // HTTP/2 splits one Cookie header into several lines (RFC 9113 section 8.2.3).
        _ if name == "cookie" => Ok(Some(values.join("; "))),
        _ => Err(format!("header `{name}` is there more than once")),
    }
}

/// A path as a sentence may carry it.
pub(super) fn short(path: &str) -> Cow<'_, str> {
    const MAX: usize = 120;
    if path.len() <= MAX {
        return Cow::Borrowed(path);
    }
    Cow::Owned(format!("{}…", &path[..path.floor_char_boundary(MAX)]))
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    fn these(names: &[&str]) -> Names {
        Names::These(names.iter().map(|name| (*name).to_owned()).collect())
    }

    fn header_map(lines: &[(&str, &str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn queries_are_read_strictly_where_a_rule_reads_them() {
        type Read = Option<&'static [(&'static str, &'static str)]>;
        let cases: [(&str, Read); 24] = [
            ("", Some(&[])),
            ("n=1&other=2", Some(&[("n", "1")])),
            ("%6e=a+b%21", Some(&[("n", "a b!")])),
            ("n", Some(&[("n", "")])),
            ("&&n=1&", Some(&[("n", "1")])),
            ("n=1=2", Some(&[("n", "1=2")])),
            ("other=1&other=2", Some(&[])),
            ("other=%zz", Some(&[])),
            ("n=1&n=2", None),
            ("n=1&%6E=1", None),
            ("N=1", None),
            ("n[]=1", None),
            ("x=1;n=2", None),
            ("n=%zz", None),
            ("n=%ff", None),
            ("n=%00", None),
            ("d_r=1", Some(&[("d_r", "1")])),
            ("dr=1", Some(&[])),
            ("d.r=1", None),
            ("d+r=1", None),
            ("d%20R=1", None),
            ("d%5Br=1", None),
            ("d.r[]=1", None),
            ("+d_r=1", None),
        ];
        for (query, expected) in cases {
            let read = read_query(&these(&["n", "d_r"]), query, false).ok();
            let expected = expected.map(|pairs| {
                pairs
                    .iter()
                    .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                    .collect()
            });
            assert_eq!(read, expected, "{query}");
        }
        let exact = read_query(&these(&["d_r"]), "d.r=1&D_R=2", true);
        assert_eq!(
            exact,
            Ok(BTreeMap::new()),
            "the server takes names as they are"
        );
    }

    #[test]
    fn repeated_headers_that_a_rule_reads_are_ambiguous() {
        let read = |names: &[&str], lines: &[(&str, &str)]| {
            read_headers(&these(names), &header_map(lines)).map(|m| m.len())
        };
        assert_eq!(
            read(&["x-a"], &[("x-a", "1"), ("x-b", "1"), ("x-b", "2")]),
            Ok(1)
        );
        assert_eq!(
            read(&["cookie"], &[("cookie", "a=1"), ("cookie", "b=2")]),
            Ok(1)
        );
        assert_eq!(read(&["x-a"], &[]), Ok(0));
        assert!(read(&["x-a"], &[("x-a", "1"), ("X-A", "1")]).is_err());
        assert!(read(&["x-a"], &[("x_a", "1")]).is_err());
        assert!(read_headers(&Names::All, &header_map(&[("x-b", "1"), ("x-b", "2")])).is_err());
    }

    #[test]
    fn records_bound_values_and_hide_secrets() {
        let values = Values {
            query: [
                ("q".to_owned(), "ü".repeat(300)),
                ("api_key".to_owned(), "s3cret".to_owned()),
            ]
            .into(),
            headers: [
                ("authorization".to_owned(), "Bearer s3cret".to_owned()),
                ("x-a".to_owned(), "1".to_owned()),
            ]
            .into(),
            body: [
                ("amount".to_owned(), Value::Decimal("12.5".into())),
                ("iban".to_owned(), Value::String("DE02".into())),
            ]
            .into(),
            lookup: [
                ("open".to_owned(), Value::Bool(true)),
                ("name".to_owned(), Value::String("Ada".into())),
            ]
            .into(),
            private: ["iban".to_owned()].into(),
            private_lookup: ["name".to_owned()].into(),
        };
        let mut facts = BTreeMap::new();
        values.record(&mut facts);
        assert_eq!(facts["header.x-a"], "1");
        assert_eq!(facts["body.amount"], "12.5");
        assert!(facts["body.iban"].starts_with("sha256:"));
        assert_eq!(facts["lookup.open"], "true");
        assert!(facts["lookup.name"].starts_with("sha256:"));
        assert!(
            facts["query.q"].starts_with("üü") && facts["query.q"].contains("(600 bytes, sha256:")
        );
        assert!(facts["query.q"].len() < 400);
        for secret in ["query.api_key", "header.authorization"] {
            assert!(
                facts[secret].starts_with("sha256:") && !facts[secret].contains("s3cret"),
                "{secret}"
            );
        }
    }
}
