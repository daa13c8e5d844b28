//! What an agent may at all, as it is told itself: its own file, and the names of the rules that decide.

use std::collections::BTreeMap;

use agentguard_common::abi::AgentId;
use cedar_policy::Effect;
use serde::Serialize;

use super::compile::{CompiledAgent, ReachEntry};
use super::{ExecPattern, KernelRule, Policy, Proto, TlsMode};

/// Plain JSON, for the agent alone.
#[derive(Debug, Serialize)]
pub struct Permissions {
    agent: String,
    /// Requests that policy denies are let through and recorded.
    observed: bool,
    /// It acts for another agent, and may no more than that one.
    acts_for_another: bool,
    /// Nothing is permitted outside a task of a supervisor's.
    tasks_required: bool,
    hosts: Vec<HostView>,
    /// Addresses that are reached straight through the kernel: `tcp 10.0.0.0/24:5432`.
    connect: Vec<String>,
    listen: Vec<String>,
    unix: Vec<String>,
    /// `null`: what it executes is not judged.
    exec: Option<ExecView>,
}

#[derive(Debug, Serialize)]
struct HostView {
    host: String,
    /// Bytes are passed as they are.
    passthrough: bool,
    /// What is permitted if no rule forbids it: `GET /v1/**`, `connect`.
    allow: Vec<String>,
    /// Rules that can apply as well.
    rules: Vec<RuleView>,
}

#[derive(Debug, Serialize)]
struct RuleView {
    id: String,
    effect: &'static str,
    /// The role whose approval lifts it.
    approval: Option<String>,
}

#[derive(Debug, Serialize)]
struct ExecView {
    default: &'static str,
    allow: Vec<String>,
    deny: Vec<String>,
}

impl Policy {
    /// `None`: the bundle does not have the agent.
    pub fn permissions(&self, id: AgentId) -> Option<Permissions> {
        let compiled = self.agents.get(&id)?;
        let agent = &compiled.agent;
        let (mut connect, mut listen) = (Vec::new(), Vec::new());
        for rule in &agent.kernel {
            match rule {
                KernelRule::Reach { proto, net, port } => {
                    let port = port.map_or("*".to_owned(), |port| port.to_string());
                    connect.push(format!("{} {net}:{port}", name(*proto)));
                }
                KernelRule::Listen { proto, addr, port } => {
                    let on = std::net::SocketAddr::new(*addr, *port);
                    listen.push(format!("{} {on}", name(*proto)));
                }
            }
        }
        let files = |files: &[ExecPattern]| files.iter().map(|file| file.pattern.clone()).collect();
        Some(Permissions {
            agent: agent.name.clone(),
            observed: agent.observe,
            acts_for_another: !compiled.above.is_empty(),
            tasks_required: agent.tasks_required,
            hosts: compiled
                .reach
                .iter()
                .map(|entry| self.host(compiled, entry))
                .collect(),
            connect,
            listen,
            unix: agent.unix.clone(),
            exec: agent.exec.as_ref().map(|exec| ExecView {
                default: if exec.default_allow { "allow" } else { "deny" },
                allow: files(&exec.allow),
                deny: files(&exec.deny),
            }),
        })
    }

    fn host(&self, agent: &CompiledAgent, entry: &ReachEntry) -> HostView {
        let shorthand = entry.shorthand.iter().map(|(pattern, allow)| {
            format!("{} {}", allow.method.unwrap_or("ANY"), pattern.as_str())
        });
        let connect = entry.connect.iter().map(|_| "connect".to_owned());
        let class = agent.classes.covering(&entry.host);
        let mut rules = BTreeMap::new();
        for index in class.iter().flat_map(|class| class.rules()) {
            let rule = &self.rules[index];
            let view = RuleView {
                id: rule.id.clone(),
                effect: match rule.effect {
                    Effect::Permit => "permit",
                    Effect::Forbid => "forbid",
                },
                approval: rule.approve.clone(),
            };
            rules.insert(index, view);
        }
        HostView {
            host: entry.host.id(),
            passthrough: entry.tls == TlsMode::Passthrough,
            allow: shorthand.chain(connect).collect(),
            rules: rules.into_values().collect(),
        }
    }
}

const fn name(proto: Proto) -> &'static str {
    match proto {
        Proto::Tcp => "tcp",
        Proto::Udp => "udp",
    }
}
