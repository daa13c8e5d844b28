//! The open tasks of every agent, as the daemon last said, and until they end by the clock here.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use agentguard_common::abi::AgentId;
use agentguard_link::state::OpenTask;
use agentguard_policy::{CoveringTasks, OnTask, OpenedBy, Policy, Task, TaskSituation};
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, select_all};
use http::{HeaderMap, HeaderName};
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// By which a request names the task that it is on. It goes no further.
pub(crate) const HEADER: HeaderName = HeaderName::from_static("agentguard-task");
/// The clock is looked at this often at least: it may be set.
const LOOK_EVERY: Duration = Duration::from_secs(10);

#[derive(Default)]
pub(crate) struct OpenTasks {
    open: RwLock<BTreeMap<AgentId, Vec<Open>>>,
    changed: watch::Sender<()>,
}

struct Open {
    /// As the daemon said.
    said: OpenTask,
    task: Arc<Task>,
    ends: Timestamp,
    over: CancellationToken,
}

/// What a request says of its task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum NamedTask {
    #[default]
    Nothing,
    Task(Uuid),
    Wrong(String),
}

impl NamedTask {
    /// Takes it out of a request's headers.
    pub(crate) fn take(headers: &mut HeaderMap) -> Self {
        let mut lines = headers.get_all(&HEADER).iter();
        let named = match (lines.next(), lines.next()) {
            (None, _) => return Self::Nothing,
            (Some(_), Some(_)) => Self::Wrong("more than one task".into()),
            (Some(line), None) => match line.to_str().ok().and_then(|text| text.parse().ok()) {
                Some(id) => Self::Task(id),
                None => Self::Wrong("its task by what is no id".into()),
            },
        };
        headers.remove(&HEADER);
        named
    }

    /// What was permitted on it stays on it.
    pub(crate) fn of(held: Option<&TaskSituation>) -> Self {
        held.and_then(TaskSituation::task)
            .map_or(Self::Nothing, |task| Self::Task(task.id))
    }
}

impl OpenTasks {
    pub(crate) fn new(open: &BTreeMap<AgentId, Vec<OpenTask>>) -> Result<Self, String> {
        let tasks = Self::default();
        for (agent, open) in open {
            tasks.set(*agent, open)?;
        }
        Ok(tasks)
    }

    /// # Errors
    /// The daemon has accepted them before: what cannot be read here is a fault of ours.
    pub(crate) fn set(&self, agent: AgentId, open: &[OpenTask]) -> Result<(), String> {
        let mut fresh = Vec::new();
        for one in open {
            let task = Task::new(one.id, one.opened_by, &one.terms)?;
            let ends = Timestamp::from_second(one.ends).map_err(|error| error.to_string())?;
            fresh.push(Open {
                said: one.clone(),
                task: Arc::new(task),
                ends,
                over: CancellationToken::new(),
            });
        }
        let mut all = self.open.write().unwrap_or_else(PoisonError::into_inner);
        let before = all.remove(&agent).unwrap_or_default();
        for one in &mut fresh {
            match before.iter().find(|it| it.task.id == one.task.id) {
                Some(known) => one.over = known.over.clone(),
                None => end_in_time(one.ends, one.over.clone()),
            }
        }
        for gone in before {
            if !fresh.iter().any(|it| it.task.id == gone.task.id) {
                gone.over.cancel();
            }
        }
        if !fresh.is_empty() {
            all.insert(agent, fresh);
        }
        drop(all);
        self.changed.send_replace(());
        Ok(())
    }

