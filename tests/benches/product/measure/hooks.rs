//! What the hooks cost that are not about `connect(2)` over TCP: processes, Unix sockets, packets. By everybody while nothing is
//! loaded, then by a process that is not an agent, and by an agent.

use std::collections::BTreeSet;

use agentguard_tests::Guard;

use crate::load::Command;
use crate::place::Place;
use crate::programs::{self, Cost};
use crate::report::{Mode, Report, Row};
use crate::subject::Subject;

use super::Plan;

pub(super) const NAME: &str = "hooks";

/// Of the connects of a plan, so many forks and execs.
const CONNECTS_PER_PROCESS: u32 = 10;

pub(super) fn measure(place: &Place, plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    let authority = place.authority();
    let site = place.site();
    let calls = calls(place, plan);
    let mut plain = Subject::plain("plain", site, place.origin(), &authority, None)?;
    for round in 0..plan.rounds {
        each(&mut plain, &calls, plan, report, Mode::Unloaded)?;
        let others = programs::loaded();
        let guard = Guard::start(site, &place.bundle());
        let ours = &programs::loaded() - &others;
        let mut agent = Subject::guarded("agent", &guard, place.origin(), &authority)?;
        each(&mut plain, &calls, plan, report, Mode::Bystander)?;
        each(&mut agent, &calls, plan, report, Mode::Direct)?;
        if round + 1 == plan.rounds {
            counted(&mut plain, &calls, &ours, report, Mode::Bystander)?;
            counted(&mut agent, &calls, &ours, report, Mode::Direct)?;
        }
    }
    Ok(())
}

fn calls(place: &Place, plan: &Plan) -> [(Row, Command); 4] {
    let (count, processes) = (plan.connects, plan.connects / CONNECTS_PER_PROCESS);
    let (path, to) = (place.unix(), place.sink());
    let bytes = plan.bulk_bytes;
    [
        (Row::Fork, Command::Fork { count: processes }),
        (Row::Exec, Command::Exec { count: processes }),
        (Row::UnixConnect, Command::UnixConnect { path, count }),
        (Row::Loopback, Command::Stream { to, bytes }),
    ]
}

fn each(
    subject: &mut Subject,
    calls: &[(Row, Command)],
    plan: &Plan,
    report: &mut Report,
    mode: Mode,
) -> anyhow::Result<()> {
    for (row, call) in calls {
        let outcome = subject.ask(call)?;
        let value = match row {
            Row::Loopback => plan.bulk_bytes as f64 / 1e6 / outcome.seconds,
            _ => outcome.p50_us,
        };
        report.add(*row, mode.name(), value);
    }
    Ok(())
}

/// What the programs cost, by the kernel's own clock, while nothing else is timed.
fn counted(
    subject: &mut Subject,
    calls: &[(Row, Command)],
    ours: &BTreeSet<u32>,
    report: &mut Report,
    mode: Mode,
) -> anyhow::Result<()> {
    for (row, call) in calls {
        let mut times = 0;
        let costs = programs::cost_of(ours, || {
            times = subject.ask(call)?.count;
            Ok(())
        })?;
        let time = costs.values().map(|cost| cost.time).sum();
        let ran: u64 = costs.values().map(|cost| cost.runs).sum();
        report.add_call(*row, mode, Cost { runs: times, time }, ran);
    }
    Ok(())
}
