//! The one judging: of requests and passed-through connections before anything goes out, of what is open when things
//! change, and of what agents ask about. Nothing else puts a policy's input together.

use std::sync::Arc;
use std::time::Instant;

use agentguard_common::abi::AgentId;
use agentguard_policy::context::AttributeName;
use agentguard_policy::{
    Action, Body, Context, Decision, Input, Permit, Policy, Settled, TaskSituation,
};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::act::Act;
use super::body::RequestBody;
use super::forwarder::Forwarder;
use super::life::Life;
use super::record::{RecordEntry, Recorded, micros};
use super::refusal::Refusal;
use super::settle::{self, Claim};
use super::tasks::NamedTask;

/// Whose act is judged, and with what.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub forwarder: &'a Forwarder,
    pub life: &'a Arc<Life>,
    /// The task that it is said to be on.
    pub task: &'a NamedTask,
}

/// An open record and the bundle that decides what it records: the record names the bundle that has decided.
pub(crate) struct Docket {
    pub policy: Arc<Policy>,
    pub entry: RecordEntry,
}

/// What is permitted, and by what; with [`Recorded`], it is in the spool.
pub(crate) struct Grant<P = Recorded> {
    pub permit: P,
    pub claim: Claim,
    /// What rules read of the last act; for what goes on after its decision, which is one act by itself.
    pub gathered: Context,
}

impl Subject<'_> {
    /// How it stands to the tasks that are open now.
    pub(crate) fn tasks(&self, policy: &Policy) -> TaskSituation {
        let tasks = &self.forwarder.situation.tasks;
        tasks.held(policy, self.life.agent, self.task)
    }

    /// Whether what was looked at before a wait is still so: the bundle in force, and the tasks that are open.
    fn is_unchanged(&self, policy: &Arc<Policy>, tasks: &TaskSituation) -> bool {
        Arc::ptr_eq(&self.forwarder.policy.load(), policy)
            && !policy.is_expired(Timestamp::now())
            && *tasks == self.tasks(policy)
    }
}

impl Docket {
    /// Of what is to be decided by the bundle that is in force now.
    pub(crate) fn new(forwarder: &Forwarder, mut entry: RecordEntry) -> Self {
        let policy = forwarder.policy.load_full();
        entry.bundle = Some(policy.meta().digest.clone());
        Self { policy, entry }
    }

    /// Takes the bundle that is in force now, after a wait.
    pub(crate) fn renew(&mut self, forwarder: &Forwarder) {
        self.policy = forwarder.policy.load_full();
        self.entry.bundle = Some(self.policy.meta().digest.clone());
    }
}

