//! Typed, position-keeping reads from one TOML table: every wrong type and unknown key becomes an error in the report.

mod json;

use jiff::Timestamp;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostic::{Place, Report, did_you_mean, nearest};
use crate::host::show;

/// A table and how messages name it (`[agent]`, `[[reach]]`).
pub(crate) struct Table<'a> {
    pub title: &'static str,
    pub at: Place,
    keys: &'a DeTable<'a>,
}

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Located<T> {
    pub at: Place,
    pub value: T,
}

/// An element of a list in which either may stand.
pub(crate) enum TableEntry<'a> {
    String(Located<String>),
    Table(Table<'a>),
}

/// What a table may hold.
pub(crate) struct Keys {
    pub known: &'static [&'static str],
    /// Part of the format, but nothing in this build acts on it.
    pub later: &'static [&'static str],
}

/// Keys that people write one level too high or too low, and where they belong.
const HOMES: &[(&str, &str)] = &[
    (
        "name",
        "[agent] of an agent's file, [host] of a host's file, or bundle.toml",
    ),
    ("owner", "[agent]"),
    ("risk", "[agent] or [host]"),
    ("data", "[host]"),
    ("reads_bodies", "[host]"),
    ("timeouts", "[host]"),
    ("upgrade", "[host]"),
    ("max_judged_body", "[host]"),
    ("http", "[host]"),
    ("parent", "[agent]"),
    ("start_by", "[agent]"),
    ("privileges", "[agent]"),
    ("mode", "[agent] or bundle.toml"),
    ("exe", "[[identify]]"),
    ("user", "[[identify]]"),
    ("cgroup", "[[identify]]"),
    ("host", "[[reach]]"),
    ("allow", "[[reach]] or [exec]"),
    ("deny", "[exec]"),
    ("default", "[exec]"),
    ("arguments", "[exec]"),
    ("tls", "[[reach]]"),
    ("to", "[[reach]]"),
    (
        "on",
        "[[listen]], or [[body]], [[lookup]] and [[scope]] of a host's file",
    ),
    (
        "path",
        "[[unix]], or an entry of `allow` or `deny` in [exec]",
    ),
    ("sha256", "an entry of `allow` or `deny` in [exec]"),
    ("url", "[[lookup]] of a host's file"),
    ("serial", "bundle.toml"),
    ("expect", "[[case]] of a file in tests/"),
];

impl<'a> Table<'a> {
    pub(crate) fn root(file: u32, keys: &'a DeTable<'a>) -> Self {
        Self {
            title: "the file",
            at: Place::new(file, 0),
            keys,
        }
    }

    /// Reports every key that is not known, or that this build does not enforce.
    pub(crate) fn check_keys(&self, report: &mut Report<'_>, keys: &Keys) {
        for key in self.keys.keys() {
            let name: &str = key.get_ref();
            let at = self.place(key);
            if keys.known.contains(&name) {
                continue;
            }
            if keys.later.contains(&name) {
                report.error_help(
                    at,
                    format!("`{name}` in {} is not enforced by this build", self.title),
                    "remove it: a bundle may not promise what is not enforced",
                );
                continue;
            }
            let home = HOMES.iter().find(|(known, _)| *known == name);
            let help = nearest(name, keys.known.iter().copied())
                .map(|near| format!("did you mean `{near}`?"))
                .or_else(|| home.map(|(_, home)| format!("`{name}` belongs in {home}")))
                .unwrap_or_else(|| format!("known here: {}", keys.known.join(", ")));
            report.error_help(at, format!("unknown key `{name}` in {}", self.title), help);
        }
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// Where the key is written; the table itself if it is not there.
    pub(crate) fn key_place(&self, key: &str) -> Place {
        self.keys
            .keys()
            .find(|found| found.get_ref().as_ref() == key)
            .map_or(self.at, |found| self.place(found))
    }

    pub(crate) fn string(&self, report: &mut Report<'_>, key: &str) -> Option<Located<String>> {
        let value = self.keys.get(key)?;
        self.expect_string(report, key, value)
    }

    pub(crate) fn required(&self, report: &mut Report<'_>, key: &str) -> Option<Located<String>> {
        if !self.has(key) {
            report.error_help(
                self.at,
                format!("{} has no `{key}`", self.title),
                format!("add `{key} = \"…\"`"),
            );
            return None;
        }
        let found = self.string(report, key)?;
        if found.value.trim().is_empty() {
            report.error(found.at, format!("`{key}` is empty"));
            return None;
        }
        Some(found)
    }

    /// A string that is one of `choices`.
    pub(crate) fn choice(
        &self,
        report: &mut Report<'_>,
        key: &str,
        choices: &[&str],
    ) -> Option<Located<String>> {
        let found = self.string(report, key)?;
        if choices.contains(&found.value.as_str()) {
            return Some(found);
        }
        let list = choices
            .iter()
            .map(|choice| format!("`{choice}`"))
            .collect::<Vec<_>>()
            .join(", ");
        let help = did_you_mean(&found.value, choices.iter().copied());
        let message = format!("`{key}` is `{}`, which is none of {list}", found.value);
        report.error_with(found.at, message, help);
        None
    }

    pub(crate) fn strings(&self, report: &mut Report<'_>, key: &str) -> Vec<Located<String>> {
        let Some(value) = self.keys.get(key) else {
            return Vec::new();
        };
        let Some(array) = value.get_ref().as_array() else {
            let found = value.get_ref().type_str();
            let at = self.place(value);
            report.error_help(
                at,
                format!("`{key}` is a {found}, not a list of strings"),
                format!("write `{key} = [\"…\"]`"),
            );
            return Vec::new();
        };
        array
            .iter()
            .filter_map(|item| self.expect_string(report, key, item))
            .collect()
    }

    /// The string, or those of the list, that the key has; anything else is no text.
    pub(crate) fn texts(&self, key: &str) -> Vec<Located<String>> {
        let value = self.keys.get(key);
        let items = value.map_or(&[][..], |value| match value.get_ref().as_array() {
            Some(array) => array,
            None => std::slice::from_ref(value),
        });
        let text = |item: &Spanned<DeValue<'_>>| {
            Some(Located {
                at: self.place(item),
                value: item.get_ref().as_str()?.to_owned(),
            })
        };
        items.iter().filter_map(text).collect()
    }

