//! Putting a bundle in force: compiled whole, written, switched in the kernel and the forwarder, or nothing has changed.

mod candidate;
mod rules;
mod switch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use agentguard_bundle::history::{HistoryEntry, HistoryError};
use agentguard_bundle::store::LoadedBundle;
use agentguard_common::abi::AgentId;
use agentguard_policy as policy;
use agentguard_policy::{Diagnostic, Policy, Reassignment, Sources};
use agentguard_record::guarantee::{Guarantee, GuaranteeId, Holds};
use agentguard_record::{Actor, Outcome};
use agentguard_sys as sys;
use jiff::Timestamp;

pub(crate) use self::candidate::Candidate;
use self::candidate::{check_serial, find, next_entry, signed};
pub(crate) use self::switch::switch;
use super::expiry;
use super::stop::Stopper;
use crate::books::Books;
use crate::books::alarms::{Alarm, Concern};
use crate::books::records::OperatorEntry;
use crate::census::adoption;
use crate::census::identify::Blocks;
use crate::forwarder::ForwarderLink;
use crate::host::Host;
use crate::lock::lock;
use crate::roster::Roster;
use crate::roster::active::{Active, no_bundle};
use crate::roster::change::{BundleChange, Changes};
use crate::roster::registry::RegistryError;

#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("the bundle is not valid")]
    Invalid(Vec<Diagnostic>),
    /// Valid, and not acceptable on this host now.
    #[error("{0}")]
    Refused(String),
    /// The old bundle stays in force.
    #[error("{0}; the bundle that was in force still is")]
    Failed(String),
}

/// What an apply did.
pub struct ApplyEffects {
    pub active: Arc<Active>,
    /// The same bundle was in force already.
    pub unchanged: bool,
    pub warnings: Vec<String>,
}

/// Compiles and resolves for this host. Changes nothing. `entry` says of the bundle who wants it; [`HistoryEntry::meta`] is taken from
/// the bundle itself.
pub(crate) fn prepare(
    sources: Sources,
    propose: impl FnOnce(&BTreeSet<String>) -> Result<BTreeMap<String, AgentId>, RegistryError>,
    owners: BTreeMap<String, Reassignment>,
    generation: u64,
    entry: HistoryEntry,
) -> Result<Active, ApplyError> {
    let names = Policy::agent_names(&sources);
    let ids = propose(&names).map_err(|e| ApplyError::Refused(e.to_string()))?;
    let policy = Policy::compile_with(&sources, &ids, &owners).map_err(ApplyError::Invalid)?;
    let by_id = policy
        .agents()
        .filter_map(|agent| Some((*ids.get(&agent.name)?, agent)));
    let blocks = Blocks::resolve(by_id, sys::user::uid).map_err(ApplyError::Refused)?;
    let meta = Arc::new(policy.meta().clone());
    Ok(Active {
        sources,
        policy,
        meta,
        ids,
        owners,
        blocks,
        entry,
        generation,
    })
}

/// What it takes to put a bundle in force.
pub struct Installer {
    pub host: Arc<Host>,
    pub changes: Arc<Changes>,
    pub stopper: Stopper,
    pub books: Arc<Books>,
}

/// What comes into force, and after what.
pub enum Installation {
    /// At the start of the daemon. The kernel holds what an earlier daemon has pinned, the forwarder starts with what is in
    /// force by then, and there is nothing to go back to.
    First(Option<Arc<Active>>),
    /// `old` comes back if `new` cannot be put in force.
    Next {
        old: Option<Arc<Active>>,
        new: Arc<Active>,
    },
}

impl Installer {
    /// Puts `candidate` in force for `by`. Whatever becomes of it is recorded.
    pub async fn apply(&self, candidate: Candidate, by: Actor) -> Result<ApplyEffects, ApplyError> {
        let operation = candidate.operation();
        let result = self.try_apply(candidate, by.clone()).await;
        let why = match &result {
            Err(ApplyError::Invalid(diagnostics)) => {
                let first = diagnostics.first().map(|it| {
                    let line = it.line.map(|line| format!(":{line}")).unwrap_or_default();
                    format!(": {}{line}: {}", it.file, it.message)
                });
                format!("not valid{}", first.unwrap_or_default())
            }
            Err(ApplyError::Refused(why)) => why.clone(),
            Ok(_) | Err(ApplyError::Failed(_)) => return result,
        };
        let refused = OperatorEntry {
            by,
            operation,
            agent: None,
            resource: "a bundle".to_owned(),
            outcome: Outcome::Deny,
            detail: why,
            bundle: self.stopper.roster.meta(),
        };
        self.books.operated(refused);
        result
    }

