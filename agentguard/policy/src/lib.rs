//! What each agent may do. Pure: no I/O, no clock, no randomness; the same input gets the same answer.
//!
//! A bundle's files ([`Sources`]) are parsed, lowered to Cedar, strictly validated and compiled to a [`Policy`], or
//! refused with every [`Diagnostic`] there is. The daemon compiles its kernel rules from it, the forwarder decides with
//! it.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::wildcard_enum_match_arm))]

mod body;
mod bundle;
mod candidates;
pub mod cases;
mod charge;
mod check;
mod compile;
pub mod context;
mod decide;
mod delegation;
mod diagnostic;
mod entity;
mod evaluate;
pub mod explain;
mod facts;
mod glob;
mod host;
mod judge;
mod lex;
mod limit;
pub mod lookup;
pub mod lower;
mod needs;
mod parents;
mod parse;
mod path;
mod permissions;
mod permit;
mod prepare;
mod privacy;
mod question;
mod reading;
mod reads;
mod refusal;
pub mod replay;
mod requests;
mod rules;
mod schema;
mod settings;
mod slice;
mod spelling;
mod task;
#[cfg(test)]
#[expect(
    clippy::disallowed_methods,
    reason = "tests read the examples from disk"
)]
mod tests;
mod time;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use agentguard_common::abi::AgentId;
use agentguard_record::guarantee::GuaranteeId;
use agentguard_record::{DecidedBy, DenyReason, Meta};
use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::body::{Body, BodyBlock, BodyFault};
pub use self::bundle::{FileKind, MAX_BYTES};
pub use self::context::Context;
pub use self::diagnostic::Diagnostic;
pub use self::host::{HostName, acts_on_terminal, show};
pub use self::limit::{Charge, Counter, Limit, LimitKey, Room, Settlement, Span};
pub use self::needs::Needs;
pub use self::path::CanonicalPath;
pub use self::permissions::Permissions;
pub use self::permit::{Owed, Permit, Settled};
pub use self::reading::leads_elsewhere;
pub use self::settings::HostSettings;
pub use self::task::{CoveringTasks, OnTask, OpenedBy, Task, TaskSituation, Terms, is_reserved};
pub use self::time::Moment;

/// A bundle's files as text: path below the bundle's folder (`agents/procurement.toml`) → content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sources {
    pub files: BTreeMap<String, String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    Tcp,
    Udp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelRule {
    Reach {
        proto: Proto,
        net: IpNet,
        port: Option<u16>,
    },
    Listen {
        proto: Proto,
        addr: IpAddr,
        port: u16,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TlsMode {
    Terminate,
    Passthrough,
}

/// One `[[identify]]` block: every key that is there must match. `exe` and `cgroup` are globs (`*` within a segment, `**` across).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identify {
    pub exe: Option<String>,
    pub user: Option<String>,
    pub cgroup: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Starter {
    User(String),
    Group(String),
}

/// Files that an entry of `[exec]` is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecPattern {
    /// A glob as in [`Identify`].
    pub pattern: String,
    /// Only those with one of these digests; empty: whatever is in them.
    pub sha256: Vec<[u8; 32]>,
}

/// What an agent may execute. A file that `allow` and `deny` both name is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecPolicy {
    /// What neither list names is allowed.
    pub default_allow: bool,
    pub allow: Vec<ExecPattern>,
    pub deny: Vec<ExecPattern>,
    /// Arguments are not recorded, their length is.
    pub private_arguments: bool,
}

impl ExecPolicy {
    /// Rules of the kernel's that it takes: each digest is one.
    fn rules(&self) -> usize {
        let files = self.allow.iter().chain(&self.deny);
        files.map(|file| file.sha256.len().max(1)).sum()
    }
}

