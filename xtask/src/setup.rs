//! `cargo xtask setup`: installs what is missing, each with its reason. Run twice, it installs nothing the second time.

mod debian;
mod packages;

use anyhow::Context;

use crate::shell::{self, command};

/// How much has to be there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Need {
    Build,
    Docs,
    Lint,
    Demo,
    Tests,
    /// Tests, on kernels under QEMU too.
    Machines,
}

/// Loads the pinned toolchain's own LLVM 22; later versions need a separately built LLVM.
const BPF_LINKER: &str = "0.10.3";
const CARGO_DENY: &str = "0.20.2";
const MDBOOK: &str = "0.5.4";

pub(crate) fn run(need: Need) -> anyhow::Result<()> {
    components()?;
    debian::install(need)?;
    cargo_tool("bpf-linker", BPF_LINKER, "links the eBPF programs")?;
    if need == Need::Lint {
        cargo_tool(
            "cargo-deny",
            CARGO_DENY,
            "checks the dependencies' licences, sources and bans",
        )?;
    }
    if need == Need::Docs {
        cargo_tool("mdbook", MDBOOK, "renders the book")?;
    }
    if need >= Need::Tests {
        packages::install()?;
    }
    Ok(())
}

/// The components that `rust-toolchain.toml` names: rustup does not add a pin's components by itself everywhere.
fn components() -> anyhow::Result<()> {
    let installed = shell::output(
        command("rustup", ["component", "list", "--installed"]).current_dir(shell::root()),
    )
    .context("rustup is not there: install it as https://rustup.rs says")?;
    let wanted = [
        (
            "rust-src",
            "the eBPF target's core library is built from source",
        ),
        ("clippy", "lint"),
        ("rustfmt", "lint"),
    ];
    for (component, why) in wanted {
        if installed.lines().any(|line| line.starts_with(component)) {
            continue;
        }
        announce(component, why);
        shell::run(command("rustup", ["component", "add", component]).current_dir(shell::root()))?;
    }
    Ok(())
}

fn cargo_tool(name: &str, version: &str, why: &str) -> anyhow::Result<()> {
    let there = shell::output(&mut command(name, ["--version"]));
    if there.is_some_and(|line| line.split_whitespace().any(|word| word == version)) {
        return Ok(());
    }
    announce(&format!("{name} {version}"), why);
    shell::run(shell::cargo().args(["install", name, "--version", version, "--locked"]))
}

fn announce(what: &str, why: &str) {
    println!("installing {what}: {why}");
}
