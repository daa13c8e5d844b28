//! Tasks as decisions see them: what an agent is about, and how far that narrows what it may. A task never permits
//! anything: what policy denies stays denied.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use agentguard_common::abi::AgentId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::compile::CompiledAgent;
use super::context::SCOPES;
use super::glob::PathPattern;
use super::host::{HostName, HostPattern, RESERVED, acts_on_terminal, show};
use super::reading::{Reading, Readings};
use super::{Input, schema};

/// Bytes of an intent.
const MAX_INTENT: usize = 1024;
/// Entries of `allow`, and bytes of all of them together.
const MAX_ALLOW: (usize, usize) = (64, 8192);

/// Facts of a record: who has opened the task, how many are open of which none is named, by what they narrow, and what is
/// named that is no task of the agent's.
pub(super) const OPENED_BY: &str = "task.opened_by";
pub(super) const OPEN: &str = "task.open";
pub(super) const NARROWS: &str = "task.narrows";
pub(super) const WRONG: &str = "task.wrong";

/// Who has opened a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OpenedBy {
    Supervisor,
    /// The agent itself.
    Agent,
}

impl OpenedBy {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Supervisor => "supervisor",
            Self::Agent => "agent",
        }
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        let all = [Self::Supervisor, Self::Agent];
        all.into_iter().find(|by| by.name() == name)
    }
}

/// What a task is for, and what is done in it at most.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// One line of at most 1024 bytes.
    pub intent: String,
    /// `METHOD host/path` and `connect host` with the patterns of `[[reach]]`; empty: whatever policy permits.
    #[serde(default)]
    pub allow: Vec<String>,
    /// Values of `context.scope`; empty: all of them.
    #[serde(default)]
    pub scope: BTreeSet<String>,
}

/// An open task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    pub id: Uuid,
    pub opened_by: OpenedBy,
    pub intent: String,
    allow: Vec<AllowedAct>,
    scope: BTreeSet<&'static str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct AllowedAct {
    host: HostPattern,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Connect,
    /// `None`: every method.
    Request(Option<&'static str>, PathPattern),
}

/// How a request stands to the open tasks of its agent, and of those that it acts for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskSituation {
    pub own: OnTask,
    /// Tasks that supervisors have opened for agents above: one of each one's has to cover the request.
    pub above: BTreeMap<AgentId, Vec<Arc<Task>>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum OnTask {
    /// None is named, and none that a supervisor has opened is open.
    #[default]
    None,
    In(Arc<Task>),
    /// None is named, and supervisors have opened several: one of them has to cover the request.
    OneOf(Vec<Arc<Task>>),
    /// What is named is no one task that is open for the agent.
    Wrong(String),
}

/// Tasks of one agent that cover what was permitted: when the last of them ends, it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoveringTasks {
    pub by: AgentId,
    pub tasks: Vec<Uuid>,
}

/// Why a request is on no task that it may be on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outside {
    Task(Uuid),
    EveryOne,
    Wrong(String),
    /// The agent's file says `tasks = "required"`.
    None,
}

impl std::fmt::Display for Outside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Task(_) => f.write_str("the task that it is on does not include it"),
            Self::EveryOne => f.write_str("none of the open tasks includes it"),
            Self::Wrong(named) => write!(f, "it names {named}"),
            Self::None => f.write_str(
                "the agent's file says `tasks = \"required\"`, and it is on no task of a supervisor's",
            ),
        }
    }
}

