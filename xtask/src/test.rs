//! `cargo xtask test`: the whole suite against the release binary.

use std::os::unix::process::CommandExt;

use anyhow::{Context, bail};

use crate::setup::{self, Need};
use crate::{build, shell};

#[derive(clap::Args)]
pub struct Args {
    /// Only tests whose name contains this
    filter: Option<String>,
    /// For the test runner: `--nocapture`, `--exact`, …
    #[arg(last = true)]
    runner: Vec<String>,
}

/// Becomes cargo's test runner, so that its last lines are ours.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if !shell::is_root() {
        bail!("the tests load eBPF programs and make namespaces: run `cargo xtask test` as root");
    }
    setup::run(Need::Tests)?;
    let binary = build::run()?;
    let mut cargo = shell::cargo();
    cargo
        .args(["test", "--release", "--workspace"])
        // Neither has tests: the one is for another target, the other runs this.
        .args(["--exclude", "agentguard-ebpf", "--exclude", "xtask"])
        .arg("--no-fail-fast")
        .args(&args.filter)
        .arg("--")
        .args(&args.runner)
        .env("AGENTGUARD_BIN", binary)
        .env("AGENTGUARD_TEST_TOOLS", shell::test_tools());
    Err(cargo.exec()).context("cannot run `cargo test`")
}
