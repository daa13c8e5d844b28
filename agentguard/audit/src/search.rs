//! Reading the log back: filters, the last records, one record, and what comes after.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use uuid::Uuid;

use super::line::{ChainLink, Line};
use super::log::Head;
use super::read::Backwards;
use super::segment;

/// What a record must have to be found; every field that is there must match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub agent: Option<String>,
    /// `GET`, `dns`, `kill`, …; ASCII case is ignored.
    pub action: Option<String>,
    /// `allow`, `deny`, …
    pub outcome: Option<String>,
    /// Part of the resource.
    pub resource: Option<String>,
    pub since: Option<Timestamp>,
    /// Excluded.
    pub until: Option<Timestamp>,
    /// The decision's id, or how it starts.
    pub id: Option<String>,
    /// Anywhere in the record's line.
    pub text: Option<String>,
    /// A task's id: what was decided on it, its beginning and its end.
    pub task: Option<String>,
    /// The newest so many.
    pub limit: Option<usize>,
}

#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    #[error(
        "unknown search key `{key}`: known are agent, action, outcome, resource, since, until, id, text, task, limit, follow"
    )]
    UnknownKey { key: String },
    #[error("`{key}={value}` cannot be read: {expected}")]
    BadValue {
        key: String,
        value: String,
        expected: &'static str,
    },
    #[error("cannot read the audit log in {}: {source}", dir.display())]
    Io { dir: PathBuf, source: io::Error },
}

impl Filter {
    /// Reads the query of `GET /v1/audit?…`; `follow` is the caller's own.
    pub fn from_query(query: &str) -> Result<Self, SearchError> {
        let mut filter = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, raw) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode_str(raw).decode_utf8_lossy().into_owned();
            let bad = |expected| SearchError::BadValue {
                key: key.to_owned(),
                value: value.clone(),
                expected,
            };
            let time = || {
                let expected = "a time such as 2026-01-31T12:00:00Z is expected";
                value.parse::<Timestamp>().map_err(|_| bad(expected))
            };
            match key {
                "since" => filter.since = Some(time()?),
                "until" => filter.until = Some(time()?),
                "limit" => {
                    let limit = value.parse().map_err(|_| bad("a number is expected"))?;
                    filter.limit = Some(limit);
                }
                "agent" => filter.agent = Some(value),
                "action" => filter.action = Some(value),
                "outcome" => filter.outcome = Some(value),
                "resource" => filter.resource = Some(value),
                "id" => filter.id = Some(value),
                "text" => filter.text = Some(value),
                "task" => filter.task = Some(value),
                "follow" => {}
                _ => {
                    return Err(SearchError::UnknownKey {
                        key: key.to_owned(),
                    });
                }
            }
        }
        Ok(filter)
    }

    /// The other direction, for the control API's clients.
    pub fn to_query(&self) -> String {
        let text = |key, value: &Option<String>| value.clone().map(|value| (key, value));
        let time = |key, value: &Option<Timestamp>| value.map(|value| (key, value.to_string()));
        let pairs = [
            text("agent", &self.agent),
            text("action", &self.action),
            text("outcome", &self.outcome),
            text("resource", &self.resource),
            time("since", &self.since),
            time("until", &self.until),
            text("id", &self.id),
            text("text", &self.text),
            text("task", &self.task),
            self.limit.map(|limit| ("limit", limit.to_string())),
        ];
        let encoded: Vec<String> = pairs
            .into_iter()
            .flatten()
            .map(|(key, value)| format!("{key}={}", utf8_percent_encode(&value, NON_ALPHANUMERIC)))
            .collect();
        encoded.join("&")
    }

    /// What most lines that do not match fail already, without being parsed.
    fn may_match(&self, line: &str) -> bool {
        let has = |name, value: &Option<String>| {
            value
                .as_ref()
                .is_none_or(|value| line.contains(&written(name, value)))
        };
        let text = self
            .text
            .as_ref()
            .is_none_or(|text| line.contains(text.as_str()));
        text && has("agent", &self.agent)
            && has("outcome", &self.outcome)
            && has("task", &self.task)
    }

    /// Whether a record's line is one that is looked for. What is no record never is.
    pub fn matches(&self, line: &str) -> bool {
        if !self.may_match(line) {
            return false;
        }
        let Ok(line) = Line::parse(line.as_bytes()) else {
            return false;
        };
        let is = |wanted: &Option<String>, check: &dyn Fn(&str) -> bool| {
            wanted.as_deref().is_none_or(check)
        };
        let is_id = |id: Uuid, wanted: &str, whole: bool| {
            let mut buffer = Uuid::encode_buffer();
            let id: &str = id.hyphenated().encode_lower(&mut buffer);
            id.starts_with(wanted) && (!whole || id.len() == wanted.len())
        };
        is(&self.agent, &|wanted| line.agent.as_deref() == Some(wanted))
            && is(&self.action, &|wanted| {
                line.action.eq_ignore_ascii_case(wanted)
            })
            && is(&self.outcome, &|wanted| line.outcome.text() == wanted)
            && is(&self.resource, &|wanted| line.resource.contains(wanted))
            && is(&self.task, &|wanted| {
                line.task.is_some_and(|id| is_id(id, wanted, true))
            })
            && is(&self.id, &|wanted| is_id(line.decision, wanted, false))
            && self.since.is_none_or(|since| line.time >= since)
            && self.until.is_none_or(|until| line.time < until)
    }
}

