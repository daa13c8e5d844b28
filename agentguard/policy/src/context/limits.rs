//! `context.limits`: which limits have room. Whether one has is known when it is charged, after the decision.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::RestrictedExpression;
use serde::{Deserialize, Serialize};

use super::ActFacts;
use super::attribute::{Attribute, Surrounding, set};
use crate::bundle::ParsedBundle;
use crate::diagnostic::{Report, did_you_mean};
use crate::host::show;
use crate::parse::{Located, Table};
use crate::replay::{RecordedAct, ReplayGap};
use crate::time::Calendar;

/// Limits that are known to have no room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExhaustedLimits {
    /// Ids of their rules.
    pub ids: BTreeSet<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct AskedLimits {
    /// Ids of limits that are taken to have no room.
    pub exhausted: BTreeSet<String>,
}

impl Attribute for ExhaustedLimits {
    const NAME: &'static str = "limits";
    const CEDAR: &'static str = "Set<String>";
    const CONNECT: bool = true;
    const DOC: &'static str = "Ids of the limits that have room.";
    const FACTS: &'static [&'static str] = &["limit.RULE"];
    const KEYS: &'static [(&'static str, &'static str)] =
        &[("exhausted", "a list of ids of limits that have no room")];

    fn cedar(facts: &ActFacts<'_>) -> RestrictedExpression {
        set(facts.limits.iter().map(String::as_str))
    }
}

impl Surrounding for ExhaustedLimits {
    const ALWAYS: bool = true;
    type Asked = AskedLimits;

    /// What was charged is recorded once the charges have been answered.
    fn facts(&self, _facts: &mut BTreeMap<String, String>) {}

    fn recall(record: &RecordedAct<'_>, _: Option<&Calendar>) -> Result<Option<Self>, ReplayGap> {
        let ids = record.exhausted.iter().cloned().collect();
        Ok(Some(Self { ids }))
    }

    fn case(table: &Table<'_>, report: &mut Report<'_>) -> Option<AskedLimits> {
        let ids = table.strings(report, "exhausted");
        Some(AskedLimits {
            exhausted: ids.into_iter().map(|id| id.value).collect(),
        })
    }

    fn check(
        asked: &AskedLimits,
        texts: &[Located<String>],
        bundle: &ParsedBundle,
        report: &mut Report<'_>,
    ) {
        let limits = || bundle.rules.iter().filter(|rule| rule.limit.is_some());
        for id in texts
            .iter()
            .filter(|id| asked.exhausted.contains(&id.value))
        {
            if !limits().any(|rule| rule.id == id.value) {
                let shown = show(&id.value);
                let help = did_you_mean(&id.value, limits().map(|rule| rule.id.as_str()));
                report.error_with(id.at, format!("the bundle has no limit `{shown}`"), help);
            }
        }
    }

    fn assumed(asked: &AskedLimits, _: Option<&Calendar>) -> Result<Option<Self>, String> {
        let ids = asked.exhausted.clone();
        Ok(Some(Self { ids }))
    }
}

#[cfg(test)]
impl super::tests::Sample for ExhaustedLimits {
    const CASE: &'static str = "exhausted = [\"rate\"]";

    fn any() -> proptest::strategy::BoxedStrategy<Self> {
        use proptest::prelude::*;
        proptest::collection::btree_set("rate|day|month", 0..3)
            .prop_map(|ids| Self { ids })
            .boxed()
    }
}
