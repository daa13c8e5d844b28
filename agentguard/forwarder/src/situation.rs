//! What rules read of the moment and of where the host is: gathered for a decision as far as its rules read it, and again
//! while what was permitted goes on.

use std::time::Duration;

use agentguard_common::abi::AgentId;
use agentguard_link::state::{Delta, State};
use agentguard_policy::context::{AgentSituation, AttributeName, HostLabels, NetworkTrust};
use agentguard_policy::{Context, Needs, Policy};
use agentguard_sys::process::boottime_ns;
use jiff::Timestamp;
use tokio::sync::watch;

use super::tasks::OpenTasks;

pub(crate) struct Situation {
    /// What the daemon wants held.
    state: watch::Sender<State>,
    pub tasks: OpenTasks,
}

impl Situation {
    /// # Errors
    /// The daemon has accepted the tasks before: what cannot be read here is a fault of ours.
    pub(crate) fn new(state: State) -> Result<Self, String> {
        let tasks = OpenTasks::new(&state.tasks)?;
        Ok(Self {
            state: watch::Sender::new(state),
            tasks,
        })
    }

    /// Takes up what is other now.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(crate) fn apply(&self, delta: Delta) -> Result<(), String> {
        let changed = match &delta {
            Delta::Tasks { agent, open } => self.tasks.set(*agent, open),
            Delta::Policy(_)
            | Delta::Stopped(_)
            | Delta::Freed(_)
            | Delta::AuditWritable(_)
            | Delta::TrustedNetwork(_)
            | Delta::Names(_)
            | Delta::Presences(_) => Ok(()),
        };
        self.state.send_modify(|state| state.apply(delta));
        changed
    }

    /// An agent that the daemon has not told of has just started.
    fn of(&self, agent: AgentId) -> AgentSituation {
        let state = self.state.borrow();
        let presence = state.presences.get(&agent);
        presence.map_or(AgentSituation::default(), |presence| AgentSituation {
            uptime_s: presence.uptime_s(boottime_ns()),
            attended: presence.attended,
        })
    }

    /// Of the moment, what has been gathered for an act of the agent's is what rules need now.
    pub(crate) fn gather(
        &self,
        policy: &Policy,
        agent: AgentId,
        needs: &Needs<'_>,
        gathered: &mut Context,
    ) {
        let timed = needs.has(AttributeName::Time);
        gathered.time = timed.then(|| policy.moment(Timestamp::now())).flatten();
        gathered.network = needs.has(AttributeName::Network).then(|| NetworkTrust {
            trusted: self.state.borrow().trusted_network,
        });
        gathered.host = needs.has(AttributeName::Host).then(|| HostLabels {
            labels: self.state.borrow().host_labels.clone(),
        });
        gathered.agent = needs.has(AttributeName::Agent).then(|| self.of(agent));
    }

    /// For what goes on after a decision that read this of the moment; `None` if it read nothing of it.
    pub(crate) fn moments(&self, gathered: &Context) -> Option<Moments> {
        let is_timed = gathered.time.is_some() || gathered.agent.is_some();
        let is_placed = gathered.network.is_some();
        (is_timed || is_placed).then(|| Moments {
            state: self.state.subscribe(),
            minute: is_timed.then(minute),
        })
    }

    /// Resolves when something of what was gathered for the agent may be otherwise; windows begin and end on the minute, and
    /// how long it is up is looked at as often.
    pub(crate) async fn changed(&self, agent: AgentId, gathered: &Context) {
        let minute = async {
            match (gathered.time.is_some(), gathered.agent.is_some()) {
                (false, false) => std::future::pending().await,
                _ => tokio::time::sleep(to_the_minute(Timestamp::now())).await,
            }
        };
        let told = async {
            let mut state = self.state.subscribe();
            let is_other = |state: &State| {
                let attended = state.presences.get(&agent).is_some_and(|it| it.attended);
                let trusted = state.trusted_network;
                gathered.agent.is_some_and(|then| then.attended != attended)
                    || gathered.network.is_some_and(|then| then.trusted != trusted)
            };
            // The sender lives in `self`, so that it cannot be dropped while this waits.
            let _ = state.wait_for(is_other).await;
        };
        tokio::select! {
            () = minute => {}
            () = told => {}
        }
    }
}

