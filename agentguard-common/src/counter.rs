//! Per-CPU counters: what went wrong inside a hook is counted, never silent.

/// Index into the `COUNTERS` per-CPU array.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Counter {
    /// Events about processes lost because the ring, or an agent's share of it, was full. Verdicts are never lost.
    RingFull = 0,
    /// Flows refused because the flow map was full.
    FlowMapFull = 1,
    /// Sockets refused because their storage could not be made.
    StorageFull = 2,
    /// Reads of kernel memory that failed.
    ReadFailed = 3,
    /// Accepted connections that no flow was found for.
    FlowMissing = 4,
    /// Packets dropped at `cgroup_skb/egress`.
    PacketsDropped = 5,
    /// Connects, sends and binds refused.
    Refused = 6,
    /// Tasks whose lethal signal could not be sent.
    SignalFailed = 7,
    /// Refusals told by their number, not one by one.
    RefusalsCounted = 8,
}

impl Counter {
    pub const ALL: [(Self, &'static str); 9] = [
        (Self::RingFull, "ring_full"),
        (Self::FlowMapFull, "flow_map_full"),
        (Self::StorageFull, "storage_full"),
        (Self::ReadFailed, "read_failed"),
        (Self::FlowMissing, "flow_missing"),
        (Self::PacketsDropped, "packets_dropped"),
        (Self::Refused, "refused"),
        (Self::SignalFailed, "signal_failed"),
        (Self::RefusalsCounted, "refusals_counted"),
    ];

    /// As operators see it.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}
