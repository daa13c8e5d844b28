//! `agentguard kill` and `agentguard revive`. Root's kill holds by the pinned map before the daemon is asked, and needs no
//! answer.

use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use agentguard_control::api::{Cut, NamedAgent, Target};
use agentguard_control::client::{Client, ClientError};
use agentguard_daemon::config::Config;
use agentguard_daemon::{KillError, KillOrder};
use agentguard_sys::lock::{LockHolder, holder};
use agentguard_sys::process;
use clap::Args;
use serde::{Deserialize, Serialize};

use super::{Failure, print, print_json};

/// How long the daemon may be silent before the order is completed without it.
const SILENCE: Duration = Duration::from_millis(300);
/// How long a daemon that runs is waited for when it has been.
const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct AgentSelection {
    /// Agents by name
    #[arg(value_name = "AGENT", conflicts_with = "all")]
    agents: Vec<String>,
    /// Every agent this host knows
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Args)]
pub(super) struct Kill {
    #[command(flatten)]
    which: AgentSelection,
    /// Why, for the audit log and for who finds them killed
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Revive {
    #[command(flatten)]
    which: AgentSelection,
    /// Why, for the audit log
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize, Deserialize)]
struct Killed {
    killed: Vec<Cut>,
    /// Why the daemon has not recorded it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unanswered: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Revived {
    revived: Vec<NamedAgent>,
}

pub(super) async fn kill(
    arguments: &Kill,
    config: &Config,
    client: &Client,
) -> Result<ExitCode, Failure> {
    let target = target(&arguments.which, &arguments.reason);
    let order = match nix::unistd::geteuid().is_root() {
        true => KillOrder::give(config, &target),
        false => Ok(None),
    };
    let asked = client.post("/v1/kill", &target);
    let done = match order {
        Ok(Some(order)) => complete(order, &target, config, asked).await?,
        Ok(None) => asked.await?,
        // The daemon may know better, and words it the same.
        Err(why) => asked.await.map_err(|error| unheld(&why, error))?,
    };
    if arguments.json {
        return print_json(&done);
    }
    if let Some(why) = &done.unanswered {
        eprintln!(
            "agentguard: held by the kernel alone: {why}; recorded when the daemon answers again"
        );
    }
    print(&done.killed.iter().map(show).collect::<String>())
}

fn unheld(why: &KillError, error: ClientError) -> Failure {
    match error {
        ClientError::Unreachable { .. } => {
            Failure::new(error.exit_status(), format!("{error}; without it: {why}"))
        }
        answered => answered.into(),
    }
}

/// Has the daemon do the rest, which holds more than the kernel alone can; or what can be done of it without.
async fn complete(
    mut order: KillOrder,
    target: &Target,
    config: &Config,
    asked: impl Future<Output = Result<Killed, ClientError>>,
) -> Result<Killed, Failure> {
    let mut asked = pin!(asked);
    let (unanswered, may_answer) = match tokio::time::timeout(SILENCE, &mut asked).await {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(
            error @ (ClientError::Unreachable { .. }
            | ClientError::Impostor { .. }
            | ClientError::Protocol(_)),
        )) => (error.to_string(), false),
        Ok(Err(answered)) => return Err(answered.into()),
        Err(_) => {
            let silent = format!("the daemon did not answer within {SILENCE:?}");
            (silent, is_running(config))
        }
    };
    let uid = nix::unistd::getuid().as_raw();
    let below = order.hold_below();
    let noted = order.note(target.reason.clone(), uid);
    let (killed, mut failures) = order.cut();
    failures.extend(below.err());
    if let Err(error) = &noted {
        failures.push(format!(
            "it holds until the host restarts, and cannot be noted for the daemon ({error}): kill again when it can be written"
        ));
    }
    if !failures.is_empty() {
        let failures = failures.join("; ");
        return Err(Failure::new(1, format!("{unanswered}; {failures}")));
    }
    if may_answer && let Ok(Ok(done)) = tokio::time::timeout(PATIENCE, asked).await {
        // If it has not been taken in already, it is not needed.
        let _ = noted.map(std::fs::remove_file);
        return Ok(done);
    }
    Ok(Killed {
        killed,
        unanswered: Some(unanswered),
    })
}

/// Whether there is a daemon, and nobody has stopped its process.
fn is_running(config: &Config) -> bool {
    match holder(&config.paths.pins) {
        LockHolder::By(tgid) => !process::is_stopped(tgid),
        LockHolder::Unknown => false,
    }
}

pub(super) async fn revive(arguments: &Revive, client: &Client) -> Result<ExitCode, Failure> {
    let target = target(&arguments.which, &arguments.reason);
    let done: Revived = client.post("/v1/revive", &target).await?;
    if arguments.json {
        return print_json(&done);
    }
    let line = |named: &NamedAgent| {
        let done = match named.already {
            true => "was not killed",
            false => "revived",
        };
        let still = named.stopped.as_ref();
        let still = still.map_or(String::new(), |why| format!(", but does not go on: {why}"));
        format!("{} {done}{still}\n", named.agent)
    };
    print(&done.revived.iter().map(line).collect::<String>())
}

fn target(which: &AgentSelection, reason: &Option<String>) -> Target {
    Target {
        agents: which.agents.clone(),
        all: which.all,
        reason: reason.clone(),
    }
}

pub(super) fn show(cut: &Cut) -> String {
    let state = match (cut.state.as_str(), cut.already) {
        ("held", _) => "held, as it acts for an agent that is stopped".to_owned(),
        (state, true) => format!("was {state} already"),
        (state, false) => state.to_owned(),
    };
    format!(
        "{} {state}: {} processes held, {} sockets reset, {} connections dropped\n",
        cut.agent, cut.processes, cut.sockets, cut.connections
    )
}
