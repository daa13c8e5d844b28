//! `context.task`: the task that the act is on. Tasks narrow what an agent may, whatever rules read of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use cedar_policy::RestrictedExpression;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::attribute::{Attribute, Surrounding, record, text};
use super::{ActFacts, AttributeName};
use crate::diagnostic::Report;
use crate::parse::{Keys, Located, Table};
use crate::replay::{RecordedAct, ReplayGap, Then};
use crate::task::{NARROWS, OPEN, OPENED_BY, WRONG};
use crate::time::Calendar;
use crate::{OnTask, OpenedBy, Task, TaskSituation, Terms};

const KEYS: Keys = Keys {
    known: &["intent", "allow", "scope", "opened_by"],
    later: &[],
};

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct AskedTasks {
    /// The task that it is on.
    pub task: Option<AskedTask>,
}

/// A task as a question has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AskedTask {
    pub opened_by: OpenedBy,
    #[serde(flatten)]
    pub terms: Terms,
}

impl AskedTask {
    /// # Errors
    /// What of its terms cannot be.
    fn task(&self) -> Result<Task, String> {
        Task::new(Uuid::nil(), self.opened_by, &self.terms)
    }

    /// A task of a case's, opened by a supervisor if nothing else is said.
    fn parse(case: &Table<'_>, report: &mut Report<'_>) -> Option<Self> {
        let table = case.table(report, "task", "`task` of a [[case]]")?;
        table.check_keys(report, &KEYS);
        let opened_by = table.choice(report, "opened_by", &["supervisor", "agent"]);
        let values = |entries: Vec<Located<String>>| entries.into_iter().map(|entry| entry.value);
        let allow = values(table.strings(report, "allow")).collect();
        let scope = values(table.strings(report, "scope")).collect();
        let intent = table.required(report, "intent")?;
        let asked = Self {
            opened_by: opened_by
                .and_then(|by| OpenedBy::parse(&by.value))
                .unwrap_or(OpenedBy::Supervisor),
            terms: Terms {
                intent: intent.value,
                allow,
                scope,
            },
        };
        match asked.task() {
            Ok(_) => Some(asked),
            Err(why) => {
                report.error(intent.at, why);
                None
            }
        }
    }
}

impl Attribute for TaskSituation {
    const NAME: &'static str = "task";
    const CEDAR: &'static str = "{ open: Bool, id: String, intent: String, opened_by: String }";
    const CONNECT: bool = true;
    const DOC: &'static str = "The task that it is on: whether one is `open`, and then its `id`, its `intent`, and who has `opened_by` it, `supervisor` or `agent`.";
    const FACTS: &'static [&'static str] = &[OPENED_BY, OPEN, NARROWS, WRONG];
    const KEYS: &'static [(&'static str, &'static str)] = &[(
        "task",
        "a table with `intent`, and if they are needed `allow`, `scope` and `opened_by`",
    )];
    const MISSING: &'static str = "it was on a task whose limits the record does not tell";

    fn cedar(facts: &ActFacts<'_>) -> RestrictedExpression {
        record(facts.context.tasks.as_ref().map(|tasks| {
            let task = tasks.task();
            let id = task.map_or(String::new(), |task| task.id.to_string());
            let intent = task.map_or("", |task| &task.intent);
            let opened_by = task.map_or("", |task| task.opened_by.name());
            [
                ("open", RestrictedExpression::new_bool(task.is_some())),
                ("id", RestrictedExpression::new_string(id)),
                ("intent", text(intent)),
                ("opened_by", text(opened_by)),
            ]
        }))
    }
}

impl Surrounding for TaskSituation {
    const ALWAYS: bool = true;
    type Asked = AskedTasks;

    fn facts(&self, facts: &mut BTreeMap<String, String>) {
        facts.extend(self.as_facts());
    }

    /// How far a task narrowed what was decided is not in the record.
    fn recall(record: &RecordedAct<'_>, _: Option<&Calendar>) -> Result<Option<Self>, ReplayGap> {
        const MISSING: ReplayGap = ReplayGap::Attribute(AttributeName::Task);
        let has = |fact: &str| record.facts.get(fact).map(String::as_str);
        match has(NARROWS) {
            None => {}
            // What was permitted was in it.
            Some("allow") if record.then == Then::All => {}
            Some(_) => return Err(MISSING),
        }
        if has(WRONG).is_some() {
            return Err(MISSING);
        }
        let task = |id: Uuid, by: OpenedBy, intent: &str| {
            let terms = Terms {
                intent: intent.to_owned(),
                ..Terms::default()
            };
            let task = Task::new(id, by, &terms).map_err(|_| MISSING)?;
            Ok(Arc::new(task))
        };
        let own = match (has(OPENED_BY), record.task) {
            (Some(by), Some((id, intent))) => {
                let id = id.parse().map_err(|_| MISSING)?;
                let by = OpenedBy::parse(by).ok_or(MISSING)?;
                OnTask::In(task(id, by, intent)?)
            }
            (Some(_), None) => return Err(MISSING),
            (None, _) if has(OPEN).is_some() => {
                let some = task(Uuid::nil(), OpenedBy::Supervisor, "not in the record")?;
                OnTask::OneOf(vec![some])
            }
            (None, _) => OnTask::None,
        };
        Ok(Some(Self {
            own,
            ..Self::default()
        }))
    }

    fn case(table: &Table<'_>, report: &mut Report<'_>) -> Option<AskedTasks> {
        let task = match table.has("task") {
            true => Some(AskedTask::parse(table, report)?),
            false => None,
        };
        Some(AskedTasks { task })
    }

    fn assumed(asked: &AskedTasks, _: Option<&Calendar>) -> Result<Option<Self>, String> {
        let own = match &asked.task {
            Some(asked) => OnTask::In(Arc::new(asked.task()?)),
            None => OnTask::None,
        };
        Ok(Some(Self {
            own,
            ..Self::default()
        }))
    }
}

#[cfg(test)]
impl super::tests::Sample for TaskSituation {
    const CASE: &'static str = "task = { intent = \"x\", allow = [\"GET h/**\"], scope = [\"read\"], opened_by = \"agent\" }";

    fn any() -> proptest::strategy::BoxedStrategy<Self> {
        use proptest::prelude::*;
        let by = prop_oneof![Just(OpenedBy::Supervisor), Just(OpenedBy::Agent)];
        let scope = proptest::option::of("read|write");
        let task = (any::<u128>(), by, "[a-z]{1,9}", scope).prop_map(|(id, by, intent, scope)| {
            let terms = Terms {
                intent,
                scope: scope.into_iter().collect(),
                ..Terms::default()
            };
            Arc::new(Task::new(Uuid::from_u128(id), by, &terms).unwrap())
        });
        prop_oneof![
            Just(OnTask::None),
            task.clone().prop_map(OnTask::In),
            proptest::collection::vec(task, 2..4).prop_map(OnTask::OneOf),
            Just(OnTask::Wrong("a task that has ended".into())),
        ]
        .prop_map(|own| Self {
            own,
            ..Self::default()
        })
        .boxed()
    }

    fn is_told(&self) -> bool {
        !matches!(self.own, OnTask::Wrong(_)) && !self.narrow_by_scope()
    }
}
