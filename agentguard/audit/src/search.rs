//! Reading the log back: filters, the newest records that match, and what comes after. Nothing here holds more of the log
//! than a piece.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use uuid::Uuid;

use super::line::Line;
use super::log::Head;
use super::read::Backwards;
use super::segment::{self, Position};

/// Bytes of the log that are read at a time.
const PIECE: usize = 64 * 1024;

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

impl SearchError {
    fn io(dir: &Path) -> impl FnOnce(io::Error) -> Self {
        let dir = dir.to_owned();
        move |source| Self::Io { dir, source }
    }
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

    fn matches_bytes(&self, line: &[u8]) -> bool {
        str::from_utf8(line).is_ok_and(|line| self.matches(line))
    }

    /// Whether a record's line is one that is looked for. What is no record never is.
    fn matches(&self, line: &str) -> bool {
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

/// What one answer has at most of what matches, the newest of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    pub records: usize,
    pub bytes: usize,
}

/// Looks, newest first, for where an answer begins. Blocks on the disk, for one piece of the log at a time.
pub struct Search {
    dir: PathBuf,
    filter: Filter,
    bounds: Bounds,
    end: Position,
    lines: Backwards,
    /// Of the oldest record that is in the answer.
    begin: Position,
    records: usize,
    bytes: usize,
    is_cut: bool,
}

impl Search {
    /// Among the records up to `head`, which is [`super::Log::head`]'s.
    pub fn new(
        dir: &Path,
        filter: Filter,
        bounds: Bounds,
        head: Head,
    ) -> Result<Self, SearchError> {
        let lines = Backwards::before(dir, head.end).map_err(SearchError::io(dir))?;
        Ok(Self {
            dir: dir.to_owned(),
            filter,
            bounds,
            end: head.end,
            lines,
            begin: head.end,
            records: 0,
            bytes: 0,
            is_cut: false,
        })
    }

    /// Looks through one piece more; whether it is found.
    pub fn step(&mut self) -> Result<bool, SearchError> {
        let mut read = 0;
        while read < PIECE {
            if self.filter.limit.is_some_and(|limit| self.records >= limit) {
                return Ok(true);
            }
            let Some(line) = self.lines.next() else {
                return Ok(true);
            };
            let (begin, line) = line.map_err(SearchError::io(&self.dir))?;
            read += line.len() + 1;
            if !self.filter.matches_bytes(&line) {
                continue;
            }
            let bytes = self.bytes + line.len() + 1;
            if self.records >= self.bounds.records || bytes > self.bounds.bytes {
                self.is_cut = true;
                return Ok(true);
            }
            (self.begin, self.bytes) = (begin, bytes);
            self.records += 1;
        }
        Ok(false)
    }

    /// Whether older records match, and [`Bounds`] keep them out of the answer.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// What was found; with `follow` also what is appended after it, without a gap.
    pub fn matches(self, follow: bool) -> Matches {
        Matches {
            dir: self.dir,
            filter: self.filter,
            at: self.begin,
            file: None,
            next: None,
            partial: Vec::new(),
            end: (!follow).then_some(self.end),
        }
    }
}

/// Reads the records that match, oldest first.
pub struct Matches {
    dir: PathBuf,
    filter: Filter,
    /// Of what is to be read.
    at: Position,
    file: Option<File>,
    /// The segment after this one, which is complete then.
    next: Option<u64>,
    /// The start of a line whose end has not been read.
    partial: Vec<u8>,
    /// `None`: whatever is appended.
    end: Option<Position>,
}

impl Matches {
    /// The lines of one piece that match, each with its newline, perhaps none. `None`: there is nothing more; of a follower
    /// until [`super::Log::head`] changes. Blocks on the disk.
    pub fn read(&mut self) -> Result<Option<Vec<u8>>, SearchError> {
        self.read_piece().map_err(SearchError::io(&self.dir))
    }

    fn read_piece(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let most = match self.end {
                Some(end) if self.at >= end => return Ok(None),
                Some(end) if self.at.segment == end.segment => end.offset - self.at.offset,
                Some(_) | None => u64::MAX,
            };
            let read = self.fill(most.min(PIECE as u64))?;
            if read > 0 {
                self.at.offset += read as u64;
                return Ok(Some(self.matching()));
            }
            match self.next.take() {
                Some(segment) => {
                    self.at = Position { segment, offset: 0 };
                    self.file = None;
                    self.partial.clear();
                }
                // Before the next one was made, more may have been written to this one.
                None => match segment::after(&self.dir, self.at.segment)? {
                    None => return Ok(None),
                    found => self.next = found,
                },
            }
        }
    }

    fn fill(&mut self, most: u64) -> io::Result<usize> {
        let file = match &mut self.file {
            Some(file) => file,
            closed => {
                let mut file = File::open(segment::path(&self.dir, self.at.segment))?;
                file.seek(SeekFrom::Start(self.at.offset))?;
                closed.insert(file)
            }
        };
        file.take(most).read_to_end(&mut self.partial)
    }

    fn matching(&mut self) -> Vec<u8> {
        let end = self.partial.iter().rposition(|byte| *byte == b'\n');
        let rest = self.partial.split_off(end.map_or(0, |end| end + 1));
        let whole = std::mem::replace(&mut self.partial, rest);
        let mut found = Vec::new();
        for line in whole.split_inclusive(|byte| *byte == b'\n') {
            if self.filter.matches_bytes(line.trim_ascii_end()) {
                found.extend_from_slice(line);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests;
