//! The harness of the black-box tests: a private AgentGuard, real origins and unchanged clients.
//!
//! Everything a test makes is a guard that undoes it when dropped, also on panic. Nothing of the host's own AgentGuard is
//! touched: state, runtime, pins and trust are private to each [`Site`], all traffic stays on loopback, and a lock lets
//! one site at a time hold the kernel's hooks. Tests wait for events (a line, a log entry, a notification), never for time.

pub mod attempt;
pub mod audit;
pub mod bundle;
pub mod cgroup;
pub mod client;
pub mod field;
pub mod guard;
pub mod inject;
pub mod names;
pub mod netns;
pub mod nginx;
pub mod pki;
pub mod process;
pub mod script;
pub mod server;
pub mod site;
pub mod socket;
pub mod standing;
pub mod tap;
pub mod tools;
pub mod turn;

pub use audit::Record;
pub use bundle::Bundle;
pub use cgroup::Cgroup;
pub use client::Client;
pub use guard::Guard;
pub use netns::Netns;
pub use nginx::{Hit, Nginx};
pub use process::{Ran, Running};
pub use server::Server;
pub use site::Site;
pub use tap::Tap;
