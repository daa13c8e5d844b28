//! The audit log's one writer, on a thread of its own: batches what comes, retries what could not be written.

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
/// Between attempts while the log cannot be written.
const RETRY: Duration = Duration::from_secs(1);

/// A record without what only the writer knows.
pub enum Item {
    Decision(Box<DecisionEntry>),
    Operator(OperatorEntry),
}

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
    Append(Vec<Item>),
    /// Answered when everything before it can be read.
    Barrier(oneshot::Sender<()>),
}

/// Where records are handed in; cheap to clone.
#[derive(Clone)]
pub struct Records {
    jobs: mpsc::Sender<Job>,
    head: watch::Receiver<Head>,
    available: watch::Receiver<bool>,
    trouble: Arc<Mutex<Option<String>>>,
}

impl Records {
    /// Takes the log over. Must be called within a runtime.
    pub fn start(log: Log) -> std::io::Result<Self> {
        let (jobs, taken) = mpsc::channel(QUEUE);
        let (available, seen) = watch::channel(true);
        let handle = Self {
            jobs,
            head: log.head(),
            available: seen,
            trouble: Arc::default(),
        };
        let writer = Writer {
            log,
            available,
            trouble: handle.trouble.clone(),
        };
        let runtime = tokio::runtime::Handle::current();
        std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || writer.run(&runtime, taken))?;
        Ok(handle)
    }

    /// Waits while the writer has too much to do.
    pub async fn append(&self, items: Vec<Item>) {
        if !items.is_empty() {
            // The writer ends only when the daemon does.
            let _ = self.jobs.send(Job::Append(items)).await;
        }
    }

    /// Waits until what was appended before can be read.
    pub async fn settled(&self) {
        let (reply, done) = oneshot::channel();
        if self.jobs.send(Job::Barrier(reply)).await.is_ok() {
            let _ = done.await;
        }
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

struct Writer {
    log: Log,
    available: watch::Sender<bool>,
    trouble: Arc<Mutex<Option<String>>>,
}

impl Writer {
    fn run(mut self, runtime: &tokio::runtime::Handle, mut jobs: mpsc::Receiver<Job>) {
        loop {
            let next = if !*self.available.borrow() {
                let next = async { tokio::time::timeout(RETRY, jobs.recv()).await };
                match runtime.block_on(next) {
                    Ok(next) => next,
                    Err(_) => {
                        let result = self.log.commit();
                        self.settle(result);
                        continue;
                    }
                }
            } else {
                jobs.blocking_recv()
            };
            let Some(mut job) = next else { break };
            let mut barriers = Vec::new();
            let mut staged = Ok(());
            loop {
                match job {
                    Job::Append(items) => {
                        for item in &items {
                            let result = self.stage(item);
                            staged = staged.and(result);
                        }
                    }
                    Job::Barrier(reply) => barriers.push(reply),
                }
                match jobs.try_recv() {
                    Ok(more) => job = more,
                    Err(_) => break,
                }
            }
            let result = self.log.commit();
            self.settle(staged.and(result));
            for reply in barriers {
                let _ = reply.send(());
            }
        }
    }

    fn stage(&mut self, item: &Item) -> Result<(), LogError> {
        match item {
            Item::Decision(decided) => self.log.stage(Record::Decision(
                &decided.draft,
                &Context {
                    agent: &decided.agent,
                    owner: decided.owner.as_deref(),
                    task: decided.task.as_deref(),
                    process: decided.process.as_ref(),
                    bundle: decided.bundle.as_deref(),
                },
            )),
            Item::Operator(done) => {
                let uid = done.by.uid();
                let user = match done.by.user() {
                    Some(user) => user.to_owned(),
                    None => agentguard_sys::user::name(uid),
                };
                self.log.stage(Record::Operator(&Operator {
                    uid,
                    user: Some(&user),
                    operation: done.operation,
                    agent: done.agent.as_deref(),
                    resource: &done.resource,
                    outcome: done.outcome,
                    detail: &done.detail,
                    bundle: done.bundle.as_deref(),
                }))
            }
        }
        .map(drop)
    }

    /// Notes whether the log could be written, and says so when that changes.
    fn settle(&mut self, result: Result<(), LogError>) {
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
