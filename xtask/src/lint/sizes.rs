//! No source file is longer than a reader keeps in mind.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::shell;

/// Lines before a file's unit tests.
const MOST: usize = 600;
/// Folders of the workspace without sources of its own.
const SKIPPED: [&str; 2] = ["target", ".git"];

pub(super) fn check() -> anyhow::Result<()> {
    let mut sources = Vec::new();
    collect(shell::root(), &mut sources)?;
    let mut long = Vec::new();
    for source in sources {
        let text = fs::read_to_string(&source)
            .with_context(|| format!("cannot read {}", source.display()))?;
        let name = source.strip_prefix(shell::root()).unwrap_or(&source);
        let lines = before_tests(&text);
        if lines > MOST && !is_unit_tests(name) {
            long.push(format!("{}: {lines} lines", name.display()));
        }
    }
    if !long.is_empty() {
        long.sort();
        bail!(
            "more than {MOST} lines before the unit tests, split:\n{}",
            long.join("\n")
        );
    }
    Ok(())
}

fn collect(folder: &Path, sources: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        let is_skipped = SKIPPED.iter().any(|name| entry.file_name() == *name);
        if entry.file_type()?.is_dir() && !is_skipped {
            collect(&path, sources)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push(path);
        }
    }
    Ok(())
}

/// Whether all of a file is unit tests: `…/src/…/tests.rs`, or anything in a folder `tests` below a `src`.
fn is_unit_tests(path: &Path) -> bool {
    let mut inside = path.iter().skip_while(|part| *part != "src");
    inside.any(|part| part == "tests" || part == "tests.rs")
}

/// Lines of a file before its last items, the unit tests: a `#[cfg(test)]` at the margin with a module behind it.
fn before_tests(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let tests = lines
        .windows(2)
        .position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod "));
    tests.unwrap_or(lines.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_up_to_the_tests_module() {
        assert_eq!(before_tests(""), 0);
        assert_eq!(before_tests("a\nb\n"), 2);
        assert_eq!(before_tests("a\n#[cfg(test)]\nmod tests {\n}\n"), 1);
        let helper = "#[cfg(test)]\nfn helper() {}\n    #[cfg(test)]\n    mod inner;\n";
        assert_eq!(before_tests(helper), 4);
    }

    #[test]
    fn a_file_of_unit_tests_is_known_by_its_place() {
        let is = |path: &str| is_unit_tests(Path::new(path));
        assert!(is("agentguard/src/config/tests.rs"));
        assert!(is("agentguard/policy/src/tests/body.rs"));
        assert!(!is("tests/src/site.rs"));
        assert!(!is("tests/tests/path/body.rs"));
        assert!(!is("agentguard/src/config.rs"));
    }
}
