//! The decision's own time, from the audit records of a few requests on one connection.

use agentguard_tests::Guard;

use crate::load::{Command, Protocol};
use crate::place::SMALL;
use crate::report::{GUARDED, Report, Row};
use crate::subject::Subject;

pub(super) const NAME: &str = "decide";

/// So many that the audit log of the rest of the run stays small.
const MILLIS: u64 = 300;

pub(super) fn measure(
    guard: &Guard<'_>,
    subject: &mut Subject,
    report: &mut Report,
) -> anyhow::Result<()> {
    let path = SMALL.to_owned();
    let open = Command::Open {
        connections: 1,
        protocol: Protocol::Http1,
        path: path.clone(),
    };
    subject.ask(&open)?;
    let run = Command::Requests {
        path,
        streams: 1,
        millis: MILLIS,
    };
    subject.ask(&run)?;
    subject.ask(&Command::Close)?;
    let mut times: Vec<u64> = guard
        .requests()
        .iter()
        .filter_map(|record| record.0["latency_us"]["decide"].as_u64())
        .collect();
    times.sort_unstable();
    for (row, share) in [(Row::DecideP50, 0.50), (Row::DecideP99, 0.99)] {
        let rank = (times.len() as f64 * share) as usize;
        if let Some(time) = times.get(rank) {
            report.add(row, GUARDED, *time as f64);
        }
    }
    Ok(())
}
