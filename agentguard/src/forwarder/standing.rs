//! What outlives its decision: answers, WebSockets and passed-through connections that are still under way when another
//! bundle comes into force.

use std::sync::Arc;

use agentguard_common::abi::AgentId;
use http::{HeaderMap, Method};

use super::Forwarder;
use super::identity::Target;
use crate::policy::{Action, CanonicalPath, Decision, Gathered, Input, Policy};

/// Said of what a new bundle ends.
pub const CUT: &str = "permitted, and cut when another bundle came into force";

/// What is under way, and the bundle it was last judged by.
pub struct Standing {
    forwarder: Arc<Forwarder>,
    judged: Arc<Policy>,
    agent: AgentId,
    target: Target,
    asked: Asked,
    /// What was gathered for the decision that permitted it.
    gathered: Gathered,
}

/// What was permitted, as far as it is kept.
pub enum Asked {
    /// An answer that is passed on: rules hold for the next request, this one ends when its host cannot be reached any
    /// more.
    Answer,
    Connect,
    Upgrade(Box<Upgrade>),
}

/// The request that became a tunnel.
pub struct Upgrade {
    pub method: Method,
    pub scheme: String,
    pub path: CanonicalPath,
    pub query: Option<String>,
    pub headers: HeaderMap,
}

impl Standing {
    /// `judged`: the bundle that permitted it.
    pub fn new(
        forwarder: Arc<Forwarder>,
        judged: Arc<Policy>,
        agent: AgentId,
        target: Target,
        asked: Asked,
        gathered: Gathered,
    ) -> Self {
        Self {
            forwarder,
            judged,
            agent,
            target,
            asked,
            gathered,
        }
    }

    /// Whether it may go on. Almost always the same bundle is in force, and nothing is judged.
    pub fn holds(&mut self) -> bool {
        if Arc::ptr_eq(&self.forwarder.policy.load(), &self.judged) {
            return true;
        }
        self.judged = self.forwarder.policy.load_full();
        self.permitted()
    }

    /// Resolves when it may not go on.
    pub async fn lost(&mut self) {
        let mut applied = self.forwarder.applied.subscribe();
        while self.holds() {
            if applied.changed().await.is_err() {
                // The forwarder ends, and this with it.
                std::future::pending::<()>().await;
            }
        }
    }

    fn permitted(&self) -> bool {
        let Target { host, port } = &self.target;
        let action = match &self.asked {
            Asked::Answer => return self.judged.reach(self.agent, host, *port).is_some(),
            Asked::Connect => Action::Connect,
            Asked::Upgrade(upgrade) => Action::Request {
                method: upgrade.method.as_str(),
                scheme: &upgrade.scheme,
                path: &upgrade.path,
                query: upgrade.query.as_deref(),
                headers: &upgrade.headers,
            },
        };
        let decision = self.judged.decide(&Input {
            agent: self.agent,
            host,
            port: *port,
            action,
            gathered: &self.gathered,
        });
        matches!(decision, Decision::Permit(_))
    }
}
