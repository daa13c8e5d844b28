//! Records and logs for this module's tests.

use std::fs;
use std::path::{Path, PathBuf};

use agentguard_common::abi::AgentId;
use agentguard_record::{ActionName, Context, DecidedBy, Draft, Ended, Outcome, Record};
use uuid::Uuid;

use super::Log;
use super::segment;
use crate::Durability;

pub(super) fn draft(resource: &str) -> Draft {
    Draft {
        time_us: 1_767_225_600_123_456,
        decision: Uuid::now_v7(),
        tgid: 4711,
        action: ActionName::Method("GET".into()),
        resource: resource.into(),
        outcome: Outcome::Allow,
        decided_by: DecidedBy::Rules,
        ended: Ended::Whole,
        policies: vec!["catalog".into()],
        ..Draft::blank(AgentId(2))
    }
}

pub(super) fn open(dir: &Path) -> Log {
    Log::open(dir, Durability::Batched).unwrap()
}

pub(super) fn append(log: &mut Log, draft: &Draft) -> u64 {
    let context = Context {
        agent: "procurement",
        owner: Some("john@example.com"),
        ..Context::default()
    };
    log.append(Record::Decision(draft, &context)).unwrap()
}

/// A closed log with `count` records for `h1.example`, `h2.example`, …, in segments of about `segment_bytes`.
pub(super) fn filled(dir: &Path, count: u64, segment_bytes: u64) {
    let mut log = Log::open_sized(dir, Durability::Batched, segment_bytes).unwrap();
    for n in 1..=count {
        append(&mut log, &draft(&format!("h{n}.example")));
    }
}

pub(super) fn files(dir: &Path) -> Vec<PathBuf> {
    let segments = segment::list(dir).unwrap();
    segments.into_iter().map(|segment| segment.path).collect()
}

/// Every record's line, oldest first.
pub(super) fn lines(dir: &Path) -> Vec<String> {
    let text: String = files(dir)
        .iter()
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    text.lines().map(str::to_owned).collect()
}
