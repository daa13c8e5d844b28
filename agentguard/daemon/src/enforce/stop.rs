//! Makes the kernel, the forwarder and the open sockets follow who is stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use agentguard_common::abi::AgentId;
use agentguard_control::api::Cut;
use agentguard_kernel::KernelError;
use agentguard_policy::Policy;
use agentguard_record::DenyReason;
use agentguard_sys::netns::Namespace;
use agentguard_sys::{diag, process};

use super::Enforce;
use crate::census::Census;
use crate::forwarder::{DroppedConnections, ForwarderLink};
use crate::lock::lock;
use crate::roster::Roster;
use crate::roster::change::StopChange;
use crate::roster::stops::{Stops, stops};

/// Passes over the agent's sockets: another may be in the middle of being made.
const PASSES: usize = 3;

/// As the forwarder takes them.
pub(crate) fn reasons(stops: &Stops) -> BTreeMap<AgentId, DenyReason> {
    let reasons = stops.iter().map(|(id, stop)| (*id, stop.reason()));
    reasons.collect()
}

/// What it takes to stop agents, and to let them go on.
pub struct Stopper {
    pub roster: Arc<Roster>,
    pub census: Arc<Census>,
    pub enforce: Arc<Enforce>,
    pub forwarder: ForwarderLink,
}

impl Stopper {
    /// Makes everything hold who is stopped now; `before` has who was. Of the agents, those that have changed, and in any
    /// case those of `named`, are cut or let go on. Answers what was cut, and what went wrong.
    pub async fn reconcile(
        &self,
        _change: &StopChange<'_>,
        before: &Stops,
        named: &[AgentId],
    ) -> (Vec<Cut>, Vec<String>) {
        let stops = self.roster.stops();
        let (stopped, others): (Vec<_>, Vec<_>) = self
            .roster
            .known()
            .into_iter()
            .partition(|(_, id)| stops.contains_key(id));
        // First, because nothing leaves the host from then on.
        let mut failures = self.enforce.flip(&stopped, true);
        let fresh: Vec<_> = stopped
            .into_iter()
            .filter(|(_, id)| named.contains(id) || before.get(id) != stops.get(id))
            .collect();
        let cuts = self.cut(&fresh, before, &stops, &mut failures).await;
        let freed: BTreeSet<AgentId> = others
            .iter()
            .map(|(_, id)| *id)
            .filter(|id| named.contains(id) || before.contains_key(id))
            .collect();
        if !freed.is_empty() {
            let asked = self.forwarder.free_agents(freed);
            failures.extend(asked.await.err());
        }
        failures.extend(self.enforce.flip(&others, false));
        (cuts, failures)
    }

    /// Ends what stopped agents have open.
    async fn cut(
        &self,
        agents: &[(String, AgentId)],
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
            .map(|(_, id)| lock(&self.census.lineage).running(*id))
            .collect();
        let reasons = agents
            .iter()
            .filter_map(|(_, id)| Some((*id, stops.get(id)?.reason())))
            .collect();
        // Before the sockets are destroyed under it: its records then say why they ended.
        let asked = self.forwarder.stop_agents(reasons);
        let dropped = match asked.await {
            Ok(dropped) => dropped,
            Err(error) => {
                tracing::error!(%error, "the forwarder did not drop stopped agents' connections and is ended");
                let why = "it did not drop stopped agents' connections";
                self.forwarder.restart(why).await;
                DroppedConnections::new()
            }
        };
        let mut cuts = Vec::new();
        for ((name, id), tgids) in agents.iter().zip(live) {
            let processes = u32::try_from(tgids.len()).unwrap_or(u32::MAX);
            let sockets = match cut_sockets(&self.census, &self.enforce, *id, tgids).await {
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
                agent: name.clone(),
                state: state.unwrap_or_default().to_owned(),
                already: before.get(id) == stops.get(id),
                processes,
                sockets,
                connections: dropped.get(id).copied().unwrap_or(0),
            });
        }
        cuts
    }
}

impl Enforce {
    /// Stops agents in the kernel, or lets them go on; what could not be flipped is told.
    pub fn flip(&self, agents: &[(String, AgentId)], killed: bool) -> Vec<String> {
        let mut failures = Vec::new();
        for (name, id) in agents {
            if let Err(error) = self.set_killed(*id, killed) {
                failures.push(format!("agent `{name}` in the kernel: {error}"));
            }
        }
        failures
    }

    /// Takes back what root has ordered past the daemon; what could not be is told.
    pub(super) fn clear_orders(&self, agents: &[(String, AgentId)]) -> Vec<String> {
        let cleared = agents.iter().map(|(name, id)| {
            let cleared = lock(&self.kernel).clear_order(*id);
            cleared.map_err(|error| format!("agent `{name}` in the kernel: {error}"))
        });
        cleared.filter_map(Result::err).collect()
    }

    /// At the start, by the bundle that is to come: what an earlier daemon has pinned holds until then.
    pub fn hold_stopped(
        &self,
        roster: &Roster,
        to_come: Option<&Policy>,
    ) -> Result<(), KernelError> {
        let stops = stops(&lock(&roster.registry), to_come);
        for (_, id) in roster.known() {
            self.set_killed(id, stops.contains_key(&id))?;
        }
        Ok(())
    }
}

/// How many of the agent's sockets were destroyed.
async fn cut_sockets(
    census: &Arc<Census>,
    enforce: &Arc<Enforce>,
    agent: AgentId,
    tgids: Vec<u32>,
) -> Result<u32, String> {
    let (census, enforce) = (census.clone(), enforce.clone());
    let cutting = tokio::task::spawn_blocking(move || cut_now(&census, &enforce, agent, &tgids));
    cutting.await.map_err(|e| e.to_string())?
}

/// Those that carry the agent's mark, wherever they are; then what its processes hold besides. `sock_diag` sees one network
/// namespace at a time.
fn cut_now(
    census: &Census,
    enforce: &Enforce,
    agent: AgentId,
    tgids: &[u32],
) -> Result<u32, String> {
    let elsewhere = census.namespaces.all_of(tgids);
    let mut destroyed = 0;
    everywhere(&elsewhere, || {
        let marked = lock(&enforce.kernel).destroy_sockets(agent);
        destroyed += marked.map_err(|e| e.to_string())?;
        Ok(())
    })?;
    for _ in 0..PASSES {
        let held = tgids
            .iter()
            .flat_map(|tgid| process::socket_inodes(*tgid))
            .collect();
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
pub(crate) fn everywhere(
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
