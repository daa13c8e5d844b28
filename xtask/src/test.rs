//! `cargo xtask test`: the whole suite against the release binary, on one kernel with BPF LSM first, then here.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde::Deserialize;

use crate::setup::{self, Need};
use crate::{build, shell, vm};

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    place: Option<Place>,
    /// Only tests whose name contains this, and only on this machine
    filter: Option<String>,
    /// For the test runner: `--nocapture`, `--exact`, …
    #[arg(last = true)]
    runner: Vec<String>,
}

#[derive(clap::Subcommand)]
enum Place {
    /// Boot stock Debian kernels under QEMU and run the kernel and bypass suites there
    Vm(vm::Args),
}

/// Becomes cargo's test runner, so that its last lines are ours.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if !shell::is_root() {
        bail!("the tests load eBPF programs and make namespaces: run `cargo xtask test` as root");
    }
    if let Some(Place::Vm(args)) = &args.place {
        return vm::run(args);
    }
    setup::run(Need::Tests)?;
    let binary = build::run()?;
    if args.filter.is_none() && args.runner.is_empty() {
        vm::run(&vm::Args::essentials())?;
    }
    let mut cargo = cargo_test(Profile::Release);
    cargo
        .arg("--no-fail-fast")
        .args(&args.filter)
        .arg("--")
        .args(&args.runner)
        .env("AGENTGUARD_BIN", binary)
        .env("AGENTGUARD_TEST_TOOLS", shell::test_tools());
    Err(cargo.exec()).context("cannot run `cargo test`")
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Release,
    Debug,
}

impl Profile {
    /// Builds the binary under test.
    pub(crate) fn agentguard(self) -> anyhow::Result<PathBuf> {
        if self == Self::Release {
            return build::run();
        }
        shell::run(shell::cargo().args(["build", "--package", "agentguard"]))?;
        Ok(shell::target().join("debug/agentguard"))
    }
}

/// The first process of a machine, and each test program that `is_wanted` by its name, all of them built.
pub(crate) fn programs(
    profile: Profile,
    is_wanted: impl Fn(&str) -> bool,
) -> anyhow::Result<(PathBuf, Vec<(String, PathBuf)>)> {
    let mut wanted = Vec::new();
    for entry in std::fs::read_dir(shell::root().join("tests/tests"))? {
        let name = entry?.file_name();
        if is_wanted(&name.to_string_lossy()) {
            wanted.extend(["--test".into(), name]);
        }
    }
    if wanted.is_empty() {
        bail!("no test program of tests/vm/kernels.toml has such a name");
    }
    let mut cargo = cargo_test(profile);
    cargo
        .args(wanted)
        .args(["--no-run", "--message-format", "json-render-diagnostics"])
        .stderr(Stdio::inherit());
    let built = cargo.output().context("cannot run `cargo test --no-run`")?;
    if !built.status.success() {
        bail!("the tests do not build: {}", built.status);
    }
    let mut init = None;
    let mut tests = Vec::new();
    for line in built.stdout.split(|byte| *byte == b'\n') {
        let Ok(Message {
            target,
            executable: Some(executable),
        }) = serde_json::from_slice(line)
        else {
            continue;
        };
        match target.kind.first().map(String::as_str) {
            Some("bin") if target.name == "vm_init" => init = Some(executable),
            Some("test") => tests.push((target.name, executable)),
            _ => {}
        }
    }
    Ok((init.context("cargo has not built vm_init")?, tests))
}

/// Of cargo's messages: something that has been built.
#[derive(Deserialize)]
struct Message {
    target: Target,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

fn cargo_test(profile: Profile) -> Command {
    let mut cargo = shell::cargo();
    cargo
        .arg("test")
        .args((profile == Profile::Release).then_some("--release"))
        // Built for another target.
        .args(["--workspace", "--exclude", "agentguard-ebpf"]);
    cargo
}