    /// How a request of the agent's stands to its tasks now.
    pub(crate) fn held(&self, policy: &Policy, agent: AgentId, named: &NamedTask) -> TaskSituation {
        let all = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let now = Timestamp::now();
        let open = |agent| {
            let known = all.get(&agent).map_or(&[][..], Vec::as_slice).iter();
            known.filter(|it| it.ends > now).map(|it| it.task.clone())
        };
        let by_supervisors =
            |agent| open(agent).filter(|task| task.opened_by == OpenedBy::Supervisor);
        let own = match named {
            NamedTask::Wrong(why) => OnTask::Wrong(why.clone()),
            NamedTask::Task(id) => match open(agent).find(|task| task.id == *id) {
                Some(task) => OnTask::In(task),
                None => OnTask::Wrong(format!("`{id}`, which is no task open for it")),
            },
            NamedTask::Nothing => {
                let mut tasks: Vec<_> = by_supervisors(agent).collect();
                match (tasks.len(), open(agent).count()) {
                    (1, 1) => OnTask::In(tasks.remove(0)),
                    (0, 1) => OnTask::In(open(agent).next().expect("there is one")),
                    (0, _) => OnTask::None,
                    _ => OnTask::OneOf(tasks),
                }
            }
        };
        let above = policy.above(agent).iter();
        let above = above.map(|id| (*id, by_supervisors(*id).collect::<Vec<_>>()));
        TaskSituation {
            own,
            above: above.filter(|(_, tasks)| !tasks.is_empty()).collect(),
        }
    }

    /// Those of the agent alone.
    pub(crate) fn open(&self, agent: AgentId) -> Vec<OpenTask> {
        let all = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let now = Timestamp::now();
        let open = all.get(&agent).map_or(&[][..], Vec::as_slice).iter();
        open.filter(|it| it.ends > now)
            .map(|it| it.said.clone())
            .collect()
    }

    /// The end of what was permitted on them.
    pub(crate) fn ends_of(&self, covered: &[CoveringTasks]) -> Ends {
        let all = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let ends = covered.iter().map(|CoveringTasks { by, tasks }| {
            let open = all.get(by).map_or(&[][..], Vec::as_slice);
            let end = |id: &Uuid| match open.iter().find(|it| it.task.id == *id) {
                Some(it) => it.over.clone(),
                // It has ended since.
                None => {
                    let over = CancellationToken::new();
                    over.cancel();
                    over
                }
            };
            tasks.iter().map(end).collect()
        });
        Ends(ends.collect())
    }

    /// Told when an agent has other tasks than before.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

/// The ends of the tasks that something was permitted on: it is over when all that covered it for one agent are.
#[derive(Clone, Default)]
pub(crate) struct Ends(Vec<Vec<CancellationToken>>);

impl Ends {
    pub(crate) fn are_over(&self) -> bool {
        let mut of = self.0.iter();
        of.any(|ends| ends.iter().all(CancellationToken::is_cancelled))
    }

    /// Resolves when they are; `None`: it was permitted on none.
    pub(crate) fn over(&self) -> Option<BoxFuture<'static, ()>> {
        let of = self.0.iter().map(|ends| {
            let ends = ends.clone();
            let all = async move {
                for end in ends {
                    end.cancelled_owned().await;
                }
            };
            all.boxed()
        });
        let of: Vec<_> = of.collect();
        (!of.is_empty()).then(|| select_all(of).map(drop).boxed())
    }
}

impl Drop for OpenTasks {
    fn drop(&mut self) {
        let all = self.open.get_mut().unwrap_or_else(PoisonError::into_inner);
        all.values().flatten().for_each(|open| open.over.cancel());
    }
}

