//! The one channel between daemon and forwarder: a `SOCK_SEQPACKET` pair ([`channel`]) carrying [`frame`]s through one
//! [`codec`]. They are of two shapes: the [`state`] that the daemon wants held and its changes, and [`calls`] in either
//! direction.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::wildcard_enum_match_arm))]

pub mod calls;
pub mod canary;
pub mod channel;
pub mod codec;
pub mod frame;
pub mod listen;
pub mod presence;
pub mod spool;
pub mod state;
pub mod ways;