    /// A table of strings or lists of them: `key = { "name" = "value" }`, one pair for each value.
    pub(crate) fn pairs(&self, report: &mut Report<'_>, key: &str) -> Vec<(String, String)> {
        let Some(value) = self.keys.get(key) else {
            return Vec::new();
        };
        let Some(entries) = value.get_ref().as_table() else {
            report.error_help(
                self.place(value),
                format!("`{key}` is a {}, not a table of strings", kind(value)),
                format!("write `{key} = {{ \"name\" = \"value\" }}`"),
            );
            return Vec::new();
        };
        let mut pairs = Vec::new();
        for (name, value) in entries {
            let name: &str = name.get_ref();
            let values = match value.get_ref().as_array() {
                Some(array) => array.iter().collect(),
                None => vec![value],
            };
            for value in values {
                let value = self.expect_string(report, name, value);
                pairs.extend(value.map(|value| (name.to_owned(), value.value)));
            }
        }
        pairs
    }

    /// A list of which each element is a string or a table; `None` for one that is neither, which has been reported.
    pub(crate) fn entries(
        &self,
        report: &mut Report<'_>,
        key: &str,
        title: &'static str,
    ) -> Vec<Option<TableEntry<'a>>> {
        let items = self
            .keys
            .get(key)
            .and_then(|value| value.get_ref().as_array());
        let Some(items) = items else {
            // Reports what it is instead, if it is there at all.
            self.strings(report, key);
            return if self.has(key) {
                vec![None]
            } else {
                Vec::new()
            };
        };
        let entry = |item: &'a Spanned<DeValue<'a>>| match item.get_ref().as_table() {
            Some(keys) => {
                let at = self.place(item);
                Some(TableEntry::Table(Table { title, at, keys }))
            }
            None => self
                .expect_string(report, key, item)
                .map(TableEntry::String),
        };
        items.iter().map(entry).collect()
    }

    /// One string, or a list of them.
    pub(crate) fn string_or_strings(
        &self,
        report: &mut Report<'_>,
        key: &str,
    ) -> Vec<Located<String>> {
        match self.keys.get(key) {
            Some(value) if value.get_ref().is_str() => {
                self.expect_string(report, key, value).into_iter().collect()
            }
            _ => self.strings(report, key),
        }
    }

    /// A string as it is, or a table or list as JSON.
    pub(crate) fn string_or_json(
        &self,
        report: &mut Report<'_>,
        key: &str,
    ) -> Option<Located<String>> {
        let value = self.keys.get(key)?;
        let at = self.place(value);
        let text = match value.get_ref() {
            DeValue::String(text) => Some(text.clone().into_owned()),
            DeValue::Table(_) | DeValue::Array(_) => json::of(value.get_ref()),
            DeValue::Integer(_)
            | DeValue::Float(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_) => None,
        };
        if text.is_none() {
            report.error_help(
                at,
                format!("`{key}` is not a string, nor what JSON can hold"),
                format!("write `{key} = {{ \"name\" = 1.5 }}`, or the text itself as a string"),
            );
        }
        text.map(|value| Located { at, value })
    }

    pub(crate) fn boolean(&self, report: &mut Report<'_>, key: &str) -> Option<Located<bool>> {
        let value = self.keys.get(key)?;
        let at = self.place(value);
        match value.get_ref().as_bool() {
            Some(value) => Some(Located { at, value }),
            None => {
                let message = format!("`{key}` is a {}, not true or false", kind(value));
                report.error(at, message);
                None
            }
        }
    }

    /// Every key but `known`, with its table; `None` for what is no table.
    pub(crate) fn others(
        &self,
        known: &[&str],
        title: &'static str,
    ) -> Vec<(Located<String>, Option<Table<'a>>)> {
        let others = self
            .keys
            .iter()
            .filter(|(key, _)| !known.contains(&key.get_ref().as_ref()));
        let others = others.map(|(key, value)| {
            let name = Located {
                at: self.place(key),
                value: key.get_ref().as_ref().to_owned(),
            };
            let table = value.get_ref().as_table().map(|keys| Table {
                title,
                at: name.at,
                keys,
            });
            (name, table)
        });
        others.collect()
    }

    pub(crate) fn unsigned(&self, report: &mut Report<'_>, key: &str) -> Option<Located<u64>> {
        let value = self.keys.get(key)?;
        let at = self.place(value);
        let number = value
            .get_ref()
            .as_integer()
            .and_then(|integer| u64::from_str_radix(integer.as_str(), integer.radix()).ok());
        if number.is_none() {
            report.error(at, format!("`{key}` is not a whole number of 0 or more"));
        }
        number.map(|value| Located { at, value })
    }

    /// A moment, as TOML writes one or as a string (RFC 3339).
    pub(crate) fn moment(&self, report: &mut Report<'_>, key: &str) -> Option<Timestamp> {
        let value = self.keys.get(key)?;
        let text = match value.get_ref().as_datetime() {
            Some(time) => time.to_string(),
            None => self.expect_string(report, key, value)?.value,
        };
        let moment = text.parse();
        if moment.is_err() {
            let shown = show(&text);
            report.error_help(
                self.place(value),
                format!("`{key}` is `{shown}`, which is no time with an offset (RFC 3339)"),
                format!("write it as in `{key} = 2027-01-31T00:00:00Z`"),
            );
        }
        moment.ok()
    }

    pub(crate) fn table(
        &self,
        report: &mut Report<'_>,
        key: &str,
        title: &'static str,
    ) -> Option<Table<'a>> {
        let value = self.keys.get(key)?;
        let at = self.key_place(key);
        match value.get_ref().as_table() {
            Some(keys) => Some(Table { title, at, keys }),
            None => {
                report.error_help(
                    at,
                    format!("`{key}` is a {}, not a table", kind(value)),
                    format!("write `{title}` on a line of its own"),
                );
                None
            }
        }
    }

    /// The elements of an array of tables.
    pub(crate) fn tables(
        &self,
        report: &mut Report<'_>,
        key: &str,
        title: &'static str,
    ) -> Vec<Table<'a>> {
        let Some(value) = self.keys.get(key) else {
            return Vec::new();
        };
        let items = value.get_ref().as_array().map(|array| array.iter());
        let tables = items.and_then(|mut items| {
            items.try_fold(Vec::new(), |mut tables, item| {
                let keys = item.get_ref().as_table()?;
                let at = self.place(item);
                tables.push(Table { title, at, keys });
                Some(tables)
            })
        });
        tables.unwrap_or_else(|| {
            report.error_help(
                self.key_place(key),
                format!("`{key}` is a {}, not a list of tables", kind(value)),
                format!("write `{title}` on a line of its own"),
            );
            Vec::new()
        })
    }

    fn expect_string(
        &self,
        report: &mut Report<'_>,
        key: &str,
        value: &Spanned<DeValue<'_>>,
    ) -> Option<Located<String>> {
        let at = self.place(value);
        match value.get_ref().as_str() {
            Some(text) => Some(Located {
                at,
                value: text.to_owned(),
            }),
            None => {
                report.error(at, format!("`{key}` holds a {}, not a string", kind(value)));
                None
            }
        }
    }

    fn place<T>(&self, spanned: &Spanned<T>) -> Place {
        Place::new(self.at.file, spanned.span().start)
    }
}

fn kind(value: &Spanned<DeValue<'_>>) -> &'static str {
    value.get_ref().type_str()
}
