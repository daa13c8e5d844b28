//! Limits: the room that an act takes in each that counts it, and what becomes of it once it is known whether the act was
//! done.

use agentguard_common::abi::AgentId;
use agentguard_policy::{Denial, Owed, Permit, Settled, Settlement};
use http::StatusCode;

use crate::charges::{Charges, HeldCharge};

/// The room that has been taken. It is given back when this is dropped, unless it was said that the act has been done.
pub(crate) struct Claim(Vec<HeldCharge>);

/// Takes the room of every limit that counts the agent's act, of all of them or of none.
pub(super) async fn take(
    charges: &Charges,
    agent: AgentId,
    permit: Permit<Owed>,
) -> Result<(Permit<Settled>, Claim), Denial> {
    let (permit, held) = charges.take(agent, permit).await?;
    Ok((permit, Claim(vec![held])))
}

impl Claim {
    /// Of an act that no limit counts. Nothing is allocated.
    pub(crate) fn nothing() -> Self {
        Self(Vec::new())
    }

    /// Of both acts.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }

    /// From now on something of it may have gone out.
    pub(crate) fn goes_out(&mut self) {
        self.settle(Settlement::Kept);
    }

    /// Nothing of it has gone out after all.
    pub(crate) fn was_not_sent(mut self) {
        self.settle(Settlement::Unsent);
    }

    /// Upstream has answered, with a refusal perhaps.
    pub(crate) fn was_answered(mut self, status: StatusCode) {
        if status.is_client_error() {
            self.settle(Settlement::Refused);
        }
    }

    fn settle(&mut self, settlement: Settlement) {
        for held in &mut self.0 {
            held.settled = settlement;
        }
    }
}
