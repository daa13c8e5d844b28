//! A running AgentGuard. Dropped, it is stopped and unloaded, and nothing of it may be left.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::audit::Record;
use crate::bundle::Bundle;
use crate::client::{Client, Subject};
use crate::process::{Ran, Running, descendants, is_alive};
use crate::site::Site;
use crate::tools::{CLIENT_PATH, PATIENCE, agentguard, python};

pub struct Guard<'site> {
    site: &'site Site,
    /// `None` while the test has taken it down.
    daemon: Option<Running>,
    /// Every process that a daemon of this guard has had below it.
    children: Vec<u32>,
    /// Mounts of the test's own.
    mounts: Vec<String>,
    /// What the daemon is started by, with its command behind: other limits, another view of the files.
    by: Vec<String>,
}

impl<'site> Guard<'site> {
    /// Starts the daemon with this bundle and returns when it says that it is ready.
    pub fn start(site: &'site Site, bundle: &Bundle) -> Self {
        Self::start_by(site, bundle, &[])
    }

    /// Starts a daemon by these words, which execute what follows them.
    pub fn start_by(site: &'site Site, bundle: &Bundle, by: &[&str]) -> Self {
        site.install(bundle);
        let mut guard = Self {
            site,
            daemon: None,
            children: Vec::new(),
            mounts: mounts_below(site.dir()),
            by: by.iter().map(|word| (*word).to_owned()).collect(),
        };
        guard.restart();
        guard
    }

    /// Starts the daemon of a guard whose daemon is gone.
    pub fn restart(&mut self) {
        assert!(self.daemon.is_none(), "the daemon is still there");
        let path = self.site.path("notify.sock");
        let _ = fs::remove_file(&path);
        let notify = UnixDatagram::bind(&path).expect("a socket");
        let daemon = match self.by.as_slice() {
            [] => self.site.cli(["daemon"]),
            [program, words @ ..] => Client::new(program)
                .args(words)
                .arg(agentguard())
                .args(["daemon", "--config"])
                .arg(self.site.config())
                .env("PATH", CLIENT_PATH),
        };
        let mut daemon = daemon
            .env("NOTIFY_SOCKET", &path)
            .env("RUST_LOG", "info")
            .env("RUST_BACKTRACE", "1")
            .spawn();
        await_ready(&notify, &mut daemon);
        self.daemon = Some(daemon);
        self.remember_children();
    }