/// When what rules read of the moment was gathered.
pub(crate) struct Moments {
    state: watch::Receiver<State>,
    /// Since 1970; `None`: no rule reads the time.
    minute: Option<i64>,
}

impl Moments {
    /// Whether something of it may be otherwise than when this was last asked.
    pub(crate) fn have_changed(&mut self) -> bool {
        let now = self.minute.map(|_| minute());
        let passed = std::mem::replace(&mut self.minute, now) != now;
        let told = self.state.has_changed().unwrap_or(false);
        if told {
            self.state.mark_unchanged();
        }
        passed || told
    }
}

fn minute() -> i64 {
    Timestamp::now().as_second().div_euclid(60)
}

/// A little more, so that the clock is surely past it.
fn to_the_minute(now: Timestamp) -> Duration {
    let into = u64::try_from(now.as_millisecond().rem_euclid(60_000)).unwrap_or(0);
    Duration::from_millis(60_005 - into)
}

#[cfg(test)]
mod tests {
    use super::*;
    use agentguard_link::presence::Presence;

    fn trusting() -> Situation {
        Situation::new(State {
            trusted_network: true,
            ..State::default()
        })
        .unwrap()
    }

    #[tokio::test]
    async fn a_change_of_network_is_seen_by_what_read_it() {
        let situation = trusting();
        let read = |trusted: Option<bool>| Context {
            network: trusted.map(|trusted| NetworkTrust { trusted }),
            ..Context::default()
        };
        let soon = Duration::from_millis(20);
        let changed = |gathered: Context| {
            let situation = &situation;
            async move {
                tokio::time::timeout(soon, situation.changed(AgentId(7), &gathered))
                    .await
                    .is_ok()
            }
        };
        assert!(!changed(read(Some(true))).await);
        assert!(changed(read(Some(false))).await, "it has changed meanwhile");
        let waiting = read(Some(true));
        let waiting = situation.changed(AgentId(7), &waiting);
        situation.apply(Delta::TrustedNetwork(false)).unwrap();
        waiting.await;
        assert!(!changed(read(None)).await, "nobody has read it");
    }

    #[tokio::test]
    async fn whether_it_is_attended_is_seen_by_what_read_it() {
        const AGENT: AgentId = AgentId(7);
        let situation = trusting();
        let tell = |attended| {
            let presence = Presence {
                since_ns: boottime_ns() - 90_500_000_000,
                attended,
            };
            situation
                .apply(Delta::Presences([(AGENT, Some(presence))].into()))
                .unwrap();
        };
        assert_eq!(situation.of(AGENT), AgentSituation::default());
        tell(true);
        let is = situation.of(AGENT);
        assert_eq!((is.uptime_s, is.attended), (90, true));
        let read = Context {
            agent: Some(is),
            ..Context::default()
        };
        let waiting = situation.changed(AGENT, &read);
        situation
            .apply(Delta::Presences([(AgentId(8), None)].into()))
            .unwrap();
        tell(false);
        waiting.await;
        situation
            .apply(Delta::Presences([(AGENT, None)].into()))
            .unwrap();
        assert_eq!(situation.of(AGENT), AgentSituation::default());
    }

    #[test]
    fn the_next_minute_is_at_most_one_away() {
        let at = |text: &str| to_the_minute(text.parse().unwrap()).as_millis();
        assert_eq!(at("2026-11-23T09:00:00Z"), 60_005);
        assert_eq!(at("2026-11-23T09:00:59.999Z"), 6);
    }
}
