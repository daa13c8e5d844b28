//! `cargo xtask lint`: what must hold before a change is looked at.

use crate::setup::{self, Need};
use crate::shell::{self, cargo};

pub fn run() -> anyhow::Result<()> {
    setup::run(Need::Lint)?;
    shell::run(cargo().args(["fmt", "--all", "--check"]))?;
    // The shipped profile: build scripts and macros are then shared with the build that follows.
    shell::run(cargo().args([
        "clippy",
        "--release",
        "--workspace",
        "--exclude",
        "agentguard-ebpf",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]))?;
    // Advisories need a database from the network; README says how to check them.
    shell::run(cargo().args([
        "deny",
        "--workspace",
        "check",
        "bans",
        "licenses",
        "sources",
    ]))
}
