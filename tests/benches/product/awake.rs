//! Keeps the CPUs from halting: on a virtual machine a wake-up from a halt costs more than a whole request, and which
//! subject pays it is chance. One spinner a CPU, of a class that runs only when nobody else wants to (SCHED_IDLE).

use agentguard_tests::{Client, Running};
use anyhow::Context;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// One for each CPU that we may use; they end with these values.
pub(crate) fn spinners() -> anyhow::Result<Vec<Running>> {
    let own = std::env::current_exe()?;
    let cpus = nix::sched::sched_getaffinity(Pid::from_raw(0))?;
    let mut spinners = Vec::new();
    for cpu in 0..CpuSet::count() {
        if cpus.is_set(cpu)? {
            let spinner = Client::new("/usr/bin/chrt").args(["--idle", "0"]).arg(&own);
            spinners.push(spinner.arg("awake").arg(cpu.to_string()).spawn());
        }
    }
    Ok(spinners)
}

/// Spins on this CPU until stdin ends.
pub(crate) fn spin(cpu: usize) -> anyhow::Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &only).with_context(|| format!("CPU {cpu}"))?;
    std::thread::spawn(|| {
        loop {
            std::hint::spin_loop();
        }
    });
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}
