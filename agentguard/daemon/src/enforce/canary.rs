//! Sends the canary out, at start and then again and again. What must be refused and is not, or is permitted and does not
//! work, is an alarm, and holds the agents closed if the configuration says so.

mod origin;
pub mod process;
mod round;
mod targets;

use std::sync::Arc;
use std::time::Duration;

use agentguard_common::abi::AgentId;
use agentguard_kernel::{Kernel, KernelError, Rule};
use agentguard_link::frame::CanaryOrigin;
use agentguard_record::{Operation, Outcome};

use self::round::Trouble;
use self::targets::Targets;
use crate::books::records::{Item, Operated};
use crate::guarantee;
use crate::host::config::OnFailure;
use crate::host::startup::StartError;
use crate::lock;
use crate::state::Shared;

/// What it needs as long as the daemon runs.
pub struct Canary {
    targets: Arc<Targets>,
}

impl Canary {
    /// Opens what it aims at, and gives its two agents their rules. Must be called within a runtime.
    pub fn open(shared: &Shared) -> Result<Self, StartError> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            StartError::Failed(format!("the canary's {what}: {error}"))
        };
        let runtime = &shared.config.paths.runtime;
        let targets = Targets::open(runtime, &shared.forwarder_account)
            .map_err(|error| failed("targets", &error))?;
        give_rules(&mut lock(&shared.kernel), &targets).map_err(|error| failed("rules", &error))?;
        Ok(Self {
            targets: Arc::new(targets),
        })
    }

    /// Where its permitted request ends.
    pub fn origin(&self) -> CanaryOrigin {
        self.targets.origin.described()
    }

    /// Sends one out, and deals with what it has seen. One that does not come back, or from which something was kept that
    /// is permitted, has a second chance: that is a slow machine more often than a broken one.
    pub async fn check(&self, shared: &Arc<Shared>) {
        let begun = tokio::time::Instant::now();
        let mut result = self.send(shared).await;
        if let Err(Trouble::Doubt(why)) = result {
            tracing::warn!(why, "the canary is sent again");
            result = self.send(shared).await;
        }
        tracing::debug!(took = ?begun.elapsed(), "the canary is back");
        if shared.stop.is_cancelled() {
            // What it saw may be the end of what it was to see.
            return;
        }
        settle(shared, result.map_err(Trouble::into_message)).await;
    }

    async fn send(&self, shared: &Arc<Shared>) -> Result<(), Trouble> {
        let (shared, targets) = (shared.clone(), self.targets.clone());
        let sending = tokio::task::spawn_blocking(move || round::round(&shared, &targets));
        sending
            .await
            .unwrap_or_else(|error| Err(Trouble::lost(error)))
    }

    /// Until the daemon stops.
    pub async fn serve(self, shared: Arc<Shared>) {
        let every = Duration::from_secs(shared.config.canary.every_s.into());
        loop {
            tokio::select! {
                () = shared.stop.cancelled() => return,
                () = tokio::time::sleep(every) => self.check(&shared).await,
            }
        }
    }
}

/// Of the two agents the one knows rules of the kernel's only, the other the forwarder only. No bundle replaces these.
fn give_rules(kernel: &mut Kernel, targets: &Targets) -> Result<(), KernelError> {
    kernel.set_rules(AgentId::CANARY, &targets.rules())?;
    kernel.set_rules(AgentId::CANARY_HOSTS, &[Rule::Forward])?;
    kernel.set_unix(AgentId::CANARY, &targets.unix())?;
    kernel.set_canary_exec(&targets.exec())
}

/// Only a change is told and recorded.
async fn settle(shared: &Arc<Shared>, result: Result<(), String>) {
    let now = match &result {
        Ok(()) => guarantee::Canary::Passed,
        Err(why) => guarantee::Canary::Failed(why.clone()),
    };
    let before = std::mem::replace(&mut *lock(&shared.canary), now.clone());
    if before == now {
        return;
    }
    let close = shared.config.canary.on_failure == OnFailure::Close;
    let (outcome, detail) = match result {
        Err(why) => {
            let (held, failed) = match close {
                true => ("agents are held closed", hold(shared, true)),
                false => ("agents go on, as `on_failure` says", Vec::new()),
            };
            let message = format!("the canary failed, {held}: {why}");
            tracing::error!("{message}");
            for error in failed {
                tracing::error!(error, "an agent could not be held");
            }
            shared.alarm("canary", Some(message.clone()));
            (Outcome::Error, message)
        }
        Ok(()) => {
            shared.alarm("canary", None);
            if !matches!(before, guarantee::Canary::Failed(_)) {
                return;
            }
            for error in hold(shared, false) {
                tracing::error!(error, "an agent could not be let go on");
            }
            tracing::warn!("the canary is refused again as it must: agents go on");
            (Outcome::Allow, "agents go on".to_owned())
        }
    };
    let record = Operated {
        uid: 0,
        operation: Operation::Canary,
        agent: None,
        resource: "agentguard".to_owned(),
        outcome,
        detail,
        bundle: shared
            .active
            .load()
            .as_ref()
            .map(|active| active.meta.clone()),
    };
    shared.records.append(vec![Item::Operator(record)]).await;
}

/// Every agent, as by a kill that is on no disk: a restart of the daemon begins anew.
fn hold(shared: &Shared, held: bool) -> Vec<String> {
    // First, so that an agent of a bundle that is being applied now is held by whoever comes later.
    shared.hold(held);
    let stops = shared.stops();
    let registry = lock(&shared.registry);
    let mut kernel = lock(&shared.kernel);
    let each = registry.agents().iter().filter_map(|(name, known)| {
        let killed = held || stops.contains_key(&known.id);
        let result = kernel.set_killed(known.id, killed);
        result.err().map(|error| format!("`{name}`: {error}"))
    });
    each.collect()
}
