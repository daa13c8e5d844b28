//! What crosses the line between AgentGuard's eBPF programs and its userspace.
//!
//! Every type shared with the kernel is defined here once, in [`abi`], as plain integers with its size and offsets
//! asserted. The connect verdict ([`decide`]) is a pure function over those types: the kernel programs and the host
//! tests call the same code. This crate never allocates and never panics.
#![no_std]
#![forbid(unsafe_op_in_unsafe_fn)]

pub mod abi;
pub mod counter;
pub mod decide;
pub mod exec;
pub mod glob;
pub mod layout;
pub mod net;
pub mod share;
pub mod verdict;
