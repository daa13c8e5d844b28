//! `agentguard kill` and `agentguard revive`.

use std::process::ExitCode;

use agentguard_control::api::{Cut, NamedAgent, Target};
use agentguard_control::client::Client;
use clap::Args;
use serde::{Deserialize, Serialize};

use super::{Failure, print, print_json};

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
}

#[derive(Serialize, Deserialize)]
struct Revived {
    revived: Vec<NamedAgent>,
}

pub(super) async fn kill(arguments: &Kill, client: &Client) -> Result<ExitCode, Failure> {
    let target = target(&arguments.which, &arguments.reason);
    let done: Killed = client.post("/v1/kill", &target).await?;
    if arguments.json {
        return print_json(&done);
    }
    print(&done.killed.iter().map(show).collect::<String>())
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
