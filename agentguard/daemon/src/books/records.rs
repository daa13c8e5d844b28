//! The audit log's one writer, on a thread of its own: batches what comes, retries what could not be written.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentguard_audit::log::Head;
use agentguard_audit::{Log, LogError};
use agentguard_common::abi::AgentId;
use agentguard_record::{
    Actor, Context, Draft, Meta, Operation, Operator, Outcome, Process, Record, TaskInfo,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::lock::lock;

/// Batches waiting for the writer at most; then their senders wait.
const QUEUE: usize = 256;
/// What is staged goes to the log at the latest with so many bytes.
const BATCH_BYTES: usize = 1 << 20;
/// While the log cannot be written, decisions wait with their senders once so many bytes do. What operators do does not.
const WAITING_BYTES: usize = 32 << 20;
/// Between attempts while the log cannot be written.
const RETRY: Duration = Duration::from_secs(1);

/// A draft, and what the daemon knows besides.
pub struct DecisionEntry {
    pub draft: Draft,
    pub agent: String,
    pub owner: Option<String>,
    pub task: Option<Arc<TaskInfo>>,
    pub process: Option<Process>,
    pub bundle: Option<Arc<Meta>>,
}

/// [`Operator`], owned.
pub struct OperatorEntry {
    pub by: Actor,
    pub operation: Operation,
    pub agent: Option<String>,
    pub resource: String,
    pub outcome: Outcome,
    pub detail: String,
    pub bundle: Option<Arc<Meta>>,
}

enum Job {
    Append(Vec<DecisionEntry>),
    /// Answered when everything before it can be read, or the log could not be written.
    Barrier(oneshot::Sender<()>),
    /// Answered when everything before it is in the log.
    Written(oneshot::Sender<()>),
}

/// Where records are handed in; cheap to clone.
#[derive(Clone)]
pub struct Records {
    jobs: mpsc::Sender<Job>,
    operators: mpsc::UnboundedSender<OperatorEntry>,
    head: watch::Receiver<Head>,
    available: watch::Receiver<bool>,
    trouble: Arc<Mutex<Option<String>>>,
}

impl Records {
    /// Takes the log over. Must be called within a runtime.
    pub fn start(log: Log) -> std::io::Result<Self> {
        let (jobs, taken) = mpsc::channel(QUEUE);
        let (operators, done) = mpsc::unbounded_channel();
        let (available, seen) = watch::channel(true);
        let handle = Self {
            jobs,
            operators,
            head: log.head(),
            available: seen,
            trouble: Arc::default(),
        };
        let writer = Writer {
            log,
            operators: done,
            available,
            trouble: handle.trouble.clone(),
            unwritten: Vec::new(),
            held: VecDeque::new(),
        };
        let runtime = tokio::runtime::Handle::current();
        std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || writer.run(&runtime, taken))?;
        Ok(handle)
    }

    /// Waits while the writer has too much to do, or cannot write.
    pub async fn append(&self, decisions: Vec<DecisionEntry>) {
        if !decisions.is_empty() {
            // The writer ends only when the daemon does.
            let _ = self.jobs.send(Job::Append(decisions)).await;
        }
    }

    /// Never waits: whatever the log is like, an agent can be killed.
    pub fn operated(&self, done: OperatorEntry) {
        let _ = self.operators.send(done);
    }

    /// Waits until what was appended before can be read, or the log cannot be written.
    pub async fn settled(&self) {
        let (reply, done) = oneshot::channel();
        let settled = async {
            if self.jobs.send(Job::Barrier(reply)).await.is_ok() {
                let _ = done.await;
            }
        };
        let mut available = self.available.clone();
        tokio::select! {
            () = settled => {}
            _ = available.wait_for(|available| !available) => {}
        }
    }

    /// Waits until what was appended before is in the log, however long that takes.
    pub async fn written(&self) {
        let _ = self.when_written().await.await;
    }

    /// Answers once what was appended before is in the log; an error if the writer has ended without.
    pub async fn when_written(&self) -> oneshot::Receiver<()> {
        let (reply, done) = oneshot::channel();
        let _ = self.jobs.send(Job::Written(reply)).await;
        done
    }

    /// Changes when readers can see more.
    pub fn head(&self) -> watch::Receiver<Head> {
        self.head.clone()
    }

    /// Why records cannot be written now.
    pub fn trouble(&self) -> Option<String> {
        lock(&self.trouble).clone()
    }

    /// Whether records can be written; changes when that does.
    pub fn available(&self) -> watch::Receiver<bool> {
        self.available.clone()
    }
}

enum Next {
    Operated(OperatorEntry),
    Job(Job),
    /// There are more decisions of the job before.
    Held,
}

struct Writer {
    log: Log,
    operators: mpsc::UnboundedReceiver<OperatorEntry>,
    available: watch::Sender<bool>,
    trouble: Arc<Mutex<Option<String>>>,
    /// Who waits until the log can be written.
    unwritten: Vec<oneshot::Sender<()>>,
    /// Taken, and not staged yet: no job is too long for what can be.
    held: VecDeque<DecisionEntry>,
}

