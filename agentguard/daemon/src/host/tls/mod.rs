//! Certificates: the per-host CA (in the daemon) and the leaves it signs (used by the forwarder).

pub mod ca;
mod pair;
