//! `agentguard agents`: who they are and what they do.

use std::process::ExitCode;

use agentguard_control::api::{AgentLine, Change, ChangeAnswer, DoneView, LimitView};
use agentguard_control::client::Client;
use agentguard_daemon::suggest;
use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::kill::show as show_cut;
use super::status::duration;
use super::table::{fields, table};
use super::{Failure, print, print_json};

#[derive(Debug, Args)]
pub(super) struct AgentsArguments {
    /// One JSON array, or with `show` one object
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Option<AgentsVerb>,
}

#[derive(Debug, Subcommand)]
enum AgentsVerb {
    /// One agent, with its processes
    Show { name: String },
    /// Give agents another owner, until their files name another than now
    Reassign {
        /// Agents, and last the new owner
        #[arg(required = true, num_args = 2.., value_names = ["AGENT", "OWNER"])]
        names: Vec<String>,
        #[command(flatten)]
        why: Why,
    },
    /// Stop agents until they are activated; or an owner, and with them all of their agents
    Suspend(Whose),
    /// Let suspended agents go on, or the agents of a suspended owner
    Activate(Whose),
    /// Stop agents for good
    Retire {
        #[arg(required = true, value_name = "AGENT")]
        agents: Vec<String>,
        #[command(flatten)]
        why: Why,
    },
}

#[derive(Debug, Args)]
struct Whose {
    #[arg(
        value_name = "AGENT",
        required_unless_present = "owner",
        conflicts_with = "owner"
    )]
    agents: Vec<String>,
    /// Whose agents, by the owner's name in the policy
    #[arg(long)]
    owner: Option<String>,
    #[command(flatten)]
    why: Why,
}

#[derive(Debug, Args)]
struct Why {
    /// Why, for the audit log and for who finds them so
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

impl AgentsVerb {
    /// What it changes, and the path of the control API; `None` for one that only looks.
    fn change(&self) -> Option<(&'static str, Change)> {
        let of = |agents: &[String], owner: Option<&String>, why: &Why| Change {
            agents: agents.to_vec(),
            owner: owner.cloned(),
            reason: why.reason.clone(),
        };
        Some(match self {
            Self::Show { .. } => return None,
            Self::Reassign { names, why } => {
                let (owner, agents) = names.split_last()?;
                ("/v1/agents/reassign", of(agents, Some(owner), why))
            }
            Self::Suspend(it) => (
                "/v1/agents/suspend",
                of(&it.agents, it.owner.as_ref(), &it.why),
            ),
            Self::Activate(it) => (
                "/v1/agents/activate",
                of(&it.agents, it.owner.as_ref(), &it.why),
            ),
            Self::Retire { agents, why } => ("/v1/agents/retire", of(agents, None, why)),
        })
    }
}

pub(super) async fn run(arguments: &AgentsArguments, client: &Client) -> Result<ExitCode, Failure> {
    if let Some((path, change)) = arguments.verb.as_ref().and_then(AgentsVerb::change) {
        let done: ChangeAnswer = client.post(path, &change).await?;
        return match arguments.json {
            true => print_json(&done),
            false => print(&changed(&done, &change)),
        };
    }
    let agents: Vec<AgentLine> = client.get("/v1/agents").await?;
    let Some(AgentsVerb::Show { name }) = &arguments.verb else {
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

fn changed(done: &ChangeAnswer, change: &Change) -> String {
    let states = done.agents.iter().map(|agent| {
        let already = if agent.already { "already " } else { "" };
        let owner = agent.owner.as_deref().unwrap_or("-");
        format!(
            "{} is {already}{}, owner {owner}\n",
            agent.agent, agent.state
        )
    });
    let fresh = done.stopped.iter().filter(|cut| !cut.already);
    let mut text: String = states.chain(fresh.map(show_cut)).collect();
    if let (true, Some(owner)) = (done.agents.is_empty(), &change.owner) {
        text = format!("no agent of the bundle in force is {owner}'s\n");
    }
    text
}

fn show(agent: &AgentLine) -> String {
    let dash = |value: &Option<String>| value.clone().unwrap_or("-".into());
    let processes: Vec<String> = agent.processes.iter().map(u32::to_string).collect();
    let mut all = vec![
        ("name", agent.name.clone()),
        ("state", agent.state.clone()),
        ("owner", dash(&agent.owner)),
        ("parent", dash(&agent.parent)),
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
    if let Some(from) = &agent.owner_in_bundle {
        all.push(("reassigned", format!("its file says {from}")));
    }
    let done = |done: &DoneView| {
        let why = done.reason.as_deref().unwrap_or("no reason given");
        format!("{} by {}: {why}", done.at, done.by)
    };
    all.extend(agent.killed.as_ref().map(|it| ("killed", done(it))));
    all.extend(agent.out.as_ref().map(|it| ("out of use", done(it))));
    let inactive = agent.owner_inactive.as_ref();
    all.extend(inactive.map(|it| ("owner inactive", done(it))));
    let limits = agent.limits.iter().map(|limit| {
        let host = limit.host.as_ref();
        let host = host.map_or(String::new(), |host| format!(" at {host}"));
        let task = limit.task.as_ref();
        let task = task.map_or(String::new(), |task| format!(" on task {task}"));
        let shared = if limit.shared { " by all agents" } else { "" };
        let LimitView {
            rule,
            limit,
            used,
            next,
            ..
        } = limit;
        let used =
            format!("{rule}: {used} of {limit}{host}{task}{shared}, the first until {next:.0}");
        ("limit", used)
    });
    all.extend(limits);
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
            owner_in_bundle: None,
            parent: None,
            risk: None,
            processes: vec![5, 6],
            connections: 1,
            allowed: 10,
            denied: 2,
            last_seen: Some(Timestamp::from_second(60).unwrap()),
            killed: None,
            out: None,
            owner_inactive: None,
            limits: Vec::new(),
        };
        assert_eq!(
            list(&[agent], Timestamp::from_second(90).unwrap()),
            "NAME         STATE   OWNER             PROCS  CONNS  ALLOWED  DENIED  LAST-SEEN\n\
             procurement  active  john@example.com  2      1      10       2       30s ago\n"
        );
    }
}
