//! What a record tells of what rules read, and what it does not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use jiff::Timestamp;
use uuid::Uuid;

use super::Missing;
use crate::body::{Body, Field, FieldType, Fields, Value, decimal};
use crate::facts::{MAX_VALUE, SECRET_HEADERS, SECRET_PARAMETERS, read_name};
use crate::lookup::Lookup;
use crate::reads::{Names, Reads};
use crate::requests::NeededBody;
use crate::task::{NARROWS, OPEN, OPENED_BY, WRONG};
use crate::{AgentSituation, Input, Needs, OnTask, OpenedBy, Policy, Task, Tasks, Terms, schema};

/// What a record says of a request or passed connection.
pub struct Recorded<'r> {
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

impl Recorded<'_> {
    pub(super) fn is_connection(&self) -> bool {
        self.method == schema::CONNECT
    }

    /// What the rules of the bundle that decided read of it.
    pub(super) fn needs_then<'p>(
        &self,
        old: &'p Policy,
        input: &Input<'_>,
    ) -> Result<Needs<'p>, Missing> {
        if self.facts.contains_key("omitted") {
            return Err(Missing::Many);
        }
        let Some(agent) = old.id_of(self.agent) else {
            return Ok(Needs::default());
        };
        let input = Input { agent, ..*input };
        match self.then {
            Then::All => Ok(old.needs(&input)),
            Then::Own => Ok(old.needs_of([agent], &input)),
            Then::Nobody => Err(Missing::Ambiguous),
        }
    }

    pub(super) fn query(&self, reads: &Reads, then: &Reads) -> Result<Vec<(&str, &str)>, Missing> {
        known(&reads.query, &then.query)?;
        let read = |name: &str| read_name(&reads.query, name).is_some();
        self.values("query.", read, &SECRET_PARAMETERS)
    }

    pub(super) fn headers(&self, reads: &Reads, then: &Reads) -> Result<HeaderMap, Missing> {
        known(&reads.headers, &then.headers)?;
        let read = |name: &str| match &reads.headers {
            Names::These(names) if names.is_empty() => false,
            names @ (Names::These(_) | Names::All) => {
                names.has(name) || names.has(&name.replace('_', "-"))
            }
        };
        let mut headers = HeaderMap::new();
        for (name, value) in self.values("header.", read, &SECRET_HEADERS)? {
            let name: HeaderName = name.parse().map_err(|_| Missing::Request)?;
            let value: HeaderValue = value.parse().map_err(|_| Missing::Request)?;
            headers.append(name, value);
        }
        Ok(headers)
    }

    /// What is read of a block that is the same as then, of which no more was read then.
    pub(super) fn body(
        &self,
        now: &NeededBody<'_>,
        then: &NeededBody<'_>,
    ) -> Result<Body, Missing> {
        if now.block != then.block || !now.fields.is_subset(&then.fields) {
            return Err(Missing::Body);
        }
        let fields = now.block.fields.iter();
        let fields = fields.filter(|(name, _)| now.fields.contains(name.as_str()));
        Ok(Body::Read(self.fields("body", fields, Missing::Body)?))
    }

    /// What a look-up has answered that is the same as then, and was answered.
    pub(super) fn answer(&self, lookup: &Lookup) -> Result<Arc<Fields>, Missing> {
        let fields = self.fields("lookup", lookup.fields().iter(), Missing::Lookup)?;
        Ok(Arc::new(fields))
    }

    fn fields<'f>(
        &self,
        of: &str,
        declared: impl Iterator<Item = (&'f String, &'f Field)>,
        missing: Missing,
    ) -> Result<Fields, Missing> {
        let mut fields = BTreeMap::new();
        for (name, field) in declared {
            let Some(text) = self.facts.get(&format!("{of}.{name}")) else {
                continue;
            };
            if field.private {
                return Err(Missing::Secret);
            }
            whole(text)?;
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

    /// That of the decision where its rules read it, which may have waited for a body, or else that of the request.
    pub(super) fn time(&self) -> Result<Timestamp, Missing> {
        let fact = self.facts.get("time").map(|text| text.parse());
        fact.transpose()
            .map_err(|_| Missing::Request)
            .map(|time| time.unwrap_or(self.time))
    }

    pub(super) fn network(&self) -> Result<bool, Missing> {
        let fact = self.facts.get("network.trusted");
        fact.and_then(|is| is.parse().ok()).ok_or(Missing::Network)
    }

    pub(super) fn labels(&self) -> Result<BTreeSet<String>, Missing> {
        match self.facts.get("host.labels").map(String::as_str) {
            // One with a comma in it looks like two.
            None => Err(Missing::Labels),
            Some(labels) if labels.contains(',') => Err(Missing::Labels),
            Some("") => Ok(BTreeSet::new()),
            Some(label) => whole(label).map(|()| [label.to_owned()].into()),
        }
    }

    /// What there is to know of its task. How far that narrowed it is not in the record.
    pub(super) fn tasks(&self) -> Result<Tasks, Missing> {
        let has = |fact: &str| self.facts.get(fact).map(String::as_str);
        match has(NARROWS) {
            None => {}
            // What was permitted was in it.
            Some("allow") if self.then == Then::All => {}
            Some(_) => return Err(Missing::Task),
        }
        if has(WRONG).is_some() {
            return Err(Missing::Task);
        }
        let task = |id: Uuid, by: OpenedBy, intent: &str| {
            let terms = Terms {
                intent: intent.to_owned(),
                ..Terms::default()
            };
            let task = Task::new(id, by, &terms).map_err(|_| Missing::Task)?;
            Ok(Arc::new(task))
        };
        let own = match (has(OPENED_BY), self.task) {
            (Some(by), Some((id, intent))) => {
                let by = [OpenedBy::Supervisor, OpenedBy::Agent]
                    .into_iter()
                    .find(|it| it.name() == by);
                let id = id.parse().ok();
                let (id, by) = id.zip(by).ok_or(Missing::Task)?;
                OnTask::In(task(id, by, intent)?)
            }
            (Some(_), None) => return Err(Missing::Task),
            (None, _) if has(OPEN).is_some() => {
                let some = task(Uuid::nil(), OpenedBy::Supervisor, "not in the record")?;
                OnTask::OneOf(vec![some])
            }
            (None, _) => OnTask::None,
        };
        Ok(Tasks {
            own,
            ..Tasks::default()
        })
    }

    pub(super) fn agent(&self) -> Result<AgentSituation, Missing> {
        let fact = |name| self.facts.get(name).ok_or(Missing::Agent);
        let uptime = fact("agent.uptime_s")?.parse();
        let attended = fact("agent.attended")?.parse();
        Ok(AgentSituation {
            uptime_s: uptime.map_err(|_| Missing::Agent)?,
            attended: attended.map_err(|_| Missing::Agent)?,
        })
    }

    fn values(
        &self,
        prefix: &str,
        read: impl Fn(&str) -> bool,
        secret: &[&str],
    ) -> Result<Vec<(&str, &str)>, Missing> {
        let mut found = Vec::new();
        for (fact, value) in self.facts.range(prefix.to_owned()..) {
            let Some(name) = fact.strip_prefix(prefix) else {
                break;
            };
            // A name that is cut off may be any.
            whole(name)?;
            if !read(name) {
                continue;
            }
            if secret.contains(&name.to_ascii_lowercase().as_str()) {
                return Err(Missing::Secret);
            }
            whole(value)?;
            found.push((name, value.as_str()));
        }
        Ok(found)
    }
}

/// Whether what is not in the record was not there.
fn known(reads: &Names, then: &Names) -> Result<(), Missing> {
    let known = match (reads, then) {
        (_, Names::All) => true,
        (Names::All, Names::These(_)) => false,
        (Names::These(reads), Names::These(then)) => reads.is_subset(then),
    };
    known.then_some(()).ok_or(Missing::Fact)
}

fn whole(text: &str) -> Result<(), Missing> {
    let whole = text.len() <= MAX_VALUE;
    whole.then_some(()).ok_or(Missing::Long)
}
