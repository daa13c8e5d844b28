//! `agentguard agents`: who they are and what they do.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::status::duration;
use super::table::{fields, table};
use super::{Failure, print, print_json};
use crate::control::api::AgentLine;
use crate::control::client::Client;
use crate::daemon::kill::suggest;

#[derive(Debug, Args)]
pub struct Arguments {
    /// One JSON array, or with `show` one object
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// One agent, with its processes
    Show { name: String },
}

pub async fn run(arguments: &Arguments, client: &Client) -> Result<ExitCode, Failure> {
    let agents: Vec<AgentLine> = client.get("/v1/agents").await?;
    let Some(Verb::Show { name }) = &arguments.verb else {
        if arguments.json {
            return print_json(&agents);
        }
        return print(&list(&agents, Timestamp::now()));
    };
    let Some(agent) = agents.iter().find(|agent| agent.name == *name) else {
        let hint = suggest(name, agents.iter().map(|agent| &agent.name))
            .map_or("; `agentguard agents` lists them".into(), |near| {
                format!(", did you mean `{near}`?")
            });
        return Err(Failure::new(1, format!("unknown agent `{name}`{hint}")));
    };
    if arguments.json {
        return print_json(agent);
    }
    print(&show(agent))
}

fn list(agents: &[AgentLine], now: Timestamp) -> String {
    let rows: Vec<Vec<String>> = agents
        .iter()
        .map(|agent| {
            let seen = agent.last_seen.map_or("-".into(), |seen| {
                duration(now.as_second() - seen.as_second()) + " ago"
            });
            vec![
                agent.name.clone(),
                agent.state.clone(),
                agent.owner.clone().unwrap_or("-".into()),
                agent.processes.len().to_string(),
                agent.connections.to_string(),
                agent.allowed.to_string(),
                agent.denied.to_string(),
                seen,
            ]
        })
        .collect();
    let header = [
        "NAME",
        "STATE",
        "OWNER",
        "PROCS",
        "CONNS",
        "ALLOWED",
        "DENIED",
        "LAST-SEEN",
    ];
    table(&header, &rows)
}

fn show(agent: &AgentLine) -> String {
    let dash = |value: &Option<String>| value.clone().unwrap_or("-".into());
    let processes: Vec<String> = agent.processes.iter().map(u32::to_string).collect();
    let mut all = vec![
        ("name", agent.name.clone()),
        ("state", agent.state.clone()),
        ("owner", dash(&agent.owner)),
        ("risk", dash(&agent.risk)),
        ("id", agent.id.to_string()),
        ("processes", processes.join(" ")),
        ("connections", agent.connections.to_string()),
        ("allowed", agent.allowed.to_string()),
        ("denied", agent.denied.to_string()),
        (
            "last seen",
            agent.last_seen.map_or("-".into(), |seen| seen.to_string()),
        ),
    ];
    if let Some(killed) = &agent.killed {
        let why = killed.reason.as_deref().unwrap_or("no reason given");
        all.push(("killed", format!("{} by {}: {why}", killed.at, killed.by)));
    }
    fields(&all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_has_the_contracts_columns() {
        let agent = AgentLine {
            name: "procurement".into(),
            id: 2,
            state: "active".into(),
            owner: Some("john@example.com".into()),
            risk: None,
            processes: vec![5, 6],
            connections: 1,
            allowed: 10,
            denied: 2,
            last_seen: Some(Timestamp::from_second(60).unwrap()),
            killed: None,
        };
        assert_eq!(
            list(&[agent], Timestamp::from_second(90).unwrap()),
            "NAME         STATE   OWNER             PROCS  CONNS  ALLOWED  DENIED  LAST-SEEN\n\
             procurement  active  john@example.com  2      1      10       2       30s ago\n"
        );
    }
}
