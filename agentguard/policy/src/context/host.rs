//! `context.host`: the labels of the host that the agent runs on.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::RestrictedExpression;
use serde::{Deserialize, Serialize};

use super::attribute::{Attribute, Surrounding, record, set};
use super::{ActFacts, AttributeName};
use crate::diagnostic::Report;
use crate::facts::bounded;
use crate::parse::Table;
use crate::replay::{RecordedAct, ReplayGap};
use crate::time::Calendar;

const LABELS: &str = "host.labels";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostLabels {
    pub labels: BTreeSet<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct AskedHost {
    /// The host's labels.
    pub host_labels: BTreeSet<String>,
}

impl Attribute for HostLabels {
    const NAME: &'static str = "host";
    const CEDAR: &'static str = "{ labels: Set<String> }";
    const CONNECT: bool = true;
    const DOC: &'static str = "`labels`: those of the host that the agent runs on.";
    const FACTS: &'static [&'static str] = &[LABELS];
    const KEYS: &'static [(&'static str, &'static str)] = &[("host_labels", "a list of labels")];
    const MISSING: &'static str =
        "the new rules read the host's labels, which the record does not tell";

    fn cedar(facts: &ActFacts<'_>) -> RestrictedExpression {
        let host = facts.context.host.as_ref();
        record(host.map(|host| [("labels", set(host.labels.iter().map(String::as_str)))]))
    }
}

impl Surrounding for HostLabels {
    type Asked = AskedHost;

    fn facts(&self, facts: &mut BTreeMap<String, String>) {
        let labels: Vec<&str> = self.labels.iter().map(String::as_str).collect();
        facts.insert(LABELS.into(), bounded(&labels.join(", ")));
    }

    fn recall(record: &RecordedAct<'_>, _: Option<&Calendar>) -> Result<Option<Self>, ReplayGap> {
        let labels = match record.facts.get(LABELS).map(String::as_str) {
            // A label with a comma in it looks like two.
            Some(labels) if !labels.contains(',') => labels,
            None | Some(_) => return Err(ReplayGap::Attribute(AttributeName::Host)),
        };
        ReplayGap::unless_whole(labels)?;
        let labels = match labels {
            "" => BTreeSet::new(),
            label => [label.to_owned()].into(),
        };
        Ok(Some(Self { labels }))
    }

    fn case(table: &Table<'_>, report: &mut Report<'_>) -> Option<AskedHost> {
        let labels = table.strings(report, "host_labels");
        Some(AskedHost {
            host_labels: labels.into_iter().map(|label| label.value).collect(),
        })
    }

    fn assumed(asked: &AskedHost, _: Option<&Calendar>) -> Result<Option<Self>, String> {
        let labels = asked.host_labels.clone();
        Ok(Some(Self { labels }))
    }
}

#[cfg(test)]
impl super::tests::Sample for HostLabels {
    const CASE: &'static str = "host_labels = [\"prod\"]";

    fn any() -> proptest::strategy::BoxedStrategy<Self> {
        use proptest::prelude::*;
        proptest::collection::btree_set("[a-z]{1,300}|[a-c,]{1,3}", 0..3)
            .prop_map(|labels| Self { labels })
            .boxed()
    }

    fn is_told(&self) -> bool {
        let told = |label: &String| !label.contains(',') && label.len() <= crate::facts::MAX_VALUE;
        self.labels.len() < 2 && self.labels.iter().all(told)
    }
}
