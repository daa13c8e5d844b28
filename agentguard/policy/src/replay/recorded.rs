//! What a record tells of what rules read, and what it does not.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::{CanonicalPath, ReplayGap};
use crate::body::{Body, BodyField, FieldType, Fields, Value, decimal};
use crate::facts::{SECRET_HEADERS, SECRET_PARAMETERS, SENT_PATH, read_name};
use crate::lookup::Lookup;
use crate::reading::{METHOD_PARAMETER, is_override};
use crate::reads::{Names, Reads};
use crate::requests::NeededBody;
use crate::{Input, Needs, Policy, schema};

/// What a record says of a request or passed connection.
pub struct RecordedAct<'r> {
    pub agent: &'r str,
    /// When it began.
    pub time: Timestamp,
    pub scheme: &'r str,
    pub host: &'r str,
    pub port: u16,
    /// `connect` for a passed connection.
    pub method: &'r str,
    pub path: &'r str,
    pub facts: &'r BTreeMap<String, String>,
    /// Id and intent of its task.
    pub task: Option<(&'r str, &'r str)>,
    /// Ids of limits that had no room then.
    pub exhausted: &'r [String],
    pub then: Then,
}

/// How far rules were asked, and so what they read is in the record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Then {
    /// Those of the agent and of everyone it acts for.
    All,
    /// Those of the agent, and of others perhaps.
    Own,
    /// None: what they read could not be read.
    Nobody,
}

impl RecordedAct<'_> {
    pub(super) fn is_connection(&self) -> bool {
        self.method == schema::CONNECT
    }

    /// What the rules of the bundle that decided read of it.
    pub(super) fn needs_then<'p>(
        &self,
        old: &'p Policy,
        input: &Input<'_>,
    ) -> Result<Needs<'p>, ReplayGap> {
        if self.facts.contains_key("omitted") {
            return Err(ReplayGap::Many);
        }
        let Some(agent) = old.id_of(self.agent) else {
            return Ok(Needs::default());
        };
        let input = Input { agent, ..*input };
        match self.then {
            Then::All => Ok(old.needs(&input)),
            Then::Own => Ok(old.needs_of([agent], &input)),
            Then::Nobody => Err(ReplayGap::Ambiguous),
        }
    }

    /// The path as it was sent.
    pub(super) fn written_path(&self) -> Result<CanonicalPath, ReplayGap> {
        let sent = self.facts.get(SENT_PATH);
        if let Some(sent) = sent {
            ReplayGap::unless_whole(sent)?;
        }
        let sent = sent.map_or(self.path, String::as_str);
        CanonicalPath::parse(sent).map_err(|_| ReplayGap::Request)
    }

    /// The query and headers that lead to another reading, whatever rules read.
    pub(super) fn overrides(&self) -> Result<(String, HeaderMap), ReplayGap> {
        let (mut query, mut headers) = (String::new(), HeaderMap::new());
        for (fact, value) in self.facts.iter().filter(|(fact, _)| is_override(fact)) {
            ReplayGap::unless_whole(value)?;
            match fact.strip_prefix("header.") {
                Some(name) => {
                    let name: HeaderName = name.parse().map_err(|_| ReplayGap::Request)?;
                    let value: HeaderValue = value.parse().map_err(|_| ReplayGap::Request)?;
                    headers.append(name, value);
                }
                None => {
                    let value = utf8_percent_encode(value, NON_ALPHANUMERIC);
                    query.push_str(&format!("{METHOD_PARAMETER}={value}&"));
                }
            }
        }
        Ok((query, headers))
    }

    pub(super) fn query(
        &self,
        reads: &Reads,
        then: &Reads,
    ) -> Result<Vec<(&str, &str)>, ReplayGap> {
        known(&reads.query, &then.query)?;
        let read = |name: &str| read_name(&reads.query, name).is_some();
        self.values("query.", read, &SECRET_PARAMETERS)
    }

    pub(super) fn headers(&self, reads: &Reads, then: &Reads) -> Result<HeaderMap, ReplayGap> {
        known(&reads.headers, &then.headers)?;
        let read = |name: &str| match &reads.headers {
            Names::These(names) if names.is_empty() => false,
            names @ (Names::These(_) | Names::All) => {
                names.has(name) || names.has(&name.replace('_', "-"))
            }
        };
        let mut headers = HeaderMap::new();
        for (name, value) in self.values("header.", read, &SECRET_HEADERS)? {
            let name: HeaderName = name.parse().map_err(|_| ReplayGap::Request)?;
            let value: HeaderValue = value.parse().map_err(|_| ReplayGap::Request)?;
            headers.append(name, value);
        }
        Ok(headers)
    }

    /// What is read of a block that is the same as then, of which no more was read then.
    pub(super) fn body(
        &self,
        now: &NeededBody<'_>,
        then: &NeededBody<'_>,
    ) -> Result<Body, ReplayGap> {
        if now.block != then.block || !now.fields.is_subset(&then.fields) {
            return Err(ReplayGap::Body);
        }
        let fields = now.block.fields.iter();
        let fields = fields.filter(|(name, _)| now.fields.contains(name.as_str()));
        Ok(Body::Read(self.fields("body", fields, ReplayGap::Body)?))
    }

    /// What a look-up has answered that is the same as then, and was answered.
    pub(super) fn answer(&self, lookup: &Lookup) -> Result<Arc<Fields>, ReplayGap> {
        let fields = self.fields("lookup", lookup.fields().iter(), ReplayGap::Lookup)?;
        Ok(Arc::new(fields))
    }

    fn fields<'f>(
        &self,
        of: &str,
        declared: impl Iterator<Item = (&'f String, &'f BodyField)>,
        missing: ReplayGap,
    ) -> Result<Fields, ReplayGap> {
        let mut fields = BTreeMap::new();
        for (name, field) in declared {
            let Some(text) = self.facts.get(&format!("{of}.{name}")) else {
                continue;
            };
            if field.private {
                return Err(ReplayGap::Secret);
            }
            ReplayGap::unless_whole(text)?;
            let value = match field.kind {
                FieldType::String => Some(Value::String(text.clone())),
                FieldType::Decimal => decimal(text).map(Value::Decimal),
                FieldType::Long => text.parse().ok().map(Value::Long),
                FieldType::Bool => text.parse().ok().map(Value::Bool),
                // Its texts are joined, and may have in them what they are joined with.
                FieldType::Strings => None,
            };
            fields.insert(name.clone(), value.ok_or(missing)?);
        }
        Ok(Fields(fields))
    }

    fn values(
        &self,
        prefix: &str,
        read: impl Fn(&str) -> bool,
        secret: &[&str],
    ) -> Result<Vec<(&str, &str)>, ReplayGap> {
        let mut found = Vec::new();
        for (fact, value) in self.facts.range(prefix.to_owned()..) {
            let Some(name) = fact.strip_prefix(prefix) else {
                break;
            };
            // A name that is cut off may be any.
            ReplayGap::unless_whole(name)?;
            if !read(name) {
                continue;
            }
            if secret.contains(&name.to_ascii_lowercase().as_str()) {
                return Err(ReplayGap::Secret);
            }
            ReplayGap::unless_whole(value)?;
            found.push((name, value.as_str()));
        }
        Ok(found)
    }
}

/// Whether what is not in the record was not there.
fn known(reads: &Names, then: &Names) -> Result<(), ReplayGap> {
    let known = match (reads, then) {
        (_, Names::All) => true,
        (Names::All, Names::These(_)) => false,
        (Names::These(reads), Names::These(then)) => reads.is_subset(then),
    };
    known.then_some(()).ok_or(ReplayGap::Fact)
}
