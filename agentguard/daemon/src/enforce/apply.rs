//! Putting a bundle in force: compiled whole, written, switched in the kernel and the forwarder, or nothing has changed.

mod rules;
mod wanted;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use agentguard_bundle::history::Entry;
use agentguard_bundle::store::Loaded;
use agentguard_common::abi::AgentId;
use agentguard_kernel::{KernelError, Rule};
use agentguard_policy as policy;
use agentguard_policy::{Diagnostic, Policy, Reassigned, Sources};
use agentguard_record::Outcome;
use agentguard_record::guarantee::{GuaranteeId, Holds};
use agentguard_sys as sys;
use jiff::Timestamp;

use self::rules::{exec_rules, rules, unix_names};
pub use self::wanted::Wanted;
use self::wanted::{check_serial, find, next_entry, signed};
use super::{expiry, stop};
use crate::books::records::{Item, Operated};
use crate::census::adoption;
use crate::census::identify::Blocks;
use crate::enforce::stop::everywhere;
use crate::lock;
use crate::roster::registry::RegistryError;
use crate::roster::stops::stops;
use crate::state::{Active, Shared};

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
pub struct Applied {
    pub active: Arc<Active>,
    /// The same bundle was in force already.
    pub unchanged: bool,
    pub warnings: Vec<String>,
}