impl Task {
    /// # Errors
    /// Says what of the terms cannot be.
    pub fn new(id: Uuid, opened_by: OpenedBy, terms: &Terms) -> Result<Self, String> {
        let intent = terms.intent.as_str();
        if intent.trim().is_empty() {
            return Err("a task needs an intent: say in a sentence what it is for".into());
        }
        if intent.len() > MAX_INTENT {
            return Err(format!("the intent is longer than {MAX_INTENT} bytes"));
        }
        if intent.contains(acts_on_terminal) {
            return Err("the intent is not one line of text".into());
        }
        let bytes: usize = terms.allow.iter().map(String::len).sum();
        if terms.allow.len() > MAX_ALLOW.0 || bytes > MAX_ALLOW.1 {
            let (entries, bytes) = MAX_ALLOW;
            return Err(format!(
                "`allow` has more than {entries} entries or {bytes} bytes"
            ));
        }
        let allow = terms.allow.iter().map(|entry| AllowedAct::parse(entry));
        let scope = terms.scope.iter().map(|value| {
            let known = SCOPES.iter().copied();
            known.clone().find(|it| it == value).ok_or_else(|| {
                let all = known.collect::<Vec<_>>().join(", ");
                format!("`{}` is no scope; there are {all}", show(value))
            })
        });
        Ok(Self {
            id,
            opened_by,
            intent: intent.to_owned(),
            allow: allow.collect::<Result<_, _>>()?,
            scope: scope.collect::<Result<_, _>>()?,
        })
    }

    /// Whether it says what may be done in it by scope.
    pub(super) fn has_scope(&self) -> bool {
        !self.scope.is_empty()
    }

    /// `does`: what the request does; empty where that is not known, as of a passed connection.
    fn covers(&self, readings: &Readings<'_>, does: &BTreeSet<&str>) -> bool {
        let known = !does.is_empty() && does.iter().all(|it| self.scope.contains(it));
        (self.scope.is_empty() || known)
            && (self.allow.is_empty()
                || readings.fault.is_none() && readings.iter().all(|reading| self.allows(reading)))
    }

    fn allows(&self, reading: &Reading<'_>) -> bool {
        let host = HostPattern {
            name: reading.host.clone().into_owned(),
            below: false,
            port: reading.port,
        };
        let mut here = self.allow.iter().filter(|entry| entry.host.covers(&host));
        here.any(|entry| match (&entry.what, &reading.path) {
            (What::Connect, None) => true,
            (What::Request(only, pattern), Some(path)) => {
                only.is_none_or(|only| only == reading.method) && pattern.matches(path)
            }
            (What::Connect, Some(_)) | (What::Request(..), None) => false,
        })
    }
}

impl AllowedAct {
    fn parse(entry: &str) -> Result<Self, String> {
        let unreadable = || {
            let shown = show(entry);
            format!(
                "`{shown}` is not `METHOD host/path` or `connect host`, as in `GET api.example.com/v1/**`"
            )
        };
        let (method, place) = entry.split_once(' ').ok_or_else(unreadable)?;
        let place = place.trim_start();
        let (host, path) = place.split_at(place.find('/').unwrap_or(place.len()));
        let host = HostPattern::parse(host)?;
        if method == schema::CONNECT {
            let what = What::Connect;
            return path
                .is_empty()
                .then_some(Self { host, what })
                .ok_or_else(unreadable);
        }
        if path.is_empty() {
            return Err(unreadable());
        }
        let only = match method {
            "ANY" | "*" => None,
            _ => Some(
                schema::method(method)
                    .ok_or_else(|| format!("`{}` is not an HTTP method", show(method)))?,
            ),
        };
        Ok(Self {
            host,
            what: What::Request(only, PathPattern::parse(path)?),
        })
    }
}

impl TaskSituation {
    /// Whether what the request does has to be known, whichever rules read it.
    pub(super) fn narrow_by_scope(&self) -> bool {
        let own = match &self.own {
            OnTask::In(task) => std::slice::from_ref(task),
            OnTask::OneOf(tasks) => tasks,
            OnTask::None | OnTask::Wrong(_) => &[],
        };
        let mut all = own.iter().chain(self.above.values().flatten());
        all.any(|task| task.has_scope())
    }

