//! `cargo xtask demo`: the release binary doing its main job, told in plain words.

use std::os::unix::process::CommandExt;

use anyhow::{Context, bail};

use crate::setup::{self, Need};
use crate::{build, shell};

/// Becomes the demo, which undoes all that it makes.
pub(crate) fn run() -> anyhow::Result<()> {
    if !shell::is_root() {
        bail!("the demo loads eBPF programs: run `cargo xtask demo` as root");
    }
    setup::run(Need::Demo)?;
    let binary = build::run()?;
    let mut cargo = shell::cargo();
    cargo
        .args([
            "run",
            "--quiet",
            "--release",
            "--package",
            "agentguard-tests",
            "--bin",
            "demo",
        ])
        .env("AGENTGUARD_BIN", binary);
    Err(cargo.exec()).context("cannot run the demo")
}
