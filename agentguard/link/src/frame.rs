//! What daemon and forwarder say to each other. Frames keep their order in each direction.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use agentguard_common::abi::AgentId;
use agentguard_policy::{Charge, OpenedBy, Reassigned, Room, Settlement, Sources, Terms};
use agentguard_record::DenyReason;
use agentguard_record::Draft;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::presence::{Changes, Presence};

/// Daemon to forwarder.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToForwarder {
    /// Once, first. The forwarder answers [`ToDaemon::Ready`] when it listens.
    Start(Box<Start>),
    /// A bundle that the daemon has compiled without error; in force for every decision after it is read. Answered by
    /// [`ToDaemon::Applied`].
    Policy(Box<PolicyUpdate>),
    /// The answer to [`ToDaemon::WantLeaf`].
    Leaf {
        name: String,
        result: Result<Leaf, String>,
    },
    /// Agents that have been killed or stopped otherwise: drop their connections, both sides, and refuse what comes.
    /// Answered by [`ToDaemon::Killed`].
    Kill {
        agents: BTreeMap<AgentId, DenyReason>,
    },
    Revive {
        agents: Vec<AgentId>,
    },
    /// Send every record completed so far, then [`ToDaemon::Flushed`] with the same token.
    Flush {
        token: u64,
    },
    /// Whether decisions can be recorded: while they cannot, agents are refused with `audit-unavailable`.
    AuditAvailable(bool),
    /// The answer to [`ToDaemon::Charge`].
    Charged {
        token: u64,
        room: Room,
    },
    /// Whether the host's network is now one that its configuration trusts.
    Network {
        trusted: bool,
    },
    /// The open tasks of an agent, in the place of those before.
    Tasks {
        agent: AgentId,
        tasks: Vec<OpenTask>,
    },
    /// The answer to [`ToDaemon::ChangeTask`]: what has been opened or ended, after [`ToForwarder::Tasks`].
    TaskChanged {
        token: Uuid,
        result: Result<OpenTask, TaskFault>,
    },
    /// How agents are up now, as far as it has changed.
    Presence(Changes),
    /// Serve the namespace with this cookie on the listeners that come with the frame
    /// ([`Bound`](crate::listen::Bound)), in the place of earlier ones.
    Enter {
        netns: u64,
    },
    /// Close that namespace's listeners. Its connections go on.
    Leave {
        netns: u64,
    },
    /// Finish: close the listeners, drop the connections, send what records there are, exit.
    Stop,
}

/// Forwarder to daemon.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToDaemon {
    /// Listening on `port` on 127.0.0.1 and, if the host has it, ::1; TCP for connections, UDP for DNS.
    Ready {
        port: u16,
        listener4: u64,
        listener6: Option<u64>,
        sandbox: Sandbox,
    },
    /// A listener of the namespace with this cookie has been destroyed under the forwarder.
    Lost {
        netns: u64,
    },
    /// The leaf certificate for `name` is needed.
    WantLeaf {
        name: String,
    },
    /// An agent opens or ends a task of its own. Answered by [`ToForwarder::TaskChanged`] with the same token.
    ChangeTask {
        token: Uuid,
        agent: AgentId,
        change: TaskChange,
    },
    /// One draft per decision, in the order they were completed.
    Records(Vec<Draft>),
    Flushed {
        token: u64,
    },
    /// A request takes this of its limits, all of it or nothing. Answered by [`ToForwarder::Charged`].
    Charge {
        token: u64,
        charges: Vec<Charge>,
    },
    /// What has become of a request that was charged.
    Settle {
        token: u64,
        settled: Settlement,
    },
    Applied {
        digest: String,
    },
    Killed {
        /// How many client connections of each agent there were.
        dropped: BTreeMap<AgentId, u32>,
    },
    /// Live client connections per agent, sent when they change and at most once per 200 ms.
    Connections(BTreeMap<AgentId, u32>),
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Start {
    /// 0: one outside the ephemeral range is chosen.
    pub port: u16,
    pub limits: Limits,
    pub upstream: Upstream,
    pub killed: BTreeMap<AgentId, DenyReason>,
    pub policy: PolicyUpdate,
    /// Where the canary's permitted request ends.
    pub canary: CanaryOrigin,
    /// As [`ToForwarder::Network`].
    pub trusted_network: bool,
    pub host_labels: Vec<String>,
    /// As [`ToForwarder::Tasks`].
    pub tasks: BTreeMap<AgentId, Vec<OpenTask>>,
    /// As [`ToForwarder::Presence`].
    pub presences: BTreeMap<AgentId, Presence>,
}

/// A task that is open until it ends, or the daemon says that it is not any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenTask {
    pub id: Uuid,
    pub opened_by: OpenedBy,
    pub terms: Terms,
    /// Seconds since the Unix epoch.
    pub ends: i64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum TaskChange {
    Open {
        terms: Terms,
        /// How long, if the agent says so.
        seconds: Option<u64>,
    },
    End {
        id: Uuid,
    },
}

/// Why an agent's task is as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskFault {
    Terms(String),
    Unknown(String),
    Refused(String),
    /// It is the daemon's affair, and in its log.
    Failed,
}

/// The daemon's own origin, on 127.0.0.1, for the canary alone.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CanaryOrigin {
    pub port: u16,
    /// Its certificate, which is its trust anchor too; DER.
    pub certificate: Vec<u8>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PolicyUpdate {
    pub sources: Sources,
    /// Id → name of every agent of the bundle.
    pub agents: BTreeMap<AgentId, String>,
    /// Agents that have another owner than the sources say.
    pub owners: BTreeMap<String, Reassigned>,
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
    /// Lower-case name → addresses: the configuration's, then `/etc/hosts`.
    pub hosts: BTreeMap<String, Vec<IpAddr>>,
    pub resolvers: Vec<SocketAddr>,
    /// Of the addresses that are refused otherwise: loopback, link-local, private, metadata, multicast, unspecified.
    pub allow_addresses: Vec<IpNet>,
}

/// A leaf and the key that belongs to it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Leaf {
    /// Leaf first, then the CA certificate; DER.
    pub chain: Vec<Vec<u8>>,
    /// PKCS #8, DER.
    pub key: Vec<u8>,
}
