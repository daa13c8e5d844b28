//! What only the kernel judges, as far as everyone above the agent has it too. Where two lists of patterns have no exact
//! common part, the narrower is taken, and a note says so.

use agentguard_common::abi::BUNDLE_EXEC_RULES;

use super::above;
use super::globs::covers;
use crate::bundle::MAX_KERNEL;
use crate::diagnostic::Report;
use crate::parse::AgentFile;
use crate::{Agent, ExecPattern, ExecPolicy, KernelRule};

/// Narrows every agent that has a parent. Answers what has become less than its file says.
pub(crate) fn narrow(report: &mut Report<'_>, agents: &mut [AgentFile]) -> Vec<String> {
    let mut notes = Vec::new();
    let narrowed: Vec<Option<Agent>> = agents
        .iter()
        .map(|file| {
            let mut agent = None;
            for parent in above(agents, file) {
                let agent = agent.get_or_insert_with(|| file.agent.clone());
                let mut less = Vec::new();
                meet(agent, &parent.agent, &mut less);
                notes.extend(less.iter().map(|what| {
                    let (at, above) = (report.name(file.name_at), &parent.agent.name);
                    format!(
                        "{at}: agent `{}`: {what}, as it acts for `{above}`",
                        agent.name
                    )
                }));
            }
            agent
        })
        .collect();
    let mut exec_rules = 0;
    for (file, agent) in agents.iter_mut().zip(narrowed) {
        if let Some(agent) = agent {
            file.agent = agent;
        }
        exec_rules += file.agent.exec.as_ref().map_or(0, ExecPolicy::rules);
        let what = if file.agent.kernel.len() > MAX_KERNEL {
            format!("has more than {MAX_KERNEL} kernel rules in common with its parents")
        } else if exec_rules > BUNDLE_EXEC_RULES as usize {
            format!(
                "and the others have more than {BUNDLE_EXEC_RULES} paths and digests in [exec], with those of their parents"
            )
        } else {
            continue;
        };
        report.error(file.name_at, format!("agent `{}` {what}", file.agent.name));
        break;
    }
    notes
}

fn meet(agent: &mut Agent, parent: &Agent, less: &mut Vec<String>) {
    agent.keep_privileges &= parent.keep_privileges;
    agent.has_hosts &= parent.has_hosts;
    let own = std::mem::take(&mut agent.kernel);
    for rule in &own {
        let common = parent.kernel.iter().filter_map(|other| both(rule, other));
        let common: Vec<KernelRule> = common.collect();
        if !common.contains(rule) {
            less.push(format!("{} is narrowed or left out", shown(rule)));
        }
        for rule in common {
            if !agent.kernel.contains(&rule) {
                agent.kernel.push(rule);
            }
        }
    }
    agent.unix.retain(|path| {
        let kept = parent.unix.contains(path);
        if !kept {
            less.push(format!("[[unix]] `{path}` is left out"));
        }
        kept
    });
    agent.exec = match (agent.exec.take(), &parent.exec) {
        (own, None) => own,
        (None, Some(parent)) => Some(parent.clone()),
        (Some(own), Some(parent)) => Some(both_exec(own, parent, less)),
    };
}

/// What both rules allow: address ranges are the same, apart, or one within the other.
fn both(a: &KernelRule, b: &KernelRule) -> Option<KernelRule> {
    match (a, b) {
        (
            KernelRule::Reach { proto, net, port },
            KernelRule::Reach {
                proto: other_proto,
                net: other_net,
                port: other_port,
            },
        ) if proto == other_proto => {
            let port = match (port, other_port) {
                (None, port) | (port, None) => *port,
                (one, other) if one == other => *one,
                _ => return None,
            };
            let net = match () {
                () if other_net.contains(net) => *net,
                () if net.contains(other_net) => *other_net,
                () => return None,
            };
            Some(KernelRule::Reach {
                proto: *proto,
                net,
                port,
            })
        }
        (
            KernelRule::Listen { proto, addr, port },
            KernelRule::Listen {
                proto: other_proto,
                addr: other_addr,
                port: other_port,
            },
        ) if proto == other_proto && port == other_port => {
            // The unspecified address is every address of its family, IPv6's of both.
            let within = |addr: &std::net::IpAddr, of: &std::net::IpAddr| {
                addr == of || of.is_unspecified() && (of.is_ipv6() || addr.is_ipv4())
            };
            let addr = match () {
                () if within(addr, other_addr) => *addr,
                () if within(other_addr, addr) => *other_addr,
                () => return None,
            };
            Some(KernelRule::Listen {
                proto: *proto,
                addr,
                port: *port,
            })
        }
        _ => None,
    }
}

fn both_exec(own: ExecPolicy, parent: &ExecPolicy, less: &mut Vec<String>) -> ExecPolicy {
    let mut deny = own.deny;
    let more = parent.deny.iter().filter(|file| !deny.contains(file));
    let more: Vec<ExecPattern> = more.cloned().collect();
    deny.extend(more);
    let allow = match (own.default_allow, parent.default_allow) {
        (true, _) => parent.allow.clone(),
        (false, true) => own.allow,
        (false, false) => {
            let by = |list: &[ExecPattern], file: &ExecPattern| {
                list.iter().any(|wide| covers_file(wide, file))
            };
            let (kept, left): (Vec<ExecPattern>, Vec<ExecPattern>) = own
                .allow
                .into_iter()
                .partition(|file| by(&parent.allow, file));
            // Of an own entry that goes further, those of the parent's that it covers.
            let inside = parent
                .allow
                .iter()
                .filter(|file| by(&left, file) && !kept.contains(file));
            let inside: Vec<ExecPattern> = inside.cloned().collect();
            let what = |file: &ExecPattern| {
                format!("`{}` in [exec] is narrowed or left out", file.pattern)
            };
            less.extend(left.iter().map(what));
            [kept, inside].concat()
        }
    };
    ExecPolicy {
        default_allow: own.default_allow && parent.default_allow,
        allow,
        deny,
        private_arguments: own.private_arguments,
    }
}

