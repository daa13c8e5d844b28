//! What processes cost, read from the kernel: CPU time by each process's own clock (exact, threads that ended included),
//! memory from `/proc`.

use std::time::Duration;

use agentguard_tests::process;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use nix::time::ClockId;

/// A process and all its descendants, as they are now.
#[derive(Clone, Default)]
pub(crate) struct Tree(Vec<u32>);

impl Tree {
    pub(crate) fn of(root: u32) -> Self {
        let mut members = process::descendants(root);
        members.push(root);
        Self(members)
    }

    /// CPU time used so far, user and system.
    pub(crate) fn cpu(&self) -> Duration {
        let spent = self.0.iter().filter_map(|tgid| {
            let clock = ClockId::pid_cpu_clock_id(process::pid(*tgid)).ok()?;
            Some(Duration::from(clock.now().ok()?))
        });
        spent.sum()
    }

    /// Resident memory in MB (10^6 bytes), summed: a page that two processes share counts twice.
    pub(crate) fn rss_mb(&self) -> f64 {
        self.sum_kib("status", "VmRSS:")
    }

    /// Proportional memory in MB: a page that two processes share counts once.
    pub(crate) fn pss_mb(&self) -> f64 {
        self.sum_kib("smaps_rollup", "Pss:")
    }

    fn sum_kib(&self, file: &str, key: &str) -> f64 {
        let values = self.0.iter().filter_map(|tgid| {
            let text = std::fs::read_to_string(format!("/proc/{tgid}/{file}")).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix(key))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        });
        (values.sum::<u64>() * 1024) as f64 / 1e6
    }
}

/// CPU time of our children that have ended, and of theirs.
pub(crate) fn ended_children() -> Duration {
    let duration = |time: TimeVal| {
        let micros = u64::try_from(time.tv_usec()).unwrap_or(0);
        Duration::from_secs(u64::try_from(time.tv_sec()).unwrap_or(0))
            + Duration::from_micros(micros)
    };
    getrusage(UsageWho::RUSAGE_CHILDREN).map_or(Duration::ZERO, |usage| {
        duration(usage.user_time()) + duration(usage.system_time())
    })
}

pub(crate) fn cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32)
}

/// CPU time of all CPUs since boot that was neither idle nor this machine's to give: processes, interrupts, and what the
/// host took (steal).
pub(crate) fn machine_busy() -> Duration {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1);
    let ticks: u64 = fields
        .enumerate()
        // user nice system (idle iowait) irq softirq steal (guest …)
        .filter(|(field, _)| matches!(field, 0..=2 | 5..=7))
        .filter_map(|(_, ticks)| ticks.parse::<u64>().ok())
        .sum();
    // USER_HZ is 100 on x86 and arm64.
    Duration::from_millis(ticks * 10)
}
