//! The run: subjects in interleaved rounds, group after group.

mod connect;
mod decide;
mod group;
mod hooks;
mod idle;
mod policies;
mod replay;

use std::io::{IsTerminal, Write};
use std::time::Instant;

use agentguard_tests::Guard;
use anyhow::bail;

use crate::accounts::{self, Tree};
use crate::awake;
use crate::place::Place;
use crate::report::{DIRECT, GUARDED, NGINX, Report};
use crate::subject::Subject;

use self::group::GROUPS;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Fewer and shorter rounds, 64 MiB instead of 1 GiB: for a look, not for a comparison
    #[arg(long)]
    quick: bool,
    /// One JSON object on stdout instead of the table
    #[arg(long)]
    json: bool,
    /// Only groups whose name contains this
    filter: Option<String>,
}

/// How long and how often.
pub(crate) struct Plan {
    pub rounds: usize,
    pub millis: u64,
    /// Of `connect(2)` in one go.
    pub connects: u32,
    pub idle_connections: usize,
    /// Of each bundle in one go.
    pub decisions: usize,
    /// In the log that is replayed.
    pub records: u64,
    pub bulk_bytes: u64,
}

impl Plan {
    const QUICK: Self = Self {
        rounds: 3,
        millis: 500,
        connects: 2000,
        idle_connections: 500,
        decisions: 2_000,
        records: 20_000,
        bulk_bytes: 64 << 20,
    };
    const FULL: Self = Self {
        rounds: 7,
        millis: 2000,
        connects: 5000,
        idle_connections: 500,
        decisions: 20_000,
        records: 1_000_000,
        bulk_bytes: 1 << 30,
    };
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let plan = if options.quick {
        Plan::QUICK
    } else {
        Plan::FULL
    };
    let filter = options.filter.as_deref().unwrap_or_default();
    let wanted = |name: &str| name.contains(filter);
    let alone = [connect::NAME, hooks::NAME, policies::NAME, replay::NAME];
    let mut names = alone
        .into_iter()
        .chain([idle::NAME, decide::NAME])
        .chain(GROUPS.iter().map(|group| group.name));
    if !names.clone().any(wanted) {
        let names: Vec<_> = names.by_ref().collect();
        bail!("no group is named `{filter}`: {}", names.join(", "));
    }

    let mut report = Report::default();
    let place = Place::set_up(plan.bulk_bytes)?;
    let spinners = awake::spinners()?;
    let started = (Instant::now(), accounts::machine_busy(), own_cpu());
    if wanted(connect::NAME) {
        progress(connect::NAME);
        connect::measure(&place, &plan, &mut report)?;
    }
    if wanted(hooks::NAME) {
        progress(hooks::NAME);
        hooks::measure(&place, &plan, &mut report)?;
    }
    if wanted(policies::NAME) {
        progress(policies::NAME);
        policies::measure(&plan, &mut report)?;
    }
    if wanted(replay::NAME) {
        progress(replay::NAME);
        replay::measure(place.site(), &plan, &mut report)?;
    }
    if names.any(|name| !alone.contains(&name) && wanted(name)) {
        side_by_side(&place, &plan, &mut report, wanted)?;
    }
    let elapsed = started.0.elapsed() * accounts::cpus();
    let others = (accounts::machine_busy() - started.1).saturating_sub(own_cpu() - started.2);
    drop(spinners);
    report.finish(others.as_secs_f64() / elapsed.as_secs_f64());
    let text = if options.json {
        format!("{:#}\n", report.json())
    } else {
        report.to_string()
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// All that is measured with everybody up.
fn side_by_side(
    place: &Place,
    plan: &Plan,
    report: &mut Report,
    wanted: impl Fn(&str) -> bool,
) -> anyhow::Result<()> {
    let (site, authority) = (place.site(), place.authority());
    let peer = place.peer()?;
    let guard = Guard::start(site, &place.bundle());
    let mut subjects = [
        Subject::plain(DIRECT, site, place.origin(), &authority, None)?,
        Subject::plain(NGINX, site, peer.address, &authority, Some(peer.master()))?,
        Subject::guarded(GUARDED, &guard, place.origin(), &authority)?,
    ];
    if wanted(idle::NAME) {
        progress(idle::NAME);
        // First, while nobody has served anything.
        idle::measure(&mut subjects, plan, report)?;
    }
    if wanted(decide::NAME) {
        progress(decide::NAME);
        decide::measure(&guard, &mut subjects[2], report)?;
    }
    for group in GROUPS.iter().filter(|group| wanted(group.name)) {
        progress(group.name);
        for round in 0..plan.rounds {
            for turn in 0..subjects.len() {
                let subject = &mut subjects[(round + turn) % 3];
                (group.measure)(subject, plan, report)?;
            }
        }
    }
    Ok(())
}

/// Of the bench, its load generators, and all subjects, whether they have ended or not.
fn own_cpu() -> std::time::Duration {
    Tree::of(std::process::id()).cpu() + accounts::ended_children()
}

fn progress(what: &str) {
    if std::io::stderr().is_terminal() {
        eprintln!("measuring {what}");
    }
}
