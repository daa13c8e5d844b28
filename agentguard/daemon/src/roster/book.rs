//! The open tasks of every agent, on disk: they outlive the daemon, and end when their time is over.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use agentguard_control::api::TaskLine;
use agentguard_link::state::OpenTask;
use agentguard_policy::{OpenedBy, Task, Terms};
use agentguard_sys::{SysError, file};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Open tasks of one agent, and on a host of supervisors', and as many of agents' own: these leave no less room for those.
const MAX_OPEN: (usize, usize) = (16, 1024);
/// How long a task may be open, and how long it is if nothing is said, seconds.
const MAX_SECONDS: u64 = 30 * 86_400;
const SECONDS: u64 = 3600;

#[derive(Debug, thiserror::Error)]
pub enum BookError {
    #[error("cannot read the open tasks `{}`: {reason}; restore the file from a backup, or remove it: then no task is open, and every agent is killed until it is revived", path.display())]
    Unreadable { path: PathBuf, reason: String },
    #[error("cannot write the open tasks `{}`: {source}", path.display())]
    Write { path: PathBuf, source: SysError },
    /// What of a task cannot be.
    #[error("{0}")]
    Terms(String),
    /// There are too many.
    #[error("{0}")]
    Full(String),
}

/// An open task as the file has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRow {
    pub id: Uuid,
    pub agent: String,
    pub intent: String,
    pub allow: Vec<String>,
    pub scope: BTreeSet<String>,
    pub opened_by: OpenedBy,
    /// The supervisor.
    pub by: Option<String>,
    pub started_at: Timestamp,
    pub ends_at: Timestamp,
}

impl TaskRow {
    fn terms(&self) -> Terms {
        Terms {
            intent: self.intent.clone(),
            allow: self.allow.clone(),
            scope: self.scope.clone(),
        }
    }

    /// As the forwarder knows it. It ends no later there.
    pub fn open(&self) -> OpenTask {
        OpenTask {
            id: self.id,
            opened_by: self.opened_by,
            terms: self.terms(),
            ends: self.ends_at.as_second(),
        }
    }

