//! Why something is refused, in the terms of the policy and in a sentence for the agent.

use std::collections::{BTreeMap, BTreeSet};

use super::compile::CompiledAgent;
use super::facts::short;
use super::{Action, Input};
use crate::reason::DenyReason;

/// Why not, in the terms of the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    UnknownAgent,
    NoReach,
    /// A request at a host whose bytes are passed, or the reverse.
    WrongMode,
    UnknownMethod,
    Ambiguous(String),
    NotPermitted,
    Forbidden(BTreeSet<String>),
    /// Ids and Cedar's messages.
    Failed(BTreeMap<String, String>),
}

impl Refusal {
    pub fn reason(&self) -> DenyReason {
        match self {
            Self::UnknownAgent => DenyReason::AgentSuspended,
            Self::Ambiguous(_) => DenyReason::BodyAmbiguous,
            Self::NoReach
            | Self::WrongMode
            | Self::UnknownMethod
            | Self::NotPermitted
            | Self::Forbidden(_)
            | Self::Failed(_) => DenyReason::PolicyDenied,
        }
    }

    pub fn policies(&self) -> Vec<String> {
        match self {
            Self::Forbidden(ids) => ids.iter().cloned().collect(),
            Self::Failed(errors) => errors.keys().cloned().collect(),
            _ => Vec::new(),
        }
    }
}

/// One sentence for the agent, in terms of what it tried: no rule's text, no other agent's name.
pub(super) fn detail(
    agent: Option<&CompiledAgent>,
    input: &Input<'_>,
    refusal: &Refusal,
) -> String {
    let host = input.host.id(input.port);
    let tried = match &input.action {
        Action::Connect => format!("connect to `{host}`"),
        Action::Request { method, path, .. } => {
            format!(
                "{} `{}` at `{host}`",
                super::host::show(method),
                short(path.as_str())
            )
        }
    };
    let who = agent.map_or("this agent".to_owned(), |agent| {
        format!("agent `{}`", agent.agent.name)
    });
    match refusal {
        Refusal::UnknownAgent => {
            "This agent is not part of the policy in force, so nothing it asks for is allowed."
                .to_owned()
        }
        Refusal::NoReach => format!(
            "The policy of {who} does not include the host `{host}` at all, so no request to it will be allowed; do not retry, ask the agent's owner if it is needed."
        ),
        Refusal::WrongMode => format!(
            "The policy of {who} reaches `{host}` in another way than the one tried, so this is refused."
        ),
        Refusal::UnknownMethod => {
            format!("No policy permits the method of {tried}; use a standard HTTP method.")
        }
        Refusal::Ambiguous(why) => format!(
            "The request to {tried} can be read in more than one way: {why}; send it with one value for each name."
        ),
        Refusal::NotPermitted => format!(
            "Nothing in the policy of {who} permits {tried}; repeating or rephrasing the request will not change this, ask the agent's owner if it is needed."
        ),
        Refusal::Forbidden(_) => format!(
            "The policy of {who} forbids {tried}; repeating or rephrasing the request will not change this, ask the agent's owner if it is needed."
        ),
        Refusal::Failed(_) => format!(
            "A rule about {tried} could not be evaluated for this request, so it is refused; tell the agent's owner."
        ),
    }
}
