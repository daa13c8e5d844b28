//! `context.time`: the moment on the clocks of the bundle's zone.

use std::collections::BTreeMap;

use cedar_policy::RestrictedExpression;
use serde::{Deserialize, Serialize};

use super::ActFacts;
use super::attribute::{Attribute, Surrounding, record, set, text};
use crate::bundle::{NO_ZONE, ParsedBundle};
use crate::diagnostic::Report;
use crate::facts::bounded;
use crate::parse::{Located, Table};
use crate::replay::{RecordedAct, ReplayGap};
use crate::time::{Calendar, Moment};

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct AskedTime {
    /// When, as in `2026-11-23T09:00` in the bundle's zone.
    pub time: Option<String>,
}

impl Attribute for Moment {
    const NAME: &'static str = "time";
    const CEDAR: &'static str =
        "{ hour: Long, minute: Long, weekday: String, date: String, within: Set<String> }";
    const CONNECT: bool = true;
    const DOC: &'static str = "The moment on the clocks of the bundle's zone: `hour` 0 to 23, `minute`, `weekday` `mon` to `sun`, `date` as `2026-11-23`, and `within` the names of the windows that it lies in.";
    const FACTS: &'static [&'static str] = &["time"];
    const KEYS: &'static [(&'static str, &'static str)] =
        &[("time", "a time as `2026-11-23T09:00`")];

    fn cedar(facts: &ActFacts<'_>) -> RestrictedExpression {
        record(facts.context.time.as_ref().map(|moment| {
            [
                ("hour", RestrictedExpression::new_long(moment.hour)),
                ("minute", RestrictedExpression::new_long(moment.minute)),
                ("weekday", text(moment.weekday)),
                ("date", text(&moment.date)),
                ("within", set(moment.within.iter().map(String::as_str))),
            ]
        }))
    }
}

impl Surrounding for Moment {
    type Asked = AskedTime;

    fn facts(&self, facts: &mut BTreeMap<String, String>) {
        facts.insert("time".into(), bounded(&self.text));
    }

    /// That of the decision where its rules read it, which may have waited for a body, or else that of the request.
    fn recall(
        record: &RecordedAct<'_>,
        calendar: Option<&Calendar>,
    ) -> Result<Option<Self>, ReplayGap> {
        let time = match record.facts.get("time") {
            Some(text) => text.parse().map_err(|_| ReplayGap::Request)?,
            None => record.time,
        };
        Ok(calendar.map(|calendar| calendar.at(time)))
    }

    fn case(table: &Table<'_>, report: &mut Report<'_>) -> Option<AskedTime> {
        let time = table.string(report, "time");
        Some(AskedTime {
            time: time.map(|time| time.value),
        })
    }

    fn check(
        asked: &AskedTime,
        texts: &[Located<String>],
        bundle: &ParsedBundle,
        report: &mut Report<'_>,
    ) {
        let asked = asked.time.as_ref();
        for time in texts.iter().filter(|time| asked == Some(&time.value)) {
            let calendar = bundle.calendar.as_ref();
            match calendar.map(|calendar| calendar.read(&time.value)) {
                Some(Ok(_)) => {}
                Some(Err(why)) => report.error(time.at, why),
                None => report.error_help(time.at, "`time` needs a zone in bundle.toml", NO_ZONE),
            }
        }
    }

    /// Without a calendar the time is not looked at.
    fn assumed(asked: &AskedTime, calendar: Option<&Calendar>) -> Result<Option<Self>, String> {
        let time = asked.time.as_ref().zip(calendar);
        time.map(|(time, calendar)| calendar.read(time)).transpose()
    }
}

#[cfg(test)]
impl super::tests::Sample for Moment {
    const CASE: &'static str = "time = \"2026-11-23T09:00\"";

    fn any() -> proptest::strategy::BoxedStrategy<Self> {
        use proptest::prelude::*;
        // From 1970 to 2286, to the nanosecond.
        (0..10_000_000_000_i64, 0..1_000_000_000_i32)
            .prop_map(|(second, nanosecond)| {
                let at = jiff::Timestamp::new(second, nanosecond).unwrap();
                super::tests::calendar().at(at)
            })
            .boxed()
    }
}
