//! Memory: before the first request, and with connections that each made one request and wait.

use crate::load::{Command, Protocol};
use crate::place::SMALL;
use crate::report::{Report, Row};
use crate::subject::Subject;

use super::Plan;

pub(super) const NAME: &str = "memory";

pub(super) fn measure(
    subjects: &mut [Subject],
    plan: &Plan,
    report: &mut Report,
) -> anyhow::Result<()> {
    for subject in subjects.iter_mut().filter(|subject| subject.has_proxy()) {
        let idle = subject.proxy();
        let rss = idle.rss_mb();
        report.add(Row::IdleRss, subject.name, rss);
        report.add(Row::IdlePss, subject.name, idle.pss_mb());
        subject.ask(&Command::Open {
            connections: plan.idle_connections,
            protocol: Protocol::Http1,
            path: SMALL.to_owned(),
        })?;
        let held = subject.proxy().rss_mb();
        report.add(Row::HeldRss, subject.name, held);
        let each = (held - rss) * 1e3 / plan.idle_connections as f64;
        report.add(Row::HeldEach, subject.name, each);
        subject.ask(&Command::Close)?;
    }
    Ok(())
}
