//! Why something is refused, in the terms of the policy and in a sentence for the agent.

use std::collections::{BTreeMap, BTreeSet};

use agentguard_record::DenyReason;

use super::body::BodyFault;
use super::compile::CompiledAgent;
use super::facts::short;
use super::privacy::Shown;
use super::task::Outside;
use super::{Action, Input};

/// Why not, in the terms of the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PolicyRefusal {
    UnknownAgent,
    NoReach,
    /// A request at a host whose bytes are passed, or the reverse.
    WrongMode,
    UnknownMethod,
    /// What a rule reads cannot be known.
    Unknown(BodyFault),
    NotPermitted,
    Forbidden(BTreeSet<String>),
    /// Nothing but these forbids, which people of these roles can lift.
    Approval {
        ids: BTreeSet<String>,
        roles: BTreeSet<String>,
    },
    /// Permitted, and not on a task that it has to be on.
    Outside(Outside),
    /// A budget cannot tell what the request takes of it.
    NoAmount {
        id: String,
        why: String,
    },
    /// Ids and Cedar's messages.
    Failed(BTreeMap<String, String>),
    /// Permitted to the agent, and not to one it acts for.
    Delegation {
        parent: String,
        why: String,
        /// As [`Self::is_the_rules`].
        by_rules: bool,
    },
}

impl PolicyRefusal {
    pub(crate) fn reason(&self) -> DenyReason {
        match self {
            Self::UnknownAgent => DenyReason::AgentSuspended,
            Self::Unknown(fault) => fault.reason,
            Self::Approval { .. } => DenyReason::ApprovalRequired,
            Self::Outside(_) => DenyReason::OutsideTask,
            Self::Delegation { .. } => DenyReason::DelegationExceeded,
            Self::NoReach
            | Self::WrongMode
            | Self::UnknownMethod
            | Self::NotPermitted
            | Self::Forbidden(_)
            | Self::NoAmount { .. }
            | Self::Failed(_) => DenyReason::PolicyDenied,
        }
    }

    /// Roles of the people who can lift it.
    pub(crate) fn approval(&self) -> Vec<String> {
        match self {
            Self::Approval { roles, .. } => roles.iter().cloned().collect(),
            Self::UnknownAgent
            | Self::NoReach
            | Self::WrongMode
            | Self::UnknownMethod
            | Self::Unknown(_)
            | Self::NotPermitted
            | Self::Forbidden(_)
            | Self::Outside(_)
            | Self::NoAmount { .. }
            | Self::Failed(_)
            | Self::Delegation { .. } => Vec::new(),
        }
    }

    /// Whether rules said no. What they could not judge, or what does not fit the way it came, is refused to everyone.
    pub(crate) fn is_the_rules(&self) -> bool {
        match self {
            Self::NoReach
            | Self::UnknownMethod
            | Self::NotPermitted
            | Self::Forbidden(_)
            | Self::Outside(Outside::None)
            | Self::NoAmount { .. }
            | Self::Approval { .. } => true,
            Self::Delegation { by_rules, .. } => *by_rules,
            Self::UnknownAgent
            | Self::WrongMode
            | Self::Unknown(_)
            | Self::Failed(_)
            | Self::Outside(_) => false,
        }
    }

    pub(crate) fn policies(&self) -> Vec<String> {
        match self {
            Self::Forbidden(ids) | Self::Approval { ids, .. } => ids.iter().cloned().collect(),
            Self::NoAmount { id, .. } => vec![id.clone()],
            Self::Failed(errors) => errors.keys().cloned().collect(),
            Self::UnknownAgent
            | Self::NoReach
            | Self::WrongMode
            | Self::UnknownMethod
            | Self::Unknown(_)
            | Self::NotPermitted
            | Self::Outside(_)
            | Self::Delegation { .. } => Vec::new(),
        }
    }
}

/// Who, and what it tried, as sentences have them; with what it may be taken for, if that decides.
pub(super) fn who_and_what(
    agent: Option<&CompiledAgent>,
    input: &Input<'_>,
    shown: &Shown<'_>,
) -> (String, String) {
    let host = input.host.id(input.port);
    let mut tried = match &input.action {
        Action::Connect => format!("connect to `{host}`"),
        Action::Request { method, .. } => {
            format!(
                "{} `{}` at `{host}`",
                super::host::show(method),
                short(&shown.path)
            )
        }
    };
    if let Some(read_as) = shown.read_as {
        tried.push_str(&format!(", which some servers take for {read_as}"));
    }
    let who = agent.map_or("this agent".to_owned(), |agent| {
        format!("agent `{}`", agent.agent.name)
    });
    (who, tried)
}