/// How a field is written in a line.
fn written(name: &str, value: &str) -> String {
    format!("\"{name}\":{}", serde_json::Value::from(value))
}

/// The records that match, oldest first, each as its line. Blocks on the disk.
pub fn search(dir: &Path, filter: &Filter) -> Result<Vec<String>, SearchError> {
    let io = |source| SearchError::Io {
        dir: dir.to_owned(),
        source,
    };
    let mut found = Vec::new();
    for line in Backwards::new(dir).map_err(io)? {
        if filter.limit.is_some_and(|limit| found.len() >= limit) {
            break;
        }
        let Ok(line) = String::from_utf8(line.map_err(io)?) else {
            continue;
        };
        if filter.matches(&line) {
            found.push(line);
        }
    }
    found.reverse();
    Ok(found)
}

/// The last records that match, and what reads on from there without a gap. `head` is [`super::Log::head`]'s.
pub fn tail(dir: &Path, filter: &Filter, head: Head) -> Result<(Vec<String>, Follow), SearchError> {
    let mut lines = search(dir, filter)?;
    // What has been appended since is for `Follow` to find.
    lines.retain(|line| seq(line).is_some_and(|seq| seq <= head.seq));
    Ok((lines, Follow::from(dir, head)))
}

fn seq(line: &str) -> Option<u64> {
    serde_json::from_str::<ChainLink<'_>>(line)
        .ok()
        .map(|link| link.seq)
}

/// Reads what is appended after a [`Head`]. Wait for that to change between reads.
pub struct Follow {
    dir: PathBuf,
    at: Head,
    file: Option<File>,
    /// The start of a line whose end is not there yet.
    partial: Vec<u8>,
}

impl Follow {
    pub fn from(dir: &Path, head: Head) -> Self {
        Self {
            dir: dir.to_owned(),
            at: head,
            file: None,
            partial: Vec::new(),
        }
    }

    /// The whole lines that are there and have not been read, oldest first. Blocks on the disk.
    pub fn read(&mut self) -> Result<Vec<String>, SearchError> {
        let mut lines = Vec::new();
        self.read_on(&mut lines).map_err(|source| SearchError::Io {
            dir: self.dir.clone(),
            source,
        })?;
        Ok(lines)
    }

    fn read_on(&mut self, lines: &mut Vec<String>) -> io::Result<()> {
        loop {
            let file = match &mut self.file {
                Some(file) => file,
                closed => {
                    let mut file = File::open(segment::path(&self.dir, self.at.segment))?;
                    file.seek(SeekFrom::Start(self.at.offset))?;
                    closed.insert(file)
                }
            };
            file.read_to_end(&mut self.partial)?;
            let end = self.partial.iter().rposition(|byte| *byte == b'\n');
            let rest = self.partial.split_off(end.map_or(0, |end| end + 1));
            let whole = std::mem::replace(&mut self.partial, rest);
            for line in String::from_utf8_lossy(&whole).lines() {
                self.at.seq = seq(line).unwrap_or(self.at.seq);
                lines.push(line.to_owned());
            }
            // The next segment is made when this one is complete.
            let next = self.at.seq + 1;
            if next == self.at.segment || !segment::path(&self.dir, next).exists() {
                return Ok(());
            }
            self.at = Head {
                segment: next,
                offset: 0,
                ..self.at
            };
            self.file = None;
        }
    }
}

#[cfg(test)]
mod tests;
