//! Every figure that is measured, in the order of the table.

use serde::Serialize;

macro_rules! rows {
    ($($group:literal { $($row:ident $label:literal,)* })*) => {
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
        #[serde(rename_all = "snake_case")]
        pub(crate) enum Row { $($($row,)*)* }

        impl Row {
            pub(crate) const ALL: &[Self] = &[$($(Self::$row,)*)*];

            pub(crate) fn group(self) -> &'static str {
                match self { $($(Self::$row => $group,)*)* }
            }

            /// What is measured, and its unit.
            pub(crate) fn label(self) -> &'static str {
                match self { $($(Self::$row => $label,)*)* }
            }
        }
    };
}

rows! {
    "keep-alive, 1 connection, 1 KiB" {
        Alone "requests/s",
        AloneP50 "p50 µs",
        AloneP99 "p99 µs",
        AloneAddedP50 "added p50 µs",
        AloneAddedP99 "added p99 µs",
        AloneCpu "CPU-s per 10k requests",
    }
    "keep-alive, 32 connections, 1 KiB" {
        Busy "requests/s",
        BusyP50 "p50 µs",
        BusyP99 "p99 µs",
        BusyAddedP50 "added p50 µs",
        BusyAddedP99 "added p99 µs",
        BusyCpu "CPU-s per 10k requests",
    }
    "HTTP/2, 32 streams, 1 connection" {
        Http2 "requests/s",
        Http2P99 "p99 µs",
        Http2Cpu "CPU-s per 10k requests",
    }
    "new connections, 8 at once" {
        New "connections/s, full handshake",
        NewP50 "p50 µs",
        NewP99 "p99 µs",
        NewCpu "CPU-s per 10k connections",
        Resumed "connections/s, with tickets",
        ResumedCpu "CPU-s per 10k, with tickets",
    }
    "bulk, one connection" {
        Down "download MB/s",
        DownCpu "download CPU-s per GiB",
        Up "upload MB/s",
        UpCpu "upload CPU-s per GiB",
        AfterBulk "RSS MB afterwards",
    }
    "memory" {
        IdleRss "idle, RSS MB",
        IdlePss "idle, PSS MB",
        HeldRss "500 idle connections, RSS MB",
        HeldEach "KB per idle connection",
    }
    "streams" {
        FirstEvent "first event ms",
    }
    "decision, from the audit log" {
        DecideP50 "p50 µs",
        DecideP99 "p99 µs",
    }
    "decision, by policies in the bundle" {
        TenP50 "10, p50 µs",
        TenP99 "10, p99 µs",
        ThousandP50 "1,000, p50 µs",
        ThousandP99 "1,000, p99 µs",
        TenThousandP50 "10,000, p50 µs",
        TenThousandP99 "10,000, p99 µs",
        GeneralP50 "10,000, 100 for all, p50 µs",
        Compile "10,000: compiled in s",
        CompiledRss "10,000: RSS MB",
    }
    "policy replay" {
        Replayed "records/s",
    }
    "being there" {
        Connect "connect(2), p50 µs",
        Bystander "direct requests/s, 32 connections",
        Fork "fork and wait, p50 µs",
        Exec "exec of true and wait, p50 µs",
        UnixConnect "connect(2), Unix, p50 µs",
        Loopback "loopback TCP, MB/s",
    }
}

/// What a proxy adds: the row, and the one it is the difference of.
pub(super) const ADDED: [(Row, Row); 4] = [
    (Row::AloneAddedP50, Row::AloneP50),
    (Row::AloneAddedP99, Row::AloneP99),
    (Row::BusyAddedP50, Row::BusyP50),
    (Row::BusyAddedP99, Row::BusyP99),
];

/// Who connects, for what AgentGuard costs by being there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Mode {
    /// Anybody, without AgentGuard.
    Unloaded,
    /// A process that is not an agent.
    Bystander,
    /// An agent, to what its rules let through in the kernel.
    Direct,
    /// An agent, to what goes by the forwarder.
    Forward,
}

impl Mode {
    pub(crate) const ALL: [Self; 4] =
        [Self::Unloaded, Self::Bystander, Self::Direct, Self::Forward];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unloaded => "not loaded",
            Self::Bystander => "non-agent",
            Self::Direct => "agent direct",
            Self::Forward => "agent forward",
        }
    }
}
