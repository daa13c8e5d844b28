//! A TOML value as JSON text, its numbers as they are written.

use toml::de::DeValue;

/// `None`: it has what JSON has not, as a date or `nan`.
pub(super) fn of(value: &DeValue<'_>) -> Option<String> {
    Some(match value {
        DeValue::String(text) => quoted(text),
        DeValue::Integer(number) if number.radix() == 10 => plain(number.as_str())?,
        DeValue::Float(number) => plain(number.as_str())?,
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Array(items) => {
            let items: Option<Vec<_>> = items.iter().map(|item| of(item.get_ref())).collect();
            format!("[{}]", items?.join(","))
        }
        DeValue::Table(table) => {
            let pairs = table.iter().map(|(key, value)| {
                Some(format!(
                    "{}:{}",
                    quoted(key.get_ref()),
                    of(value.get_ref())?
                ))
            });
            format!("{{{}}}", pairs.collect::<Option<Vec<_>>>()?.join(","))
        }
        DeValue::Integer(_) | DeValue::Datetime(_) => return None,
    })
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// TOML writes a `+` and `_` that JSON does not have.
fn plain(number: &str) -> Option<String> {
    let number = number.trim_start_matches('+').replace('_', "");
    (!number.ends_with(|c: char| c.is_ascii_alphabetic())).then_some(number)
}
