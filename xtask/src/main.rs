//! `cargo xtask VERB`: builds, tests and checks AgentGuard from a clean clone. One file per verb.

mod bench;
mod build;
mod demo;
mod docs;
mod fuzz;
mod lint;
mod setup;
mod shell;
mod test;
mod vm;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Builds, tests and checks AgentGuard",
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what building and testing need and this machine lacks; says what and why
    Setup,
    /// Build the release binary with its eBPF object
    Build,
    /// The main job on loopback, told in plain words: allowed and refused calls, the kill switch, the audit log (root)
    Demo,
    /// Set up, build, and run every test against the release binary: on a stock kernel with BPF LSM under QEMU, then here
    /// (root: tests load eBPF programs)
    Test(test::Args),
    /// Set up, build, and measure the release binary beside direct connections and nginx (root)
    Bench(bench::Args),
    /// Change inputs of what reads other people's text, until one is treated wrongly or the time is over
    Fuzz(fuzz::Args),
    /// Write the book's pages that the code knows, and render the book
    Docs,
    /// Formatting, clippy without warnings, dependency bans, licences and sources
    Lint,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().verb {
        Verb::Setup => setup::run(setup::Need::Machines).and_then(|()| vm::prepare()),
        Verb::Build => build::run().map(drop),
        Verb::Demo => demo::run(),
        Verb::Test(args) => test::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Fuzz(args) => fuzz::run(&args),
        Verb::Docs => docs::run(),
        Verb::Lint => lint::run(),
    }
}
