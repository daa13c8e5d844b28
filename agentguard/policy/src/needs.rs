//! What takes I/O or a clock to know of an act, and some rule that can apply reads: the caller gathers it, before the
//! pure decision.

use std::sync::Arc;

use agentguard_common::abi::AgentId;
use jiff::Timestamp;

use super::context::AttributeName;
use super::lookup::Lookup;
use super::prepare::decided_at;
use super::reads::Reads;
use super::requests::{NeededBody, needed};
use super::{Input, Moment, Policy};

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
    pub fn has(&self, attribute: AttributeName) -> bool {
        self.reads.iter().any(|reads| reads.has(attribute))
    }
}

impl Policy {
    /// How the agent's rules see the moment, if they can read it.
    pub fn moment(&self, now: Timestamp) -> Option<Moment> {
        self.calendar.as_ref().map(|calendar| calendar.at(now))
    }

    /// What the rules that can apply read of what is to be gathered; of `input`'s own context only the tasks are looked at.
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
        let readings = self.readings(input);
        for agent in agents {
            let Some(agent) = self.agents.get(&agent) else {
                continue;
            };
            let mut requests = Vec::with_capacity(1);
            for reading in readings.iter() {
                let Ok(at) = decided_at(agent, reading) else {
                    continue;
                };
                let reads = &at.slice.reads;
                if needs.reads.iter().all(|known| !std::ptr::eq(*known, reads)) {
                    needs.reads.push(reads);
                }
                requests.extend(at.request(reading));
            }
            // What has two meanings is refused whatever else is known. What is declared of requests is the host's.
            let needed = needed(&requests, input.context.narrows_by_scope()).unwrap_or_default();
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
    use super::AttributeName;

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
            assert_eq!(needs.has(AttributeName::Approvals), expected, "{request}");
        }
    }
}