    /// As the control API shows it.
    pub fn shown(self) -> TaskLine {
        TaskLine {
            id: self.id,
            agent: self.agent,
            intent: self.intent,
            allow: self.allow,
            scope: self.scope,
            opened_by: self.opened_by,
            by: self.by,
            started_at: self.started_at,
            ends_at: self.ends_at,
        }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TaskFile {
    tasks: Vec<TaskRow>,
}

#[derive(Debug)]
pub struct Book {
    path: PathBuf,
    file: TaskFile,
}

/// A task that is to be opened.
#[derive(Clone, Debug)]
pub struct NewTask {
    pub agent: String,
    pub opened_by: OpenedBy,
    /// The supervisor's name.
    pub by: Option<String>,
    pub terms: Terms,
    /// How long; 1 to 2,592,000, an hour if nothing is said.
    pub seconds: Option<u64>,
}

impl Book {
    pub fn open(path: &Path) -> Result<Self, BookError> {
        let unreadable = |reason: String| BookError::Unreadable {
            path: path.to_owned(),
            reason,
        };
        let file: TaskFile = match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| unreadable(e.to_string()))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => TaskFile::default(),
            Err(e) => return Err(unreadable(e.to_string())),
        };
        for line in &file.tasks {
            Task::new(line.id, line.opened_by, &line.terms()).map_err(unreadable)?;
        }
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Writes one that is new.
    pub(crate) fn begin(&mut self) -> Result<(), BookError> {
        match self.path.exists() {
            true => Ok(()),
            false => self.write(Vec::new()),
        }
    }

    /// Oldest first.
    pub fn tasks(&self) -> &[TaskRow] {
        &self.file.tasks
    }

    pub fn of<'b>(&'b self, agent: &'b str) -> impl Iterator<Item = &'b TaskRow> {
        self.file.tasks.iter().filter(move |it| it.agent == agent)
    }

    /// Opens a task. A supervisor's ends those that the agent has opened itself: they are returned.
    pub fn add(
        &mut self,
        new: NewTask,
        now: Timestamp,
    ) -> Result<(TaskRow, Vec<TaskRow>), BookError> {
        let id = Uuid::now_v7();
        Task::new(id, new.opened_by, &new.terms).map_err(BookError::Terms)?;
        let seconds = new.seconds.unwrap_or(SECONDS);
        let ends = i64::try_from(seconds)
            .ok()
            .filter(|_| (1..=MAX_SECONDS).contains(&seconds))
            .and_then(|seconds| now.checked_add(SignedDuration::from_secs(seconds)).ok())
            .ok_or_else(|| {
                BookError::Terms(format!(
                    "a task is open for 1 to {MAX_SECONDS} seconds (30 days), not {seconds}"
                ))
            })?;
        let supervisors = new.opened_by == OpenedBy::Supervisor;
        let makes_way =
            |it: &TaskRow| supervisors && it.agent == new.agent && it.opened_by == OpenedBy::Agent;
        let (gone, mut kept): (Vec<_>, Vec<_>) =
            self.file.tasks.iter().cloned().partition(makes_way);
        let own = kept.iter().filter(|it| it.agent == new.agent).count();
        let alike = kept.iter().filter(|it| it.opened_by == new.opened_by);
        if own >= MAX_OPEN.0 || alike.count() >= MAX_OPEN.1 {
            let (own, all) = MAX_OPEN;
            let whose = match new.opened_by {
                OpenedBy::Supervisor => "of supervisors",
                OpenedBy::Agent => "that agents have opened themselves",
            };
            return Err(BookError::Full(format!(
                "`{}` has {own} open tasks, or this host {all} {whose}: end one first",
                new.agent
            )));
        }
        let Terms {
            intent,
            allow,
            scope,
        } = new.terms;
        let line = TaskRow {
            id,
            agent: new.agent,
            intent,
            allow,
            scope,
            opened_by: new.opened_by,
            by: new.by,
            started_at: now,
            ends_at: ends,
        };
        kept.push(line.clone());
        self.write(kept)?;
        Ok((line, gone))
    }

    /// Ends those for which it holds.
    pub fn end(&mut self, is: impl Fn(&TaskRow) -> bool) -> Result<Vec<TaskRow>, BookError> {
        let (gone, kept): (Vec<_>, Vec<_>) = self.file.tasks.iter().cloned().partition(is);
        if !gone.is_empty() {
            self.write(kept)?;
        }
        Ok(gone)
    }

    fn write(&mut self, tasks: Vec<TaskRow>) -> Result<(), BookError> {
        let fresh = TaskFile { tasks };
        let json = serde_json::to_vec_pretty(&fresh).expect("strings and times only");
        file::write_atomically(&self.path, &json, 0o600).map_err(|source| BookError::Write {
            path: self.path.clone(),
            source,
        })?;
        self.file = fresh;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(agent: &str, opened_by: OpenedBy, seconds: Option<u64>) -> NewTask {
        NewTask {
            agent: agent.into(),
            opened_by,
            by: None,
            terms: Terms {
                intent: "order paper".into(),
                allow: vec!["GET api.example/v1/**".into()],
                scope: ["read".to_owned()].into(),
            },
            seconds,
        }
    }

    #[test]
    fn tasks_outlive_the_daemon_and_a_supervisors_ends_the_agents_own() {
        use OpenedBy::{Agent, Supervisor};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tasks.json");
        let mut book = Book::open(&path).unwrap();
        let now = Timestamp::from_second(1000).unwrap();
        let (own, _) = book.add(wanted("a", Agent, Some(60)), now).unwrap();
        let (other, _) = book.add(wanted("b", Agent, None), now).unwrap();
        let (first, gone) = book.add(wanted("a", Supervisor, None), now).unwrap();
        assert_eq!(gone, [own]);
        assert_eq!(first.ends_at.as_second(), 1000 + 3600);
        assert_eq!(book.of("a").collect::<Vec<_>>(), [&first]);
        let mut again = Book::open(&path).unwrap();
        assert_eq!(again.tasks(), [other.clone(), first.clone()]);
        assert_eq!(again.end(|it| it.id == first.id).unwrap(), [first]);
        assert_eq!(Book::open(&path).unwrap().tasks(), [other]);
    }

    #[test]
    fn agents_own_tasks_leave_supervisors_their_room() {
        use OpenedBy::{Agent, Supervisor};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tasks.json");
        let now = Timestamp::from_second(1000).unwrap();
        let mut book = Book::open(&path).unwrap();
        let (line, _) = book.add(wanted("a", Agent, None), now).unwrap();
        // As if it had been there a thousand times: each is written whole.
        let many = |opened_by| {
            let line = TaskRow {
                agent: "many".into(),
                opened_by,
                ..line.clone()
            };
            vec![line; MAX_OPEN.1]
        };
        for (full, other) in [(Agent, Supervisor), (Supervisor, Agent)] {
            book.file.tasks = many(full);
            let refused = book.add(wanted("b", full, None), now);
            assert!(matches!(refused, Err(BookError::Full(_))), "{refused:?}");
            book.add(wanted("b", other, None), now).unwrap();
        }
    }

    #[test]
    fn what_cannot_be_is_refused_and_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tasks.json");
        let mut book = Book::open(&path).unwrap();
        let now = Timestamp::from_second(1000).unwrap();
        for seconds in [0, MAX_SECONDS + 1, u64::MAX] {
            let refused = book.add(wanted("a", OpenedBy::Agent, Some(seconds)), now);
            assert!(matches!(refused, Err(BookError::Terms(_))), "{seconds}");
        }
        assert!(!path.exists());
        for _ in 0..MAX_OPEN.0 {
            book.add(wanted("a", OpenedBy::Supervisor, None), now)
                .unwrap();
        }
        let full = book.add(wanted("a", OpenedBy::Supervisor, None), now);
        assert!(matches!(full, Err(BookError::Full(_))), "{full:?}");
        assert!(
            book.add(wanted("b", OpenedBy::Supervisor, None), now)
                .is_ok()
        );
        for text in ["", "{}", r#"{"tasks":[{"id":1}]}"#] {
            std::fs::write(&path, text).unwrap();
            assert!(Book::open(&path).is_err(), "{text}");
        }
    }
}
