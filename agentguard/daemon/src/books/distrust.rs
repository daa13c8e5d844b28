//! Clients that did not accept the forwarder's certificate, by agent, program and host: of one agent no more than [`KEPT`].

use std::collections::BTreeMap;
use std::sync::Mutex;

use agentguard_control::api::DistrustView;
use agentguard_record::{DenyReason, Outcome, TLS_ALERT};
use jiff::{SignedDuration, Timestamp};

use super::alarms::Alarm;
use super::records::DecisionEntry;
use crate::lock::lock;

/// Programs and hosts of one agent that are counted each. Those beyond are counted together.
const KEPT: usize = 16;
/// How long it is an alarm for after the latest failure.
const RECENT: SignedDuration = SignedDuration::from_hours(1);
/// Who closes without an alert may have had another reason, and is no alarm before so many.
const SILENT: u64 = 3;

#[derive(Default)]
pub struct Distrust(Mutex<BTreeMap<String, OfAgent>>);

#[derive(Default)]
struct OfAgent {
    by_program: BTreeMap<(String, String), Failures>,
    others: u64,
}

#[derive(Default)]
struct Failures {
    count: u64,
    alert: Option<String>,
    last: Timestamp,
}

impl Distrust {
    /// Counts those among `entries`. The alarms that were none before are in the daemon's log.
    pub(super) fn note(&self, entries: &[DecisionEntry], now: Timestamp) {
        let those = entries.iter().filter(|entry| {
            entry.draft.reason == Some(DenyReason::ClientTls)
                && entry.draft.outcome == Outcome::Error
        });
        for entry in those {
            let alarm = {
                let mut agents = lock(&self.0);
                let agent = agents.entry(entry.agent.clone()).or_default();
                agent.note(entry, now)
            };
            if let Some(alarm) = alarm {
                tracing::warn!("{alarm}");
            }
        }
    }

    pub(crate) fn alarms(&self, now: Timestamp) -> Vec<Alarm> {
        let agents = lock(&self.0);
        let all = agents.iter().flat_map(|(agent, of)| {
            let recent = of.by_program.iter().filter(|(_, it)| it.is_alarm(now));
            recent.map(|(key, failures)| failures.alarm(agent, key))
        });
        all.collect()
    }

    pub(crate) fn views(&self) -> Vec<DistrustView> {
        let agents = lock(&self.0);
        let mut views = Vec::new();
        for (agent, of) in agents.iter() {
            let view =
                |key: Option<&(String, String)>, count, failures: Option<&Failures>| DistrustView {
                    agent: agent.clone(),
                    program: key.map(|(program, _)| program.clone()),
                    host: key.map(|(_, host)| host.clone()),
                    count,
                    alert: failures.and_then(|it| it.alert.clone()),
                    last: failures.map(|it| it.last),
                    remedy: DenyReason::ClientTls.turn().to_owned(),
                };
            let each = of.by_program.iter();
            views.extend(each.map(|(key, it)| view(Some(key), it.count, Some(it))));
            views.extend((of.others > 0).then(|| view(None, of.others, None)));
        }
        views
    }
}

impl OfAgent {
    /// The alarm, if it was none before.
    fn note(&mut self, entry: &DecisionEntry, now: Timestamp) -> Option<Alarm> {
        let program = entry.process.as_ref().map(|it| it.exe.as_str());
        let program = program.unwrap_or("(unknown)").to_owned();
        let key = (program, entry.draft.resource.clone());
        if !self.by_program.contains_key(&key) && !self.make_room(now) {
            self.others += 1;
            return None;
        }
        let failures = self.by_program.entry(key.clone()).or_default();
        let was_alarm = failures.is_alarm(now);
        failures.count += 1;
        let alert = entry.draft.facts.get(TLS_ALERT).cloned();
        failures.alert = alert.or(failures.alert.take());
        failures.last = Timestamp::from_microsecond(entry.draft.time_us).unwrap_or(now);
        let is_alarm = failures.is_alarm(now);
        (is_alarm && !was_alarm).then(|| failures.alarm(&entry.agent, &key))
    }