#[derive(Clone, Debug)]
pub struct Agent {
    pub name: String,
    pub owner: String,
    pub risk: String,
    /// The agent it acts for, whose authority is the most that it can have: what follows has been narrowed to it.
    pub parent: Option<String>,
    pub start_by: Vec<Starter>,
    pub keep_privileges: bool,
    /// What policy denies of its requests, passed connections and names is let through and recorded.
    pub observe: bool,
    /// What it asks for outside a task that a supervisor has opened for it is refused.
    pub tasks_required: bool,
    pub identify: Vec<Identify>,
    /// `None`: what it executes is not judged.
    pub exec: Option<ExecPolicy>,
    pub kernel: Vec<KernelRule>,
    /// Unix sockets: absolute paths, or `@` and an abstract name.
    pub unix: Vec<String>,
    /// Whether it has any host to reach: what no kernel rule names then goes to the forwarder.
    pub has_hosts: bool,
}

/// An agent that has been given another owner than its file's, for as long as its file names the one it had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reassignment {
    pub from: String,
    pub to: String,
}

/// One thing an agent wants to do at a host.
pub struct Input<'a> {
    pub agent: AgentId,
    pub host: &'a HostName,
    pub port: u16,
    pub action: Action<'a>,
    pub context: &'a Context,
}

#[derive(Clone, Copy)]
pub enum Action<'a> {
    /// An HTTP request.
    Request {
        method: &'a str,
        scheme: &'a str,
        path: &'a CanonicalPath,
        query: Option<&'a str>,
        headers: &'a http::HeaderMap,
    },
    /// A connection whose bytes are passed (`tls = "passthrough"`).
    Connect,
}

#[derive(Debug)]
pub enum Decision {
    Permit(Permit),
    /// Permitted once what the permit owes is settled.
    Owing(Box<Permit<Owed>>),
    Deny(Denial),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    pub reason: DenyReason,
    pub decided_by: DecidedBy,
    /// Ids of the policies that decided; empty when nothing permitted.
    pub policies: Vec<String>,
    /// One sentence for the agent: what was refused and why. Reveals no rule's text.
    pub detail: String,
    /// What rules read.
    pub facts: BTreeMap<String, String>,
    /// Roles of the people who can lift the refusal, if its reason is that.
    pub approval: Vec<String>,
}

/// A compiled bundle. `Send + Sync`, immutable.
#[derive(Debug)]
pub struct Policy {
    meta: Meta,
    require: Vec<GuaranteeId>,
    expires: Option<Timestamp>,
    agents: BTreeMap<AgentId, compile::CompiledAgent>,
    rules: Vec<compile::CompiledRule>,
    /// Indices into `rules`.
    by_id: HashMap<String, usize>,
    facts: host::HostMap<entity::HostFacts>,
    cases: Vec<cases::Case>,
    calendar: Option<time::Calendar>,
    notes: Vec<String>,
}

impl Policy {
    /// `agents`: the ids that the host gave the bundle's agents. In a check without a host, any distinct ids do.
    ///
    /// # Errors
    /// Everything that is wrong with the bundle.
    pub fn compile(
        sources: &Sources,
        agents: &BTreeMap<String, AgentId>,
    ) -> Result<Self, Vec<Diagnostic>> {
        Self::compile_with(sources, agents, &BTreeMap::new())
    }

    /// [`Self::compile`], with agents' owners as they are on this host.
    ///
    /// # Errors
    /// Everything that is wrong with the bundle.
    pub fn compile_with(
        sources: &Sources,
        agents: &BTreeMap<String, AgentId>,
        owners: &BTreeMap<String, Reassignment>,
    ) -> Result<Self, Vec<Diagnostic>> {
        let mut report = bundle::report(sources);
        let mut bundle = bundle::read(&mut report, sources);
        for agent in bundle.agents.iter_mut().map(|file| &mut file.agent) {
            if let Some(now) = owners
                .get(&agent.name)
                .filter(|now| now.from == agent.owner)
            {
                agent.owner.clone_from(&now.to);
            }
        }
        check::check(&mut report, &bundle);
        if !report.is_clean() {
            return Err(report.into_found());
        }
        match compile::compile(&mut report, bundle, agents) {
            Some(policy) if report.is_clean() => Ok(policy),
            _ => Err(report.into_found()),
        }
    }

