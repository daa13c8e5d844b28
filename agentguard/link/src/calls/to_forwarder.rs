//! What the daemon asks of the forwarder. Another kind is a variant of each enum, its [`Call`], and an arm of the
//! forwarder's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use agentguard_common::abi::AgentId;
use agentguard_record::DenyReason;
use serde::{Deserialize, Serialize};

use super::{Call, Token};
use crate::state::{Delta, PolicyUpdate};

#[derive(Debug, Serialize, Deserialize)]
pub enum ForwarderCall {
    /// Send every record completed so far, and answer after them.
    Flush,
    /// Take up the delta, and answer when everything holds to it: the bundle is in force, nothing that stopped agents had
    /// open is there any more.
    Take(Delta),
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ForwarderAnswer {
    Done,
    /// To [`Delta::Stopped`].
    Dropped(DroppedConnections),
}

/// How many client connections of each agent there were.
pub type DroppedConnections = BTreeMap<AgentId, u32>;

impl ForwarderCall {
    /// What is so without a forwarder: it holds no record and no connection, and the next one starts with what holds.
    pub fn without_forwarder(&self) -> ForwarderAnswer {
        match self {
            Self::Take(Delta::Stopped(_)) => ForwarderAnswer::Dropped(DroppedConnections::new()),
            Self::Flush
            | Self::Take(
                Delta::Policy(_)
                | Delta::Freed(_)
                | Delta::AuditWritable(_)
                | Delta::TrustedNetwork(_)
                | Delta::Names(_)
                | Delta::Tasks { .. }
                | Delta::Presences(_),
            ) => ForwarderAnswer::Done,
        }
    }
}

/// [`ForwarderCall::Flush`].
pub struct Flush;

impl Call for Flush {
    type Question = ForwarderCall;
    type Reply = ForwarderAnswer;
    type Answer = ();
    const NAME: &'static str = "flush";
    /// As long as a forwarder may take to start, and to answer: most callers wait less.
    const LIMIT: Duration = Duration::from_secs(25);

    fn question(self) -> ForwarderCall {
        ForwarderCall::Flush
    }

    fn answer(_: Token, reply: ForwarderAnswer) -> Result<(), ForwarderAnswer> {
        done(reply)
    }
}

/// [`Delta::Policy`], until it is in force.
pub struct PutInForce(pub Box<PolicyUpdate>);

impl Call for PutInForce {
    type Question = ForwarderCall;
    type Reply = ForwarderAnswer;
    type Answer = ();
    const NAME: &'static str = "policy";
    /// As long as a bundle may take to compile.
    const LIMIT: Duration = Duration::from_secs(30);

    fn question(self) -> ForwarderCall {
        ForwarderCall::Take(Delta::Policy(self.0))
    }

    fn answer(_: Token, reply: ForwarderAnswer) -> Result<(), ForwarderAnswer> {
        done(reply)
    }
}

/// [`Delta::Stopped`], until nothing of theirs is open.
pub struct StopAgents(pub BTreeMap<AgentId, DenyReason>);

impl Call for StopAgents {
    type Question = ForwarderCall;
    type Reply = ForwarderAnswer;
    type Answer = DroppedConnections;
    const NAME: &'static str = "stop";
    /// As long as connections may take to be dropped before the forwarder is ended itself.
    const LIMIT: Duration = Duration::from_secs(2);

    fn question(self) -> ForwarderCall {
        ForwarderCall::Take(Delta::Stopped(self.0))
    }

    fn answer(_: Token, reply: ForwarderAnswer) -> Result<DroppedConnections, ForwarderAnswer> {
        match reply {
            ForwarderAnswer::Dropped(dropped) => Ok(dropped),
            ForwarderAnswer::Done => Err(reply),
        }
    }
}

/// [`Delta::Freed`], until what comes of theirs is judged again.
pub struct FreeAgents(pub BTreeSet<AgentId>);

impl Call for FreeAgents {
    type Question = ForwarderCall;
    type Reply = ForwarderAnswer;
    type Answer = ();
    const NAME: &'static str = "free";
    const LIMIT: Duration = Duration::from_secs(2);

    fn question(self) -> ForwarderCall {
        ForwarderCall::Take(Delta::Freed(self.0))
    }

    fn answer(_: Token, reply: ForwarderAnswer) -> Result<(), ForwarderAnswer> {
        done(reply)
    }
}

fn done(reply: ForwarderAnswer) -> Result<(), ForwarderAnswer> {
    match reply {
        ForwarderAnswer::Done => Ok(()),
        ForwarderAnswer::Dropped(_) => Err(reply),
    }
}