/// Whether `wide` is about everything that `file` is about.
fn covers_file(wide: &ExecPattern, file: &ExecPattern) -> bool {
    let known = |digest| wide.sha256.contains(digest);
    covers(&wide.pattern, &file.pattern)
        && (wide.sha256.is_empty() || !file.sha256.is_empty() && file.sha256.iter().all(known))
}

fn shown(rule: &KernelRule) -> String {
    match rule {
        KernelRule::Reach { net, port, .. } => {
            let port = port.map_or("*".to_owned(), |port| port.to_string());
            format!("[[reach]] to `{net}` port {port}")
        }
        KernelRule::Listen { addr, port, .. } => format!("[[listen]] on `{addr}` port {port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Proto;

    fn reach(net: &str, port: Option<u16>) -> KernelRule {
        KernelRule::Reach {
            proto: Proto::Tcp,
            net: net.parse().unwrap(),
            port,
        }
    }

    fn file(pattern: &str, digests: &[u8]) -> ExecPattern {
        ExecPattern {
            pattern: pattern.into(),
            sha256: digests.iter().map(|byte| [*byte; 32]).collect(),
        }
    }

    fn listen(addr: &str, port: u16) -> KernelRule {
        KernelRule::Listen {
            proto: Proto::Tcp,
            addr: addr.parse().unwrap(),
            port,
        }
    }

    #[test]
    fn an_entry_with_digests_is_about_less() {
        let exec = |allow: &[ExecPattern]| ExecPolicy {
            default_allow: false,
            allow: allow.to_vec(),
            deny: Vec::new(),
            private_arguments: false,
        };
        for (own, parent, both) in [
            (file("/a", &[]), file("/a", &[1]), Some(file("/a", &[1]))),
            (file("/a", &[1]), file("/*", &[]), Some(file("/a", &[1]))),
            (
                file("/a", &[1]),
                file("/a", &[1, 2]),
                Some(file("/a", &[1])),
            ),
            (file("/a", &[1, 3]), file("/a", &[1, 2]), None),
            (file("/a", &[1]), file("/b", &[1]), None),
        ] {
            let (own, parent) = (exec(&[own]), exec(&[parent]));
            let left = both_exec(own, &parent, &mut Vec::new());
            assert_eq!(left.allow, Vec::from_iter(both));
        }
    }

    #[test]
    fn two_rules_have_in_common_what_both_allow() {
        for (a, b, common) in [
            (
                reach("10.0.0.0/8", None),
                reach("10.1.0.0/16", Some(5432)),
                Some(reach("10.1.0.0/16", Some(5432))),
            ),
            (
                reach("10.1.0.0/16", None),
                reach("10.0.0.0/8", Some(1)),
                Some(reach("10.1.0.0/16", Some(1))),
            ),
            (
                reach("10.1.0.0/16", Some(1)),
                reach("10.1.0.0/16", Some(2)),
                None,
            ),
            (reach("10.1.0.0/16", None), reach("10.2.0.0/16", None), None),
            (reach("fd00::/8", None), reach("10.0.0.0/8", None), None),
            (
                listen("0.0.0.0", 80),
                listen("::", 80),
                Some(listen("0.0.0.0", 80)),
            ),
            (
                listen("::", 80),
                listen("127.0.0.1", 80),
                Some(listen("127.0.0.1", 80)),
            ),
            (listen("0.0.0.0", 80), listen("::1", 80), None),
            (listen("::1", 80), listen("::1", 81), None),
            (
                reach("127.0.0.1/32", Some(80)),
                listen("127.0.0.1", 80),
                None,
            ),
        ] {
            assert_eq!(both(&a, &b), common, "{a:?} {b:?}");
            assert_eq!(both(&b, &a), common, "{b:?} {a:?}");
        }
    }

    #[test]
    fn exec_lists_have_in_common_what_both_allow() {
        let files = |paths: &[&str]| paths.iter().map(|path| file(path, &[])).collect();
        let exec = |default_allow, allow: &[&str], deny: &[&str]| ExecPolicy {
            default_allow,
            allow: files(allow),
            deny: files(deny),
            private_arguments: false,
        };
        let cases = [
            (
                exec(true, &[], &["/a"]),
                exec(true, &[], &["/a", "/b"]),
                exec(true, &[], &["/a", "/b"]),
                0,
            ),
            (
                exec(true, &[], &["/a"]),
                exec(false, &["/b"], &[]),
                exec(false, &["/b"], &["/a"]),
                0,
            ),
            (
                exec(false, &["/b"], &[]),
                exec(true, &[], &["/b/c"]),
                exec(false, &["/b"], &["/b/c"]),
                0,
            ),
            (
                exec(false, &["/usr/bin/git", "/opt/**", "/x/a*"], &[]),
                exec(false, &["/usr/bin/*", "/opt/tool", "/x/*a"], &["/opt/no"]),
                exec(false, &["/usr/bin/git", "/opt/tool"], &["/opt/no"]),
                2,
            ),
        ];
        for (own, parent, expected, told) in cases {
            let mut less = Vec::new();
            assert_eq!(both_exec(own, &parent, &mut less), expected);
            assert_eq!(less.len(), told, "{less:?}");
        }
    }
}
