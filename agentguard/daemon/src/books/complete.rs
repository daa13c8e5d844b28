//! Completes drafts by what the daemon knows of their agents and processes, and has them written.

use std::sync::Arc;

use agentguard_record::{Draft, DraftTask, Process};
use agentguard_sys::process;
use jiff::Timestamp;

use super::Books;
use super::records::{self, DecisionEntry};
use crate::census::Census;
use crate::lock::lock;
use crate::roster::Roster;

impl Books {
    /// Completes drafts and has them written. A process may be given as it was at the time.
    pub async fn record(
        &self,
        roster: &Roster,
        census: &Census,
        drafts: Vec<(Draft, Option<Process>)>,
    ) {
        let items = complete(roster, census, drafts);
        self.distrust.note(&items, Timestamp::now());
        self.records.append(items).await;
    }
}

fn complete(
    roster: &Roster,
    census: &Census,
    mut drafts: Vec<(Draft, Option<Process>)>,
) -> Vec<DecisionEntry> {
    // What the canary does is the daemon's own doing, and told when it goes wrong.
    drafts.retain(|(draft, _)| !draft.agent.is_canary());
    let names: Vec<String> = {
        let registry = lock(&roster.registry);
        let name = |draft: &Draft| registry.name(draft.agent).map(str::to_owned);
        drafts
            .iter()
            .map(|(draft, _)| name(draft).unwrap_or_else(|| records::unnamed(draft.agent)))
            .collect()
    };
    {
        let mut activity = lock(&census.activity);
        for (draft, _) in &drafts {
            activity.decided(draft.agent, draft.outcome, draft.count, draft.time_us);
        }
    }
    let active = roster.active.load();
    let clock = Clock::now();
    let mut lineage = lock(&census.lineage);
    let decided = |(agent, (draft, process)): (String, (Draft, Option<Process>))| {
        let at = clock.boottime_of(draft.time_us);
        DecisionEntry {
            agent,
            owner: active
                .as_ref()
                .and_then(|active| active.policy.agent(draft.agent))
                .map(|agent| agent.owner.clone()),
            task: match &draft.task {
                DraftTask::OfProcess => lineage.task(draft.tgid, at),
                DraftTask::None => None,
                DraftTask::On(task) => Some(Arc::new(task.clone())),
            },
            process: process.or_else(|| lineage.process_or_look(draft.tgid, at, draft.agent)),
            bundle: draft
                .bundle
                .as_ref()
                .and_then(|digest| roster.recall(digest)),
            draft,
        }
    };
    names.into_iter().zip(drafts).map(decided).collect()
}

/// Relates the wall clock of drafts to the clock of processes.
pub(super) struct Clock {
    offset_ns: i128,
}

impl Clock {
    pub(super) fn now() -> Self {
        let wall = Timestamp::now().as_nanosecond();
        Self {
            offset_ns: wall - i128::from(process::boottime_ns()),
        }
    }

    pub(super) fn boottime_of(&self, time_us: i64) -> u64 {
        u64::try_from(i128::from(time_us) * 1000 - self.offset_ns).unwrap_or(0)
    }

    /// Microseconds since the Unix epoch.
    pub(super) fn wall_of(&self, boottime_ns: u64) -> i64 {
        i64::try_from((i128::from(boottime_ns) + self.offset_ns) / 1000).unwrap_or(0)
    }
}