impl Writer {
    fn run(mut self, runtime: &tokio::runtime::Handle, mut jobs: mpsc::Receiver<Job>) {
        loop {
            let is_failing = !*self.available.borrow();
            let is_holding = !self.held.is_empty();
            let takes_decisions =
                self.log.room().is_ok() && (!is_failing || self.log.staged() < WAITING_BYTES);
            let next = async {
                tokio::select! {
                    biased;
                    Some(done) = self.operators.recv() => Some(Next::Operated(done)),
                    () = std::future::ready(()), if is_holding && takes_decisions => Some(Next::Held),
                    job = jobs.recv(), if !is_holding && takes_decisions => job.map(Next::Job),
                    else => None,
                }
            };
            let next = match is_failing || !takes_decisions {
                true => runtime.block_on(async { tokio::time::timeout(RETRY, next).await }),
                false => Ok(runtime.block_on(next)),
            };
            let mut barriers = Vec::new();
            let mut staged = Ok(());
            match next {
                Err(_) => {}
                Ok(None) => break,
                Ok(Some(Next::Operated(done))) => staged = self.operated(&done),
                Ok(Some(Next::Held)) => staged = self.stage(),
                Ok(Some(Next::Job(mut job))) => loop {
                    match job {
                        Job::Append(decisions) => {
                            self.held.extend(decisions);
                            let result = self.stage();
                            staged = staged.and(result);
                        }
                        Job::Barrier(reply) => barriers.push(reply),
                        Job::Written(reply) => self.unwritten.push(reply),
                    }
                    if !self.held.is_empty() || self.log.staged() >= BATCH_BYTES {
                        break;
                    }
                    match jobs.try_recv() {
                        Ok(more) => job = more,
                        Err(_) => break,
                    }
                },
            }
            while let Ok(done) = self.operators.try_recv() {
                staged = staged.and(self.operated(&done));
            }
            let result = self.log.commit().and_then(|()| self.log.room());
            self.settle(staged.and(result));
            for reply in barriers {
                let _ = reply.send(());
            }
        }
    }

    /// As many of those that are held as go to the log at once.
    fn stage(&mut self) -> Result<(), LogError> {
        let limit = match *self.available.borrow() {
            true => BATCH_BYTES,
            false => WAITING_BYTES,
        };
        let mut staged = Ok(());
        while self.log.staged() < limit
            && let Some(decided) = self.held.pop_front()
        {
            staged = staged.and(self.decided(&decided));
        }
        staged
    }

    fn decided(&mut self, decided: &DecisionEntry) -> Result<(), LogError> {
        let context = Context {
            agent: &decided.agent,
            owner: decided.owner.as_deref(),
            task: decided.task.as_deref(),
            process: decided.process.as_ref(),
            bundle: decided.bundle.as_deref(),
        };
        let staged = self.log.stage(Record::Decision(&decided.draft, &context));
        staged.map(drop)
    }

    fn operated(&mut self, done: &OperatorEntry) -> Result<(), LogError> {
        let uid = done.by.uid();
        let user = match done.by.user() {
            Some(user) => user.to_owned(),
            None => agentguard_sys::user::name(uid),
        };
        let staged = self.log.stage(Record::Operator(&Operator {
            uid,
            user: Some(&user),
            operation: done.operation,
            agent: done.agent.as_deref(),
            resource: &done.resource,
            outcome: done.outcome,
            detail: &done.detail,
            bundle: done.bundle.as_deref(),
        }));
        staged.map(drop)
    }

    /// Notes whether the log could be written, and says so when that changes.
    fn settle(&mut self, result: Result<(), LogError>) {
        if result.is_ok() {
            for reply in self.unwritten.drain(..) {
                let _ = reply.send(());
            }
        }
        let was_failing = !*self.available.borrow();
        *lock(&self.trouble) = result.as_ref().err().map(ToString::to_string);
        match result {
            Err(error) if !was_failing => {
                tracing::error!(%error, "audit records cannot be written: agents' requests are refused until they can");
                self.available.send_replace(false);
            }
            Ok(()) if was_failing => {
                tracing::warn!("audit records can be written again");
                self.available.send_replace(true);
            }
            _ => {}
        }
    }
}

/// The name a record has for an agent that the registry does not know.
pub(crate) fn unnamed(agent: AgentId) -> String {
    match agent {
        AgentId::AMBIGUOUS => "(ambiguous)".into(),
        AgentId(id) => format!("(id {id})"),
    }
}

#[cfg(test)]
mod tests {
    use agentguard_audit::Durability;

    use super::*;

    #[tokio::test]
    async fn a_job_of_any_length_is_written_whole() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(dir.path(), Durability::Batched).unwrap();
        let records = Records::start(log).unwrap();
        let decided = |n: usize| DecisionEntry {
            draft: Draft {
                // Together more than a log stages at once.
                detail: Some(format!("{n} {}", "x".repeat(100_000))),
                ..Draft::blank(AgentId(2))
            },
            agent: "probe".to_owned(),
            owner: None,
            task: None,
            process: None,
            bundle: None,
        };
        records.append((1..=1000).map(decided).collect()).await;
        records.written().await;
        assert_eq!(records.head().borrow().seq, 1000);
        assert_eq!(records.trouble(), None);
    }
}
