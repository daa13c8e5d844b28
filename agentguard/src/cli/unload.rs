//! `agentguard unload`: the only way to open the agents.

use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;

use agentguard_control::client::{Client, ClientError};
use agentguard_daemon::config::Config;
use agentguard_kernel::Kernel;
use agentguard_sys::lock::{LockHolder, holder};
use agentguard_sys::process;
use clap::Args;

use super::{Failure, print};

/// How long a daemon may take to stop.
const LIMIT: Duration = Duration::from_secs(40);

#[derive(Debug, Args)]
pub(super) struct UnloadArguments {
    /// Agents are no longer held after this: say so
    #[arg(long)]
    yes: bool,
}

pub(super) async fn run(
    arguments: &UnloadArguments,
    config: &Config,
    client: &Client,
) -> Result<ExitCode, Failure> {
    if !arguments.yes {
        let hint = "after an unload agents are no longer held; add --yes if that is meant";
        return Err(Failure::new(2, hint));
    }
    let daemon = holder(&config.paths.pins);
    let answer: Result<serde_json::Value, _> =
        client.post("/v1/unload", &serde_json::json!({})).await;
    match (answer, daemon) {
        (Ok(_), LockHolder::By(tgid)) => wait_for(tgid)?,
        (Ok(_), LockHolder::Unknown) => {}
        (Err(ClientError::Unreachable { .. }), LockHolder::By(tgid)) => {
            return Err(Failure::new(
                4,
                format!(
                    "a daemon (pid {tgid}) runs and cannot be asked to stop; end it, then unload again"
                ),
            ));
        }
        (Err(ClientError::Unreachable { .. }), LockHolder::Unknown) => {}
        (Err(error), _) => return Err(error.into()),
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::new(5, "only root may unload"));
    }
    // The daemon has done so already, if one ran; taking away nothing is no failure.
    Kernel::unload(&config.paths.pins).map_err(|e| Failure::new(1, e))?;
    print("unloaded: agents are no longer held\n")
}

fn wait_for(tgid: u32) -> Result<(), Failure> {
    let Ok(pidfd) = process::pidfd_open(tgid) else {
        return Ok(());
    };
    if process::pidfd_ended_within(pidfd.as_fd(), LIMIT) {
        return Ok(());
    }
    Err(Failure::new(
        1,
        format!("the daemon (pid {tgid}) did not stop within {LIMIT:?}; end it, then unload again"),
    ))
}
