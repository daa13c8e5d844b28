//! What takes I/O or a clock to know of a request: gathered by whoever asks, before the pure decision, and only as far as
//! some rule that can apply reads it.

use std::collections::BTreeSet;
use std::sync::Arc;

use agentguard_common::abi::AgentId;
use jiff::Timestamp;

use super::body::Body;
use super::lookup::{Answer, Lookup};
use super::reads::Reads;
use super::requests::NeededBody;
use super::{Action, Input, Moment, Policy, Tasks, schema};

/// Facts that come from outside the request's head. What is not gathered is not there for any rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gathered {
    pub body: Body,
    /// Of the body as it came, where it is held and limits are read.
    pub body_sha256: Option<[u8; 32]>,
    /// Roles of the people who have approved the request: `context.approvals`.
    pub approvals: BTreeSet<String>,
    /// Ids of limits that have no room. All others are taken to have, and say so when they are charged.
    pub exhausted: BTreeSet<String>,
    /// `context.time`.
    pub time: Option<Moment>,
    /// `context.network.trusted`.
    pub trusted_network: Option<bool>,
    /// `context.host.labels`.
    pub host_labels: Option<BTreeSet<String>>,
    /// `context.agent`: of the agent that asks, for those above it too.
    pub agent: Option<AgentSituation>,
    /// What services have answered. A rule that needs an answer which is not here refuses.
    pub lookups: Vec<(Arc<Lookup>, Answer)>,
    /// Of which rules read `context.task`, and which narrow the request whatever rules say.
    pub tasks: Option<Tasks>,
}

impl Gathered {
    pub(super) fn narrows_by_scope(&self) -> bool {
        self.tasks.as_ref().is_some_and(Tasks::narrow_by_scope)
    }
}

/// How an agent is up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgentSituation {
    /// Seconds since it has had a process, without a moment in which it had none.
    pub uptime_s: u64,
    /// Whether somebody's terminal shows it.
    pub attended: bool,
}

/// What has to be gathered before a request can be decided.
#[derive(Clone, Debug, Default)]
pub struct Needs<'p> {
    /// Of the agent, and of everyone it acts for.
    pub(super) reads: Vec<&'p Reads>,
    /// What is to be read of its body.
    pub body: Option<NeededBody<'p>>,
    /// Which services are to be asked.
    pub lookups: Vec<&'p Arc<Lookup>>,
}

impl Needs<'_> {
    /// Whether some rule that can apply reads the attribute of `context`.
    pub fn has(&self, attribute: &str) -> bool {
        self.reads.iter().any(|reads| reads.has(attribute))
    }
}

impl Policy {
    /// How rules see the moment, if this one's rules can read any.
    pub fn moment(&self, now: Timestamp) -> Option<Moment> {
        self.calendar.as_ref().map(|calendar| calendar.at(now))
    }

    /// What the rules that can apply read of what is to be gathered; of `input`'s own
    /// [`Gathered`] only the tasks are looked at.
    pub fn needs(&self, input: &Input<'_>) -> Needs<'_> {
        let above = self.above(input.agent).iter().copied();
        self.needs_of(std::iter::once(input.agent).chain(above), input)
    }

    /// [`Self::needs`] of these agents alone.
    pub(super) fn needs_of(
        &self,
        agents: impl IntoIterator<Item = AgentId>,
        input: &Input<'_>,
    ) -> Needs<'_> {
        let mut needs = Needs::default();
        let (action, path) = match &input.action {
            Action::Connect => (Some(schema::CONNECT), None),
            Action::Request { method, path, .. } => (schema::method(method), Some(*path)),
        };
        let Some(action) = action else {
            return needs;
        };
        for agent in agents {
            let agent = self.agents.get(&agent);
            let class = agent.and_then(|agent| agent.classes.lookup(input.host, input.port));
            let Some(class) = class else {
                continue;
            };
            let reads = &class.slice(action).reads;
            needs.reads.push(reads);
            let narrowed = input.gathered.narrows_by_scope();
            // What has two meanings is refused whatever else is known. What is declared of requests is the host's.
            let needed =
                path.and_then(|path| class.requests.needed(reads, narrowed, action, path).ok());
            let needed = needed.unwrap_or_default();
            needs.body = NeededBody::both(needs.body, needed.body);
            for lookup in needed.lookups {
                if !needs.lookups.contains(&lookup) {
                    needs.lookups.push(lookup);
                }
            }
        }
        needs
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Asked, bundle, compile, ids};

    #[test]
    fn only_what_a_rule_that_can_apply_reads_is_needed() {
        let rules =
            "@id(\"r\") forbid (principal, action == Action::\"POST\", resource == Host::\"h\")
            unless { context.approvals.contains(\"owner\") };";
        let sources = bundle("[[reach]]\nhost = \"h\"\n[[reach]]\nhost = \"i\"\n", rules);
        let (policy, agents) = (compile(&sources), ids(&sources));
        let cases = [
            ("POST https://h/", true),
            ("GET https://h/", false),
            ("POST https://i/", false),
            ("POST https://unknown/", false),
            ("FROB https://h/", false),
        ];
        for (request, expected) in cases {
            let asked = Asked::new(request, &[]);
            let needs = policy.needs(&asked.input(agents["a"]));
            assert_eq!(needs.has("approvals"), expected, "{request}");
        }
    }
}
