//! What the forwarder asks of the daemon. Another kind is a variant of each enum, its [`Call`], and an arm of the
//! daemon's.

use std::time::Duration;

use agentguard_common::abi::AgentId;
use agentguard_policy::{Charge, Room, Terms};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Call, Token};
use crate::state::OpenTask;

#[derive(Debug, Serialize, Deserialize)]
pub enum DaemonCall {
    /// The leaf certificate for this name is needed.
    Leaf(String),
    /// An agent opens or ends a task of its own. What has changed is told before it is answered.
    Task { agent: AgentId, change: TaskChange },
    /// A request takes this of its limits, all of it or nothing. What was taken is settled later, by the call's token.
    Charge(Vec<Charge>),
}

#[derive(Debug, Serialize, Deserialize)]
pub enum DaemonAnswer {
    Leaf(Result<Leaf, String>),
    /// What has become of the agent's task.
    Task(AgentId, Result<OpenTask, TaskFault>),
    Charge(Room),
}

/// A leaf and the key that belongs to it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Leaf {
    /// Leaf first, then the CA certificate; DER.
    pub chain: Vec<Vec<u8>>,
    /// PKCS #8, DER.
    pub key: Vec<u8>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum TaskChange {
    Open {
        terms: Terms,
        /// How long, if the agent says so.
        seconds: Option<u64>,
    },
    End {
        id: Uuid,
    },
}

/// Why an agent's task is as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskFault {
    Terms(String),
    Unknown(String),
    Refused(String),
    /// It is the daemon's affair, and in its log.
    Failed,
}

/// [`DaemonCall::Leaf`]: for no agent, because all share what is answered.
pub struct IssueLeaf(pub String);

impl Call for IssueLeaf {
    type Question = DaemonCall;
    type Reply = DaemonAnswer;
    type Answer = Result<Leaf, String>;
    const NAME: &'static str = "leaf";
    const LIMIT: Duration = Duration::from_secs(10);
    const SHARE: usize = 1024;

    fn question(self) -> DaemonCall {
        DaemonCall::Leaf(self.0)
    }

    fn answer(_: Token, reply: DaemonAnswer) -> Result<Self::Answer, DaemonAnswer> {
        match reply {
            DaemonAnswer::Leaf(result) => Ok(result),
            reply @ (DaemonAnswer::Task(..) | DaemonAnswer::Charge(_)) => Err(reply),
        }
    }
}

/// [`DaemonCall::Task`].
pub struct ChangeTask {
    pub agent: AgentId,
    pub change: TaskChange,
}

impl Call for ChangeTask {
    type Question = DaemonCall;
    type Reply = DaemonAnswer;
    type Answer = Result<OpenTask, TaskFault>;
    const NAME: &'static str = "task";
    const LIMIT: Duration = Duration::from_secs(10);
    const SHARE: usize = 16;

    fn agent(&self) -> Option<AgentId> {
        Some(self.agent)
    }

    fn question(self) -> DaemonCall {
        DaemonCall::Task {
            agent: self.agent,
            change: self.change,
        }
    }

    fn answer(_: Token, reply: DaemonAnswer) -> Result<Self::Answer, DaemonAnswer> {
        match reply {
            DaemonAnswer::Task(_, result) => Ok(result),
            reply @ (DaemonAnswer::Leaf(_) | DaemonAnswer::Charge(_)) => Err(reply),
        }
    }
}

/// [`DaemonCall::Charge`], for a request of this agent's.
pub struct TakeRoom {
    pub agent: AgentId,
    pub charges: Vec<Charge>,
}

impl Call for TakeRoom {
    type Question = DaemonCall;
    type Reply = DaemonAnswer;
    /// The token by which what was taken is settled.
    type Answer = (Token, Room);
    const NAME: &'static str = "charge";
    const LIMIT: Duration = Duration::from_secs(5);
    const SHARE: usize = 8192;

    fn agent(&self) -> Option<AgentId> {
        Some(self.agent)
    }

    fn question(self) -> DaemonCall {
        DaemonCall::Charge(self.charges)
    }

    fn answer(token: Token, reply: DaemonAnswer) -> Result<Self::Answer, DaemonAnswer> {
        match reply {
            DaemonAnswer::Charge(room) => Ok((token, room)),
            reply @ (DaemonAnswer::Leaf(_) | DaemonAnswer::Task(..)) => Err(reply),
        }
    }
}
