//! Every key of the configuration, with its bounds and what it is for: what [`Config`] checks, and what the book lists.

use std::fmt;

use super::Config;

/// One key of `agentguard.toml`.
pub struct ConfigKey {
    /// `[paths]`, or `[[roles]]` for a list of tables.
    pub section: &'static str,
    pub key: &'static str,
    /// As TOML; what it is without the key.
    pub default: &'static str,
    pub bounds: Option<Bounds>,
    pub about: &'static str,
}

/// What a number may be.
pub struct Bounds {
    pub min: u32,
    pub max: u32,
    pub unit: &'static str,
    pub(super) of: fn(&Config) -> u32,
}

/// `1 and 86400 seconds`
impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} and {} {}", self.min, self.max, self.unit)
    }
}

const fn key(
    section: &'static str,
    key: &'static str,
    default: &'static str,
    about: &'static str,
) -> ConfigKey {
    ConfigKey {
        section,
        key,
        default,
        bounds: None,
        about,
    }
}

impl ConfigKey {
    const fn within(
        mut self,
        min: u32,
        max: u32,
        unit: &'static str,
        of: fn(&Config) -> u32,
    ) -> Self {
        self.bounds = Some(Bounds { min, max, unit, of });
        self
    }

    const fn milliseconds(self, of: fn(&Config) -> u32) -> Self {
        self.within(100, 3_600_000, "milliseconds", of)
    }
}

