//! The audit log: one record per decision, hash-chained JSON lines, written by the daemon alone.
//!
//! [`log`] writes segments of lines ([`line`] has their fields), [`verify`] checks the chain, [`search`] reads back, [`scan`] all of it at once.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::wildcard_enum_match_arm))]

pub mod decisions;
mod durability;
pub mod line;
pub mod log;
mod read;
pub mod scan;
pub mod search;
mod segment;
mod sync;
pub mod verify;

pub use durability::Durability;
pub use log::{Log, LogError};

#[cfg(test)]
mod fixture;
