//! The guarantees by name: their ids, what a row says, and whether a bundle's requirements are met.

mod require;

use serde::{Deserialize, Serialize};

pub use self::require::{Met, nearest, require};

/// Every guarantee's id, in the order in which they are told. Bundles and scripts name them: none is ever renamed.
pub const IDS: [&str; 21] = [
    "lineage",
    "tcp",
    "udp",
    "dns",
    "raw-sockets",
    "listen",
    "kill",
    "kill-resets",
    "address-families",
    "exec",
    "exec-scripts",
    "exec-digest",
    "unix-sockets",
    "handed-over-sockets",
    "io-uring",
    "terminal",
    "tamper",
    "own-files",
    "namespaces",
    "forwarder-sandbox",
    "canary",
];

/// How far a guarantee holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Holds {
    Enforced,
    /// By another mechanism than the first choice, with the limits that `why` names.
    Fallback,
    Open,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guarantee {
    pub id: String,
    /// In words.
    pub name: String,
    pub holds: Holds,
    pub why: String,
    /// A kernel, a kernel parameter, a capability, a command; for what this version does not do there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}
