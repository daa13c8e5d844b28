//! `agentguard doctor`: per guarantee, what holds on this host, how, and what to do about the rest. Asks the daemon if one
//! answers, and looks for itself if none does.

use std::process::ExitCode;

use agentguard_control::api::Status;
use agentguard_control::client::ClientError;
use agentguard_daemon::config::Config;
use agentguard_daemon::guarantee::{Facts, judge};
use agentguard_record::guarantee::{Guarantee, Holds};
use clap::Args;
use serde::Serialize;

use super::table::{Colour, coloured, fields};
use super::{Failure, client_runtime, print, print_json, server};

#[derive(Debug, Args)]
pub(super) struct DoctorArguments {
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct DoctorReport {
    kernel: String,
    /// Whether a daemon has told its status: what only it knows is open otherwise.
    daemon: bool,
    /// Why none has told it.
    #[serde(skip_serializing_if = "Option::is_none")]
    unheard: Option<String>,
    /// Who else asks sees less of the kernel.
    #[serde(skip)]
    root: bool,
    guarantees: Vec<Guarantee>,
    /// The daemon's, as in `status`.
    alarms: Vec<String>,
}

pub(super) fn run(arguments: &DoctorArguments, config: &Config) -> Result<ExitCode, Failure> {
    let facts = Facts::of_host(config);
    let client = server::client(config);
    let status = client_runtime()?.block_on(client.get::<Status>("/v1/status"));
    // Who may not ask the daemon still sees the host.
    let (guarantees, alarms, unheard) = match status {
        Ok(status) => (status.guarantees, status.alarms, None),
        Err(ClientError::Unreachable { .. }) => {
            (judge(&facts), Vec::new(), Some("no daemon answers".into()))
        }
        Err(error) => (judge(&facts), Vec::new(), Some(error.to_string())),
    };
    let report = DoctorReport {
        kernel: facts.kernel.clone(),
        daemon: unheard.is_none(),
        unheard,
        root: nix::unistd::geteuid().is_root(),
        guarantees,
        alarms,
    };
    if arguments.json {
        return print_json(&report);
    }
    print(&show(&report))
}

fn show(report: &DoctorReport) -> String {
    let mut text = format!("kernel {}", report.kernel);
    if let Some(why) = &report.unheard {
        text.push_str(&format!(", {why}"));
        if !report.root {
            text.push_str("; without root the kernel's programs cannot be seen or tried");
        }
    }
    text.push_str("\n\n");
    for guarantee in &report.guarantees {
        let (word, colour) = match guarantee.holds {
            Holds::Enforced => ("enforced", Colour::Green),
            Holds::Fallback => ("fallback", Colour::Yellow),
            Holds::Open => ("open    ", Colour::Red),
        };
        let (id, name) = (&guarantee.id, &guarantee.name);
        text.push_str(&format!("{}  {id}: {name}\n", coloured(word, colour)));
        let mut rows = vec![("        ", guarantee.why.clone())];
        let remedy = guarantee.remedy.as_ref();
        rows.extend(remedy.map(|remedy| ("", format!("remedy: {remedy}"))));
        text.push_str(&fields(&rows));
    }
    for alarm in &report.alarms {
        let told = fields(&[("ALARM   ", alarm.clone())]);
        text.push_str(&told.replacen("ALARM", &coloured("ALARM", Colour::Red), 1));
    }
    text
}

#[cfg(test)]
mod tests {
    use agentguard_record::guarantee::GuaranteeId;

    use super::*;

    #[test]
    fn what_people_see() {
        let guarantees = vec![Guarantee {
            id: GuaranteeId::Tamper,
            name: "root cannot tamper".into(),
            holds: Holds::Open,
            why: "no BPF LSM".into(),
            remedy: Some("another kernel".into()),
        }];
        let report = DoctorReport {
            kernel: "6.1".into(),
            daemon: false,
            unheard: Some("no daemon answers".into()),
            root: true,
            guarantees,
            alarms: vec!["agents are only observed".into()],
        };
        assert_eq!(
            show(&report),
            "kernel 6.1, no daemon answers\n\n\
             open      tamper: root cannot tamper\n\
             \x20         no BPF LSM\n\
             \x20         remedy: another kernel\n\
             ALARM     agents are only observed\n"
        );
    }
}
