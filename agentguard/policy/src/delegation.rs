//! Agents that act for others: who is above whom, and what of an agent's file those above leave to it.

mod globs;
mod narrow;

use std::collections::HashMap;

use super::diagnostic::{Report, did_you_mean};
use super::parse::AgentFile;

pub(super) use narrow::narrow;

/// Agents above one at most.
const MAX_ABOVE: usize = 8;

/// Everyone above the agent, the nearest first; of a cycle or of too long a line as many as there may be.
pub(super) fn above<'a>(
    agents: &'a [AgentFile],
    file: &'a AgentFile,
) -> impl Iterator<Item = &'a AgentFile> {
    let of = |file: &AgentFile| {
        let parent = file.agent.parent.as_ref()?;
        agents.iter().find(|other| other.agent.name == *parent)
    };
    std::iter::successors(of(file), move |file| of(file)).take(MAX_ABOVE + 1)
}

/// Every parent is in the bundle, nobody is above itself, and no line is too long.
pub(super) fn check(report: &mut Report<'_>, agents: &[AgentFile]) {
    let by_name: HashMap<&str, &AgentFile> = agents
        .iter()
        .map(|file| (file.agent.name.as_str(), file))
        .collect();
    for file in agents {
        let name = file.agent.name.as_str();
        let Some(parent) = file.agent.parent.as_deref() else {
            continue;
        };
        if !by_name.contains_key(parent) {
            let shown = super::host::show(parent);
            let others = by_name.keys().copied().filter(|other| *other != name);
            let help = did_you_mean(parent, others)
                .unwrap_or_else(|| "add it to agents/, or correct the name".into());
            let message = format!("the bundle has no agent `{shown}` to be the parent");
            report.error_help(file.parent_at, message, help);
            continue;
        }
        let mut line = vec![name];
        let mut at = file;
        while let Some(parent) = at.agent.parent.as_deref().and_then(|it| by_name.get(it)) {
            at = parent;
            line.push(&at.agent.name);
            // A cycle that the agent is in comes back to it; from outside of one no line ends.
            if at.agent.name == name || line.len() > agents.len() + 1 {
                break;
            }
        }
        if at.agent.name == name {
            // Each of its members would say the same.
            if line.iter().min() == Some(&name) {
                let line: Vec<_> = line.iter().map(|name| format!("`{name}`")).collect();
                let message = format!("an agent is its own parent: {}", line.join(" below "));
                let help = "leave out one of their `parent` keys";
                report.error_help(file.parent_at, message, help);
            }
        } else if line.len() == MAX_ABOVE + 2 {
            report.error_help(
                file.parent_at,
                format!("agent `{name}` has more than {MAX_ABOVE} agents above it"),
                "let it act for one that is nearer to the first",
            );
        }
    }
}
