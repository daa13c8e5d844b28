//! Small servers in Python and Node (`tests/tools/`) for what nginx cannot do. Each says `ready PORT` when it listens.

use std::path::Path;
use std::process::Command;

use crate::process::Running;
use crate::site::Site;
use crate::tools::{CLIENT_PATH, ORIGIN, python, script};

pub struct Server {
    running: Running,
    pub port: u16,
}

impl Server {
    /// `SCRIPT CERTIFICATE KEY ARGS…`, with a certificate of the site's CA for the origin's name.
    pub fn start(site: &Site, name: &str, args: &[&str]) -> Self {
        let identity = site.ca().issue(&[ORIGIN]);
        Self::start_with(name, &identity.certificate, &identity.key, args)
    }

    /// One in Node, as [`Self::start`].
    pub fn node(site: &Site, name: &str, args: &[&str]) -> Self {
        let identity = site.ca().issue(&[ORIGIN]);
        let mut node = Command::new("node");
        node.env_clear().env("PATH", CLIENT_PATH);
        Self::spawn(node, name, &identity.certificate, &identity.key, args)
    }

    pub fn start_with(name: &str, certificate: &Path, key: &Path, args: &[&str]) -> Self {
        let mut python = Command::new(python());
        python.env_clear().env("PYTHONUNBUFFERED", "1");
        Self::spawn(python, name, certificate, key, args)
    }

    fn spawn(
        mut command: Command,
        name: &str,
        certificate: &Path,
        key: &Path,
        args: &[&str],
    ) -> Self {
        command
            .arg(script(name))
            .arg(certificate)
            .arg(key)
            .args(args);
        let mut running = Running::spawn(&mut command);
        let port = running.after("ready ").parse().expect("a port");
        Self { running, port }
    }

    /// Talks to it: what it says is its own log.
    pub fn talk(&mut self) -> &mut Running {
        &mut self.running
    }
}

/// Waits until a path is there: for programs that say nothing when they listen.
pub(crate) fn await_path(path: &Path) {
    let deadline = std::time::Instant::now() + crate::tools::PATIENCE;
    while !path.exists() {
        assert!(
            std::time::Instant::now() < deadline,
            "no {}",
            path.display()
        );
        std::thread::yield_now();
    }
}