    async fn try_apply(&self, candidate: Candidate, by: Actor) -> Result<ApplyEffects, ApplyError> {
        let (host, forwarder) = (&self.host, &self.stopper.forwarder);
        let (roster, enforce) = (&self.stopper.roster, &self.stopper.enforce);
        let change = self.changes.bundle().await;
        let (operation, origin) = (candidate.operation(), candidate.origin());
        let old = roster.active.load_full();
        let LoadedBundle { sources, signer } = find(host, roster, candidate, old.as_deref())?;
        let generation = old.as_ref().map_or(1, |old| old.generation + 1);
        let propose = |names: &_| lock(&roster.registry).propose(names);
        let owners = lock(&roster.registry).reassigned();
        let meta = Policy::meta_of(&sources).unwrap_or_default();
        let entry = next_entry(roster, meta, origin, by.clone(), signer);
        let new = Arc::new(prepare(sources, propose, owners, generation, entry)?);
        if let Some(old) = old
            .as_ref()
            .filter(|old| old.meta.digest == new.meta.digest)
        {
            return Ok(ApplyEffects {
                active: old.clone(),
                unchanged: true,
                warnings: Vec::new(),
            });
        }
        check_serial(roster, old.as_deref(), &new)?;
        let now = Timestamp::now();
        if let Some(expires) = new.policy.expires().filter(|_| new.policy.is_expired(now)) {
            return Err(ApplyError::Refused(format!(
                "the bundle has expired at {expires}; set a later `expires` in bundle.toml, and raise `serial`"
            )));
        }
        let accepted_gaps = enforce
            .meets(host, &self.stopper.census, forwarder, &new.policy)
            .map_err(ApplyError::Refused)?;
        let installation = Installation::Next {
            old: old.clone(),
            new: new.clone(),
        };
        let result = self.install(&change, installation).await;
        let (outcome, detail) = match &result {
            Ok(()) => (
                Outcome::Allow,
                format!(
                    "generation {generation}{}{}",
                    signed(new.entry.signer.as_ref()),
                    gaps(&accepted_gaps)
                ),
            ),
            Err(error) => (Outcome::Error, error.clone()),
        };
        let in_force = if result.is_ok() {
            Some(&new)
        } else {
            old.as_ref()
        };
        let record = OperatorEntry {
            by,
            operation,
            agent: None,
            resource: format!("{} {}", new.meta.name, new.meta.serial),
            outcome,
            detail,
            bundle: in_force.map(|active| active.meta.clone()),
        };
        self.books.operated(record);
        result.map_err(ApplyError::Failed)?;
        tracing::info!(
            bundle = new.meta.name,
            serial = new.meta.serial,
            digest = new.meta.digest,
            generation,
            "bundle in force"
        );
        self.books.alarms.clear(Concern::Bundle);
        roster.applied.notify_one();
        let mut warnings = new.blocks.warnings.clone();
        warnings.extend(expiry::alarm(new.policy.expires(), now).map(|alarm| alarm.to_string()));
        warnings.extend(
            keep(roster, &new)
                .err()
                .map(|error| format!("the bundle is not in the history: {error}")),
        );
        warnings.extend(accepted_gaps.iter().map(|gap| {
            format!("the bundle requires `{gap}`, which this host lacks and `accept_gaps` accepts")
        }));
        warnings.extend(unknown_digests(
            &enforce.guarantees(host, &self.stopper.census, forwarder, Some(&new.policy)),
            &new.policy,
        ));
        let adopted = adoption::adopt(roster, &self.stopper.census, enforce, forwarder.tgid());
        if let Err(error) = adopted.await {
            warnings.push(Alarm::ProcessesUnlabelled(error).to_string());
        }
        Ok(ApplyEffects {
            active: new,
            unchanged: false,
            warnings,
        })
    }

    /// The one way into force.
    pub async fn install(
        &self,
        change: &BundleChange<'_>,
        installation: Installation,
    ) -> Result<(), String> {
        let roster = &self.stopper.roster;
        let (old, new) = match installation {
            Installation::First(first) => {
                if let Some(first) = &first {
                    self.keep_ids(first)?;
                    roster.remember(first.meta.clone());
                }
                self.switch(change, first.clone()).await?;
                roster.active.store(first);
                return Ok(());
            }
            Installation::Next { old, new } => (old, new),
        };
        self.keep_ids(&new)?;
        lock(&roster.history)
            .stage(&new.entry, &new.sources)
            .map_err(|e| e.to_string())?;
        // From here on a record may name it.
        roster.remember(new.meta.clone());
        let stopping = change.stops().await;
        let before = roster.stops();
        let result = self.replace(change, &new).await;
        if let Err(error) = &result {
            tracing::error!(%error, "the bundle is not put in force, going back");
            self.roll_back(change, old).await;
        } else {
            forget_owners(roster, &new);
        }
        // Who has another owner or acts for another may be stopped now, or go on.
        let (_, failures) = self.stopper.reconcile(&stopping, &before, &[]).await;
        for failure in failures {
            tracing::error!(failure, "an agent could not be stopped, or let go on");
        }
        result
    }

