//! Bundles as the daemon sends them, compiled once more: the forwarder trusts no compiled form.

use agentguard_link::state::PolicyUpdate;
use agentguard_policy::Policy;

/// The daemon has compiled it before: what does not compile here is a fault of ours, and no reason to go on with less.
pub(crate) fn compile(update: &PolicyUpdate) -> anyhow::Result<Policy> {
    if update.sources.files.is_empty() {
        return Ok(Policy::nothing());
    }
    let agents = update.agents.iter().map(|(id, name)| (name.clone(), *id));
    let compiled = Policy::compile_with(&update.sources, &agents.collect(), &update.owners);
    compiled.map_err(|diagnostics| {
        let first = diagnostics.first().map(|it| it.message.as_str());
        anyhow::anyhow!(
            "the daemon's bundle does not compile here: {}",
            first.unwrap_or("?")
        )
    })
}