/// Compiles and resolves for this host. Changes nothing. `entry` says of the bundle who wants it; [`Entry::meta`] is taken from
/// the bundle itself.
pub fn prepare(
    sources: Sources,
    propose: impl FnOnce(
        &std::collections::BTreeSet<String>,
    ) -> Result<BTreeMap<String, AgentId>, RegistryError>,
    owners: BTreeMap<String, Reassigned>,
    generation: u64,
    entry: Entry,
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

/// Puts `wanted` in force for `uid`. Whatever becomes of it is recorded.
pub async fn apply(shared: &Arc<Shared>, wanted: Wanted, uid: u32) -> Result<Applied, ApplyError> {
    let operation = wanted.operation();
    let result = try_apply(shared, wanted, uid).await;
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
    let in_force = shared.active.load();
    let refused = Operated {
        uid,
        operation,
        agent: None,
        resource: "a bundle".to_owned(),
        outcome: Outcome::Deny,
        detail: why,
        bundle: in_force.as_ref().map(|active| active.meta.clone()),
    };
    shared.records.append(vec![Item::Operator(refused)]).await;
    result
}

async fn try_apply(shared: &Arc<Shared>, wanted: Wanted, uid: u32) -> Result<Applied, ApplyError> {
    let _one_at_a_time = shared.applying.lock().await;
    let (operation, origin) = (wanted.operation(), wanted.origin());
    let old = shared.active.load_full();
    let Loaded { sources, signer } = find(shared, wanted, old.as_deref())?;
    let generation = old.as_ref().map_or(1, |old| old.generation + 1);
    let propose = |names: &_| lock(&shared.registry).propose(names);
    let owners = lock(&shared.registry).reassigned();
    let meta = Policy::meta_of(&sources).unwrap_or_default();
    let entry = next_entry(shared, meta, origin, uid, signer);
    let new = Arc::new(prepare(sources, propose, owners, generation, entry)?);
    if let Some(old) = old
        .as_ref()
        .filter(|old| old.meta.digest == new.meta.digest)
    {
        return Ok(Applied {
            active: old.clone(),
            unchanged: true,
            warnings: Vec::new(),
        });
    }
    check_serial(shared, old.as_deref(), &new)?;
    let now = Timestamp::now();
    if let Some(expires) = new.policy.expires().filter(|_| new.policy.is_expired(now)) {
        return Err(ApplyError::Refused(format!(
            "the bundle has expired at {expires}; set a later `expires` in bundle.toml, and raise `serial`"
        )));
    }
    let accepted_gaps = shared.meets(&new.policy).map_err(ApplyError::Refused)?;
    let result = install(shared, old.clone(), new.clone()).await;
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
    let record = Item::Operator(Operated {
        uid,
        operation,
        agent: None,
        resource: format!("{} {}", new.meta.name, new.meta.serial),
        outcome,
        detail,
        bundle: in_force.map(|active| active.meta.clone()),
    });
    shared.records.append(vec![record]).await;
    result.map_err(ApplyError::Failed)?;
    tracing::info!(
        bundle = new.meta.name,
        serial = new.meta.serial,
        digest = new.meta.digest,
        generation,
        "bundle in force"
    );
    shared.alarm("bundle", None);
    shared.applied.notify_one();
    let mut warnings = new.blocks.warnings.clone();
    warnings.extend(expiry::alarm(new.policy.expires(), now));
    if let Err(error) = lock(&shared.history).keep(&new.entry, &new.sources) {
        tracing::error!(%error, "the bundle is in force, and not in the history");
        warnings.push(format!("the bundle is not in the history: {error}"));
    }
    warnings.extend(accepted_gaps.iter().map(|gap| {
        format!("the bundle requires `{gap}`, which this host lacks and `accept_gaps` accepts")
    }));
    warnings.extend(unknown_digests(shared, &new.policy));
    if let Err(error) = adoption::adopt(shared).await {
        warnings.push(format!(
            "running processes could not all be looked at: {error}"
        ));
    }
    Ok(Applied {
        active: new,
        unchanged: false,
        warnings,
    })
}

/// For a bundle with digests of executables, why they are not known here.
fn unknown_digests(shared: &Shared, policy: &Policy) -> Option<String> {
    let has_digest = |exec: &policy::Exec| {
        let mut files = exec.allow.iter().chain(&exec.deny);
        files.any(|file| !file.sha256.is_empty())
    };
    policy
        .agents()
        .filter_map(|agent| agent.exec.as_ref())
        .find(|exec| has_digest(exec))?;
    let rows = shared.guarantees();
    let row = rows.iter().find(|row| row.id == GuaranteeId::ExecDigest)?;
    (row.holds == Holds::Open).then(|| {
        format!(
            "digests in [exec] cannot be checked on this host: {}",
            row.why
        )
    })
}

/// What a record says of gaps that the configuration accepts.
pub fn gaps(accepted: &[GuaranteeId]) -> String {
    match accepted {
        [] => String::new(),
        some => {
            let ids: Vec<&str> = some.iter().map(|id| id.as_str()).collect();
            format!("; required, not given, accepted: {}", ids.join(", "))
        }
    }
}

async fn install(
    shared: &Arc<Shared>,
    old: Option<Arc<Active>>,
    new: Arc<Active>,
) -> Result<(), String> {
    lock(&shared.registry)
        .keep(&new.ids)
        .map_err(|e| e.to_string())?;
    lock(&shared.history)
        .stage(&new.entry, &new.sources)
        .map_err(|e| e.to_string())?;
    // From here on a record may name it.
    shared.remember(new.meta.clone());
    let _no_kill = shared.killing.lock().await;
    let before = shared.stops();
    let result = put_in_force(shared, &old, &new).await;
    if let Err(error) = &result {
        tracing::error!(%error, "the bundle is not put in force, going back");
        roll_back(shared, old, new).await;
    } else {
        forget_owners(shared, &new);
    }
    // Who has another owner or acts for another may be stopped now, or go on.
    let (_, failures) = stop::follow(shared, &before, &[]).await;
    for failure in failures {
        tracing::error!(failure, "an agent could not be stopped, or let go on");
    }
    result
}

/// An agent whose file names another owner than it did when it was reassigned is that one's, also if its file goes back.
fn forget_owners(shared: &Shared, new: &Active) {
    for (name, now) in &new.owners {
        let agent = new.ids.get(name).and_then(|id| new.policy.agent(*id));
        if agent.is_some_and(|agent| agent.owner != now.to)
            && let Err(error) = lock(&shared.registry).set_owner(name, None)
        {
            tracing::error!(%error, agent = name, "an owner of before is still in the registry");
        }
    }
}

async fn put_in_force(
    shared: &Arc<Shared>,
    old: &Option<Arc<Active>>,
    new: &Arc<Active>,
) -> Result<(), String> {
    switch(shared, old.clone(), Some(new.clone()))
        .await
        .map_err(|e| format!("the kernel did not take the rules: {e}"))?;
    tell_forwarder(shared, new).await?;
    lock(&shared.history).commit().map_err(|e| e.to_string())?;
    shared.active.store(Some(new.clone()));
    Ok(())
}

async fn roll_back(shared: &Arc<Shared>, old: Option<Arc<Active>>, new: Arc<Active>) {
    if let Err(error) = switch(shared, Some(new), old.clone()).await {
        tracing::error!(%error, "the kernel's old rules could not all be restored: agents are denied more than their bundle says");
    }
    let restored = match &old {
        Some(old) => tell_forwarder(shared, old).await,
        None => tell_nothing(shared).await,
    };
    if restored.is_err() {
        let why = "it did not take the old bundle back";
        shared.forwarder.restart(why).await;
    }
}

pub async fn tell_forwarder(shared: &Shared, active: &Active) -> Result<(), String> {
    shared.forwarder.put_in_force(active.update()).await
}

/// There was no bundle before: whatever the forwarder starts with next, the kernel sends it nothing.
async fn tell_nothing(shared: &Shared) -> Result<(), String> {
    let told = shared.forwarder.put_in_force(no_bundle());
    let told = tokio::time::timeout(Duration::from_millis(1), told).await;
    told.unwrap_or_else(|_| Err("the forwarder may still have the bundle".into()))
}

/// What the forwarder has while there is no bundle.
pub fn no_bundle() -> agentguard_link::state::PolicyUpdate {
    agentguard_link::state::PolicyUpdate {
        sources: Sources::default(),
        agents: BTreeMap::new(),
        owners: BTreeMap::new(),
    }
}

/// Makes the kernel hold `to` where it held `from`: each agent's rules in one update, then what enrols processes.
pub async fn switch(
    shared: &Arc<Shared>,
    from: Option<Arc<Active>>,
    to: Option<Arc<Active>>,
) -> Result<(), String> {
    let shared = shared.clone();
    // A map of maps waits for an RCU grace period per agent: not on a thread that others' answers need.
    let switching = tokio::task::spawn_blocking(move || {
        switch_now(&shared, from.as_deref(), to.as_deref()).map_err(|e| e.to_string())?;
        // Its packets are dropped already; this tells both ends.
        if let Err(error) = cut_denied(&shared, to.as_deref()) {
            tracing::warn!(
                error,
                "what agents may no longer reach is mute, and not cut"
            );
        }
        Ok(())
    });
    switching.await.map_err(|e| e.to_string())?
}

fn switch_now(
    shared: &Shared,
    from: Option<&Active>,
    to: Option<&Active>,
) -> Result<(), KernelError> {
    // Before the rules: nothing is opened to an agent that this bundle stops.
    let stopped = stops(&lock(&shared.registry), to.map(|to| &to.policy));
    for id in stopped.keys() {
        lock(&shared.kernel).set_killed(*id, true)?;
    }
    let closed = to.is_some_and(|to| to.policy.is_expired(Timestamp::now()));
    // First, so that who looks between finds the kernel to be told once more, and not less.
    shared.closed.store(closed, Ordering::SeqCst);
    for (id, rules) in to.map(|to| rules(to, closed)).unwrap_or_default() {
        if shared.is_held() {
            lock(&shared.kernel).set_killed(id, true)?;
        }
        lock(&shared.kernel).set_rules(id, &rules)?;
    }
    for (id, names) in to.map(|to| unix_names(to, closed)).unwrap_or_default() {
        lock(&shared.kernel).set_unix(id, &names)?;
    }
    let kept = |id: &AgentId| to.is_some_and(|to| to.ids.values().any(|kept| kept == id));
    for id in from.map(|from| from.ids.values()).into_iter().flatten() {
        if !kept(id) {
            lock(&shared.kernel).remove_rules(*id)?;
        }
    }
    let exec = exec_rules(&lock(&shared.registry), to.filter(|_| !closed));
    lock(&shared.kernel).set_exec(&exec)?;
    let blocks = to.map(|to| to.blocks.to_kernel()).unwrap_or_default();
    lock(&shared.kernel).set_identify(&blocks)
}

/// Ends the live connections that the rules in force would not let agents make.
fn cut_denied(shared: &Shared, to: Option<&Active>) -> Result<(), String> {
    let rules = to
        .map(|to| rules(to, shared.is_closed()))
        .unwrap_or_default();
    let rules: BTreeMap<AgentId, Vec<Rule>> = rules.into_iter().collect();
    let tgids = lock(&shared.lineage).all_running();
    let mut cut = 0;
    let result = everywhere(&shared.namespaces.all_of(&tgids), || {
        let here = lock(&shared.kernel).destroy_denied(&rules);
        cut += here.map_err(|e| e.to_string())?;
        Ok(())
    });
    if cut > 0 {
        tracing::info!(cut, "connections that the new rules do not allow");
    }
    result
}
