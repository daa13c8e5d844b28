//! Python statements in a process of their own that waits until it is told to go: time to make it somebody's agent.

use std::process::Command;

use crate::process::Running;

/// What every script begins with: it says that it runs, and waits.
const PRELUDE: &str = r#"
import socket, sys, os, errno, time, threading, ctypes, subprocess, struct
def wait(): return sys.stdin.readline().strip()
def say(*what): print(*what, flush=True)
def attempt(f, *args):
    try: return f(*args)
    except OSError as e: return errno.errorcode.get(e.errno, str(e))
def tcp(host, port, family=socket.AF_INET, timeout=5):
    s = socket.socket(family, socket.SOCK_STREAM); s.settimeout(timeout); s.connect((host, port)); return s
def connect(host, port, family=socket.AF_INET, timeout=5):
    r = attempt(tcp, host, port, family, timeout)
    return r if isinstance(r, str) else "ok"
say("up"); wait()
"#;

pub struct Script {
    running: Running,
    /// Lines that the test has read.
    read: usize,
}

impl Script {
    /// Nobody's yet, and waiting for [`Self::go`].
    #[track_caller]
    pub fn start(code: &str) -> Self {
        let mut command = Command::new("/usr/bin/python3");
        command
            .args(["-c", &format!("{PRELUDE}{code}")])
            .env_clear()
            .env("PATH", "/usr/bin:/bin");
        let mut script = Self {
            running: Running::spawn(&mut command),
            read: 0,
        };
        assert_eq!(script.line(), "up");
        script
    }

    pub fn tgid(&self) -> u32 {
        self.running.tgid()
    }

    pub fn go(&mut self) {
        self.tell("");
    }

    pub fn tell(&mut self, text: &str) {
        self.running.say(text);
    }

    /// The next line that it prints.
    #[track_caller]
    pub fn line(&mut self) -> String {
        self.read += 1;
        self.running.printed().trim().to_owned()
    }

    #[track_caller]
    pub fn number(&mut self) -> u32 {
        self.line().parse().expect("a number")
    }

    /// The rest of what it prints, and its end.
    #[track_caller]
    pub fn finish(self) -> String {
        let ran = self.running.finish();
        eprint!("{}", ran.stderr);
        let rest: Vec<&str> = ran.stdout.lines().skip(self.read).collect();
        rest.join("\n").trim().to_owned()
    }
}

/// What a script prints that is nobody's agent.
#[track_caller]
pub fn bystander(code: &str) -> String {
    let mut script = Script::start(code);
    script.go();
    script.finish()
}
