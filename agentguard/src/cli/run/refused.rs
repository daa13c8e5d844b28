//! What is said of a command that an exec rule has killed, itself or a program below it: without BPF LSM nothing else says
//! why.

use agentguard_audit::search::Filter;
use agentguard_daemon::config::Config;
use futures_util::TryStreamExt;
use jiff::Timestamp;
use serde_json::Value;

use super::super::printable::printable;
use super::super::{client_runtime, server};

/// What a shell, and `run`, make of SIGKILL.
pub(super) const KILLED: u8 = 128 + libc::SIGKILL as u8;
/// The newest refused execs of the agent that are looked through.
const LOOKED_AT: usize = 100;

/// One line on stderr, if an exec of `command` or of what it has started was refused since. Nothing where the daemon does
/// not answer, or the caller may not look at records.
pub(super) fn say(agent: &str, command: u32, since: Timestamp, config: &Config) {
    let filter = Filter {
        agent: Some(agent.to_owned()),
        action: Some("exec".to_owned()),
        outcome: Some("deny".to_owned()),
        since: Some(since),
        limit: Some(LOOKED_AT),
        ..Filter::default()
    };
    let path = format!("/v1/audit?{}", filter.to_query());
    let Ok(runtime) = client_runtime() else {
        return;
    };
    let client = server::client(config);
    let lines: anyhow::Result<Vec<String>> =
        runtime.block_on(async { client.lines(&path).await?.lines.try_collect().await });
    let lines = lines.unwrap_or_default();
    let records = lines
        .iter()
        .rev()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    if let Some(record) = records.into_iter().find(|record| is_below(record, command)) {
        let text = |field: &str| record[field].as_str().unwrap_or_default();
        let line = format!(
            "`{}` was killed: `[exec]` does not let {agent} execute it, do not retry (agentguard audit show {})",
            text("resource"),
            text("decision")
        );
        eprintln!("agentguard: {}", printable(&line));
    }
}

fn is_below(record: &Value, command: u32) -> bool {
    let process = &record["process"];
    let parents = process["parents"].as_array().into_iter().flatten();
    let end = format!("[{command}]");
    let mut parents = parents.filter_map(Value::as_str);
    process["tgid"] == command || parents.any(|parent| parent.ends_with(&end))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn records_of_other_commands_are_not_its() {
        let record =
            json!({"process": {"tgid": 43, "parents": ["/bin/sh[42]", "/usr/sbin/init[1]"]}});
        for (command, is) in [(43, true), (42, true), (1, true), (2, false), (4, false)] {
            assert_eq!(is_below(&record, command), is, "{command}");
        }
    }
}