    pub fn site(&self) -> &'site Site {
        self.site
    }

    pub fn daemon_tgid(&self) -> u32 {
        self.daemon.as_ref().expect("the daemon runs").tgid()
    }

    /// Waits until the daemon's log has a line with `what` in it, newer than those that have been waited for.
    #[track_caller]
    pub fn says(&mut self, what: &str) {
        let daemon = self.daemon.as_mut().expect("the daemon runs");
        daemon.line(|line| line.contains(what));
    }

    /// The forwarder's process.
    pub fn forwarder_tgid(&mut self) -> u32 {
        self.remember_children();
        let forwarder = self.children.iter().copied().find(|&tgid| {
            fs::read(format!("/proc/{tgid}/cmdline")).is_ok_and(|line| {
                line.split(|&byte| byte == 0)
                    .any(|word| word == b"forwarder")
            })
        });
        forwarder.expect("the daemon has a forwarder")
    }

    /// Calls as this agent.
    pub fn agent<'guard>(&'guard self, name: &'guard str) -> Agent<'guard> {
        Agent {
            site: self.site,
            name,
            user: None,
        }
    }

    /// An operator's command to its end.
    #[track_caller]
    pub fn cli<S: AsRef<str>>(&self, words: impl IntoIterator<Item = S>) -> Ran {
        self.site.cli(words).run()
    }

    /// Every record so far.
    #[track_caller]
    pub fn audit(&self) -> Vec<Record> {
        Record::all(&self.cli(["audit", "search", "--json"]).ok().json())
    }

    /// Records of HTTP requests so far.
    #[track_caller]
    pub fn requests(&self) -> Vec<Record> {
        self.audit()
            .into_iter()
            .filter(Record::is_request)
            .collect()
    }

    /// `kill -9` of the daemon alone; what is pinned stays.
    pub fn crash(&mut self) {
        self.end(Signal::SIGKILL);
    }

    /// A clean stop, as a service manager does it; what is pinned stays.
    pub fn stop(&mut self) -> Ran {
        self.end(Signal::SIGTERM)
    }

    fn end(&mut self, signal: Signal) -> Ran {
        self.remember_children();
        let daemon = self.daemon.take().expect("the daemon runs");
        daemon.signal(signal);
        daemon.finish()
    }

    fn remember_children(&mut self) {
        if let Some(daemon) = &self.daemon {
            self.children.extend(descendants(daemon.tgid()));
            self.children.sort_unstable();
            self.children.dedup();
        }
    }

    /// What an unloaded AgentGuard must not leave.
    fn remains(&self) -> Vec<String> {
        let mut found = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        // Init reaps what a killed daemon leaves; nobody tells when.
        while Instant::now() < deadline && self.children.iter().any(|&tgid| is_alive(tgid)) {
            std::thread::yield_now();
        }
        for &tgid in self.children.iter().filter(|&&tgid| is_alive(tgid)) {
            found.push(format!("process {tgid}"));
        }
        if self.site.pins().exists() {
            found.push(format!("pins in {}", self.site.pins().display()));
        }
        let mounts = mounts_below(self.site.dir());
        found.extend(
            mounts
                .into_iter()
                .filter(|line| !self.mounts.contains(line)),
        );
        found
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        self.remember_children();
        if let Some(daemon) = self.daemon.take() {
            daemon.signal(Signal::SIGTERM);
            if failed {
                let log =
                    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| daemon.finish()));
                eprintln!(
                    "the daemon said: {}",
                    log.map(|ran| ran.stderr).unwrap_or_default()
                );
            } else {
                daemon.finish();
            }
        }
        let unload = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            self.site.cli(["unload", "--yes"]).run()
        }));
        let remains = self.remains();
        // Whatever happened, the host's agents-to-be are not held by a test that has ended.
        let _ = fs::remove_dir_all(self.site.pins());
        if !failed {
            unload.expect("unload ends").ok();
            assert!(remains.is_empty(), "left after unload: {remains:#?}");
        }
    }
}

fn mounts_below(dir: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("readable");
    let dir = dir.display().to_string();
    let below = mounts.lines().filter(|line| line.contains(&dir));
    below.map(str::to_owned).collect()
}

/// Starts clients with `agentguard run --agent NAME`.
pub struct Agent<'guard> {
    site: &'guard Site,
    name: &'guard str,
    user: Option<&'guard str>,
}

impl Subject for Agent<'_> {
    fn client(&self, program: &Path) -> Client {
        let mut words = vec!["run", "--agent", self.name];
        words.extend(self.user.iter().flat_map(|user| ["--user", user]));
        words.push("--");
        self.site.cli(words).arg(program)
    }
}

impl<'guard> Agent<'guard> {
    /// Its clients run as this user.
    pub fn user(mut self, name: &'guard str) -> Self {
        self.user = Some(name);
        self
    }

    /// Python statements, with the usual modules there.
    pub fn python(&self, code: &str) -> Client {
        self.client(&python())
            .arg("-c")
            .arg(format!("import errno, os, socket, sys\n{code}"))
    }

    #[track_caller]
    pub fn python_code(&self, code: &str) -> Ran {
        self.python(code).run()
    }
}

/// Returns at `READY=1`; fails the test at once when the daemon ends before.
fn await_ready(notify: &UnixDatagram, daemon: &mut Running) {
    let look_after_it = Duration::from_millis(100);
    notify.set_read_timeout(Some(look_after_it)).expect("set");
    let deadline = Instant::now() + PATIENCE;
    let mut message = [0; 512];
    loop {
        match notify.recv(&mut message) {
            Ok(length) => {
                let said = String::from_utf8_lossy(&message[..length]);
                if said.lines().any(|line| line == "READY=1") {
                    return;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                assert!(Instant::now() < deadline, "the daemon is not ready in time");
            }
            Err(error) => panic!("the notification socket failed: {error}"),
        }
        if !daemon.is_running() {
            let said = daemon.rest();
            panic!(
                "{} daemon ended before it was ready: {said}",
                agentguard().display()
            );
        }
    }
}
