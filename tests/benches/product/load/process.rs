//! Children, one after the other, from their start to their end.
#![allow(
    unsafe_code,
    reason = "children are forked and waited for by system calls"
)]

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::ensure;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};

use super::latency::Latencies;

pub(super) fn forks(count: u32) -> anyhow::Result<Latencies> {
    let mut latencies = Latencies::default();
    for _ in 0..count {
        let started = Instant::now();
        // SAFETY: the child does nothing but end.
        match unsafe { fork() }? {
            // SAFETY: as above.
            ForkResult::Child => unsafe { libc::_exit(0) },
            ForkResult::Parent { child } => waitpid(child, None)?,
        };
        latencies.push(started.elapsed());
    }
    Ok(latencies)
}

pub(super) fn execs(count: u32) -> anyhow::Result<Latencies> {
    let mut latencies = Latencies::default();
    for _ in 0..count {
        let started = Instant::now();
        let status = Command::new("/bin/true").stdin(Stdio::null()).status()?;
        latencies.push(started.elapsed());
        ensure!(status.success(), "true: {status}");
    }
    Ok(latencies)
}
