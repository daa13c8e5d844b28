//! The kernel programs on the real kernel: what they do to an agent's calls, and that they do nothing to anybody else's.
//! Every test has its own programs, maps and pins, and takes them away again.

#![allow(clippy::unwrap_used)]

#[path = "kernel_suite/harness.rs"]
mod harness;

#[path = "kernel_suite/bind.rs"]
mod bind;
#[path = "kernel_suite/connect.rs"]
mod connect;
#[path = "kernel_suite/content.rs"]
mod content;
#[path = "kernel_suite/datagram.rs"]
mod datagram;
#[path = "kernel_suite/exec.rs"]
mod exec;
#[path = "kernel_suite/faults.rs"]
mod faults;
#[path = "kernel_suite/files.rs"]
mod files;
#[path = "kernel_suite/handed.rs"]
mod handed;
#[path = "kernel_suite/identify.rs"]
mod identify;
#[path = "kernel_suite/kill.rs"]
mod kill;
#[path = "kernel_suite/lineage.rs"]
mod lineage;
#[path = "kernel_suite/namespace.rs"]
mod namespace;
#[path = "kernel_suite/restart.rs"]
mod restart;
#[path = "kernel_suite/socket.rs"]
mod socket;
#[path = "kernel_suite/tamper.rs"]
mod tamper;
#[path = "kernel_suite/unix.rs"]
mod unix;
