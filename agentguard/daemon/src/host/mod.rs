//! What the machine is, and what was configured for it: found at start, and read only after that.

pub mod config;
pub mod network;
pub mod startup;
pub mod tls;
pub mod upstream;
