//! `context.approvals`: who has approved the act.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::RestrictedExpression;
use serde::{Deserialize, Serialize};

use super::ActFacts;
use super::attribute::{Attribute, Surrounding, set};
use crate::diagnostic::Report;
use crate::parse::Table;
use crate::replay::{RecordedAct, ReplayGap};
use crate::time::Calendar;

/// Who has approved an act.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Approvals {
    /// Roles of people.
    pub roles: BTreeSet<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(default)]
pub struct AskedApprovals {
    /// Roles of the people who are taken to have approved it.
    pub approvals: BTreeSet<String>,
}

impl Attribute for Approvals {
    const NAME: &'static str = "approvals";
    const CEDAR: &'static str = "Set<String>";
    const CONNECT: bool = true;
    const DOC: &'static str = "Roles of the people who have approved it.";
    const FACTS: &'static [&'static str] = &[];
    const KEYS: &'static [(&'static str, &'static str)] = &[("approvals", "a list of roles")];

    fn cedar(facts: &ActFacts<'_>) -> RestrictedExpression {
        set(facts.approvals.iter().map(String::as_str))
    }
}

impl Surrounding for Approvals {
    const ALWAYS: bool = true;
    type Asked = AskedApprovals;

    /// Nobody can approve anything on a host, so there is nothing to record.
    fn facts(&self, _facts: &mut BTreeMap<String, String>) {}

    fn recall(_: &RecordedAct<'_>, _: Option<&Calendar>) -> Result<Option<Self>, ReplayGap> {
        Ok(Some(Self::default()))
    }

    fn case(table: &Table<'_>, report: &mut Report<'_>) -> Option<AskedApprovals> {
        let roles = table.strings(report, "approvals");
        Some(AskedApprovals {
            approvals: roles.into_iter().map(|role| role.value).collect(),
        })
    }

    fn assumed(asked: &AskedApprovals, _: Option<&Calendar>) -> Result<Option<Self>, String> {
        let roles = asked.approvals.clone();
        Ok(Some(Self { roles }))
    }
}

#[cfg(test)]
impl super::tests::Sample for Approvals {
    const CASE: &'static str = "approvals = [\"owner\"]";

    /// No record tells of any.
    fn any() -> proptest::strategy::BoxedStrategy<Self> {
        use proptest::prelude::*;
        Just(Self::default()).boxed()
    }
}
