//! What a decision came from, and how the exchange ended that it was about: what readers of records would otherwise guess.

use serde::{Deserialize, Serialize};

/// What a decision came from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DecidedBy {
    Rules,
    Reach,
    Parent,
    Task,
    Limit,
    Facts,
    Stop,
    Expiry,
    Host,
    Protocol,
    OwnName,
    Kernel,
    Undecided,
}

impl DecidedBy {
    pub const ALL: [Self; 13] = [
        Self::Rules,
        Self::Reach,
        Self::Parent,
        Self::Task,
        Self::Limit,
        Self::Facts,
        Self::Stop,
        Self::Expiry,
        Self::Host,
        Self::Protocol,
        Self::OwnName,
        Self::Kernel,
        Self::Undecided,
    ];

    /// As records have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rules => "rules",
            Self::Reach => "reach",
            Self::Parent => "parent",
            Self::Task => "task",
            Self::Limit => "limit",
            Self::Facts => "facts",
            Self::Stop => "stop",
            Self::Expiry => "expiry",
            Self::Host => "host",
            Self::Protocol => "protocol",
            Self::OwnName => "own-name",
            Self::Kernel => "kernel",
            Self::Undecided => "undecided",
        }
    }

    /// One line for people.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Rules => "the rules of the agent, and where they permit, of everyone it acts for",
            Self::Reach => "what the agent can reach at all; no rule was asked",
            Self::Parent => "what an agent may that the agent acts for",
            Self::Task => "the task that the act was on, or had to be on",
            Self::Limit => "a limit that had no room",
            Self::Facts => "what rules read, which could not be read or had",
            Self::Stop => "the agent was stopped",
            Self::Expiry => "the bundle in force had expired",
            Self::Host => "the host could not record or count it",
            Self::Protocol => "the forwarder or the resolver does not speak what arrived",
            Self::OwnName => "AgentGuard itself, asked at its own name",
            Self::Kernel => "the rules that the kernel holds",
            Self::Undecided => "nothing: the exchange ended before",
        }
    }
}

/// How an exchange ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    Whole,
    Refused,
    Stopped,
    NotPermitted,
    TaskOver,
    ClientGone,
    UpstreamFailed,
    BrokeOff,
    HostFailed,
    Aborted,
    Unfinished,
}

impl Ended {
    pub const ALL: [Self; 11] = [
        Self::Whole,
        Self::Refused,
        Self::Stopped,
        Self::NotPermitted,
        Self::TaskOver,
        Self::ClientGone,
        Self::UpstreamFailed,
        Self::BrokeOff,
        Self::HostFailed,
        Self::Aborted,
        Self::Unfinished,
    ];

    /// As records have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Refused => "refused",
            Self::Stopped => "stopped",
            Self::NotPermitted => "not-permitted",
            Self::TaskOver => "task-over",
            Self::ClientGone => "client-gone",
            Self::UpstreamFailed => "upstream-failed",
            Self::BrokeOff => "broke-off",
            Self::HostFailed => "host-failed",
            Self::Aborted => "aborted",
            Self::Unfinished => "unfinished",
        }
    }

    /// One line for people.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Whole => "by itself, when it was done",
            Self::Refused => "it was refused, and nothing of it went on",
            Self::Stopped => "it was cut when the agent was stopped",
            Self::NotPermitted => "it was cut when the policy did not permit it any more",
            Self::TaskOver => "it was cut when its task was over",
            Self::ClientGone => "the client went, or did not send in time what is decided on",
            Self::UpstreamFailed => "upstream could not be used, or failed",
            Self::BrokeOff => "a connection broke off, the client's or upstream's",
            Self::HostFailed => "the host had no room, or no certificate, for it",
            Self::Aborted => "the forwarder dropped it",
            Self::Unfinished => {
                "the forwarder was gone before its end: it may have been done, or not"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_is_written_and_read() {
        for by in DecidedBy::ALL {
            let written = serde_json::to_string(&by).unwrap();
            assert_eq!(written, format!("\"{}\"", by.name()));
            assert_eq!(serde_json::from_str::<DecidedBy>(&written).unwrap(), by);
        }
        for ended in Ended::ALL {
            let written = serde_json::to_string(&ended).unwrap();
            assert_eq!(written, format!("\"{}\"", ended.name()));
            assert_eq!(serde_json::from_str::<Ended>(&written).unwrap(), ended);
        }
    }
}