/// Everything that is decided of a request or a connection before a byte of it goes out: all of its acts are permitted
/// and owe nothing, or it is refused.
///
/// Nothing is decided by a stale bundle, nor on tasks that have ended. Each pass takes the bundle and the tasks at its
/// beginning. Four things in it wait: for the whole body, for look-ups, for debts to be settled, and for the record to be
/// kept. After the first the pass always ends without a grant; after the others it does unless bundle and tasks are what
/// they were. So a pass that grants has seen no change after its last wait, and between that and the grant there is no wait.
/// What a pass without a grant has taken of limits is given back, since its claims are dropped; its body and its look-ups'
/// answers are kept, so that each is waited for once.
pub(crate) async fn judge(
    subject: Subject<'_>,
    acts: &[Act<'_>],
    body: &mut RequestBody,
    docket: &mut Docket,
) -> Result<Grant, Refusal> {
    loop {
        let tasks = subject.tasks(&docket.policy);
        if let Some(grant) = pass(subject, acts, body, docket, &tasks).await? {
            docket.entry.permitted(&grant.permit);
            let waited = docket.entry.begin().await?;
            if !waited || subject.is_unchanged(&docket.policy, &tasks) {
                return Ok(Grant {
                    permit: docket.entry.recorded(grant.permit)?,
                    claim: grant.claim,
                    gathered: grant.gathered,
                });
            }
        }
        docket.renew(subject.forwarder);
    }
}

/// What is decided of an act at once, of what is known and of the moment. It waits for nothing and takes nothing: for what
/// is open and judged again, and for what is only asked about.
pub(crate) fn judge_now(
    subject: Subject<'_>,
    policy: &Policy,
    act: &Act<'_>,
    known: &mut Context,
) -> Result<Decision, Refusal> {
    let agent = subject.life.agent;
    let needs = policy.needs(&input(agent, act, known));
    subject
        .forwarder
        .situation
        .gather(policy, agent, &needs, known);
    // Whatever was waited for before: it is now that counts.
    if policy.is_expired(Timestamp::now()) {
        return Err(Refusal::stale());
    }
    Ok(policy.decide(&input(agent, act, known)))
}

/// One pass over all acts. `None`: something was waited for, and what has been decided may not hold any more.
async fn pass(
    subject: Subject<'_>,
    acts: &[Act<'_>],
    body: &mut RequestBody,
    docket: &mut Docket,
    tasks: &TaskSituation,
) -> Result<Option<Grant<Permit<Settled>>>, Refusal> {
    let Docket { policy, entry } = docket;
    let mut all: Option<Grant<Permit<Settled>>> = None;
    entry.latency.decide = 0;
    for act in acts {
        let gathered = gather(subject, policy, act, tasks, body, entry).await?;
        let Some(mut gathered) = gathered else {
            return Ok(None);
        };
        entry.on_task(&gathered);
        let started = Instant::now();
        let decision = judge_now(subject, policy, act, &mut gathered)?;
        entry.latency.decide += micros(started);
        let (permit, claim) = match decision {
            Decision::Permit(permit) => (permit, Claim::nothing()),
            Decision::Owing(permit) => {
                let settled =
                    settle::settle(subject.forwarder, subject.life.agent, *permit).await?;
                if !subject.is_unchanged(policy, tasks) {
                    return Ok(None);
                }
                settled
            }
            Decision::Deny(denial) => return Err(denial.into()),
        };
        all = Some(match all {
            None => Grant {
                permit,
                claim,
                gathered,
            },
            Some(before) => Grant {
                permit: before.permit.and(permit),
                claim: before.claim.and(claim),
                gathered,
            },
        });
    }
    match all {
        Some(grant) => Ok(Some(grant)),
        None => Err(Refusal::protocol("the request has nothing to be judged")),
    }
}

/// What rules read of an act that has to be waited for: its body, and what other services know. `None`: things may have
/// changed meanwhile.
async fn gather(
    subject: Subject<'_>,
    policy: &Arc<Policy>,
    act: &Act<'_>,
    tasks: &TaskSituation,
    body: &mut RequestBody,
    entry: &mut RecordEntry,
) -> Result<Option<Context>, Refusal> {
    let Subject {
        forwarder, life, ..
    } = subject;
    let settings = policy.settings(&act.target.host, act.target.port);
    let limit = settings
        .max_judged_body
        .unwrap_or(forwarder.limits.max_judged_body_bytes as usize);
    let mut gathered = Context {
        tasks: Some(tasks.clone()),
        ..Context::default()
    };
    let needs = policy.needs(&input(life.agent, act, &gathered));
    match (act.action, &needs.body) {
        (Action::Request { headers, .. }, Some(needed)) if body.is_known() => {
            gathered.body = needed.block.read(headers, body.bytes(), limit);
            gathered.body_sha256 = needs
                .has(AttributeName::Limits)
                .then(|| Sha256::digest(body.bytes()).into());
        }
        (Action::Request { .. }, Some(_)) => {
            let room = &forwarder.room;
            body.hold(limit, &forwarder.limits, room, life.agent)
                .await?;
            return Ok(None);
        }
        (Action::Request { .. }, None) if body.is_known() && body.bytes().is_empty() => {
            gathered.body = Body::none();
        }
        (Action::Request { .. }, None) | (Action::Connect, _) => {}
    }
    if !needs.lookups.is_empty() {
        let started = Instant::now();
        let asks = policy.asks(&input(life.agent, act, &gathered));
        gathered.lookups = forwarder.lookups.gather(life, asks).await;
        entry.latency.lookup += micros(started);
        if !subject.is_unchanged(policy, tasks) {
            return Ok(None);
        }
    }
    Ok(Some(gathered))
}

pub(crate) fn input<'i>(agent: AgentId, act: &'i Act<'_>, gathered: &'i Context) -> Input<'i> {
    Input {
        agent,
        host: &act.target.host,
        port: act.target.port,
        action: act.action,
        context: gathered,
    }
}
