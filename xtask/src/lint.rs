//! `cargo xtask lint`: what must hold before a change is looked at.

mod sizes;
mod walls;

use crate::setup::{self, Need};
use crate::shell::{self, cargo};

pub(crate) fn run() -> anyhow::Result<()> {
    setup::run(Need::Lint)?;
    shell::run(cargo().args(["fmt", "--all", "--check"]))?;
    sizes::check()?;
    walls::check()?;
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
    ebpf()?;
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

/// Clippy on the eBPF programs, for their own target and as `agentguard/kernel/build.rs` configures them.
fn ebpf() -> anyhow::Result<()> {
    let arch = std::env::consts::ARCH;
    shell::run(
        cargo()
            .args(["clippy", "--release", "--package", "agentguard-ebpf"])
            .args(["--target", "bpfel-unknown-none", "-Zbuild-std=core"])
            // Some build scripts look at RUSTC_BOOTSTRAP: in one folder, each lint and each build would undo the other's work.
            .arg("--target-dir")
            .arg(shell::target().join("ebpf-lint"))
            .args(["--", "--deny", "warnings"])
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTFLAGS", format!("--cfg=bpf_target_arch=\"{arch}\"")),
    )
}
