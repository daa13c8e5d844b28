//! What outlives its decision: requests, answers, WebSockets and passed-through connections that are still under way when
//! another bundle comes into force, what its rules read of the time and the network changes, or tasks begin or end.

use std::sync::Arc;
use std::time::Duration;

use agentguard_policy::{Action, Body, CanonicalPath, Context, Decision, Policy, TaskSituation};
use agentguard_record::DenyReason;
use futures_util::future::{BoxFuture, OptionFuture};
use http::uri::Scheme;
use http::{HeaderMap, Method};
use jiff::Timestamp;

use super::act::{Act, Message};
use super::forwarder::Forwarder;
use super::identity::RequestTarget;
use super::judge::{self, Subject};
use super::life::Life;
use super::situation::Moments;
use super::tasks::{Ends, NamedTask};

/// Between two looks at the clock where a bundle expires.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// What is under way, and the bundle it was last judged by.
pub(crate) struct Standing {
    forwarder: Arc<Forwarder>,
    judged: Arc<Policy>,
    life: Arc<Life>,
    target: RequestTarget,
    ongoing: OngoingAct,
    /// What was gathered for the decision that permitted it.
    gathered: Context,
    /// When that was, as far as it matters.
    moments: Option<Moments>,
    /// Fires when the tasks that permitted it end.
    tasks: Ends,
    why: DenyReason,
}

/// What was permitted, as far as it is kept.
pub(crate) enum OngoingAct {
    Connect,
    Request(Box<PermittedRequest>),
}

/// What of a request it takes to judge it again.
pub(crate) struct PermittedRequest {
    method: Method,
    scheme: Scheme,
    path: CanonicalPath,
    query: Option<String>,
    headers: HeaderMap,
}

impl Standing {
    /// `judged`: the bundle that permitted it.
    pub(crate) fn new(
        forwarder: Arc<Forwarder>,
        judged: Arc<Policy>,
        life: Arc<Life>,
        target: RequestTarget,
        ongoing: OngoingAct,
        gathered: Context,
        tasks: Ends,
    ) -> Self {
        Self {
            tasks,
            why: DenyReason::PolicyDenied,
            moments: forwarder.situation.moments(&gathered),
            forwarder,
            judged,
            life,
            target,
            ongoing,
            gathered,
        }
    }

    /// Whether it may go on. Almost always the same bundle is in force, and nothing is judged.
    pub(crate) fn holds(&mut self) -> bool {
        if self.tasks.are_over() {
            self.why = DenyReason::OutsideTask;
            return false;
        }
        let is_other = !Arc::ptr_eq(&self.forwarder.policy.load(), &self.judged);
        if is_other {
            self.take_bundle();
        }
        let is_later = self.moments.as_mut().is_some_and(Moments::have_changed);
        if (is_other || is_later) && !self.judge() {
            return false;
        }
        !self.judged.is_expired(Timestamp::now())
    }

    /// Resolves when it may not go on.
    pub(crate) async fn lost(&mut self) {
        let forwarder = self.forwarder.clone();
        let situation = &forwarder.situation;
        let mut applied = forwarder.applied.subscribe();
        let mut tasks = situation.tasks.changes();
        // Tasks that have been opened since it was permitted hold it.
        let mut holds = self.holds() && (self.is_on_the_same_tasks() || self.judge());
        while holds {
            let over = self.tasks.over();
            holds = tokio::select! {
                changed = applied.changed() => match changed {
                    Ok(()) => self.holds(),
                    // The forwarder ends, and this with it.
                    Err(_) => std::future::pending().await,
                },
                () = tokio::time::sleep(self.until_expiry()) => self.holds(),
                () = situation.changed(self.life.agent, &self.gathered) => self.judge(),
                Ok(()) = tasks.changed() => self.holds() && (self.is_on_the_same_tasks() || self.judge()),
                Some(()) = OptionFuture::from(over) => self.holds(),
            };
        }
    }

    /// Why it may not go on.
    pub(crate) fn reason(&self) -> DenyReason {
        match self.judged.is_expired(Timestamp::now()) {
            true => DenyReason::PolicyStale,
            false => self.why,
        }
    }

    /// Resolves when the tasks that it was permitted on have ended; `None`: it was on none.
    pub(crate) fn over(&self) -> Option<BoxFuture<'static, ()>> {
        self.tasks.over()
    }

    /// How it stands to the tasks that are open now.
    fn on_tasks(&self) -> Option<TaskSituation> {
        let named = NamedTask::of(self.gathered.tasks.as_ref());
        let tasks = &self.forwarder.situation.tasks;
        Some(tasks.held(&self.judged, self.life.agent, &named))
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

    /// Judges by the bundle that is in force from here on. Of its body only what was read of it is known: where the bundle
    /// reads other fields, a rule that needs them refuses.
    fn take_bundle(&mut self) {
        let before = std::mem::replace(&mut self.judged, self.forwarder.policy.load_full());
        let act = Act {
            target: &self.target,
            action: self.ongoing.action(),
        };
        let input = judge::input(self.life.agent, &act, &self.gathered);
        let [then, now] = [&before, &self.judged].map(|policy| policy.needs(&input).body);
        if then.map(|it| it.block) != now.map(|it| it.block) && self.gathered.body != Body::none() {
            self.gathered.body = Body::Unread;
        }
    }

    /// Whether it is permitted as things are now. Its limits were charged when it began.
    fn judge(&mut self) -> bool {
        let Self {
            forwarder,
            judged,
            life,
            target,
            ..
        } = self;
        let action = self.ongoing.action();
        let task = NamedTask::of(self.gathered.tasks.as_ref());
        let subject = Subject {
            forwarder,
            life,
            task: &task,
        };
        let act = Act { target, action };
        self.gathered.tasks = Some(subject.tasks(judged));
        let decision = judge::judge_now(subject, judged, &act, &mut self.gathered);
        self.moments = forwarder.situation.moments(&self.gathered);
        let tasks = &forwarder.situation.tasks;
        match decision {
            Ok(Decision::Permit(permit)) => {
                self.tasks = tasks.ends_of(permit.covered());
                true
            }
            Ok(Decision::Owing(permit)) => {
                self.tasks = tasks.ends_of(permit.covered());
                true
            }
            Ok(Decision::Deny(denial)) => {
                if denial.reason == DenyReason::OutsideTask {
                    self.why = denial.reason;
                }
                false
            }
            Err(_stale) => false,
        }
    }
}

impl OngoingAct {
    fn action(&self) -> Action<'_> {
        match self {
            Self::Connect => Action::Connect,
            Self::Request(request) => Action::Request {
                method: request.method.as_str(),
                scheme: request.scheme.as_str(),
                path: &request.path,
                query: request.query.as_deref(),
                headers: &request.headers,
            },
        }
    }
}

impl PermittedRequest {
    pub(crate) fn of(message: &Message) -> Self {
        Self {
            method: message.parts.method.clone(),
            scheme: message.scheme.clone(),
            path: message.path.clone(),
            query: message.parts.uri.query().map(str::to_owned),
            headers: message.parts.headers.clone(),
        }
    }
}