    /// What holds while there is no bundle: nothing is permitted.
    pub fn nothing() -> Self {
        Self {
            meta: Meta {
                name: String::new(),
                serial: 0,
                digest: String::new(),
            },
            require: Vec::new(),
            expires: None,
            agents: BTreeMap::new(),
            rules: Vec::new(),
            by_id: HashMap::new(),
            facts: host::HostMap::default(),
            cases: Vec::new(),
            calendar: None,
            notes: Vec::new(),
        }
    }

    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The guarantees that a host must give to have this bundle in force.
    pub fn require(&self) -> &[GuaranteeId] {
        &self.require
    }

    /// When it stops to hold.
    pub fn expires(&self) -> Option<Timestamp> {
        self.expires
    }

    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }

    pub fn agents(&self) -> impl Iterator<Item = &Agent> {
        self.agents.values().map(|compiled| &compiled.agent)
    }

    pub fn agent(&self, id: AgentId) -> Option<&Agent> {
        self.agents.get(&id).map(|compiled| &compiled.agent)
    }

    /// What the rule limits, if it does.
    pub fn limit(&self, rule: &str) -> Option<&Limit> {
        self.rules[*self.by_id.get(rule)?].limit.as_ref()
    }

    /// Whom the agent acts for, the nearest first.
    pub fn above(&self, id: AgentId) -> &[AgentId] {
        self.agents.get(&id).map_or(&[], |agent| &agent.above)
    }

    /// The most specific reach entry for the host alone; `None`: no call, whatever Cedar says.
    pub fn reach(&self, agent: AgentId, host: &HostName, port: u16) -> Option<TlsMode> {
        let agent = self.agents.get(&agent)?;
        let class = agent.classes.lookup(host, port)?;
        Some(agent.reach[class.entry].tls)
    }

    /// How the host is spoken to.
    pub fn settings(&self, host: &HostName, port: u16) -> &HostSettings {
        let facts = self.facts.lookup(host, port);
        facts.map_or(HostSettings::UNSAID, |facts| &facts.settings)
    }

    /// Whether the agent, and everyone it acts for, reaches the host at all.
    pub fn reaches(&self, agent: AgentId, host: &HostName, port: u16) -> bool {
        self.all(agent, |agent| agent.classes.lookup(host, port).is_some())
    }

    /// Whether any reach entry of the agent and of everyone it acts for, on any port, covers the name: its DNS look-ups
    /// are answered.
    pub fn may_resolve(&self, agent: AgentId, name: &HostName) -> bool {
        self.all(agent, |agent| agent.classes.covers_name(name))
    }

    /// Whether it is true of the agent and of everyone it acts for.
    fn all(&self, agent: AgentId, is: impl Fn(&compile::CompiledAgent) -> bool) -> bool {
        let mut line = std::iter::once(&agent).chain(self.above(agent));
        line.all(|one| self.agents.get(one).is_some_and(&is))
    }

    /// Policies in the bundle: those of its rules files, and the entries of `allow`.
    pub fn counts(&self) -> (usize, usize) {
        let entries = self.agents.values().flat_map(|agent| &agent.reach);
        let shorthand = entries.map(|entry| entry.shorthand.len() + entry.connect.len());
        (self.rules.len(), shorthand.sum())
    }

    /// What is no error and yet may not be meant: hosts that no agent reaches.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Whether what it denies this agent is let through and recorded.
    pub fn observes(&self, id: AgentId) -> bool {
        self.agent(id).is_some_and(|agent| agent.observe)
    }

    /// What bundle.toml says, without full compilation; `None` where it cannot be read.
    pub fn meta_of(sources: &Sources) -> Option<Meta> {
        bundle::meta(sources)
    }

    /// Names of the bundle's agents, without full compilation: what the registry gives ids to.
    pub fn agent_names(sources: &Sources) -> BTreeSet<String> {
        bundle::agent_names(sources)
    }
}
