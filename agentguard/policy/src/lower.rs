//! The shorthand of `agents/*.toml` as Cedar text: what an `allow` entry means.

use super::diagnostic::Report;
use super::parse::{AgentFile, Allow, Method, Reach};
use super::{Sources, bundle, schema};

/// Everything that the bundle's shorthand means, for people to read. Of a bundle with errors, what could be read.
pub fn cedar(sources: &Sources) -> String {
    let mut report = bundle::report(sources);
    let bundle = bundle::read(&mut report, sources);
    let mut text = String::new();
    for file in &bundle.agents {
        for reach in &file.reach {
            for allow in &reach.allow {
                let id = id(&report, &file.agent.name, allow);
                text.push_str(&policy(&id, file, reach, allow));
            }
        }
    }
    text
}

/// The id of the policy that an entry stands for: agent, file, line and column.
pub(super) fn id(report: &Report<'_>, agent: &str, allow: &Allow) -> String {
    let (file, line, column) = report.position(allow.at);
    format!("{agent}/{file}:{line}:{column}")
}

/// The Cedar policy that an entry stands for. Only the most specific reach entry counts, so one with a wildcard leaves out
/// what the agent's narrower entries cover.
pub(super) fn policy(id: &str, file: &AgentFile, reach: &Reach, allow: &Allow) -> String {
    let host = reach.host.id();
    let resource = if reach.host.below { "in" } else { "==" };
    let (action, pattern) = match &allow.method {
        Method::Any(pattern) => (
            format!("action in Action::\"{}\"", schema::REQUEST),
            Some(pattern),
        ),
        Method::One(method, pattern) => (format!("action == Action::\"{method}\""), Some(pattern)),
        Method::Connect => (format!("action == Action::\"{}\"", schema::CONNECT), None),
    };
    let when = pattern.map_or(String::new(), |pattern| {
        format!(
            "\nwhen {{ context.routes.contains(\"{}\") }}",
            pattern.as_str()
        )
    });
    let others = if reach.host.below {
        &file.reach[..]
    } else {
        &[]
    };
    let narrower: Vec<_> = others
        .iter()
        .filter(|other| other.host != reach.host && reach.host.covers(&other.host))
        .map(|other| format!("Host::\"{}\"", other.host.id()))
        .collect();
    let unless = if narrower.is_empty() {
        String::new()
    } else {
        format!("\nunless {{ resource in [{}] }}", narrower.join(", "))
    };
    format!(
        "@id(\"{id}\")\npermit (principal == Agent::\"{}\", {action}, resource {resource} Host::\"{host}\"){when}{unless};\n",
        file.agent.name
    )
}
