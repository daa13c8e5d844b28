//! Network namespaces of a test's own, made and taken away with `ip netns`.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::client::{Client, Subject};
use crate::guard::Guard;
use crate::names::serial;
use crate::process::Running;
use crate::site::Site;
use crate::tools::{CLIENT_PATH, PATIENCE, agentguard};

pub struct Netns {
    name: String,
}

impl Netns {
    /// As `ip netns add` makes it: nothing but a loopback device that is down.
    pub fn new() -> Self {
        let name = format!("agt-{}-{}", std::process::id(), serial());
        ip(&["netns", "add", &name]);
        Self { name }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// `ip -n NAME …`.
    #[track_caller]
    pub fn ip(&self, words: &[&str]) {
        ip(&[&["-n", &self.name], words].concat());
    }

    /// Joins the two by a cable; each end has the address below it, with a network of its own.
    pub fn cable(&self, near: &str, other: &Self, far: &str) {
        self.ip(&[
            "link",
            "add",
            "cable",
            "type",
            "veth",
            "peer",
            "name",
            "cable",
            "netns",
            &other.name,
        ]);
        for (end, address) in [(self, near), (other, far)] {
            end.ip(&["addr", "add", &format!("{address}/30"), "dev", "cable"]);
            end.ip(&["link", "set", "cable", "up"]);
        }
    }

    /// Sets a variable of this namespace's `/proc/sys/net`.
    #[track_caller]
    pub fn sysctl(&self, key: &str, value: &str) {
        const WRITE: &str = "printf %s \"$2\" > \"/proc/sys/net/$1\"";
        let shell = self.client("sh".as_ref()).args(["-c", WRITE, "sh"]);
        shell.arg(key).arg(value).run().ok();
    }

    /// Calls as this agent of the guard's, started by an operator who is in here.
    pub fn agent<'a>(&'a self, guard: &Guard<'a>, name: &'a str) -> Inside<'a> {
        Inside {
            netns: self,
            site: guard.site(),
            name,
        }
    }

    /// What happens to devices here from now on, told line by line.
    pub fn monitor(&self) -> Running {
        let mut command = Command::new("ip");
        command.args(["-n", &self.name, "monitor", "link"]);
        let monitor = Running::spawn(&mut command);
        let tgid = monitor.tgid().to_string();
        let table = format!("/proc/{tgid}/net/netlink");
        // It lists the devices first, by the same socket, and throws away what is told meanwhile; then it waits to receive.
        let waits = || {
            let call = std::fs::read_to_string(format!("/proc/{tgid}/syscall")).unwrap_or_default();
            call.split_whitespace().next() == Some(&libc::SYS_recvmsg.to_string())
        };
        let listens = || {
            let table = std::fs::read_to_string(&table).unwrap_or_default();
            table.lines().skip(1).any(|line| {
                let columns: Vec<&str> = line.split_whitespace().collect();
                matches!(columns[..], [_, "0", port, groups, ..] if port == tgid && groups != "00000000")
            })
        };
        let deadline = Instant::now() + PATIENCE;
        while !(listens() && waits()) {
            assert!(Instant::now() < deadline, "it does not listen");
            std::thread::yield_now();
        }
        monitor
    }
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let deleted = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
        if !std::thread::panicking() {
            assert!(
                deleted.is_ok_and(|status| status.success()),
                "{}",
                self.name
            );
        }
    }
}

/// Somebody in here who is nobody's agent.
impl Subject for Netns {
    fn client(&self, program: &Path) -> Client {
        Client::new("ip")
            .args(["netns", "exec", &self.name])
            .arg(program)
            .env("PATH", CLIENT_PATH)
    }
}

pub struct Inside<'a> {
    netns: &'a Netns,
    site: &'a Site,
    name: &'a str,
}

impl Subject for Inside<'_> {
    fn client(&self, program: &Path) -> Client {
        self.netns
            .client(&agentguard())
            .arg("run")
            .arg("--config")
            .arg(self.site.config())
            .args(["--agent", self.name, "--"])
            .arg(program)
            .env("HOME", self.site.path("home"))
    }
}

#[track_caller]
fn ip(words: &[&str]) {
    let ran = Command::new("ip").args(words).output().expect("ip runs");
    assert!(ran.status.success(), "ip {words:?}: {ran:?}");
}
