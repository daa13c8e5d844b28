//! What each loaded eBPF program costs, by the kernel's own clock (`BPF_ENABLE_STATS`). Counting costs some nanoseconds
//! a run itself, so it is off whenever anything else is timed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};

/// Ids of the programs that are loaded now.
pub(crate) fn loaded() -> BTreeSet<u32> {
    infos().into_keys().collect()
}

/// Of one program.
#[derive(Clone, Copy, Default, PartialEq)]
pub(crate) struct Cost {
    pub runs: u64,
    pub time: Duration,
}

impl Cost {
    pub(crate) fn ns_per_run(self) -> Option<f64> {
        (self.runs > 0).then(|| self.time.as_nanos() as f64 / self.runs as f64)
    }
}

/// Runs `work` and returns what each of the `ours` cost meanwhile, by name.
pub(crate) fn cost_of(
    ours: &BTreeSet<u32>,
    work: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<BTreeMap<String, Cost>> {
    let counting = enable_stats(Stats::RunTime)?;
    let before = infos();
    work()?;
    let after = infos();
    drop(counting);
    let mut costs: BTreeMap<String, Cost> = BTreeMap::new();
    for (id, (name, total)) in after {
        if !ours.contains(&id) {
            continue;
        }
        let start = before.get(&id).map_or(Cost::default(), |(_, cost)| *cost);
        let cost = costs.entry(name).or_default();
        cost.runs += total.runs - start.runs;
        cost.time += total.time - start.time;
    }
    Ok(costs)
}

fn infos() -> BTreeMap<u32, (String, Cost)> {
    loaded_programs()
        // One that was unloaded meanwhile is an error.
        .flatten()
        .map(|info| {
            let cost = Cost {
                runs: info.run_count(),
                time: info.run_time(),
            };
            let name = info.name_as_str().unwrap_or("?").to_owned();
            (info.id(), (name, cost))
        })
        .collect()
}
