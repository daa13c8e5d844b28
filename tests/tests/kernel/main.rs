//! The kernel programs on the real kernel: what they do to an agent's calls, and that they do nothing to anybody else's.
//! Every test has its own programs, maps and pins, and takes them away again.

#![allow(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

mod machine;

mod bind;
mod connect;
mod content;
mod datagram;
mod exec;
mod faults;
mod files;
mod handed;
mod identify;
mod kill;
mod lineage;
mod namespace;
mod restart;
mod shapes;
mod shares;
mod socket;
mod tamper;
mod told;
mod unix;
