//! What an agent did, as records name it.

use serde::{Deserialize, Serialize};

/// The `action` of a decision's record.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ActionName {
    /// The method of a request, as it was sent.
    Method(String),
    /// A name that was looked up.
    Dns,
    Connect,
    Sendmsg,
    Bind,
    Socket,
    Packet,
    HandedOver,
    Exec,
    Bpf,
    Ptrace,
    Kill,
    Ioctl,
    Unlink,
    File,
    /// Something else that would reach what holds the agent.
    Tamper,
}

impl ActionName {
    const NAMED: [Self; 15] = [
        Self::Dns,
        Self::Connect,
        Self::Sendmsg,
        Self::Bind,
        Self::Socket,
        Self::Packet,
        Self::HandedOver,
        Self::Exec,
        Self::Bpf,
        Self::Ptrace,
        Self::Kill,
        Self::Ioctl,
        Self::Unlink,
        Self::File,
        Self::Tamper,
    ];

    /// Of what is no request, whose method may be spelled like one of the names.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMED.into_iter().find(|it| it.as_str() == name)
    }

    pub fn as_str(&self) -> &str {
        match self {
            Self::Method(method) => method,
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Sendmsg => "sendmsg",
            Self::Bind => "bind",
            Self::Socket => "socket",
            Self::Packet => "packet",
            Self::HandedOver => "handed-over",
            Self::Exec => "exec",
            Self::Bpf => "bpf",
            Self::Ptrace => "ptrace",
            Self::Kill => "kill",
            Self::Ioctl => "ioctl",
            Self::Unlink => "unlink",
            Self::File => "file",
            Self::Tamper => "tamper",
        }
    }
}
