//! `context.network`: whether the host is on a network that its configuration trusts.

use std::collections::BTreeMap;

use cedar_policy::RestrictedExpression;
use serde::{Deserialize, Serialize};

use super::attribute::{Attribute, Surrounding, record};
use super::{ActFacts, AttributeName};
use crate::diagnostic::Report;
use crate::parse::Table;
use crate::replay::{RecordedAct, ReplayGap};
use crate::time::Calendar;

const TRUSTED: &str = "network.trusted";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetworkTrust {
    pub trusted: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct AskedNetwork {
    /// Whether from a trusted network; `None`: it is not known, and so not trusted.
    pub trusted_network: Option<bool>,
}

impl Attribute for NetworkTrust {
    const NAME: &'static str = "network";
    const CEDAR: &'static str = "{ trusted: Bool }";
    const CONNECT: bool = true;
    const DOC: &'static str =
        "`trusted`: whether the host is on a network that its configuration trusts.";
    const FACTS: &'static [&'static str] = &[TRUSTED];
    const KEYS: &'static [(&'static str, &'static str)] =
        &[("network", "`trusted` or `untrusted`")];
    const MISSING: &'static str = "the new rules read the network, and the old ones did not";

    fn cedar(facts: &ActFacts<'_>) -> RestrictedExpression {
        let network = facts.context.network;
        record(
            network.map(|network| [("trusted", RestrictedExpression::new_bool(network.trusted))]),
        )
    }
}

impl Surrounding for NetworkTrust {
    type Asked = AskedNetwork;

    fn facts(&self, facts: &mut BTreeMap<String, String>) {
        facts.insert(TRUSTED.into(), self.trusted.to_string());
    }

    fn recall(record: &RecordedAct<'_>, _: Option<&Calendar>) -> Result<Option<Self>, ReplayGap> {
        let trusted = record.facts.get(TRUSTED).and_then(|is| is.parse().ok());
        let trusted = trusted.ok_or(ReplayGap::Attribute(AttributeName::Network))?;
        Ok(Some(Self { trusted }))
    }

    fn case(table: &Table<'_>, report: &mut Report<'_>) -> Option<AskedNetwork> {
        let network = table.choice(report, "network", &["trusted", "untrusted"]);
        Some(AskedNetwork {
            trusted_network: network.map(|network| network.value == "trusted"),
        })
    }

    fn assumed(asked: &AskedNetwork, _: Option<&Calendar>) -> Result<Option<Self>, String> {
        let trusted = asked.trusted_network.unwrap_or(false);
        Ok(Some(Self { trusted }))
    }
}

#[cfg(test)]
impl super::tests::Sample for NetworkTrust {
    const CASE: &'static str = "network = \"trusted\"";

    fn any() -> proptest::strategy::BoxedStrategy<Self> {
        use proptest::prelude::*;
        any::<bool>().prop_map(|trusted| Self { trusted }).boxed()
    }
}
