//! `tests/BYPASSES.md` and the tests agree: no row without its test, no bypass test without a row, and no standing of an
//! attempt that nobody makes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use agentguard_tests::standing::Standings;
use agentguard_tests::tools::workspace;

#[test]
fn every_row_has_its_tests() {
    let mut missing = Vec::new();
    for row in rows() {
        if row.tests.is_empty() {
            missing.push(format!("`{}` names no test", row.way));
        }
        for test in &row.tests {
            let (path, name) = place(test);
            let is_there = match fs::read_to_string(&path) {
                Ok(text) => name.is_none_or(|name| tests_in(&text).contains(name)),
                Err(_) => false,
            };
            if !is_there {
                missing.push(format!(
                    "`{}` names `{test}`, which does not exist",
                    row.way
                ));
            }
        }
        if row.mechanism.is_empty() || row.kernels.is_empty() {
            missing.push(format!(
                "`{}` does not say what closes it, or where",
                row.way
            ));
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn every_bypass_test_has_a_row() {
    let named: BTreeSet<String> = rows().into_iter().flat_map(|row| row.tests).collect();
    let mut without = Vec::new();
    for path in suites() {
        let module = path.file_stem().expect("it has one").to_string_lossy();
        let suite = format!("bypass::{module}");
        if named.contains(&suite) {
            continue;
        }
        let text = read(&path);
        let tests = tests_in(&text)
            .into_iter()
            .map(|test| format!("{suite}::{test}"));
        without.extend(tests.filter(|test| !named.contains(test)));
    }
    assert!(
        without.is_empty(),
        "no row of BYPASSES.md names {without:#?}"
    );
}

#[test]
fn every_standing_is_of_an_attempt() {
    let mut sources: Vec<String> = suites().iter().map(|path| read(path)).collect();
    sources.push(read(&tests().join("kernel/faults.rs")));
    for attempt in Standings::of("", false).named() {
        let literal = format!("\"{attempt}\"");
        let is_made = sources.iter().any(|source| source.contains(&literal));
        assert!(
            is_made,
            "standings.toml names `{attempt}`, which nobody tries"
        );
    }
}

struct Row {
    way: String,
    /// As written between backticks.
    tests: Vec<String>,
    mechanism: String,
    kernels: String,
}

/// `| way around | tests | closed by | kernels |`, without the heads of the tables.
fn rows() -> Vec<Row> {
    let text = read(&workspace().join("tests/BYPASSES.md"));
    let rows: Vec<Row> = text
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| way around"))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
            let [way, tests, mechanism, kernels] = cells[..] else {
                panic!("not four cells: {line}");
            };
            Row {
                way: way.to_owned(),
                tests: tests
                    .split('`')
                    .skip(1)
                    .step_by(2)
                    .map(str::to_owned)
                    .collect(),
                mechanism: mechanism.to_owned(),
                kernels: kernels.to_owned(),
            }
        })
        .collect();
    assert!(rows.len() > 20, "the tables could not be read");
    rows
}

/// The file of a test and its name: `program::module::test`, `path/from/the/workspace.rs::test`, or all of `program::module`.
fn place(test: &str) -> (PathBuf, Option<&str>) {
    if let Some((path, name)) = test.split_once(".rs::") {
        return (workspace().join(format!("{path}.rs")), Some(name));
    }
    let mut names = test.splitn(3, "::");
    let [program, module] = [names.next(), names.next()].map(Option::unwrap_or_default);
    let path = tests().join(program).join(format!("{module}.rs"));
    (path, names.next())
}

fn tests() -> PathBuf {
    workspace().join("tests/tests")
}

/// The modules of the bypass tests.
fn suites() -> Vec<PathBuf> {
    let entries = fs::read_dir(tests().join("bypass")).expect("readable");
    let paths = entries.map(|entry| entry.expect("readable").path());
    let mut suites: Vec<_> = paths.filter(|path| !path.ends_with("main.rs")).collect();
    suites.sort();
    assert!(suites.len() > 3, "{suites:?}");
    suites
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names of the functions below `#[test]` or `#[tokio::test…]`.
fn tests_in(text: &str) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    let mut is_next = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_next = true;
        } else if let (true, Some(at)) = (is_next, line.find("fn ")) {
            let name = &line[at + 3..];
            found.insert(name.split('(').next().unwrap_or(name));
            is_next = false;
        }
    }
    found
}