    /// Whether there is room for one more; for it the one goes that has not failed for longest, if it is no alarm any more.
    fn make_room(&mut self, now: Timestamp) -> bool {
        if self.by_program.len() < KEPT {
            return true;
        }
        let old = self.by_program.iter().min_by_key(|(_, it)| it.last);
        let old = old.filter(|(_, it)| !it.is_recent(now));
        let Some(key) = old.map(|(key, _)| key.clone()) else {
            return false;
        };
        let gone = self.by_program.remove(&key);
        self.others += gone.map_or(0, |it| it.count);
        true
    }
}

impl Failures {
    fn is_recent(&self, now: Timestamp) -> bool {
        now.duration_since(self.last) < RECENT
    }

    fn is_alarm(&self, now: Timestamp) -> bool {
        (self.alert.is_some() || self.count >= SILENT) && self.is_recent(now)
    }

    fn alarm(&self, agent: &str, (program, host): &(String, String)) -> Alarm {
        Alarm::ClientTls {
            agent: agent.to_owned(),
            program: program.clone(),
            host: host.clone(),
            alert: self.alert.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use agentguard_common::abi::AgentId;
    use agentguard_record::{Draft, Process};

    use super::*;

    fn failed(program: &str, host: &str, alert: Option<&str>, at: Timestamp) -> DecisionEntry {
        let facts = alert.map(|alert| (TLS_ALERT.to_owned(), alert.to_owned()));
        DecisionEntry {
            draft: Draft {
                time_us: at.as_microsecond(),
                resource: host.into(),
                reason: Some(DenyReason::ClientTls),
                facts: facts.into_iter().collect(),
                ..Draft::blank(AgentId(2))
            },
            agent: "probe".into(),
            owner: None,
            task: None,
            process: Some(Process {
                exe: program.into(),
                ..Process::default()
            }),
            bundle: None,
        }
    }

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_second(hours * 3600).unwrap()
    }

    #[test]
    fn an_alarm_is_by_program_and_host_and_goes_after_an_hour() {
        let distrust = Distrust::default();
        let said = |program, host| failed(program, host, Some("unknown_ca"), at(5));
        distrust.note(&[said("/curl", "a:443"), said("/curl", "a:443")], at(5));
        distrust.note(&[said("/curl", "b:443"), said("/java", "a:443")], at(5));
        assert_eq!(distrust.alarms(at(5)).len(), 3);
        assert_eq!(distrust.views()[0].count, 2);
        assert_eq!(distrust.alarms(at(6)), []);
        assert_eq!(distrust.views().len(), 3, "they stay counted");
    }

    #[test]
    fn a_close_without_an_alert_is_an_alarm_when_it_comes_again() {
        let distrust = Distrust::default();
        let silent = || failed("/node", "a:443", None, at(5));
        distrust.note(&[silent(), silent()], at(5));
        assert_eq!(distrust.alarms(at(5)), []);
        distrust.note(&[silent()], at(5));
        assert_eq!(distrust.alarms(at(5)).len(), 1);
    }

    #[test]
    fn one_agent_has_its_room_and_no_more() {
        let distrust = Distrust::default();
        let of =
            |n: usize, hour| failed("/x", &format!("{n:02}:443"), Some("unknown_ca"), at(hour));
        let many: Vec<_> = (0..KEPT + 5).map(|n| of(n, 5)).collect();
        distrust.note(&many, at(5));
        let others = |distrust: &Distrust| {
            let views = distrust.views();
            assert_eq!(views.len(), KEPT + 1);
            let last = views.last().map(|it| (it.count, it.host.clone()));
            last.expect("the others'")
        };
        assert_eq!(others(&distrust), (5, None));
        assert_eq!(distrust.alarms(at(5)).len(), KEPT);
        distrust.note(&[of(KEPT, 7)], at(7));
        assert_eq!(others(&distrust), (6, None), "the oldest has gone to them");
        assert_eq!(distrust.alarms(at(7)).len(), 1);
    }
}