/// Ends it by the wall clock, if the daemon does not before.
fn end_in_time(ends: Timestamp, over: CancellationToken) {
    tokio::spawn(async move {
        loop {
            let left = Duration::try_from(Timestamp::now().duration_until(ends));
            let left = left.unwrap_or_default();
            if left.is_zero() {
                return over.cancel();
            }
            tokio::select! {
                () = over.cancelled() => return,
                () = tokio::time::sleep(left.min(LOOK_EVERY)) => {}
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use agentguard_policy::Terms;

    const A: AgentId = AgentId(2);
    const B: AgentId = AgentId(3);

    fn open(id: u128, opened_by: OpenedBy, seconds: i64) -> OpenTask {
        OpenTask {
            id: Uuid::from_u128(id),
            opened_by,
            terms: Terms {
                intent: "order paper".into(),
                ..Terms::default()
            },
            ends: Timestamp::now().as_second() + seconds,
        }
    }

    #[tokio::test]
    async fn a_request_is_on_the_task_that_it_names_or_on_the_only_one() {
        use OpenedBy::{Agent, Supervisor};
        let policy = Policy::nothing();
        let tasks = OpenTasks::default();
        let on = |agent, named: Option<u128>| {
            let named = named.map_or(NamedTask::Nothing, |id| {
                NamedTask::Task(Uuid::from_u128(id))
            });
            match tasks.held(&policy, agent, &named).own {
                OnTask::None => "none".to_owned(),
                OnTask::In(task) => format!("in {}", task.id.as_u128()),
                OnTask::OneOf(open) => format!("one of {}", open.len()),
                OnTask::Wrong(_) => "wrong".to_owned(),
            }
        };
        assert_eq!(on(A, None), "none");
        assert_eq!(on(A, Some(1)), "wrong");
        tasks.set(A, &[open(1, Supervisor, 60)]).unwrap();
        tasks.set(B, &[open(2, Supervisor, 60)]).unwrap();
        assert_eq!(
            (on(A, None), on(A, Some(1))),
            ("in 1".into(), "in 1".into())
        );
        assert_eq!(on(A, Some(2)), "wrong", "another agent's");
        let two = [open(1, Supervisor, 60), open(3, Supervisor, 60)];
        tasks.set(A, &two).unwrap();
        assert_eq!(on(A, None), "one of 2");
        assert_eq!(on(A, Some(3)), "in 3");
        let over = [open(1, Supervisor, 60), open(3, Supervisor, -1)];
        tasks.set(A, &over).unwrap();
        assert_eq!(
            (on(A, None), on(A, Some(3))),
            ("in 1".into(), "wrong".into())
        );
        tasks
            .set(A, &[open(4, Agent, 60), open(5, Agent, 60)])
            .unwrap();
        assert_eq!(
            (on(A, None), on(A, Some(4))),
            ("none".into(), "in 4".into())
        );
        tasks.set(A, &[]).unwrap();
        assert_eq!(on(A, None), "none");
    }

    #[tokio::test]
    async fn what_was_permitted_on_a_task_ends_with_it() {
        let (policy, tasks) = (Policy::nothing(), OpenTasks::default());
        let on = |by, ids: &[u128]| CoveringTasks {
            by,
            tasks: ids.iter().copied().map(Uuid::from_u128).collect(),
        };
        let one = |id| open(id, OpenedBy::Supervisor, 60);
        assert!(tasks.ends_of(&[]).over().is_none() && !tasks.ends_of(&[]).are_over());
        tasks.set(A, &[one(1), one(2)]).unwrap();
        tasks.set(B, &[one(3)]).unwrap();
        let first = tasks.ends_of(&[on(A, &[1])]);
        let either = tasks.ends_of(&[on(A, &[1, 2])]);
        let both = tasks.ends_of(&[on(A, &[1, 2]), on(B, &[3])]);
        tasks.set(A, &[one(1), one(2)]).unwrap();
        assert!(!first.are_over(), "it goes on");
        tasks.set(A, &[one(2)]).unwrap();
        assert!(first.are_over() && !either.are_over() && !both.are_over());
        assert!(tasks.ends_of(&[on(A, &[1])]).are_over(), "ended before");
        let over = both.over().unwrap();
        tasks.set(B, &[]).unwrap();
        over.await;
        assert!(both.are_over() && !either.are_over());
        tasks.set(A, &[]).unwrap();
        either.over().unwrap().await;
        tasks.set(A, &[open(4, OpenedBy::Agent, 1)]).unwrap();
        tasks.ends_of(&[on(A, &[4])]).over().unwrap().await;
        assert_eq!(
            tasks.held(&policy, A, &NamedTask::Nothing).own,
            OnTask::None
        );
    }

    #[test]
    fn the_header_is_taken_whatever_it_says() {
        let id = Uuid::from_u128(7);
        for (lines, expected) in [
            (vec![], NamedTask::Nothing),
            (vec![id.to_string()], NamedTask::Task(id)),
            (
                vec!["x".into()],
                NamedTask::Wrong("its task by what is no id".into()),
            ),
            (
                vec![id.to_string(); 2],
                NamedTask::Wrong("more than one task".into()),
            ),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(HEADER, line.parse().unwrap());
            }
            assert_eq!(NamedTask::take(&mut headers), expected);
            assert!(headers.is_empty());
        }
    }
}
