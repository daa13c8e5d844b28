//! `agentguard status`.

use std::process::ExitCode;

use agentguard_control::api::{DistrustView, Status};
use agentguard_control::client::Client;
use agentguard_record::guarantee::{Guarantee, Holds};
use clap::Args;
use jiff::Timestamp;

use super::table::{Colour, coloured, fields};
use super::{Failure, print, print_json};

#[derive(Debug, Args)]
pub(super) struct StatusArguments {
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: &StatusArguments, client: &Client) -> Result<ExitCode, Failure> {
    let status: Status = client.get("/v1/status").await?;
    if arguments.json {
        return print_json(&status);
    }
    let mut text = show(&status, Timestamp::now());
    for alarm in &status.alarms {
        let told = fields(&[("ALARM    ", alarm.clone())]);
        text.push_str(&told.replacen("ALARM", &coloured("ALARM", Colour::Red), 1));
    }
    print(&text)
}

fn show(status: &Status, now: Timestamp) -> String {
    let attached = status.hooks.iter().filter(|hook| hook.attached).count();
    let forwarder = match (&status.forwarder.port, &status.forwarder.pid) {
        (Some(port), Some(pid)) => match status.forwarder.namespaces {
            0 => format!("pid {pid}, port {port}"),
            n => format!("pid {pid}, port {port}, in {n} more network namespaces"),
        },
        _ => status.forwarder.error.clone().unwrap_or_default(),
    };
    let bundle = match &status.bundle {
        Some(bundle) => format!(
            "{} serial {} ({}), generation {}",
            bundle.meta.name,
            bundle.meta.serial,
            short(&bundle.meta.digest),
            bundle.generation
        ),
        None => "none: every agent is denied everything".into(),
    };
    let drops: Vec<String> = status
        .drops
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    let audit = match &status.audit.error {
        None => format!(
            "{} records in {}",
            status.audit.seq,
            status.audit.path.display()
        ),
        Some(error) => error.clone(),
    };
    let mut rows = vec![
        (
            "daemon",
            format!(
                "{} pid {}, up {}",
                status.version,
                status.pid,
                duration(now.as_second() - status.started_at.as_second())
            ),
        ),
        (
            "forwarder",
            format!(
                "{} {forwarder}, {} restarts",
                status.forwarder.state, status.forwarder.restarts
            ),
        ),
        (
            "hooks",
            format!("{attached} of {} attached", status.hooks.len()),
        ),
        ("guarantees", guarantees(&status.guarantees)),
        ("bundle", bundle),
        (
            "agents",
            format!(
                "{} known, {} killed, {} stopped otherwise, {} processes, {} connections",
                status.agents.known,
                status.agents.killed,
                status.agents.stopped,
                status.agents.processes,
                status.agents.connections
            ),
        ),
        ("audit", audit),
        (
            "kernel",
            if drops.is_empty() {
                "no drops".into()
            } else {
                drops.join(", ")
            },
        ),
    ];
    rows.extend(
        status
            .distrust
            .iter()
            .map(|it| ("client TLS", distrust(it))),
    );
    fields(&rows)
}

fn distrust(of: &DistrustView) -> String {
    let DistrustView { agent, count, .. } = of;
    let whose = match (&of.program, &of.host) {
        (Some(program), Some(host)) => format!("{program} of agent {agent} for {host}"),
        _ => format!("other programs and hosts of agent {agent}"),
    };
    let alert = of.alert.as_deref().unwrap_or("no alert");
    format!("certificate refused {count} times by {whose} ({alert})")
}

fn guarantees(all: &[Guarantee]) -> String {
    let by = |wanted| -> Vec<&str> {
        let those = all.iter().filter(|row| row.holds == wanted);
        those.map(|row| row.id.as_str()).collect()
    };
    let mut text = format!("{} of {} enforced", by(Holds::Enforced).len(), all.len());
    for (holds, word) in [(Holds::Fallback, "by fallback"), (Holds::Open, "open")] {
        let ids = by(holds);
        if !ids.is_empty() {
            text.push_str(&format!("; {word}: {}", ids.join(", ")));
        }
    }
    text
}

/// As people say it: the two largest units.
pub(super) fn duration(seconds: i64) -> String {
    let s = seconds.max(0);
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{}h", s / 86_400, s % 86_400 / 3600),
    }
}

/// Enough of a digest to tell bundles apart.
pub(super) fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use agentguard_record::guarantee::GuaranteeId;

    use super::*;
    use agentguard_control::api::{AgentCounts, AuditView, ForwarderView, HookView};

    #[test]
    fn durations_have_two_units() {
        for (seconds, expected) in [
            (-5, "0s"),
            (59, "59s"),
            (61, "1m1s"),
            (3_660, "1h1m"),
            (90_000, "1d1h"),
        ] {
            assert_eq!(duration(seconds), expected);
        }
    }

    #[test]
    fn what_people_see() {
        let status = Status {
            version: "0.1.0".into(),
            pid: 7,
            started_at: Timestamp::UNIX_EPOCH,
            forwarder: ForwarderView {
                state: "up".into(),
                pid: Some(8),
                port: Some(15000),
                namespaces: 2,
                restarts: 0,
                landlock_abi: Some(7),
                error: None,
            },
            bundle: None,
            agents: AgentCounts {
                known: 2,
                killed: 1,
                stopped: 0,
                processes: 3,
                connections: 4,
            },
            hooks: vec![HookView {
                name: "connect4".into(),
                attached: true,
            }],
            guarantees: [
                (GuaranteeId::Tcp, Holds::Enforced),
                (GuaranteeId::Tamper, Holds::Open),
            ]
            .map(|(id, holds)| Guarantee {
                id,
                name: id.to_string(),
                holds,
                why: String::new(),
                remedy: None,
            })
            .to_vec(),
            drops: BTreeMap::from([("refused".into(), 5), ("ring_full".into(), 0)]),
            audit: AuditView {
                path: "/a".into(),
                available: true,
                seq: 9,
                error: None,
            },
            distrust: vec![DistrustView {
                agent: "probe".into(),
                program: Some("/usr/bin/curl".into()),
                host: Some("a.test:443".into()),
                count: 3,
                alert: Some("unknown_ca".into()),
                last: Some(Timestamp::UNIX_EPOCH),
                remedy: "trust it".into(),
            }],
            alarms: Vec::new(),
        };
        let text = show(&status, Timestamp::from_second(120).unwrap());
        assert_eq!(
            text,
            "daemon      0.1.0 pid 7, up 2m0s\n\
             forwarder   up pid 8, port 15000, in 2 more network namespaces, 0 restarts\n\
             hooks       1 of 1 attached\n\
             guarantees  1 of 2 enforced; open: tamper\n\
             bundle      none: every agent is denied everything\n\
             agents      2 known, 1 killed, 0 stopped otherwise, 3 processes, 4 connections\n\
             audit       9 records in /a\n\
             kernel      refused 5\n\
             client TLS  certificate refused 3 times by /usr/bin/curl of agent probe for a.test:443 (unknown_ca)\n"
        );
    }
}
