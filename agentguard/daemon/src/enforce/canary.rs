//! Sends the canary out, at start and then again and again. What must be refused and is not is an alarm, and holds the agents
//! closed if the configuration says so. What is permitted and does not work is an alarm alone: an agent could bring it about
//! for all others.

mod origin;
pub mod process;
mod round;
mod targets;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use agentguard_common::abi::AgentId;
use agentguard_kernel::{Kernel, KernelError, Rule};
use agentguard_link::frame::CanaryOrigin;
use agentguard_record::{Actor, Operation, Outcome};
use tokio_util::sync::CancellationToken;

use self::round::Trouble;
use self::targets::Targets;
use super::Enforce;
use crate::books::Books;
use crate::books::alarms::{Alarm, Concern};
use crate::books::records::OperatorEntry;
use crate::forwarder::ForwarderLink;
use crate::guarantee;
use crate::host::Host;
use crate::host::config::OnFailure;
use crate::host::startup::StartError;
use crate::host::tls::ca::Authority;
use crate::lock::lock;
use crate::roster::Roster;
use crate::roster::change::{Changes, StopChange};

/// What one round uses of the daemon.
#[derive(Clone)]
pub(crate) struct CanaryParts {
    pub host: Arc<Host>,
    pub enforce: Arc<Enforce>,
    pub books: Arc<Books>,
    pub forwarder: ForwarderLink,
    pub authority: Arc<Authority>,
}

/// What it needs as long as the daemon runs.
pub(crate) struct Canary {
    parts: CanaryParts,
    roster: Arc<Roster>,
    changes: Arc<Changes>,
    stop: CancellationToken,
    targets: Arc<Targets>,
}

impl Canary {
    /// Opens what it aims at, and gives its two agents their rules. Must be called within a runtime.
    pub(crate) fn open(
        parts: CanaryParts,
        roster: Arc<Roster>,
        changes: Arc<Changes>,
        stop: CancellationToken,
    ) -> Result<Self, StartError> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            StartError::Failed(format!("the canary's {what}: {error}"))
        };
        let runtime = &parts.host.config.paths.runtime;
        let targets = Targets::open(runtime, &parts.host.account)
            .map_err(|error| failed("targets", &error))?;
        give_rules(&mut lock(&parts.enforce.kernel), &targets)
            .map_err(|error| failed("rules", &error))?;
        Ok(Self {
            parts,
            roster,
            changes,
            stop,
            targets: Arc::new(targets),
        })
    }

    /// Where its permitted request ends.
    pub(crate) fn origin(&self) -> CanaryOrigin {
        self.targets.origin.described()
    }

    /// Sends one out, and deals with what it has seen. One that does not come back, or from which something was kept that
    /// is permitted, has a second chance: that is a slow machine more often than a broken one.
    pub(crate) async fn check(&self) {
        let begun = tokio::time::Instant::now();
        let mut result = self.send().await;
        if let Err(Trouble::Doubt(why)) = result {
            tracing::warn!(why, "the canary is sent again");
            result = self.send().await;
        }
        tracing::debug!(took = ?begun.elapsed(), "the canary is back");
        if self.stop.is_cancelled() {
            // What it saw may be the end of what it was to see.
            return;
        }
        self.settle(result).await;
    }

    async fn send(&self) -> Result<(), Trouble> {
        let (parts, targets) = (self.parts.clone(), self.targets.clone());
        let sending = tokio::task::spawn_blocking(move || round::round(&parts, &targets));
        sending
            .await
            .unwrap_or_else(|error| Err(Trouble::lost(error)))
    }

    /// Until the daemon stops.
    pub(crate) async fn serve(self) {
        let every = Duration::from_secs(self.parts.host.config.canary.every_s.into());
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(every) => self.check().await,
            }
        }
    }

    /// Only a change is told and recorded.
    async fn settle(&self, result: Result<(), Trouble>) {
        let CanaryParts {
            host,
            enforce,
            books,
            ..
        } = &self.parts;
        let now = match &result {
            Ok(()) => guarantee::CanaryState::Passed,
            Err(trouble) => guarantee::CanaryState::Failed(trouble.message().to_owned()),
        };
        let before = std::mem::replace(&mut *lock(&enforce.canary), now.clone());
        if before == now {
            return;
        }
        let (outcome, detail) = match result {
            Err(trouble) => {
                let (alarm, failed) = match (trouble, host.config.canary.on_failure) {
                    (Trouble::Surprise(why), OnFailure::Close) => {
                        (Alarm::CanaryHolds(why), enforce.hold(&self.roster))
                    }
                    (Trouble::Surprise(why), OnFailure::Alarm) => {
                        (Alarm::CanaryFailed(why), Vec::new())
                    }
                    // What was open has not been seen shut.
                    (Trouble::Doubt(why), _) if enforce.is_held() => {
                        (Alarm::CanaryHolds(why), Vec::new())
                    }
                    (Trouble::Doubt(why), _) => (Alarm::CanaryHindered(why), Vec::new()),
                };
                let message = alarm.to_string();
                tracing::error!("{message}");
                for error in failed {
                    tracing::error!(error, "an agent could not be held");
                }
                books.alarms.raise(Concern::Canary, alarm);
                (Outcome::Error, message)
            }
            Ok(()) => {
                books.alarms.clear(Concern::Canary);
                if !matches!(before, guarantee::CanaryState::Failed(_)) {
                    return;
                }
                let change = self.changes.stops().await;
                for error in enforce.release(&change, &self.roster) {
                    tracing::error!(error, "an agent could not be let go on");
                }
                tracing::warn!("the canary went again as it must: agents go on");
                (Outcome::Allow, "agents go on".to_owned())
            }
        };
        let record = OperatorEntry {
            by: Actor::Daemon,
            operation: Operation::Canary,
            agent: None,
            resource: "agentguard".to_owned(),
            outcome,
            detail,
            bundle: self.roster.meta(),
        };
        books.operated(record);
    }
}

/// Of the two agents the one knows rules of the kernel's only, the other the forwarder only. No bundle replaces these.
fn give_rules(kernel: &mut Kernel, targets: &Targets) -> Result<(), KernelError> {
    kernel.set_rules(AgentId::CANARY, &targets.rules())?;
    kernel.set_rules(AgentId::CANARY_HOSTS, &[Rule::Forward])?;
    kernel.set_unix(AgentId::CANARY, &targets.unix())?;
    kernel.set_canary_exec(&targets.exec())
}

impl Enforce {
    /// Every agent, as by a kill that is on no disk: a restart of the daemon begins anew. At once, whatever other change is
    /// under way.
    fn hold(&self, roster: &Roster) -> Vec<String> {
        // First, so that whoever lets an agent go on from now on holds it.
        self.held.store(true, Ordering::SeqCst);
        self.flip(&roster.known(), true)
    }

    /// Every agent that nothing else stops. Nobody is stopped meanwhile, which this would undo.
    fn release(&self, _change: &StopChange<'_>, roster: &Roster) -> Vec<String> {
        self.held.store(false, Ordering::SeqCst);
        let stops = roster.stops();
        let mut agents = roster.known();
        agents.retain(|(_, id)| !stops.contains_key(id));
        self.flip(&agents, false)
    }
}
