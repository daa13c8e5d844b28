//! `cargo xtask bench`: AgentGuard beside no proxy at all (`direct`) and beside nginx doing the same job, in one run.
//!
//! One load generator (this program again, as `load`) drives all subjects with the same code, one after the other in
//! every round, so that what drifts on the machine drifts for all of them. Figures are medians over the rounds; ratios
//! are medians of the rounds' own ratios. Nothing here asserts: the exit status says only whether the bench could run.

mod accounts;
mod awake;
mod goals;
mod load;
mod measure;
mod place;
mod programs;
mod report;
mod subject;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "bench",
    about = "Measures AgentGuard beside direct connections and nginx"
)]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    options: measure::Options,
    /// Given by `cargo bench`; without meaning here
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Role {
    /// The load generator: one JSON command a line on stdin, one JSON answer a line on stdout
    #[command(hide = true)]
    Load(load::Target),
    /// Keeps one CPU from halting
    #[command(hide = true)]
    Awake { cpu: usize },
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    match args.role {
        Some(Role::Load(target)) => load::serve(target),
        Some(Role::Awake { cpu }) => awake::spin(cpu),
        None => measure::run(&args.options),
    }
}
