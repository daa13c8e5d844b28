//! What daemon and forwarder say to each other. Frames keep their order in each direction.

use std::collections::BTreeMap;

use agentguard_common::abi::AgentId;
use agentguard_policy::Settlement;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::calls::Token;
use crate::calls::to_daemon::{DaemonAnswer, DaemonCall};
use crate::calls::to_forwarder::{ForwarderAnswer, ForwarderCall};
use crate::spool::{CleanSegment, SpoolEnd};
use crate::state::{Delta, State};
use crate::ways::Ways;

/// Daemon to forwarder.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToForwarder {
    /// Once, first, with the descriptors of the spool's files. The forwarder answers [`ToDaemon::Ready`] when it can take
    /// listeners.
    Start(Box<Start>),
    /// What is other now in the state that the forwarder holds.
    Delta(Delta),
    /// A question to the forwarder, answered by [`ToDaemon::Answer`] with the same token.
    Call { token: Token, call: ForwarderCall },
    /// The answer to [`ToDaemon::Call`].
    Answer { token: Token, answer: DaemonAnswer },
    /// Serve the namespace with this cookie on the listeners that come with the frame
    /// ([`BoundSockets`](crate::listen::BoundSockets)), in the place of earlier ones.
    Enter { netns: u64 },
    /// Close that namespace's listeners. Its connections go on.
    Leave { netns: u64 },
    /// What this segment of the spool held has been taken up.
    Clean(CleanSegment),
    /// Finish: close the listeners, drop the connections, send what records there are, exit.
    Stop,
}

/// Forwarder to daemon.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToDaemon {
    /// It can be given listeners.
    Ready { sandbox: Sandbox },
    /// A listener of the namespace with this cookie has been destroyed under the forwarder.
    Lost { netns: u64 },
    /// A question to the daemon, answered by [`ToForwarder::Answer`] with the same token.
    Call { token: Token, call: DaemonCall },
    /// The answer to [`ToForwarder::Call`].
    Answer {
        token: Token,
        answer: ForwarderAnswer,
    },
    /// What has become of the request that [`DaemonCall::Charge`] with this token has charged.
    Settle { token: Token, settled: Settlement },
    /// The spool has been written up to here.
    Spooled(SpoolEnd),
    /// Live client connections per agent, sent when they change and at most once per 200 ms.
    Connections(BTreeMap<AgentId, u32>),
}

/// What a forwarder starts with: what stays as it is for as long as it runs, and the state that deltas then change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    pub limits: Limits,
    pub upstream: Upstream,
    /// Names that policy refuses lead to AgentGuard's own address, where requests are told so; else they do not exist.
    pub tells_refused_names: bool,
    /// What may be written to of the spool.
    pub spool: Vec<CleanSegment>,
    /// What begins is on disk before anything of it leaves.
    pub strict: bool,
    /// Where the canary's permitted request ends.
    pub canary: CanaryOrigin,
    pub state: State,
}

/// The daemon's own origin, on 127.0.0.1, for the canary alone.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CanaryOrigin {
    pub port: u16,
    /// Its certificate, which is its trust anchor too; DER.
    pub certificate: Vec<u8>,
}

/// Bounds on what one agent or all together can make the forwarder hold.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Limits {
    pub max_connections: u32,
    pub max_header_bytes: u32,
    /// How long a client may take to send a ClientHello, a request head.
    pub head_timeout_ms: u32,
    pub upstream_connect_timeout_ms: u32,
    /// How long upstream may take to the response head.
    pub upstream_head_timeout_ms: u32,
    /// How long a kept-alive connection may be idle.
    pub idle_timeout_ms: u32,
    /// Of a request's body that a rule reads, as it is sent and decoded; of all such together.
    pub max_judged_body_bytes: u32,
    pub max_judged_bodies_bytes: u32,
    /// How long a client may take to send one.
    pub judged_body_timeout_ms: u32,
}

/// What the forwarder has taken from itself, besides the system calls that it does not need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// 0: the kernel has no Landlock.
    pub landlock_abi: u32,
}

/// How the forwarder finds and trusts upstreams. It reads no file itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Upstream {
    /// Trust anchors, DER.
    pub roots: Vec<Vec<u8>>,
    /// Of the addresses that are refused otherwise: loopback, link-local, private, metadata, multicast, unspecified.
    pub allow_addresses: Vec<IpNet>,
    pub ways: Ways,
}
