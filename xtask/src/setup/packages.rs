//! Python and npm packages that tests use as unchanged clients and servers, in `target/test-tools`, not on the system.

use std::fs;
use std::path::Path;

use anyhow::Context;

use crate::shell::{self, command};

/// Pinned, with everything they pull.
const PYTHON: &str = include_str!("../../../tests/tools/requirements.txt");
const NPM: &str = include_str!("../../../tests/tools/npm.txt");

pub(super) fn install() -> anyhow::Result<()> {
    let tools = shell::test_tools();
    fs::create_dir_all(&tools).with_context(|| format!("cannot make {}", tools.display()))?;
    once(&tools.join("python.stamp"), PYTHON, || {
        python(&tools.join("venv"))
    })?;
    once(&tools.join("npm.stamp"), NPM, || npm(&tools))
}

/// Runs `install` unless the stamp says that exactly this list has been installed.
fn once(
    stamp: &Path,
    list: &str,
    install: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if fs::read_to_string(stamp).is_ok_and(|done| done == list) {
        return Ok(());
    }
    install()?;
    fs::write(stamp, list).with_context(|| format!("cannot write {}", stamp.display()))
}

fn python(venv: &Path) -> anyhow::Result<()> {
    super::announce(
        "Python packages into target/test-tools",
        "clients and servers under test",
    );
    let requirements = shell::root().join("tests/tools/requirements.txt");
    shell::run(command("/usr/bin/python3", ["-m", "venv", "--clear"]).arg(venv))?;
    shell::run(
        command(
            venv.join("bin/python"),
            [
                "-m",
                "pip",
                "install",
                "--quiet",
                "--only-binary",
                ":all:",
                "--requirement",
            ],
        )
        .arg(requirements),
    )
}

fn npm(tools: &Path) -> anyhow::Result<()> {
    super::announce("npm packages into target/test-tools", "clients under test");
    shell::run(
        command(
            "npm",
            [
                "install",
                "--no-save",
                "--no-package-lock",
                "--ignore-scripts",
            ],
        )
        .args(["--no-audit", "--no-fund", "--loglevel", "error", "--prefix"])
        .arg(tools)
        .args(NPM.lines().filter(|line| !line.starts_with('#'))),
    )
}
