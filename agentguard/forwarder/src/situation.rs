//! What rules read of the moment and of where the host is: gathered for a decision as far as its rules read it, and again
//! while what was permitted goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use agentguard_common::abi::AgentId;
use agentguard_link::presence::{self, Changes, Presence};
use agentguard_policy::context::{AgentSituation, AttributeName, HostLabels, NetworkTrust};
use agentguard_policy::{Context, Needs, Policy};
use agentguard_sys::process::boottime_ns;
use jiff::Timestamp;
use tokio::sync::watch;

use super::tasks::Tasks;

pub struct Situation {
    /// Whether the host's network is one that its configuration trusts, as the daemon last said.
    trusted: watch::Sender<bool>,
    labels: BTreeSet<String>,
    pub tasks: Tasks,
    /// How agents are up, as the daemon last said.
    presences: watch::Sender<BTreeMap<AgentId, Presence>>,
}

impl Situation {
    pub fn new(
        trusted: bool,
        labels: Vec<String>,
        tasks: Tasks,
        presences: BTreeMap<AgentId, Presence>,
    ) -> Self {
        Self {
            trusted: watch::Sender::new(trusted),
            labels: labels.into_iter().collect(),
            tasks,
            presences: watch::Sender::new(presences),
        }
    }

    pub fn set_trusted(&self, trusted: bool) {
        self.trusted.send_replace(trusted);
    }

    pub fn follow(&self, changes: &Changes) {
        self.presences
            .send_modify(|presences| presence::follow(presences, changes));
    }

    /// An agent that the daemon has not told of has just started.
    fn of(&self, agent: AgentId) -> AgentSituation {
        let presences = self.presences.borrow();
        let presence = presences.get(&agent);
        presence.map_or(AgentSituation::default(), |presence| AgentSituation {
            uptime_s: presence.uptime_s(boottime_ns()),
            attended: presence.attended,
        })
    }

    /// Adds to what has been gathered for an act of the agent's what rules need of it.
    pub fn gather(
        &self,
        policy: &Policy,
        agent: AgentId,
        needs: &Needs<'_>,
        gathered: &mut Context,
    ) {
        if needs.has(AttributeName::Time) {
            gathered.time = policy.moment(Timestamp::now());
        }
        if needs.has(AttributeName::Network) {
            let trusted = *self.trusted.borrow();
            gathered.network = Some(NetworkTrust { trusted });
        }
        if needs.has(AttributeName::Host) {
            let labels = self.labels.clone();
            gathered.host = Some(HostLabels { labels });
        }
        if needs.has(AttributeName::Agent) {
            gathered.agent = Some(self.of(agent));
        }
    }

    /// Resolves when something of what was gathered for the agent may be otherwise; windows begin and end on the minute, and
    /// how long it is up is looked at as often.
    pub async fn changed(&self, agent: AgentId, gathered: &Context) {
        let mut trusted = self.trusted.subscribe();
        let minute = async {
            match (gathered.time.is_some(), gathered.agent.is_some()) {
                (false, false) => std::future::pending().await,
                _ => tokio::time::sleep(to_the_minute(Timestamp::now())).await,
            }
        };
        let attended = async {
            let Some(then) = gathered.agent else {
                return std::future::pending().await;
            };
            let mut presences = self.presences.subscribe();
            // The sender lives in `self`, so that it cannot be dropped while this waits.
            let _ = presences
                .wait_for(|now| now.get(&agent).is_some_and(|now| now.attended) != then.attended)
                .await;
        };
        let network = async {
            let known = gathered
                .network
                .is_some_and(|is| is.trusted != *trusted.borrow_and_update());
            if gathered.network.is_none() || !known && trusted.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = minute => {}
            () = network => {}
            () = attended => {}
        }
    }
}

/// A little more, so that the clock is surely past it.
fn to_the_minute(now: Timestamp) -> Duration {
    let into = u64::try_from(now.as_millisecond().rem_euclid(60_000)).unwrap_or(0);
    Duration::from_millis(60_005 - into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_of_network_is_seen_by_what_read_it() {
        let situation = Situation::new(true, Vec::new(), Tasks::default(), BTreeMap::new());
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
        situation.set_trusted(false);
        waiting.await;
        assert!(!changed(read(None)).await, "nobody has read it");
    }

    #[tokio::test]
    async fn whether_it_is_attended_is_seen_by_what_read_it() {
        const AGENT: AgentId = AgentId(7);
        let situation = Situation::new(true, Vec::new(), Tasks::default(), BTreeMap::new());
        let tell = |attended| {
            let presence = Presence {
                since_ns: boottime_ns() - 90_500_000_000,
                attended,
            };
            situation.follow(&[(AGENT, Some(presence))].into());
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
        situation.follow(&[(AgentId(8), None)].into());
        tell(false);
        waiting.await;
        situation.follow(&[(AGENT, None)].into());
        assert_eq!(situation.of(AGENT), AgentSituation::default());
    }

    #[test]
    fn the_next_minute_is_at_most_one_away() {
        let at = |text: &str| to_the_minute(text.parse().unwrap()).as_millis();
        assert_eq!(at("2026-11-23T09:00:00Z"), 60_005);
        assert_eq!(at("2026-11-23T09:00:59.999Z"), 6);
    }
}
