//! The switch from one bundle's rules to another's in the kernel.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use agentguard_common::abi::AgentId;
use agentguard_kernel::{KernelError, Rule};
use jiff::Timestamp;

use super::rules::{exec_rules, rules, unix_names};
use crate::census::Census;
use crate::enforce::Enforce;
use crate::enforce::stop::everywhere;
use crate::lock::lock;
use crate::roster::Roster;
use crate::roster::active::Active;
use crate::roster::change::BundleChange;
use crate::roster::stops::stops;

/// Makes the kernel hold `to`, whatever it held: each agent's rules in one update, then what enrols processes. Agents that
/// `to` does not have lose theirs.
pub(crate) async fn switch(
    _change: &BundleChange<'_>,
    roster: &Arc<Roster>,
    census: &Arc<Census>,
    enforce: &Arc<Enforce>,
    to: Option<Arc<Active>>,
) -> Result<(), String> {
    let (roster, census, enforce) = (roster.clone(), census.clone(), enforce.clone());
    // A map of maps waits for an RCU grace period per agent: not on a thread that others' answers need.
    let switching = tokio::task::spawn_blocking(move || {
        switch_now(&roster, &enforce, to.as_deref()).map_err(|e| e.to_string())?;
        // Its packets are dropped already; this tells both ends.
        if let Err(error) = cut_denied(&census, &enforce, to.as_deref()) {
            tracing::warn!(
                error,
                "what agents may no longer reach is mute, and not cut"
            );
        }
        Ok(())
    });
    switching.await.map_err(|e| e.to_string())?
}

fn switch_now(roster: &Roster, enforce: &Enforce, to: Option<&Active>) -> Result<(), KernelError> {
    // Before the rules: nothing is opened to an agent that this bundle stops.
    let stopped = stops(&lock(&roster.registry), to.map(|to| &to.policy));
    for id in stopped.keys() {
        enforce.set_killed(*id, true)?;
    }
    let closed = to.is_some_and(|to| to.policy.is_expired(Timestamp::now()));
    // First, so that who looks between finds the kernel to be told once more, and not less.
    enforce.closed.store(closed, Ordering::SeqCst);
    for (id, rules) in to.map(|to| rules(to, closed)).unwrap_or_default() {
        if enforce.is_held() {
            enforce.set_killed(id, true)?;
        }
        lock(&enforce.kernel).set_rules(id, &rules)?;
    }
    for (id, names) in to.map(|to| unix_names(to, closed)).unwrap_or_default() {
        lock(&enforce.kernel).set_unix(id, &names)?;
    }
    for (name, id) in roster.known() {
        if !to.is_some_and(|to| to.ids.contains_key(&name)) {
            lock(&enforce.kernel).remove_rules(id)?;
        }
    }
    let exec = exec_rules(&lock(&roster.registry), to.filter(|_| !closed));
    lock(&enforce.kernel).set_exec(&exec)?;
    let blocks = to.map(|to| to.blocks.to_kernel()).unwrap_or_default();
    lock(&enforce.kernel).set_identify(&blocks)
}

/// Ends the live connections that the rules in force would not let agents make.
fn cut_denied(census: &Census, enforce: &Enforce, to: Option<&Active>) -> Result<(), String> {
    let rules: BTreeMap<AgentId, Vec<Rule>> = to
        .map(|to| rules(to, enforce.is_closed()))
        .unwrap_or_default()
        .into_iter()
        .collect();
    let tgids = lock(&census.lineage).all_running();
    let mut cut = 0;
    let result = everywhere(&census.namespaces.all_of(&tgids), || {
        let here = lock(&enforce.kernel).destroy_denied(&rules);
        cut += here.map_err(|e| e.to_string())?;
        Ok(())
    });
    if cut > 0 {
        tracing::info!(cut, "connections that the new rules do not allow");
    }
    result
}
