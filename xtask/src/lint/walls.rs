//! What each crate must not depend on, by whatever way.

use std::collections::BTreeSet;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use crate::shell::{self, cargo};

/// A crate, and the packages that its build must do without.
struct Wall {
    package: &'static str,
    without: &'static [&'static str],
}

const WALLS: [Wall; 6] = [
    // Decides, and does nothing else: no runtime, no system calls, no network.
    Wall {
        package: "agentguard-policy",
        without: &[
            "agentguard-sys",
            "aya",
            "hyper",
            "nix",
            "rcgen",
            "rustls",
            "tokio",
        ],
    },
    Wall {
        package: "agentguard-record",
        without: &["agentguard-sys", "aya", "nix", "tokio"],
    },
    Wall {
        package: "agentguard-audit",
        without: &["aya", "rcgen"],
    },
    Wall {
        package: "agentguard-link",
        without: &["aya", "rcgen"],
    },
    // Reads what agents and origins send: neither the kernel, the CA's key nor the log is within its reach.
    Wall {
        package: "agentguard-forwarder",
        without: &[
            "aya",
            "aya-obj",
            "rcgen",
            "agentguard-audit",
            "agentguard-bundle",
            "agentguard-daemon",
            "agentguard-kernel",
        ],
    },
    // Holds every privilege: what agents and origins send is read in the other process.
    Wall {
        package: "agentguard-daemon",
        without: &["agentguard-forwarder"],
    },
];

pub(super) fn check() -> anyhow::Result<()> {
    let lock = std::fs::read_to_string(shell::root().join("Cargo.lock"))
        .context("cannot read Cargo.lock")?;
    let packages = locked(&lock)?;
    for wall in &WALLS {
        let names = wall.without.iter().chain([&wall.package]);
        let unknown: Vec<_> = names.filter(|name| !packages.contains(**name)).collect();
        ensure!(
            unknown.is_empty(),
            "Cargo.lock has no package {unknown:?}, which a wall in xtask/src/lint/walls.rs names"
        );
    }
    let mut holes = Vec::new();
    for Wall { package, without } in WALLS {
        let words = ["tree", "-p", package, "-e", "normal", "--prefix", "none"];
        let tree = shell::output(cargo().args(words))
            .with_context(|| format!("`cargo {}` fails", words.join(" ")))?;
        let found = dependencies(&tree);
        ensure!(
            found.contains(package),
            "`cargo tree` does not name {package} itself"
        );
        let there = without.iter().filter(|name| found.contains(**name));
        holes.extend(there.map(|name| {
            format!("{package} depends on {name}: `cargo tree -p {package} -i {name}` says how")
        }));
    }
    if !holes.is_empty() {
        bail!("{}", holes.join("\n"));
    }
    Ok(())
}

/// Names in what `cargo tree --prefix none` says: one a line, with a version, and perhaps a path and a mark behind it.
fn dependencies(tree: &str) -> BTreeSet<&str> {
    let names = tree.lines().map(|line| line.split(' ').next());
    names.flatten().filter(|name| !name.is_empty()).collect()
}

/// Names of all packages in `Cargo.lock`.
fn locked(text: &str) -> anyhow::Result<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Lock {
        package: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
    }
    let lock: Lock = toml::from_str(text).context("cannot use Cargo.lock")?;
    Ok(lock.package.into_iter().map(|one| one.name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_read_by_its_names() {
        let tree = "agentguard-record v0.1.0 (/w/agentguard/record)
serde v1.0.228
serde_derive v1.0.228 (proc-macro)
syn v2.0.111

uuid v1.19.0
serde v1.0.228 (*)
";
        let names: Vec<&str> = dependencies(tree).into_iter().collect();
        assert_eq!(
            names,
            ["agentguard-record", "serde", "serde_derive", "syn", "uuid"]
        );
        assert!(!dependencies(tree).contains("serde_"));
    }

    #[test]
    fn a_lock_file_names_its_packages() {
        let lock = "version = 4\n\n[[package]]\nname = \"aya\"\nversion = \"0.14.0\"\n
            [[package]]\nname = \"nix\"\nversion = \"0.31.1\"\ndependencies = [\"libc\"]\n";
        let names = locked(lock).unwrap();
        assert!(names.contains("aya") && names.contains("nix"));
        assert_eq!(names.len(), 2);
        assert!(locked("version = 4").is_err());
    }
}
