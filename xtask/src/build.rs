//! `cargo xtask build`: the release binary, which carries its eBPF object.

use std::path::PathBuf;

use crate::setup::{self, Need};
use crate::shell;

/// Returns the binary's path.
pub(crate) fn run() -> anyhow::Result<PathBuf> {
    setup::run(Need::Build)?;
    shell::run(shell::cargo().args(["build", "--release", "--package", "agentguard"]))?;
    let binary = shell::target().join("release/agentguard");
    println!("built {}", binary.display());
    Ok(binary)
}
