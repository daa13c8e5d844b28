//! What an agent does, in the one form in which it is judged and sent.

use agentguard_policy::{Action, CanonicalPath};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};

use super::identity::RequestTarget;
use super::tasks::NamedTask;
use super::upgrade::Upgrade;

/// One thing that an agent does at one host: what one decision is about.
#[derive(Clone, Copy)]
pub(crate) struct Act<'a> {
    pub target: &'a RequestTarget,
    pub action: Action<'a>,
}

/// A request without its body. Which acts it has is its [`Protocol`](super::protocol::Protocol)'s to say.
pub(crate) struct Message {
    /// The head, without what is the hop's own.
    pub parts: Parts,
    pub target: RequestTarget,
    pub scheme: Scheme,
    pub path: CanonicalPath,
    /// The task that it says it is on.
    pub task: NamedTask,
    /// As `Host` or `:authority`.
    pub authority: Authority,
    /// Path and query, as they are sent.
    pub line: PathAndQuery,
    /// What it asks its connection to become.
    pub upgrade: Option<Upgrade>,
}
