//! `cargo xtask bench`: the release binary, measured beside direct connections and nginx.

use std::os::unix::process::CommandExt;

use anyhow::{Context, bail};

use crate::setup::{self, Need};
use crate::{build, shell};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Fewer and shorter rounds, 64 MiB instead of 1 GiB: for a look, not for a comparison
    #[arg(long)]
    quick: bool,
    /// One JSON object instead of the table
    #[arg(long)]
    json: bool,
    /// Only groups whose name contains this: connect, policies, replay, memory, decide, keep-alive-1, keep-alive-32, http2, connections,
    /// resumed, bulk, events
    filter: Option<String>,
}

/// Becomes the benchmark, so that its last lines are ours.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if !shell::is_root() {
        bail!("the benchmark loads eBPF programs: run `cargo xtask bench` as root");
    }
    setup::run(Need::Tests)?;
    let binary = build::run()?;
    let mut cargo = shell::cargo();
    cargo
        .args(["bench", "--quiet", "--package", "agentguard-tests"])
        .args(["--bench", "product", "--"])
        .args(args.quick.then_some("--quick"))
        .args(args.json.then_some("--json"))
        .args(&args.filter)
        .env("AGENTGUARD_BIN", binary);
    Err(cargo.exec()).context("cannot run `cargo bench`")
}
