//! AgentGuard decides, at the moment of the action and outside the agent, what an AI agent may do.
//!
//! Read in the order of one call: [`kernel`] (attribution and the connect verdict, with `agentguard-ebpf`), then
//! `forwarder::serve_connection` (the whole path on the wire), [`policy`] (the decision), [`audit`] (its record).
//! [`daemon`] wires them together; [`control`] is the API that [`cli`] speaks. What is promised, and whether it holds on this
//! host, is in [`guarantee`] alone. What [`limits`] count outlives every request.
//!
//! Invariants:
//! - `policy` does no I/O and has no clock;
//! - only `kernel` and `sys` contain `unsafe`;
//! - only `policy::permit` can build a `Permit`, and only spending one reaches an upstream; the forwarder asks other services
//!   by itself only what policy declares as a look-up;
//! - the CA private key never is in the process that parses an agent's bytes;
//! - every early return in `serve_connection` leaves one audit record;
//! - the death of the daemon or the forwarder never widens access.

pub mod agents;
pub mod audit;
pub mod canary;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod forwarder;
pub mod guarantee;
pub mod kernel;
pub mod limits;
pub mod link;
pub mod policy;
pub mod reason;
pub mod sys;
pub mod tls;
