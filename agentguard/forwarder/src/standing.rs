//! What outlives its decision: answers, WebSockets and passed-through connections that are still under way when another
//! bundle comes into force, what its rules read of the time and the network changes, or tasks begin or end.

use std::sync::Arc;
use std::time::Duration;

use agentguard_common::abi::AgentId;
use agentguard_policy::{Action, CanonicalPath, Context, Decision, Input, Policy, Tasks};
use agentguard_record::DenyReason;
use futures_util::future::{BoxFuture, OptionFuture};
use http::{HeaderMap, Method};
use jiff::Timestamp;

use super::Forwarder;
use super::identity::Target;
use super::tasks::{Ends, Named};

/// Said of what a new bundle ends, or the time.
pub const CUT: &str = "permitted, and cut when the policy did not any more";
/// Said of what has not been answered when its task ends.
pub const OVER: &str = "The task that the request was permitted on has ended, and the request with it; what has been sent of it may have been done.";
/// Between two looks at the clock where a bundle expires.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// What is under way, and the bundle it was last judged by.
pub struct Standing {
    forwarder: Arc<Forwarder>,
    judged: Arc<Policy>,
    agent: AgentId,
    target: Target,
    asked: Asked,
    /// What was gathered for the decision that permitted it.
    gathered: Context,
    /// Of the tasks that it was permitted on.
    tasks: Ends,
    why: DenyReason,
}

/// What was permitted, as far as it is kept.
pub enum Asked {
    /// An answer that is passed on: rules hold for the next request, this one ends when its host cannot be reached any
    /// more.
    Answer,
    Connect,
    Upgrade(Box<Upgrade>),
}

/// The request that became a tunnel.
pub struct Upgrade {
    pub method: Method,
    pub scheme: String,
    pub path: CanonicalPath,
    pub query: Option<String>,
    pub headers: HeaderMap,
}

impl Standing {
    /// `judged`: the bundle that permitted it.
    pub fn new(
        forwarder: Arc<Forwarder>,
        judged: Arc<Policy>,
        agent: AgentId,
        target: Target,
        asked: Asked,
        gathered: Context,
        tasks: Ends,
    ) -> Self {
        Self {
            tasks,
            why: DenyReason::PolicyDenied,
            forwarder,
            judged,
            agent,
            target,
            asked,
            gathered,
        }
    }

    /// Whether it may go on. Almost always the same bundle is in force, and nothing is judged.
    pub fn holds(&mut self) -> bool {
        if self.tasks.are_over() {
            self.why = DenyReason::OutsideTask;
            return false;
        }
        if !Arc::ptr_eq(&self.forwarder.policy.load(), &self.judged) {
            self.judged = self.forwarder.policy.load_full();
            if !self.judge() {
                return false;
            }
        }
        !self.judged.is_expired(Timestamp::now())
    }

    /// Resolves when it may not go on.
    pub async fn lost(&mut self) {
        let forwarder = self.forwarder.clone();
        let situation = &forwarder.situation;
        let mut applied = forwarder.applied.subscribe();
        let mut tasks = situation.tasks.changes();
        // Tasks that have been opened since it was permitted hold it.
        let mut holds = self.holds() && self.judge();
        while holds {
            let over = self.tasks.over();
            holds = tokio::select! {
                changed = applied.changed() => match changed {
                    Ok(()) => self.holds(),
                    // The forwarder ends, and this with it.
                    Err(_) => std::future::pending().await,
                },
                () = tokio::time::sleep(self.until_expiry()) => self.holds(),
                () = situation.changed(self.agent, &self.gathered) => self.judge(),
                Ok(()) = tasks.changed() => self.holds() && (self.is_on_the_same_tasks() || self.judge()),
                Some(()) = OptionFuture::from(over) => self.holds(),
            };
        }
    }

    /// Why it may not go on.
    pub fn reason(&self) -> DenyReason {
        match self.judged.is_expired(Timestamp::now()) {
            true => DenyReason::PolicyStale,
            false => self.why,
        }
    }

    /// Resolves when the tasks that it was permitted on have ended; `None`: it was on none.
    pub fn over(&self) -> Option<BoxFuture<'static, ()>> {
        self.tasks.over()
    }

    /// How it stands to the tasks that are open now.
    fn on_tasks(&self) -> Option<Tasks> {
        let named = Named::of(self.gathered.tasks.as_ref());
        let tasks = &self.forwarder.situation.tasks;
        Some(tasks.held(&self.judged, self.agent, &named))
    }

    fn is_on_the_same_tasks(&self) -> bool {
        self.gathered.tasks == self.on_tasks()
    }

    /// The wall clock counts, which may be set: it is looked at again before long.
    fn until_expiry(&self) -> Duration {
        let Some(expires) = self.judged.expires() else {
            return Duration::MAX;
        };
        let left = Duration::try_from(Timestamp::now().duration_until(expires));
        left.unwrap_or_default().min(LOOK_EVERY)
    }

    /// Whether it is permitted as things are now.
    fn judge(&mut self) -> bool {
        if let Asked::Answer = self.asked {
            let Target { host, port } = &self.target;
            let policy = &self.judged;
            return policy.reaches(self.agent, host, *port) || policy.observes(self.agent);
        }
        let situation = &self.forwarder.situation;
        self.gathered.tasks = self.on_tasks();
        let mut gathered = self.gathered.clone();
        let now = &mut gathered;
        self.with_input(|policy, input| situation.gather(policy, &input, now));
        self.gathered = gathered;
        let decide = |policy: &Policy, input: Input<'_>| policy.decide(&input);
        match self.with_input(decide) {
            Decision::Permit(permit) => {
                self.tasks = situation.tasks.ends_of(permit.covered());
                true
            }
            // What limits count of it has been taken.
            Decision::Limited(limited) => {
                self.tasks = situation.tasks.ends_of(limited.covered());
                true
            }
            Decision::Deny(denial) => {
                if denial.reason == DenyReason::OutsideTask {
                    self.why = denial.reason;
                }
                false
            }
        }
    }

    fn with_input<T>(&self, then: impl FnOnce(&Policy, Input<'_>) -> T) -> T {
        let Target { host, port } = &self.target;
        let action = match &self.asked {
            // Of an answer nothing more is judged than its host.
            Asked::Answer | Asked::Connect => Action::Connect,
            Asked::Upgrade(upgrade) => Action::Request {
                method: upgrade.method.as_str(),
                scheme: &upgrade.scheme,
                path: &upgrade.path,
                query: upgrade.query.as_deref(),
                headers: &upgrade.headers,
            },
        };
        let input = Input {
            agent: self.agent,
            host,
            port: *port,
            action,
            context: &self.gathered,
        };
        then(&self.judged, input)
    }
}

/// Whether what was decided still is, after a wait: under the same bundle and on the same tasks.
pub fn still_decided(
    forwarder: &Forwarder,
    policy: &Arc<Policy>,
    agent: AgentId,
    named: &Named,
    gathered: &Context,
) -> bool {
    let tasks = &forwarder.situation.tasks;
    Arc::ptr_eq(&forwarder.policy.load(), policy)
        && !policy.is_expired(Timestamp::now())
        && gathered.tasks == Some(tasks.held(policy, agent, named))
}
