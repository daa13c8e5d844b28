//! A line read back, typed. What earlier versions did not write is `None`; what later versions write besides is passed over.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Deref;

use agentguard_record::{ActionName, DecidedBy, DenyReason, Ended, Latency, Outcome};
use jiff::Timestamp;
use serde::de::value::{Error, StrDeserializer};
use serde::de::{DeserializeOwned, IntoDeserializer};
use serde::{Deserialize, Deserializer};
use uuid::Uuid;

/// One record, as far as this build knows its fields.
#[derive(Clone, Debug, Deserialize)]
pub struct Line<'a> {
    pub time: Timestamp,
    pub seq: u64,
    pub decision: Uuid,
    #[serde(borrow)]
    pub agent: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub owner: Option<Text<'a>>,
    #[serde(default)]
    pub task: Option<Uuid>,
    #[serde(borrow, default)]
    pub intent: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub process: Option<ProcessPart<'a>>,
    #[serde(borrow, default)]
    pub operator: Option<OperatorPart<'a>>,
    #[serde(borrow)]
    pub action: Text<'a>,
    #[serde(borrow)]
    pub resource: Text<'a>,
    #[serde(borrow, default)]
    pub request: Option<RequestPart<'a>>,
    /// `None`: the record is no decision's.
    #[serde(default)]
    pub facts: Option<BTreeMap<String, String>>,
    #[serde(borrow)]
    pub outcome: Word<'a, Outcome>,
    #[serde(borrow, default)]
    pub decided_by: Option<Word<'a, DecidedBy>>,
    #[serde(borrow, default)]
    pub ended: Option<Word<'a, Ended>>,
    #[serde(default)]
    pub policies: Vec<String>,
    #[serde(borrow, default)]
    pub reason: Option<Word<'a, DenyReason>>,
    #[serde(borrow, default)]
    pub detail: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub bundle: Option<BundlePart<'a>>,
    #[serde(borrow, default)]
    pub approval: Option<ApprovalPart<'a>>,
    #[serde(borrow, default)]
    pub upstream: Option<UpstreamPart<'a>>,
    #[serde(default)]
    pub bytes_up: u64,
    #[serde(default)]
    pub bytes_down: u64,
    #[serde(default)]
    pub latency_us: Option<Latency>,
}

/// Text that stays in its line where nothing in it is escaped.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(transparent)]
pub struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// One of a field's words: as it is written, and what this build takes it for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Word<'a, T> {
    text: Text<'a>,
    known: Option<T>,
}

/// The process behind a decision. Of one that was gone before the daemon knew it there is `tgid` alone.
#[derive(Clone, Debug, Deserialize)]
pub struct ProcessPart<'a> {
    pub tgid: u32,
    #[serde(default)]
    pub start: Option<u64>,
    #[serde(borrow, default)]
    pub exe: Option<Text<'a>>,
    #[serde(default)]
    pub uid: Option<u32>,
    #[serde(borrow, default)]
    pub cgroup: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub parents: Vec<Text<'a>>,
    #[serde(borrow, default)]
    pub cwd: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub arguments: Option<Vec<Text<'a>>>,
    #[serde(default)]
    pub arguments_bytes: Option<u32>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct OperatorPart<'a> {
    pub uid: u32,
    #[serde(borrow)]
    pub user: Option<Text<'a>>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct RequestPart<'a> {
    #[serde(borrow)]
    pub scheme: Text<'a>,
    #[serde(borrow)]
    pub host: Text<'a>,
    pub port: u16,
    #[serde(borrow)]
    pub method: Text<'a>,
    #[serde(borrow)]
    pub path: Text<'a>,
    pub status: u16,
}

/// The bundle that decided. `name` and `serial` are known where the daemon knew that bundle at the time.
#[derive(Clone, Debug, Deserialize)]
pub struct BundlePart<'a> {
    #[serde(borrow, default)]
    pub name: Option<Text<'a>>,
    #[serde(default)]
    pub serial: Option<u64>,
    #[serde(borrow)]
    pub digest: Text<'a>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ApprovalPart<'a> {
    #[serde(borrow)]
    pub role: Text<'a>,
    #[serde(borrow)]
    pub roles: Vec<Text<'a>>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct UpstreamPart<'a> {
    #[serde(borrow)]
    pub addr: Text<'a>,
    /// `None`: plain.
    #[serde(borrow)]
    pub tls: Option<Text<'a>>,
}

impl<'a> Line<'a> {
    /// # Errors
    /// `line` is no record.
    pub fn parse(line: &'a [u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(line)
    }

    /// What the agent did; `None` of an operation, and of what this build does not know.
    pub fn action_name(&self) -> Option<ActionName> {
        if self.operator.is_some() {
            return None;
        }
        match &self.request {
            Some(request) if &*request.scheme != "dns" => {
                Some(ActionName::Method(self.action.to_string()))
            }
            _ => ActionName::named(&self.action),
        }
    }
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<T: Copy> Word<'_, T> {
    pub fn text(&self) -> &str {
        &self.text
    }

    /// `None`: it is a later version's.
    pub fn known(&self) -> Option<T> {
        self.known
    }
}

impl<'de: 'a, 'a, T: DeserializeOwned> Deserialize<'de> for Word<'a, T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = Text::deserialize(from)?;
        let word: StrDeserializer<'_, Error> = (*text).into_deserializer();
        let known = T::deserialize(word).ok();
        Ok(Self { text, known })
    }
}
