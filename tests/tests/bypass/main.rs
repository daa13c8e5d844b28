//! Ways around AgentGuard, each tried by a real program: off, as an agent, and as nobody beside the agents. Every test has
//! its row in `tests/BYPASSES.md`.

mod dns;
mod exec;
mod forwarder;
mod host;
mod lineage;
mod namespace;
mod network;
mod processes;
mod sockets;
mod tamper;
mod unix;
mod wire;
