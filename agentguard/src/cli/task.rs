//! `agentguard task`: what agents are about, and what they may do at most meanwhile.

use std::process::ExitCode;

use agentguard_control::api::{TaskEnd, TaskLine, TaskStart};
use agentguard_control::client::Client;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use super::status::duration;
use super::table::table;
use super::{Failure, print, print_json};

#[derive(Debug, Args)]
pub(super) struct TaskArguments {
    #[command(subcommand)]
    verb: TaskVerb,
}

#[derive(Debug, Subcommand)]
enum TaskVerb {
    /// Open a task for an agent, and print its id
    Start {
        agent: String,
        /// What it is for: one line, for rules and the audit log
        #[arg(long, value_name = "TEXT")]
        intent: String,
        /// Only this, as in 'GET api.example.com/v1/**' or 'connect pinned.example'; may be repeated
        #[arg(long, value_name = "WHAT")]
        allow: Vec<String>,
        /// Only requests that do no more than this: read, write, money, infrastructure, export, admin; may be repeated
        #[arg(long, value_name = "SCOPE")]
        scope: Vec<String>,
        /// How long: 30s, 15m, 2h, up to 30d
        #[arg(long = "for", value_name = "TIME", default_value = "1h", value_parser = seconds)]
        time: u64,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// End a task: what was permitted on it is cut
    End {
        id: Uuid,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// The open tasks
    List {
        /// Of this agent alone
        #[arg(long, value_name = "NAME")]
        agent: Option<String>,
        /// One JSON array
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(arguments: &TaskArguments, client: &Client) -> Result<ExitCode, Failure> {
    match &arguments.verb {
        TaskVerb::Start {
            agent,
            intent,
            allow,
            scope,
            time,
            json,
        } => {
            let start = TaskStart {
                agent: agent.clone(),
                intent: intent.clone(),
                allow: allow.clone(),
                scope: scope.iter().cloned().collect(),
                for_s: Some(*time),
            };
            let line: TaskLine = client.post("/v1/tasks", &start).await?;
            match json {
                true => print_json(&line),
                false => print(&format!("{}\n", line.id)),
            }
        }
        TaskVerb::End { id, json } => {
            let line: TaskLine = client.post("/v1/tasks/end", &TaskEnd { id: *id }).await?;
            match json {
                true => print_json(&json!({ "ended": line })),
                false => print(&format!("task {} of {} has ended\n", line.id, line.agent)),
            }
        }
        TaskVerb::List { agent, json } => {
            let mut open: Vec<TaskLine> = client.get("/v1/tasks").await?;
            open.retain(|it| agent.as_ref().is_none_or(|agent| *agent == it.agent));
            match json {
                true => print_json(&open),
                false => print(&list(&open, Timestamp::now())),
            }
        }
    }
}

fn list(open: &[TaskLine], now: Timestamp) -> String {
    let rows: Vec<Vec<String>> = open
        .iter()
        .map(|task| {
            let left = task.ends_at.as_second() - now.as_second();
            let by = task.by.as_deref().unwrap_or(task.opened_by.name());
            vec![
                task.id.to_string(),
                task.agent.clone(),
                by.to_owned(),
                duration(left.max(0)),
                task.intent.clone(),
            ]
        })
        .collect();
    table(&["ID", "AGENT", "OPENED-BY", "LEFT", "INTENT"], &rows)
}

/// A length of time in seconds.
fn seconds(text: &str) -> Result<u64, String> {
    let expected = || "a length of time such as 30s, 15m, 2h, 7d is expected".to_owned();
    let unit = match text.chars().last().ok_or_else(expected)? {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(expected()),
    };
    let count: u32 = text[..text.len() - 1].parse().map_err(|_| expected())?;
    Ok(u64::from(count) * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read() {
        assert_eq!(seconds("90s"), Ok(90));
        assert_eq!(seconds("2h"), Ok(7200));
        assert_eq!(seconds("30d"), Ok(30 * 86_400));
        for wrong in ["", "2", "h", "2 h", "-1s", "1y", "2ü"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
