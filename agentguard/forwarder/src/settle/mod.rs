//! What a permit still owes before it can be spent, a file for each kind of debt. A permit without debts never comes here.

mod limits;

use agentguard_common::abi::AgentId;
use agentguard_policy::{Denial, Owed, Permit, Settled};

pub(crate) use self::limits::Claim;

use super::forwarder::Forwarder;

/// Settles everything that the agent's `permit` owes, or says why it cannot be.
pub(crate) async fn settle(
    forwarder: &Forwarder,
    agent: AgentId,
    permit: Permit<Owed>,
) -> Result<(Permit<Settled>, Claim), Denial> {
    limits::take(&forwarder.charges, agent, permit).await
}