    /// What a record has of them besides the task's id and intent.
    pub(super) fn as_facts(&self) -> impl Iterator<Item = (String, String)> {
        let (own, opened_by) = match &self.own {
            OnTask::In(task) => (std::slice::from_ref(task), Some(task.opened_by.name())),
            OnTask::OneOf(tasks) => (&tasks[..], None),
            OnTask::None | OnTask::Wrong(_) => (&[][..], None),
        };
        let all = || own.iter().chain(self.above.values().flatten());
        let narrows = match () {
            () if all().any(|task| task.has_scope()) => Some("scope"),
            () if all().any(|task| !task.allow.is_empty()) => Some("allow"),
            () => None,
        };
        let open = matches!(self.own, OnTask::OneOf(_)).then(|| own.len().to_string());
        let wrong = match &self.own {
            OnTask::Wrong(named) => Some(named.clone()),
            OnTask::None | OnTask::In(_) | OnTask::OneOf(_) => None,
        };
        let facts = [
            (OPENED_BY, opened_by.map(str::to_owned)),
            (OPEN, open),
            (NARROWS, narrows.map(str::to_owned)),
            (WRONG, wrong),
        ];
        let facts = facts.into_iter();
        facts.filter_map(|(name, value)| Some((name.to_owned(), value?)))
    }

    /// The one that the request is on.
    pub fn task(&self) -> Option<&Arc<Task>> {
        match &self.own {
            OnTask::In(task) => Some(task),
            OnTask::None | OnTask::OneOf(_) | OnTask::Wrong(_) => None,
        }
    }
}

impl TaskSituation {
    /// Those that cover the request, of the agent and of each above it that has tasks.
    pub(super) fn covered(
        &self,
        input: &Input<'_>,
        readings: &Readings<'_>,
        does: &BTreeSet<&str>,
    ) -> Vec<CoveringTasks> {
        let own = match &self.own {
            OnTask::In(task) => std::slice::from_ref(task),
            OnTask::OneOf(open) => open,
            OnTask::None | OnTask::Wrong(_) => &[],
        };
        let above = self.above.iter().map(|(by, open)| (*by, &open[..]));
        let all = std::iter::once((input.agent, own)).chain(above);
        let covered = all.filter(|(_, open)| !open.is_empty()).map(|(by, open)| {
            let covering = open.iter().filter(|task| task.covers(readings, does));
            CoveringTasks {
                by,
                tasks: covering.map(|task| task.id).collect(),
            }
        });
        covered.collect()
    }
}

/// Whether the request is on a task that `agent` has to be on: the one who asks, or one that it acts for. What has not been
/// gathered is no task.
pub(super) fn outside(
    id: AgentId,
    agent: &CompiledAgent,
    input: &Input<'_>,
    readings: &Readings<'_>,
    does: &BTreeSet<&str>,
) -> Option<Outside> {
    let tasks = input.context.tasks.as_ref();
    let one_of = |open: &[Arc<Task>]| {
        let covered = open.iter().any(|task| task.covers(readings, does));
        (!covered).then_some(Outside::EveryOne)
    };
    let none = || agent.agent.tasks_required.then_some(Outside::None);
    if id != input.agent {
        return match tasks.and_then(|tasks| tasks.above.get(&id)) {
            Some(open) if !open.is_empty() => one_of(open),
            _ => none(),
        };
    }
    match tasks.map(|tasks| &tasks.own) {
        None | Some(OnTask::None) => none(),
        Some(OnTask::In(task)) if task.opened_by == OpenedBy::Agent && none().is_some() => none(),
        Some(OnTask::In(task)) => (!task.covers(readings, does)).then_some(Outside::Task(task.id)),
        Some(OnTask::OneOf(open)) => one_of(open),
        Some(OnTask::Wrong(named)) => Some(Outside::Wrong(named.clone())),
    }
}

/// Whether the name is the forwarder's own.
pub fn is_reserved(host: &HostName) -> bool {
    host.as_str() == RESERVED
}
