//! Where the binary under test and the unchanged clients are. `cargo xtask test` says so by environment; the defaults are
//! where it puts them.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long an event may take before a test calls it missing. Two cores shared by a build leave little room for less.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The name that every origin answers to.
pub const ORIGIN: &str = "origin.test";

/// `PATH` of clients: what a Debian user has.
pub const CLIENT_PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin";

pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests are a folder of the workspace")
}

/// The release binary under test.
pub fn agentguard() -> PathBuf {
    let path = from_env("AGENTGUARD_BIN", "release/agentguard");
    assert!(
        path.is_file(),
        "{} is not there: run `cargo xtask test`",
        path.display()
    );
    path
}

/// A script below `tests/tools/`.
pub fn script(name: &str) -> PathBuf {
    let folder = std::env::var_os("AGENTGUARD_TEST_SCRIPTS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("tools"),
        PathBuf::from,
    );
    let path = folder.join(name);
    assert!(path.is_file(), "no script {}", path.display());
    path
}

/// Python with the packages of `requirements.txt`.
pub fn python() -> PathBuf {
    installed("venv/bin/python")
}

/// Folder of the packages of `npm.txt`.
pub fn node_modules() -> PathBuf {
    installed("node_modules")
}

fn installed(name: &str) -> PathBuf {
    let path = from_env("AGENTGUARD_TEST_TOOLS", "test-tools").join(name);
    assert!(
        path.exists(),
        "{} is not there: run `cargo xtask setup`",
        path.display()
    );
    path
}

fn from_env(variable: &str, below_target: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(
        || {
            std::env::var_os("CARGO_TARGET_DIR")
                .map_or_else(|| workspace().join("target"), |dir| workspace().join(dir))
                .join(below_target)
        },
        PathBuf::from,
    )
}
