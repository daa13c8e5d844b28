//! What one subject does in one round of each group.

use std::time::Duration;

use crate::load::{Command, Outcome, Protocol};
use crate::place::{BULK, EVENTS, SINK, SMALL};
use crate::report::{Mode, Report, Row};
use crate::subject::Subject;

use super::Plan;

pub(super) struct Group {
    pub name: &'static str,
    pub measure: fn(&mut Subject, &Plan, &mut Report) -> anyhow::Result<()>,
}

pub(super) const GROUPS: &[Group] = &[
    Group {
        name: "keep-alive-1",
        measure: |subject, plan, report| keep_alive(subject, plan, report, 1),
    },
    Group {
        name: "keep-alive-32",
        measure: |subject, plan, report| keep_alive(subject, plan, report, 32),
    },
    Group {
        name: "http2",
        measure: http2,
    },
    Group {
        name: "connections",
        measure: |subject, plan, report| handshakes(subject, plan, report, false),
    },
    Group {
        name: "resumed",
        measure: |subject, plan, report| handshakes(subject, plan, report, true),
    },
    Group {
        name: "bulk",
        measure: bulk,
    },
    Group {
        name: "events",
        measure: events,
    },
];

/// Before a measurement, on its own connections: pools fill, buffers grow, branches are learnt.
const WARM_UP_MILLIS: u64 = 100;

fn keep_alive(
    subject: &mut Subject,
    plan: &Plan,
    report: &mut Report,
    connections: usize,
) -> anyhow::Result<()> {
    let (outcome, cpu) = requests(subject, plan, connections, Protocol::Http1, 1)?;
    let rows = match connections {
        1 => [Row::Alone, Row::AloneP50, Row::AloneP99, Row::AloneCpu],
        _ => [Row::Busy, Row::BusyP50, Row::BusyP99, Row::BusyCpu],
    };
    report.add(
        rows[0],
        subject.name,
        outcome.count as f64 / outcome.seconds,
    );
    report.add(rows[1], subject.name, outcome.p50_us);
    report.add(rows[2], subject.name, outcome.p99_us);
    add_cpu(report, rows[3], subject, cpu, outcome.count);
    Ok(())
}

fn http2(subject: &mut Subject, plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    let (outcome, cpu) = requests(subject, plan, 1, Protocol::Http2, 32)?;
    report.add(
        Row::Http2,
        subject.name,
        outcome.count as f64 / outcome.seconds,
    );
    report.add(Row::Http2P99, subject.name, outcome.p99_us);
    add_cpu(report, Row::Http2Cpu, subject, cpu, outcome.count);
    Ok(())
}

fn requests(
    subject: &mut Subject,
    plan: &Plan,
    connections: usize,
    protocol: Protocol,
    streams: usize,
) -> anyhow::Result<(Outcome, Duration)> {
    let path = SMALL.to_owned();
    let run = |millis| Command::Requests {
        path: path.clone(),
        streams,
        millis,
    };
    subject.ask(&Command::Open {
        connections,
        protocol,
        path: path.clone(),
    })?;
    subject.ask(&run(WARM_UP_MILLIS))?;
    let measured = subject.ask_with_cpu(&run(plan.millis))?;
    subject.ask(&Command::Close)?;
    Ok(measured)
}

fn handshakes(
    subject: &mut Subject,
    plan: &Plan,
    report: &mut Report,
    resume: bool,
) -> anyhow::Result<()> {
    let run = |millis| Command::Handshakes {
        path: SMALL.to_owned(),
        concurrency: 8,
        resume,
        millis,
    };
    subject.ask(&run(WARM_UP_MILLIS))?;
    let (outcome, cpu) = subject.ask_with_cpu(&run(plan.millis))?;
    let rows = if resume {
        [Row::Resumed, Row::ResumedCpu]
    } else {
        report.add(Row::NewP50, subject.name, outcome.p50_us);
        report.add(Row::NewP99, subject.name, outcome.p99_us);
        [Row::New, Row::NewCpu]
    };
    report.add(
        rows[0],
        subject.name,
        outcome.count as f64 / outcome.seconds,
    );
    add_cpu(report, rows[1], subject, cpu, outcome.count);
    Ok(())
}

fn bulk(subject: &mut Subject, plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    let bytes = plan.bulk_bytes;
    let down = Command::Download {
        path: BULK.to_owned(),
        bytes,
    };
    let up = Command::Upload {
        path: SINK.to_owned(),
        bytes,
    };
    for (command, speed, cost) in [(down, Row::Down, Row::DownCpu), (up, Row::Up, Row::UpCpu)] {
        let (outcome, cpu) = subject.ask_with_cpu(&command)?;
        report.add(speed, subject.name, bytes as f64 / 1e6 / outcome.seconds);
        if subject.has_proxy() {
            let gib = bytes as f64 / f64::from(1 << 30);
            report.add(cost, subject.name, cpu.as_secs_f64() / gib);
        }
    }
    if subject.has_proxy() {
        report.add(Row::AfterBulk, subject.name, subject.proxy().rss_mb());
    }
    Ok(())
}

fn events(subject: &mut Subject, _: &Plan, report: &mut Report) -> anyhow::Result<()> {
    let outcome = subject.ask(&Command::Events {
        path: EVENTS.to_owned(),
    })?;
    report.add(Row::FirstEvent, subject.name, outcome.p50_us / 1e3);
    Ok(())
}

/// Plain traffic of a process that is not an agent.
pub(super) fn bystander(
    subject: &mut Subject,
    plan: &Plan,
    report: &mut Report,
    mode: Mode,
) -> anyhow::Result<()> {
    let (outcome, _) = requests(subject, plan, 32, Protocol::Http1, 1)?;
    let rate = outcome.count as f64 / outcome.seconds;
    report.add(Row::Bystander, mode.name(), rate);
    Ok(())
}

fn add_cpu(report: &mut Report, row: Row, subject: &Subject, cpu: Duration, count: u64) {
    if subject.has_proxy() && count > 0 {
        report.add(row, subject.name, cpu.as_secs_f64() / count as f64 * 1e4);
    }
}