    fn keep_ids(&self, new: &Active) -> Result<(), String> {
        lock(&self.stopper.roster.registry)
            .keep(&new.ids)
            .map_err(|e| e.to_string())
    }

    /// In the kernel, the forwarder and on disk.
    async fn replace(&self, change: &BundleChange<'_>, new: &Arc<Active>) -> Result<(), String> {
        let Stopper {
            roster, forwarder, ..
        } = &self.stopper;
        self.switch(change, Some(new.clone())).await?;
        tell_forwarder(forwarder, new).await?;
        lock(&roster.history).commit().map_err(|e| e.to_string())?;
        roster.active.store(Some(new.clone()));
        Ok(())
    }

    async fn roll_back(&self, change: &BundleChange<'_>, old: Option<Arc<Active>>) {
        let forwarder = &self.stopper.forwarder;
        if let Err(error) = self.switch(change, old.clone()).await {
            tracing::error!(%error, "the kernel's old rules could not all be restored: agents are denied more than their bundle says");
        }
        let restored = match &old {
            Some(old) => tell_forwarder(forwarder, old).await,
            None => tell_nothing(forwarder).await,
        };
        if restored.is_err() {
            let why = "it did not take the old bundle back";
            forwarder.restart(why).await;
        }
    }

    async fn switch(
        &self,
        change: &BundleChange<'_>,
        to: Option<Arc<Active>>,
    ) -> Result<(), String> {
        let Stopper {
            roster,
            census,
            enforce,
            ..
        } = &self.stopper;
        switch(change, roster, census, enforce, to)
            .await
            .map_err(|e| format!("the kernel did not take the rules: {e}"))
    }
}

/// Keeps what is in force in the history.
pub(crate) fn keep(roster: &Roster, active: &Active) -> Result<(), HistoryError> {
    let kept = lock(&roster.history).keep(&active.entry, &active.sources);
    if let Err(error) = &kept {
        tracing::error!(%error, "the bundle is in force, and not in the history");
    }
    kept
}

/// For a bundle with digests of executables, why they are not known here.
fn unknown_digests(guarantees: &[Guarantee], policy: &Policy) -> Option<String> {
    let has_digest = |exec: &policy::ExecPolicy| {
        let mut files = exec.allow.iter().chain(&exec.deny);
        files.any(|file| !file.sha256.is_empty())
    };
    policy
        .agents()
        .filter_map(|agent| agent.exec.as_ref())
        .find(|exec| has_digest(exec))?;
    let row = guarantees
        .iter()
        .find(|row| row.id == GuaranteeId::ExecDigest)?;
    (row.holds == Holds::Open).then(|| {
        format!(
            "digests in [exec] cannot be checked on this host: {}",
            row.why
        )
    })
}

/// What a record says of gaps that the configuration accepts.
pub(crate) fn gaps(accepted: &[GuaranteeId]) -> String {
    match accepted {
        [] => String::new(),
        some => {
            let ids: Vec<&str> = some.iter().map(|id| id.as_str()).collect();
            format!("; required, not given, accepted: {}", ids.join(", "))
        }
    }
}

/// An agent whose file names another owner than it did when it was reassigned belongs to the owner in the file, also if the
/// file goes back later.
fn forget_owners(roster: &Roster, new: &Active) {
    for (name, now) in &new.owners {
        let agent = new.ids.get(name).and_then(|id| new.policy.agent(*id));
        if agent.is_some_and(|agent| agent.owner != now.to)
            && let Err(error) = lock(&roster.registry).set_owner(name, None)
        {
            tracing::error!(%error, agent = name, "an owner of before is still in the registry");
        }
    }
}

pub(crate) async fn tell_forwarder(
    forwarder: &ForwarderLink,
    active: &Active,
) -> Result<(), String> {
    forwarder.put_in_force(active.update()).await
}

/// There was no bundle before: whatever the forwarder starts with next, the kernel sends it nothing.
async fn tell_nothing(forwarder: &ForwarderLink) -> Result<(), String> {
    let told = forwarder.put_in_force(no_bundle());
    let told = tokio::time::timeout(Duration::from_millis(1), told).await;
    told.unwrap_or_else(|_| Err("the forwarder may still have the bundle".into()))
}
