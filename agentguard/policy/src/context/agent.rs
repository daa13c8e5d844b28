//! `context.agent`: how the agent is up; of the agent that asks, for those that it acts for too.

use std::collections::BTreeMap;

use cedar_policy::RestrictedExpression;
use serde::{Deserialize, Serialize};

use super::attribute::{Attribute, Surrounding, record};
use super::{ActFacts, AttributeName};
use crate::diagnostic::Report;
use crate::parse::Table;
use crate::replay::{RecordedAct, ReplayGap};
use crate::time::Calendar;

const UPTIME: &str = "agent.uptime_s";
const ATTENDED: &str = "agent.attended";

/// How an agent is up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgentSituation {
    /// Seconds since it has had a process, without a moment in which it had none.
    pub uptime_s: u64,
    /// Whether somebody's terminal shows it.
    pub attended: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct AskedAgent {
    /// How long the agent is up, seconds; `None`: it has just started.
    pub uptime_s: Option<u64>,
    /// Whether somebody's terminal shows the agent; `None`: it is not known, and so none does.
    pub attended: Option<bool>,
}

impl Attribute for AgentSituation {
    const NAME: &'static str = "agent";
    const CEDAR: &'static str = "{ uptime_s: Long, attended: Bool }";
    const CONNECT: bool = true;
    const DOC: &'static str = "`uptime_s`: seconds since the agent has had a process, without a moment in which it had none. `attended`: whether somebody who started it is still on a terminal.";
    const FACTS: &'static [&'static str] = &[UPTIME, ATTENDED];
    const KEYS: &'static [(&'static str, &'static str)] =
        &[("uptime_s", "seconds"), ("attended", "`true` or `false`")];
    const MISSING: &'static str =
        "the new rules read how the agent is up, and the old ones did not";

    fn cedar(facts: &ActFacts<'_>) -> RestrictedExpression {
        record(facts.context.agent.map(|agent| {
            let uptime = i64::try_from(agent.uptime_s).unwrap_or(i64::MAX);
            [
                ("uptime_s", RestrictedExpression::new_long(uptime)),
                ("attended", RestrictedExpression::new_bool(agent.attended)),
            ]
        }))
    }
}

impl Surrounding for AgentSituation {
    type Asked = AskedAgent;

    fn facts(&self, facts: &mut BTreeMap<String, String>) {
        facts.insert(UPTIME.into(), self.uptime_s.to_string());
        facts.insert(ATTENDED.into(), self.attended.to_string());
    }

    fn recall(record: &RecordedAct<'_>, _: Option<&Calendar>) -> Result<Option<Self>, ReplayGap> {
        let fact = |name| record.facts.get(name).map(String::as_str);
        let uptime_s = fact(UPTIME).and_then(|text| text.parse().ok());
        let attended = fact(ATTENDED).and_then(|text| text.parse().ok());
        let (uptime_s, attended) = uptime_s
            .zip(attended)
            .ok_or(ReplayGap::Attribute(AttributeName::Agent))?;
        Ok(Some(Self { uptime_s, attended }))
    }

    fn case(table: &Table<'_>, report: &mut Report<'_>) -> Option<AskedAgent> {
        let uptime = table.unsigned(report, "uptime_s");
        let attended = table.boolean(report, "attended");
        Some(AskedAgent {
            uptime_s: uptime.map(|uptime| uptime.value),
            attended: attended.map(|attended| attended.value),
        })
    }

    fn assumed(asked: &AskedAgent, _: Option<&Calendar>) -> Result<Option<Self>, String> {
        Ok(Some(Self {
            uptime_s: asked.uptime_s.unwrap_or(0),
            attended: asked.attended.unwrap_or(false),
        }))
    }
}

#[cfg(test)]
impl super::tests::Sample for AgentSituation {
    const CASE: &'static str = "uptime_s = 90\nattended = true";

    fn any() -> proptest::strategy::BoxedStrategy<Self> {
        use proptest::prelude::*;
        any::<(u64, bool)>()
            .prop_map(|(uptime_s, attended)| Self { uptime_s, attended })
            .boxed()
    }
}
