//! What the kernel is told of a bundle.

use agentguard_common::abi::{AgentId, UnixName};
use agentguard_kernel::{ExecFile, ExecRules, Rule};
use agentguard_policy as policy;
use agentguard_policy::{KernelRule, Proto};

use crate::books::unix;
use crate::roster::active::Active;
use crate::roster::registry::Registry;

/// What every agent may execute: nothing if no bundle that holds has it, though its processes may still run.
pub(super) fn exec_rules(registry: &Registry, to: Option<&Active>) -> Vec<ExecRules> {
    let known = registry.agents().values().map(|known| known.id);
    known
        .filter_map(|id| match to.and_then(|to| to.policy.agent(id)) {
            Some(agent) => {
                let exec = agent.exec.as_ref()?;
                Some(exec_rules_of(id, exec, agent.observe))
            }
            None => Some(ExecRules::nothing(id)),
        })
        .collect()
}

fn exec_rules_of(agent: AgentId, exec: &policy::ExecPolicy, observed: bool) -> ExecRules {
    ExecRules {
        agent,
        default_allow: exec.default_allow,
        allow: exec.allow.iter().map(exec_file).collect(),
        deny: exec.deny.iter().map(exec_file).collect(),
        private_arguments: exec.private_arguments,
        observed,
    }
}

fn exec_file(file: &policy::ExecPattern) -> ExecFile {
    ExecFile {
        pattern: file.pattern.clone(),
        sha256: file.sha256.clone(),
    }
}

/// Every agent's kernel rules; of a bundle that has expired, the way to the forwarder, which says so.
pub(super) fn rules(active: &Active, closed: bool) -> Vec<(AgentId, Vec<Rule>)> {
    active
        .ids
        .values()
        .filter_map(|id| Some((*id, kernel_rules(active.policy.agent(*id)?, closed))))
        .collect()
}

/// The Unix sockets that each agent may reach.
pub(super) fn unix_names(active: &Active, closed: bool) -> Vec<(AgentId, Vec<UnixName>)> {
    let agents = active.ids.values();
    agents
        .filter_map(|id| Some((*id, active.policy.agent(*id)?)))
        .map(|(id, agent)| {
            let open = agent.unix.iter().filter(|_| !closed);
            let names = open.flat_map(|name| unix::spellings(name));
            (id, names.filter_map(|name| unix_name(&name)).collect())
        })
        .collect()
}

/// `@` stands for the NUL of an abstract name. The bundle has been checked for names that no socket can have.
fn unix_name(written: &str) -> Option<UnixName> {
    match written.strip_prefix('@') {
        Some(name) => UnixName::new(format!("\0{name}").as_bytes()),
        None => UnixName::new(written.as_bytes()),
    }
}

fn kernel_rules(agent: &policy::Agent, closed: bool) -> Vec<Rule> {
    let direct = agent.kernel.iter().filter(|_| !closed);
    let mut rules: Vec<Rule> = direct.map(kernel_rule).collect();
    if agent.observe && !closed {
        rules.push(Rule::Observe);
    } else if agent.has_hosts {
        rules.push(Rule::Forward);
    }
    rules
}

fn kernel_rule(rule: &KernelRule) -> Rule {
    match *rule {
        KernelRule::Reach {
            proto: Proto::Tcp,
            net,
            port,
        } => Rule::ReachTcp { net, port },
        KernelRule::Reach {
            proto: Proto::Udp,
            net,
            port,
        } => Rule::ReachUdp { net, port },
        KernelRule::Listen {
            proto: Proto::Tcp,
            addr,
            port,
        } => Rule::ListenTcp { addr, port },
        KernelRule::Listen {
            proto: Proto::Udp,
            addr,
            port,
        } => Rule::ListenUdp { addr, port },
    }
}
