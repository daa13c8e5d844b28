//! Counts packets with payload on loopback, as a capture program sees them: after every hook that may drop them.

use serde_json::Value;

use crate::process::Running;
use crate::tools::{python, script};

pub struct Tap {
    running: Running,
}

/// What has gone out from one port so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub packets: u64,
    /// TCP payload, bytes.
    pub bytes: u64,
    /// When the last one left, ns since the Unix epoch by the kernel's own stamp.
    pub last_ns: u64,
}

impl Tap {
    /// Returns when it captures.
    pub fn start() -> Self {
        let mut command = std::process::Command::new(python());
        command
            .env_clear()
            .arg("-u")
            .arg(script("tap.py"))
            .arg("lo");
        let mut running = Running::spawn(&mut command);
        running.line(|line| line == "ready");
        Self { running }
    }

    /// Payload sent from this TCP port, on any connection. Fails if the capture itself has lost packets.
    pub fn from_port(&mut self, port: u16) -> Seen {
        self.ask(&format!("from {port}"))
    }

    /// Payload sent to this TCP port.
    pub fn to_port(&mut self, port: u16) -> Seen {
        self.ask(&format!("to {port}"))
    }

    fn ask(&mut self, question: &str) -> Seen {
        self.running.say(question);
        let answer = self.running.after("seen ");
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        let number = |key: &str| answer[key].as_u64().expect("a number");
        assert_eq!(number("lost"), 0, "the capture has lost packets");
        Seen {
            packets: number("packets"),
            bytes: number("bytes"),
            last_ns: number("last_ns"),
        }
    }
}
