//! Makes the kernel, the forwarder and the open sockets follow who is stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use agentguard_common::abi::AgentId;
use agentguard_control::api::Cut;
use agentguard_record::DenyReason;
use agentguard_sys::netns::Namespace;
use agentguard_sys::{diag, process};

use crate::forwarder::Dropped;
use crate::lock;
use crate::roster::stops::Stops;
use crate::state::Shared;

/// Passes over the agent's sockets: another may be in the middle of being made.
const PASSES: usize = 3;

/// As the forwarder takes them.
pub fn reasons(stops: &Stops) -> BTreeMap<AgentId, DenyReason> {
    let reasons = stops.iter().map(|(id, stop)| (*id, stop.reason()));
    reasons.collect()
}

/// After a change of who is stopped: `before` has what held then. The changed agents, and in any case those of `named`,
/// are cut or let go on. Answers what was cut, and what went wrong. One at a time, with `shared.killing` held.
pub async fn follow(
    shared: &Arc<Shared>,
    before: &Stops,
    named: &[AgentId],
) -> (Vec<Cut>, Vec<String>) {
    let stops = shared.stops();
    let known: BTreeMap<AgentId, String> = {
        let registry = lock(&shared.registry);
        let agents = registry.agents().iter();
        agents
            .map(|(name, known)| (known.id, name.clone()))
            .collect()
    };
    let (stopped, others): (Vec<_>, Vec<_>) =
        known.iter().partition(|(id, _)| stops.contains_key(id));
    // First, because nothing leaves the host from then on.
    let mut failures = flip(shared, &stopped, true);
    let is_new = |id: &AgentId| named.contains(id) || before.get(id) != stops.get(id);
    let fresh: Vec<_> = stopped.into_iter().filter(|(id, _)| is_new(id)).collect();
    let cuts = cut(shared, &fresh, before, &stops, &mut failures).await;
    let freed = others.iter().map(|(id, _)| **id);
    let freed: BTreeSet<AgentId> = freed
        .filter(|id| named.contains(id) || before.contains_key(id))
        .collect();
    if !freed.is_empty() {
        let asked = shared.forwarder.free_agents(freed);
        failures.extend(asked.await.err());
    }
    failures.extend(flip(shared, &others, false));
    (cuts, failures)
}

/// In the kernel; what could not be flipped is told.
pub fn flip(shared: &Shared, agents: &[(&AgentId, &String)], killed: bool) -> Vec<String> {
    let mut failures = Vec::new();
    for (id, name) in agents {
        if let Err(error) = lock(&shared.kernel).set_killed(**id, killed || shared.is_held()) {
            failures.push(format!("agent `{name}` in the kernel: {error}"));
        }
    }
    failures
}

/// Ends what stopped agents have open.
async fn cut(
    shared: &Arc<Shared>,
    agents: &[(&AgentId, &String)],
    before: &Stops,
    stops: &Stops,
    failures: &mut Vec<String>,
) -> Vec<Cut> {
    if agents.is_empty() {
        return Vec::new();
    }
    // What there is now: some of it ends by itself when its connections do.
    let live: Vec<Vec<u32>> = agents
        .iter()
        .map(|(id, _)| lock(&shared.lineage).running(**id))
        .collect();
    let reasons = agents
        .iter()
        .filter_map(|(id, _)| Some((**id, stops.get(id)?.reason())));
    let reasons = reasons.collect();
    // Before the sockets are destroyed under it: its records then say why they ended.
    let asked = shared.forwarder.stop_agents(reasons);
    let dropped = match asked.await {
        Ok(dropped) => dropped,
        Err(error) => {
            tracing::error!(%error, "the forwarder did not drop stopped agents' connections and is ended");
            let why = "it did not drop stopped agents' connections";
            shared.forwarder.restart(why).await;
            Dropped::new()
        }
    };
    let mut cuts = Vec::new();
    for ((id, name), tgids) in agents.iter().zip(live) {
        let processes = u32::try_from(tgids.len()).unwrap_or(u32::MAX);
        let sockets = match cut_sockets(shared, **id, tgids).await {
            Ok(sockets) => sockets,
            Err(error) => {
                failures.push(format!(
                    "nothing of `{name}` leaves the host, but its sockets are open: {error}"
                ));
                0
            }
        };
        let state = stops.get(id).map(|stop| stop.state());
        cuts.push(Cut {
            agent: (*name).clone(),
            state: state.unwrap_or_default().to_owned(),
            already: before.get(id) == stops.get(id),
            processes,
            sockets,
            connections: dropped.get(id).copied().unwrap_or(0),
        });
    }
    cuts
}

/// How many of the agent's sockets were destroyed.
async fn cut_sockets(shared: &Arc<Shared>, agent: AgentId, tgids: Vec<u32>) -> Result<u32, String> {
    let shared = shared.clone();
    let cutting = tokio::task::spawn_blocking(move || cut_now(&shared, agent, &tgids));
    cutting.await.map_err(|e| e.to_string())?
}

/// Those that carry the agent's mark, wherever they are; then what its processes hold besides. `sock_diag` sees one network
/// namespace at a time.
fn cut_now(shared: &Shared, agent: AgentId, tgids: &[u32]) -> Result<u32, String> {
    let elsewhere = shared.namespaces.all_of(tgids);
    let mut destroyed = 0;
    everywhere(&elsewhere, || {
        let marked = lock(&shared.kernel).destroy_sockets(agent);
        destroyed += marked.map_err(|e| e.to_string())?;
        Ok(())
    })?;
    for _ in 0..PASSES {
        let held = tgids.iter().flat_map(|tgid| process::socket_inodes(*tgid));
        let held = held.collect();
        let before = destroyed;
        everywhere(&elsewhere, || {
            let cut = diag::destroy(&held, diag::Which::AllButListeners);
            destroyed += cut.map_err(|e| e.to_string())?.destroyed;
            Ok(())
        })?;
        if destroyed == before {
            break;
        }
    }
    Ok(destroyed)
}

/// Does `work` here and in each of these namespaces; the first error is told when all have been tried.
pub fn everywhere(
    elsewhere: &[Arc<Namespace>],
    mut work: impl FnMut() -> Result<(), String> + Send,
) -> Result<(), String> {
    let mut result = work();
    for namespace in elsewhere {
        let done = namespace.run(&mut work).map_err(|e| e.to_string());
        result = result.and(done.flatten());
    }
    result
}
