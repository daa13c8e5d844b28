//! `tests/vm/kernels.toml`: which kernels are tried, with what, and what is known to be different on each.

use anyhow::Context;
use serde::Deserialize;

use crate::shell;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    /// The kernel that `cargo xtask test` boots.
    pub default: String,
    /// Test programs, or `PROGRAM::FILTER`, in the order of running.
    pub tests: Vec<String>,
    /// Of a fork bomb, on an emulated processor.
    pub processes: u32,
    #[serde(rename = "kernel")]
    pub kernels: Vec<Kernel>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kernel {
    pub name: String,
    /// Of Debian; the newest kernel among them is taken.
    pub suites: Vec<String>,
    /// Whether `bpf` is among the active security modules. What boots must agree.
    pub lsm: bool,
    /// Words for the kernel's command line.
    #[serde(default)]
    pub parameters: Vec<String>,
    /// Why `--all` may do without it where it cannot be fetched.
    pub optional: Option<String>,
    /// In the place of the table's own.
    pub tests: Option<Vec<String>>,
    #[serde(default)]
    pub differs: Vec<Difference>,
}

/// A test that does not pass there.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Difference {
    /// `program::module::name`
    pub test: String,
    /// Words that its failure says. Without, the test is ignored there.
    pub fails: Option<String>,
    pub because: String,
}

impl Table {
    pub(super) fn read() -> anyhow::Result<Self> {
        let path = shell::root().join("tests/vm/kernels.toml");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("cannot use {}", path.display()))
    }

    pub(super) fn kernel(&self, name: &str) -> anyhow::Result<&Kernel> {
        self.kernels
            .iter()
            .find(|kernel| kernel.name == name)
            .with_context(|| {
                let names: Vec<&str> = self
                    .kernels
                    .iter()
                    .map(|kernel| kernel.name.as_str())
                    .collect();
                format!(
                    "no kernel `{name}` in tests/vm/kernels.toml; there are {}",
                    names.join(", ")
                )
            })
    }

    /// What of the test program `name` runs on `kernel`: what the table says, narrowed to what is `wanted`, if anything is.
    /// Both are lists of `PROGRAM` or `PROGRAM::FILTER`.
    pub(super) fn part<'a>(
        &'a self,
        kernel: &'a Kernel,
        name: &str,
        wanted: &'a [String],
    ) -> Option<Part<'a>> {
        let listed = kernel.tests.as_ref().unwrap_or(&self.tests);
        let place = listed.iter().position(|test| program(test).0 == name)?;
        let listed = filters(listed, name);
        if wanted.is_empty() {
            return Some(Part::new(place, listed));
        }
        let wanted = filters(wanted, name);
        let both: Vec<&str> = listed
            .iter()
            .flat_map(|listed| wanted.iter().filter_map(|wanted| narrower(listed, wanted)))
            .collect();
        (!both.is_empty()).then(|| Part::new(place, both))
    }
}

/// What of a test program runs.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Part<'a> {
    /// Where in the order.
    place: usize,
    /// For its runner; none for all of it.
    pub filters: Vec<&'a str>,
}

impl<'a> Part<'a> {
    fn new(place: usize, mut filters: Vec<&'a str>) -> Self {
        if filters.contains(&"") {
            filters.clear();
        }
        Self { place, filters }
    }
}

/// A test program and the filter for its runner, which is empty for all of it.
fn program(test: &str) -> (&str, &str) {
    test.split_once("::").unwrap_or((test, ""))
}

fn filters<'a>(tests: &'a [String], name: &str) -> Vec<&'a str> {
    let named = tests.iter().map(|test| program(test));
    named
        .filter_map(|(program, filter)| (program == name).then_some(filter))
        .collect()
}

/// The one of two filters that begins with the other.
fn narrower<'a>(one: &'a str, other: &'a str) -> Option<&'a str> {
    if other.starts_with(one) {
        return Some(other);
    }
    one.starts_with(other).then_some(one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_runs_where_the_table_has_it() {
        let table: Table = toml::from_str(
            "default = 'new'\ntests = ['kernel', 'bypass']\nprocesses = 1
            [[kernel]]\nname = 'new'\nsuites = []\nlsm = true
            [[kernel]]\nname = 'old'\nsuites = []\nlsm = false\ntests = ['kernel::shapes::']",
        )
        .unwrap();
        let filters = |kernel: &str, program: &str, wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
            let part = table.part(table.kernel(kernel).unwrap(), program, &wanted)?;
            Some(part.filters.join(" "))
        };
        assert_eq!(filters("new", "kernel", &[]).as_deref(), Some(""));
        assert_eq!(filters("new", "path", &[]), None);
        assert_eq!(filters("new", "kernel", &["bypass"]), None);
        let two = ["kernel::exec", "kernel::kill", "bypass::dns"];
        assert_eq!(filters("new", "kernel", &two).as_deref(), Some("exec kill"));
        let all = ["kernel::exec", "kernel"];
        assert_eq!(filters("new", "kernel", &all).as_deref(), Some(""));
        assert_eq!(filters("old", "kernel", &[]).as_deref(), Some("shapes::"));
        assert_eq!(
            filters("old", "kernel", &["kernel"]).as_deref(),
            Some("shapes::")
        );
        assert_eq!(filters("old", "kernel", &["kernel::exec"]), None);
        assert_eq!(
            filters("old", "kernel", &["kernel::shapes::every"]).as_deref(),
            Some("shapes::every")
        );
    }
}
