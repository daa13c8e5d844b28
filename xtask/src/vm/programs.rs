//! What is built for a machine, with what only a debugger reads left out.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::shell::{self, command};
use crate::test::{self, Profile};

/// What this build gives to a machine.
pub(super) struct Programs {
    /// Name and file of each.
    pub tests: Vec<(String, PathBuf)>,
    pub init: PathBuf,
    pub agentguard: PathBuf,
    /// What the tests run, in C.
    pub attempts: Vec<(String, PathBuf)>,
}

impl Programs {
    /// With the test programs that `is_wanted` by their names.
    pub(super) fn build(
        profile: Profile,
        is_wanted: impl Fn(&str) -> bool,
    ) -> anyhow::Result<Self> {
        let agentguard = profile.agentguard()?;
        let (init, tests) = test::programs(profile, is_wanted)?;
        let folder = shell::target().join("vm/programs");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let tests: anyhow::Result<_> = tests
            .into_iter()
            .map(|(name, file)| Ok((name.clone(), stripped(&file, &folder.join(name))?)))
            .collect();
        Ok(Self {
            tests: tests?,
            init,
            agentguard: stripped(&agentguard, &folder.join("agentguard"))?,
            attempts: attempts(&folder)?,
        })
    }
}

/// Without what only a debugger reads: a machine has it all in its memory.
fn stripped(from: &Path, to: &Path) -> anyhow::Result<PathBuf> {
    let files = [Path::new("-o"), to, from];
    shell::run(command("strip", ["--strip-debug"]).args(files))?;
    Ok(to.to_owned())
}

/// As the harness compiles them where there is a compiler: `tests/tools/attempt/NAME.c`.
fn attempts(folder: &Path) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let sources = shell::root().join("tests/tools/attempt");
    let mut made = Vec::new();
    for entry in fs::read_dir(&sources)? {
        let source = entry?.path();
        if source.extension().is_none_or(|extension| extension != "c") {
            continue;
        }
        let name = source.file_stem().unwrap_or_default().to_string_lossy();
        let program = folder.join(&*name);
        let flags = ["-static", "-O1", "-Wall", "-Wextra", "-Werror", "-o"];
        shell::run(command("cc", flags).args([&program, &source]))?;
        made.push((name.into_owned(), program));
    }
    Ok(made)
}
