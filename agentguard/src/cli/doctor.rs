//! `agentguard doctor`: per guarantee, what holds on this host, how, and what to do about the rest. Needs no daemon.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::table::{Colour, coloured, fields};
use super::{Failure, print, print_json};
use crate::config::Config;

mod probe;

use self::probe::Host;

#[derive(Debug, Args)]
pub struct Arguments {
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// How far a guarantee holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Holds {
    Enforced,
    /// By another mechanism than the first choice.
    Fallback,
    Open,
}

#[derive(Clone, Debug, Serialize)]
struct Guarantee {
    name: &'static str,
    holds: Holds,
    why: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

#[derive(Serialize)]
struct Report {
    kernel: String,
    guarantees: Vec<Guarantee>,
}

pub fn run(arguments: &Arguments, config: &Config) -> Result<ExitCode, Failure> {
    let host = Host::probe(config);
    let report = Report {
        kernel: host.release.clone(),
        guarantees: judge(&host),
    };
    if arguments.json {
        return print_json(&report);
    }
    let mut text = format!("kernel {}\n\n", report.kernel);
    for guarantee in &report.guarantees {
        let (word, colour) = match guarantee.holds {
            Holds::Enforced => ("enforced", Colour::Green),
            Holds::Fallback => ("fallback", Colour::Yellow),
            Holds::Open => ("open    ", Colour::Red),
        };
        text.push_str(&format!("{}  {}\n", coloured(word, colour), guarantee.name));
        let mut rows = vec![("        ", guarantee.why.clone())];
        rows.extend(
            guarantee
                .remedy
                .clone()
                .map(|remedy| ("", format!("remedy: {remedy}"))),
        );
        text.push_str(&fields(&rows));
    }
    print(&text)
}

fn judge(host: &Host) -> Vec<Guarantee> {
    let hooks = |names: &[&str], what: &str| -> (Holds, String, Option<String>) {
        if let Some(missing) = &host.missing {
            return (Holds::Open, missing.clone(), host.missing_remedy.clone());
        }
        let absent: Vec<&str> = names
            .iter()
            .copied()
            .filter(|name| !host.pinned.iter().any(|pinned| pinned == name))
            .collect();
        if absent.is_empty() {
            return (
                Holds::Enforced,
                format!("{what}: {}", names.join(" ")),
                None,
            );
        }
        let why = format!("not attached now: {}", absent.join(" "));
        (
            Holds::Open,
            why,
            Some("start `agentguard daemon` as root".into()),
        )
    };
    let made = |name, (holds, why, remedy)| Guarantee {
        name,
        holds,
        why,
        remedy,
    };
    let lsm = host.bpf_lsm;
    let needs_lsm = |without: &str| -> (Holds, String, Option<String>) {
        let why = match lsm {
            true => format!("this kernel has BPF LSM, this version does not use it yet; {without}"),
            false => format!("this kernel has no BPF LSM; {without}"),
        };
        let remedy = (!lsm).then(|| {
            "boot with lsm=…,bpf on a kernel with CONFIG_BPF_LSM=y that is not locked down".into()
        });
        (Holds::Open, why, remedy)
    };
    let lineage = ["fork", "exec", "exit"];
    let mut all = vec![
        made(
            "every process of an agent's is known as the agent's",
            hooks(&lineage, "lineage"),
        ),
        made(
            "TCP connections go where the policy says",
            hooks(&["connect4", "connect6", "connected", "egress"], "hooks"),
        ),
        made(
            "UDP leaves only by a rule, DNS is ours",
            hooks(
                &["sendmsg4", "sendmsg6", "recvmsg4", "recvmsg6", "egress"],
                "hooks",
            ),
        ),
        made(
            "raw, ICMP, SCTP and MPTCP sockets are refused",
            hooks(&["sock_create"], "hooks"),
        ),
        made(
            "agents listen only where the policy says",
            hooks(&["bind4", "bind6", "egress"], "hooks"),
        ),
        made(
            "a killed agent sends nothing",
            hooks(&["connect4", "connect6", "egress"], "hooks"),
        ),
    ];
    all.push(match host.sock_destroy {
        true => made(
            "a kill resets live sockets",
            (Holds::Enforced, "SOCK_DESTROY works here".into(), None),
        ),
        false => made(
            "a kill resets live sockets",
            (
                Holds::Fallback,
                "SOCK_DESTROY does not work here: packets are dropped, but peers see no reset"
                    .into(),
                Some("a kernel with CONFIG_INET_DIAG_DESTROY=y".into()),
            ),
        ),
    });
    all.push(made(
        "other address families (AF_PACKET, vsock, …) are refused",
        needs_lsm("an agent with CAP_NET_RAW could open AF_PACKET; `run` drops capabilities"),
    ));
    all.push(made(
        "executables are judged",
        (
            Holds::Open,
            "this version does not judge executables yet".into(),
            None,
        ),
    ));
    all.push(made(
        "Unix sockets (docker.sock, D-Bus, …) are judged",
        needs_lsm("an agent reaches every socket file its user may open"),
    ));
    all.push(made(
        "io_uring and foreign system call ABIs make no way around",
        (
            Holds::Fallback,
            "the cgroup hooks see io_uring's connects and sends too; io_uring itself is not refused".into(),
            None,
        ),
    ));
    all.push(made(
        "a root agent cannot tamper with the guard",
        needs_lsm(
            "`run` drops all capabilities unless the agent's file says privileges = \"keep\"",
        ),
    ));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        Host {
            release: "6.1".into(),
            bpf_lsm: false,
            sock_destroy: true,
            pinned: ["fork", "exec", "exit", "sock_create"]
                .map(str::to_owned)
                .to_vec(),
            missing: None,
            missing_remedy: None,
        }
    }

    fn holds(host: &Host, name: &str) -> Holds {
        let all = judge(host);
        all.iter().find(|g| g.name.starts_with(name)).unwrap().holds
    }

    #[test]
    fn a_guarantee_holds_when_all_its_hooks_are_attached() {
        assert_eq!(holds(&host(), "every process"), Holds::Enforced);
        assert_eq!(holds(&host(), "TCP"), Holds::Open);
        let missing = Host {
            missing: Some("no BTF".into()),
            ..host()
        };
        assert_eq!(holds(&missing, "every process"), Holds::Open);
    }

    #[test]
    fn what_is_open_says_what_to_do_where_something_can_be_done() {
        let all = judge(&Host {
            sock_destroy: false,
            ..host()
        });
        for guarantee in &all {
            assert!(!guarantee.why.is_empty());
        }
        let reset = all.iter().find(|g| g.name.contains("resets")).unwrap();
        assert_eq!(reset.holds, Holds::Fallback);
        assert!(
            reset
                .remedy
                .as_ref()
                .unwrap()
                .contains("CONFIG_INET_DIAG_DESTROY")
        );
    }
}
