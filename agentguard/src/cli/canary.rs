//! The canary process, started by the daemon with its one descriptor.

use std::process::ExitCode;

use agentguard_daemon::canary_process as canary;
use agentguard_sys::spawn;

use super::Failure;

pub(super) fn run() -> Result<ExitCode, Failure> {
    let [link] = spawn::inherited().ok_or_else(|| {
        Failure::new(
            2,
            "the canary is started by `agentguard daemon`, not by hand",
        )
    })?;
    canary::run(link).map_err(|error| Failure::new(1, error))?;
    Ok(ExitCode::SUCCESS)
}
