//! `tests/vm/kernels.toml`: which kernels are tried, with what, and what is known to be different on each.

use anyhow::Context;
use serde::Deserialize;

use crate::shell;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// The kernel that `cargo xtask test` boots.
    pub default: String,
    /// Names of test programs, in the order of running; `*` at the end stands for anything.
    pub tests: Vec<String>,
    /// Of a fork bomb, on an emulated processor.
    pub processes: u32,
    #[serde(rename = "kernel")]
    pub kernels: Vec<Kernel>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
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
pub struct Difference {
    /// `program::module::name`
    pub test: String,
    /// Words that its failure says. Without, the test is ignored there.
    pub fails: Option<String>,
    pub because: String,
}

impl Table {
    pub fn read() -> anyhow::Result<Self> {
        let path = shell::root().join("tests/vm/kernels.toml");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("cannot use {}", path.display()))
    }

    pub fn kernel(&self, name: &str) -> anyhow::Result<&Kernel> {
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

    /// Where in the order the test program `name` runs on `kernel`, if it does.
    pub fn place(&self, kernel: &Kernel, name: &str) -> Option<usize> {
        let tests = kernel.tests.as_ref().unwrap_or(&self.tests);
        tests.iter().position(|test| names(test, name))
    }
}

/// Whether the test program `name` is meant by a name that may end in `*`.
pub fn names(test: &str, name: &str) -> bool {
    match test.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == test,
    }
}