/// One sentence for the agent, in terms of what it tried: no rule's text, no other agent's name.
pub(super) fn detail(
    agent: Option<&CompiledAgent>,
    input: &Input<'_>,
    shown: &Shown<'_>,
    refusal: &PolicyRefusal,
) -> String {
    let host = input.host.id(input.port);
    let (who, tried) = who_and_what(agent, input, shown);
    match refusal {
        PolicyRefusal::UnknownAgent => {
            "This agent is not part of the policy in force, so nothing it asks for is allowed."
                .to_owned()
        }
        PolicyRefusal::NoReach if shown.read_as.is_some() => format!(
            "The policy of {who} permits {tried}, at no host like that; leave out the header that names it."
        ),
        PolicyRefusal::NoReach => format!(
            "The policy of {who} does not include the host `{host}` at all, so no request to it will be allowed; do not retry, ask the agent's owner if it is needed."
        ),
        PolicyRefusal::WrongMode => format!(
            "The policy of {who} reaches `{host}` in another way than the one tried, so this is refused."
        ),
        PolicyRefusal::UnknownMethod => {
            format!("No policy permits the method of {tried}; use a standard HTTP method.")
        }
        PolicyRefusal::Unknown(fault) => match fault.reason {
            DenyReason::BodyAmbiguous => format!(
                "The request to {tried} can be read in more than one way: {}; send it so that it has one.",
                fault.why
            ),
            DenyReason::BodyTooLarge => format!(
                "The policy of {who} reads the body of {tried} before it goes on: {}; send less at once.",
                fault.why
            ),
            DenyReason::AttributeUnavailable => format!(
                "The policy of {who} decides {tried} by what another service knows, which cannot be had: {}; try again later.",
                fault.why
            ),
            DenyReason::ProtocolRefused => format!(
                "It cannot be told for what servers take {tried}: {}; send it without that.",
                fault.why
            ),
            DenyReason::PolicyDenied
            | DenyReason::ApprovalRequired
            | DenyReason::AgentKilled
            | DenyReason::AgentSuspended
            | DenyReason::AgentOrphaned
            | DenyReason::DelegationExceeded
            | DenyReason::OutsideHours
            | DenyReason::UntrustedNetwork
            | DenyReason::OutsideTask
            | DenyReason::RateLimited
            | DenyReason::BodyUnreadable
            | DenyReason::PolicyStale
            | DenyReason::AuditUnavailable
            | DenyReason::UpstreamTls
            | DenyReason::UpstreamUnreachable
            | DenyReason::UpstreamTimeout
            | DenyReason::ClientTls => format!(
                "The policy of {who} reads the body of {tried}, which cannot be read as it has to be: {}.",
                fault.why
            ),
        },
        PolicyRefusal::Approval { roles, .. } => format!(
            "The policy of {who} allows {tried} only when {} approved it, and nobody has; do not retry before that.",
            listed(roles)
        ),
        PolicyRefusal::NotPermitted => format!(
            "Nothing in the policy of {who} permits {tried}; repeating or rephrasing the request will not change this, ask the agent's owner if it is needed."
        ),
        PolicyRefusal::Forbidden(_) => format!(
            "The policy of {who} forbids {tried}; repeating or rephrasing the request will not change this, ask the agent's owner if it is needed."
        ),
        PolicyRefusal::NoAmount { .. } => format!(
            "The policy of {who} limits what {tried} may add up to, and this request has no amount that can be counted; send it with one, as a number from 0 on."
        ),
        PolicyRefusal::Delegation { .. } => format!(
            "The policy of {who} permits {tried}, but not that of whom it acts for, and it can never do more than they; repeating or rephrasing the request will not change this, ask the agent's owner if it is needed."
        ),
        PolicyRefusal::Outside(Outside::Task(id)) => format!(
            "The policy of {who} permits {tried}, but the task {id} that it is on does not include it; finish that task, or have another opened."
        ),
        PolicyRefusal::Outside(Outside::EveryOne) => format!(
            "The policy of {who} permits {tried}, but none of the tasks that are open for it includes it; have another opened."
        ),
        PolicyRefusal::Outside(Outside::Wrong(named)) => format!(
            "The request to {tried} names {named}; name a task that is open for {who} in the header `AgentGuard-Task`, or none."
        ),
        PolicyRefusal::Outside(Outside::None) => format!(
            "The policy of {who} permits {tried} only on a task that a supervisor has opened for it, and the request is on none; have one opened."
        ),
        PolicyRefusal::Failed(_) => format!(
            "A rule about {tried} could not be evaluated for this request, so it is refused; tell the agent's owner."
        ),
    }
}

/// Roles as a sentence has them.
pub(super) fn listed(roles: &BTreeSet<String>) -> String {
    let roles: Vec<_> = roles.iter().map(|role| format!("`{role}`")).collect();
    match &roles[..] {
        [one] => format!("the role {one} has"),
        many => format!("the roles {} have", many.join(" and ")),
    }
}