pub const KEYS: [ConfigKey; 34] = [
    key(
        "[paths]",
        "state",
        "\"/var/lib/agentguard\"",
        "the audit log, bundles, agents, tasks, counters, the CA and its key; absolute",
    ),
    key(
        "[paths]",
        "runtime",
        "\"/run/agentguard\"",
        "`control.sock` and the trust anchors that agents are given; absolute",
    ),
    key(
        "[paths]",
        "pins",
        "\"/sys/fs/bpf/agentguard\"",
        "the eBPF programs and maps; absolute, on a bpffs",
    ),
    key(
        "[paths]",
        "trust",
        "\"/etc/agentguard/trust\"",
        "public keys whose packed bundles are accepted; absolute",
    ),
    key(
        "[paths]",
        "cgroup",
        "\"auto\"",
        "where the cgroup v2 hierarchy is mounted; `auto` finds it in `/proc/mounts`",
    ),
    key(
        "[policy]",
        "bundle",
        "\"/etc/agentguard/policies\"",
        "the bundle in force until one has been applied; absolute",
    ),
    key(
        "[policy]",
        "accept_gaps",
        "[]",
        "guarantees that a bundle may require and this host may lack",
    ),
    key(
        "[forwarder]",
        "user",
        "\"agentguard\"",
        "whom the forwarder runs as; it must exist, and is not root",
    ),
    key(
        "[forwarder]",
        "port",
        "0",
        "where the forwarder listens on loopback; 0: one outside the ephemeral range is chosen at the start",
    ),
    key(
        "[forwarder]",
        "refused_names",
        "\"guard\"",
        "`guard`: a name that policy refuses has AgentGuard's own address, where requests are told so; `nxdomain`: it does not exist",
    ),
    key(
        "[forwarder]",
        "max_connections",
        "4096",
        "agents' connections at once, of all agents together",
    )
    .within(1, 1_000_000, "connections", |config| {
        config.forwarder.max_connections
    }),
    key(
        "[forwarder]",
        "max_header_bytes",
        "65536",
        "of a request's or an answer's head",
    )
    .within(1024, 1_048_576, "bytes", |config| {
        config.forwarder.max_header_bytes
    }),
    key(
        "[forwarder]",
        "head_timeout_ms",
        "15000",
        "how long a client may take to send a ClientHello or a request's head",
    )
    .milliseconds(|config| config.forwarder.head_timeout_ms),
    key(
        "[forwarder]",
        "upstream_connect_timeout_ms",
        "10000",
        "how long a connection to a server may take: its name, TCP and TLS",
    )
    .milliseconds(|config| config.forwarder.upstream_connect_timeout_ms),
    key(
        "[forwarder]",
        "upstream_head_timeout_ms",
        "3600000",
        "how long a server may take to the head of its answer",
    )
    .milliseconds(|config| config.forwarder.upstream_head_timeout_ms),
    key(
        "[forwarder]",
        "idle_timeout_ms",
        "120000",
        "how long a kept connection may be idle",
    )
    .milliseconds(|config| config.forwarder.idle_timeout_ms),
    key(
        "[forwarder]",
        "max_judged_body_bytes",
        "1048576",
        "of a request's body that a rule reads, as it is sent and decoded",
    )
    .within(1024, 64 << 20, "bytes", |config| {
        config.forwarder.max_judged_body_bytes
    }),
    key(
        "[forwarder]",
        "max_judged_bodies_bytes",
        "67108864",
        "of all such bodies at one time",
    )
    .within(1 << 20, u32::MAX, "bytes", |config| {
        config.forwarder.max_judged_bodies_bytes
    }),
    key(
        "[forwarder]",
        "judged_body_timeout_ms",
        "30000",
        "how long a client may take to send such a body",
    )
    .milliseconds(|config| config.forwarder.judged_body_timeout_ms),
    key(
        "[upstream]",
        "roots",
        "[]",
        "PEM files with trust anchors besides the system's",
    ),
    key(
        "[upstream]",
        "hosts",
        "{}",
        "name = address, or a list of them: before `/etc/hosts` and DNS",
    ),
    key(
        "[upstream]",
        "resolvers",
        "[]",
        "addresses of DNS servers, port 53 where none is named; empty: those of `/etc/resolv.conf`",
    ),
    key(
        "[upstream]",
        "allow_addresses",
        "[]",
        "ranges that the forwarder may dial although they are loopback, link-local, private, metadata, multicast or unspecified",
    ),
    key(
        "[upstream]",
        "proxy",
        "\"direct\"",
        "`http://HOST:PORT` or `https://HOST:PORT`: every host is reached by this proxy, which is asked for it by name",
    ),
    key(
        "[upstream]",
        "proxies",
        "{}",
        "hosts = their own proxy, or `direct`; the most specific counts, and all before `no_proxy`",
    ),
    key(
        "[upstream]",
        "no_proxy",
        "[]",
        "hosts that are reached directly: `name` with all below it, `.name` for those below alone, an address, a range of such",
    ),
    key(
        "[upstream]",
        "proxy_credentials_file",
        "\"\"",
        "lines `HOST:PORT USER:PASSWORD`, one for each proxy that wants credentials (Basic); root's, and readable by nobody else",
    ),
    key(
        "[audit]",
        "durability",
        "\"batched\"",
        "`batched`: a record is written at once and on disk soon after; `strict`: on disk before what it permits begins",
    ),
    key(
        "[canary]",
        "every_s",
        "30",
        "between two rounds of the daemon's own attempts at what must be refused",
    )
    .within(1, 86_400, "seconds", |config| config.canary.every_s),
    key(
        "[canary]",
        "on_failure",
        "\"close\"",
        "`close`: a failure holds every agent until a round passes; `alarm`: it is told, and agents go on",
    ),
    key(
        "[host]",
        "labels",
        "[]",
        "what rules read as `context.host.labels`",
    ),
    key(
        "[network]",
        "trusted",
        "[]",
        "tables with `interface`, `source`, `gateway`, `domain`: all that a table has must hold, and one table is enough for `context.network.trusted`",
    ),
    key(
        "[[roles]]",
        "group",
        "none",
        "a group of the host whose members get the role",
    ),
    key(
        "[[roles]]",
        "role",
        "none",
        "`viewer`, `responder` or `admin`; each may also do what the ones before it may",
    ),
];
