//! Enrols what already runs, and takes the connections it made before anyone judged them.

use std::collections::HashSet;
use std::sync::Arc;

use agentguard_common::abi::AgentId;

use super::lock;
use super::state::Shared;
use super::stop::everywhere;
use crate::agents::adopt;
use crate::agents::identify::Blocks;
use crate::sys::{diag, process};

/// Looks at every running process. Blocks of the bundle in force decide; what has a label keeps it.
pub async fn adopt(shared: &Arc<Shared>) -> Result<(), String> {
    let shared = shared.clone();
    let looking = tokio::task::spawn_blocking(move || adopt_now(&shared));
    looking.await.map_err(|e| e.to_string())?
}

fn adopt_now(shared: &Shared) -> Result<(), String> {
    let mut exempt = vec![std::process::id()];
    exempt.extend(shared.forwarder.tgid());
    let active = shared.active.load_full();
    let none = Blocks::default();
    let blocks = active.as_ref().map_or(&none, |active| &active.blocks);
    let adopted =
        adopt::adopt(&mut &*shared, blocks, &exempt, adopt::scan).map_err(|e| e.to_string())?;
    let mut inodes = HashSet::new();
    for (seen, agent) in &adopted {
        tracing::info!(
            pid = seen.tgid,
            exe = seen.exe,
            agent = name(shared, *agent),
            "a running process is an agent's"
        );
        inodes.extend(process::socket_inodes(seen.tgid));
    }
    // Their sockets carry no mark, so no hook would judge what goes through them.
    let tgids: Vec<u32> = adopted.iter().map(|(seen, _)| seen.tgid).collect();
    let mut cut = diag::Cut::default();
    everywhere(&shared.namespaces.all_of(&tgids), || {
        let here = diag::destroy(&inodes, diag::Which::All).map_err(|e| e.to_string())?;
        cut.destroyed += here.destroyed;
        cut.failed += here.failed;
        Ok(())
    })?;
    if cut.destroyed > 0 || cut.failed > 0 {
        tracing::warn!(
            closed = cut.destroyed,
            left = cut.failed,
            "sockets opened before their process was an agent's"
        );
    }
    if cut.failed > 0 {
        return Err(format!(
            "{} sockets opened before could not be closed",
            cut.failed
        ));
    }
    refresh(shared)
}

/// Everything labelled now is in the lineage: after a restart the labels are older than this daemon.
fn refresh(shared: &Shared) -> Result<(), String> {
    for seen in adopt::scan() {
        let label = lock(&shared.kernel).label(seen.tgid);
        let agent = label.map_err(|e| e.to_string())?.agent;
        if agent != AgentId::NONE && !agent.is_canary() {
            lock(&shared.lineage).adopted(&seen, agent);
        }
    }
    Ok(())
}

fn name(shared: &Shared, agent: AgentId) -> String {
    let registry = lock(&shared.registry);
    registry
        .name(agent)
        .map_or_else(|| super::records::unnamed(agent), str::to_owned)
}
