//! `cargo xtask fuzz`: the targets of `tests/fuzz`, for as long as is wanted.

use std::os::unix::process::CommandExt;

use anyhow::Context;

use crate::setup::{self, Need};
use crate::shell;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this target
    #[arg(value_parser = ["path", "shorthand", "body", "bundle"])]
    target: Option<String>,
    /// How long, each target
    #[arg(long, default_value_t = 3600)]
    seconds: u64,
}

/// Becomes cargo's test runner. An input that fails is kept in a file, which is named.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    setup::run(Need::Build)?;
    let mut cargo = shell::cargo();
    cargo
        .args(["test", "--release", "--package", "agentguard-tests"])
        .args(["--test", "fuzz", "--", "--nocapture", "--exact"])
        .args(&args.target)
        .env("AGENTGUARD_FUZZ_SECONDS", args.seconds.to_string());
    Err(cargo.exec()).context("cannot run `cargo test`")
}
