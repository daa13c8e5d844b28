//! `tests/vm/instructions.toml`: how many instructions the verifier went through for each program on each kernel. Growth
//! shows there long before a program is refused, or costs what nobody measured.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::outcome::Tests;
use crate::shell;

/// The test that tells, and how its lines begin.
const TELLS: &str = "kernel::shapes::every_shape_loads";
const LINE: &str = "verified ";
const HEADER: &str = "# Instructions that the verifier goes through, by kernel and program. More than 10 % growth fails `cargo xtask test vm`;
# `--bless` records what is.

";

#[derive(Serialize, Deserialize, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(super) struct Measured {
    /// The kernel that was measured; a newer one may count otherwise.
    release: String,
    programs: BTreeMap<String, u32>,
}

impl Measured {
    /// `None` where no program loads.
    pub(super) fn of(release: &str, tests: &Tests) -> Option<Self> {
        let programs: BTreeMap<String, u32> = tests
            .get(TELLS)?
            .output
            .lines()
            .filter_map(|line| line.strip_prefix(LINE)?.split_once(' '))
            .filter_map(|(program, count)| Some((program.to_owned(), count.parse().ok()?)))
            .collect();
        (!programs.is_empty()).then(|| Self {
            release: release.to_owned(),
            programs,
        })
    }

    /// What has grown by more than a tenth, is new or is gone since `self` was recorded.
    fn surprises(&self, now: &Self) -> Vec<String> {
        let mut surprises = Vec::new();
        for (program, count) in &now.programs {
            match self.programs.get(program) {
                Some(recorded) if u64::from(*count) * 10 > u64::from(*recorded) * 11 => surprises.push(format!(
                    "{program} has grown by {:.0} %, from {recorded} verified instructions to {count}",
                    (f64::from(*count) / f64::from(*recorded) - 1.0) * 100.0
                )),
                Some(_) => {}
                None => surprises.push(format!("{program} is not recorded: {count} verified instructions")),
            }
        }
        let gone = self
            .programs
            .keys()
            .filter(|program| !now.programs.contains_key(*program));
        surprises.extend(gone.map(|program| format!("{program} is recorded, and not loaded")));
        surprises
    }
}

pub(super) struct Records(BTreeMap<String, Measured>);

impl Records {
    pub(super) fn read() -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path())
            .with_context(|| format!("cannot read {}", path().display()))?;
        let records =
            toml::from_str(&text).with_context(|| format!("cannot use {}", path().display()))?;
        Ok(Self(records))
    }

    pub(super) fn surprises(&self, kernel: &str, now: Option<&Measured>) -> Vec<String> {
        match (self.0.get(kernel), now) {
            (Some(recorded), Some(now)) => recorded.surprises(now),
            (None, Some(_)) => vec![format!("no instruction counts are recorded for {kernel}")],
            (Some(_), None) => vec!["no instruction counts were told".into()],
            (None, None) => Vec::new(),
        }
    }

    pub(super) fn bless(&mut self, kernel: &str, now: &Measured) -> anyhow::Result<()> {
        self.0.insert(kernel.to_owned(), now.clone());
        let text = toml::to_string(&self.0)?;
        std::fs::write(path(), format!("{HEADER}{text}"))
            .with_context(|| format!("cannot write {}", path().display()))
    }
}

fn path() -> PathBuf {
    shell::root().join("tests/vm/instructions.toml")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(programs: &[(&str, u32)]) -> Measured {
        Measured {
            release: "6.1".into(),
            programs: programs
                .iter()
                .map(|(name, count)| ((*name).to_owned(), *count))
                .collect(),
        }
    }

    #[test]
    fn growth_beyond_a_tenth_is_told_with_its_numbers() {
        let recorded = measured(&[("a", 1000), ("b", 1000), ("gone", 5)]);
        let now = measured(&[("a", 1100), ("b", 1101), ("new", 7)]);
        let told = recorded.surprises(&now);
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(
            told[0].contains("b has grown by 10 %, from 1000"),
            "{told:?}"
        );
        assert!(
            told[1].contains("new") && told[2].contains("gone"),
            "{told:?}"
        );
    }
}
