//! `agentguard policy replay`: the audit log's decisions, taken again by another bundle.

mod bar;
mod decided;
mod tally;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use agentguard_audit::line::Line;
use agentguard_audit::scan::Scan;
use agentguard_bundle::history::History;
use agentguard_daemon::audit_dir;
use agentguard_daemon::config::PathsSection;
use agentguard_daemon::registry::Registry;
use agentguard_policy::replay::{RecordedAct, ReplayGap};
use agentguard_policy::{HostName, Policy};
use agentguard_record::ActionName;
use clap::Args;
use jiff::Timestamp;

use self::bar::Bar;
use self::decided::RuleDecision;
use self::tally::Tally;
use super::audit::when;
use super::policy::valid;
use super::{Failure, policy_offline, print, print_json};

#[derive(Debug, Args)]
pub(super) struct Replay {
    /// The bundle that would come into force: its folder, or packed
    bundle: PathBuf,
    /// From this time on: 2026-01-31T12:00:00Z, or 2h, 7d ago
    #[arg(long, value_name = "TIME", value_parser = when, default_value = "7d")]
    since: Timestamp,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

struct Replayer<'p> {
    new: &'p Policy,
    earlier: BTreeMap<String, Policy>,
    since: Timestamp,
}

pub(super) fn replay(arguments: &Replay, paths: &PathsSection) -> Result<ExitCode, Failure> {
    let new = valid(&arguments.bundle, &paths.trust)?.sources;
    let dir = audit_dir(&paths.state);
    let cannot = |error: std::io::Error| {
        let status = match error.kind() {
            std::io::ErrorKind::PermissionDenied => 5,
            _ => 1,
        };
        let why = format!("cannot read the audit log in `{}`: {error}", dir.display());
        Failure::new(status, why)
    };
    let scan = Scan::since(&dir, arguments.since).map_err(cannot)?;
    // It would be applied with the owners that agents have here.
    let registry = Registry::open(&paths.state.join("agents.json"));
    let owners = registry.map_err(|e| Failure::new(1, e))?.reassigned();
    let new = policy_offline::compile(&new, &owners)
        .map_err(|found| Failure::new(3, policy_offline::diagnostics_text(&new, &found, false)))?;
    let replayer = Replayer {
        new: &new,
        earlier: earlier(paths)?,
        since: arguments.since,
    };
    let mut bar = Bar::new(scan.bytes());
    let tallies = scan.run(
        Tally::default,
        |tally, line| replayer.take(tally, line),
        |done| bar.show(done),
    );
    bar.clear();
    let mut all = Tally::default();
    for tally in tallies.map_err(cannot)? {
        all.add(tally);
    }
    if arguments.json {
        return print_json(&all.json(arguments.since));
    }
    print(&all.text(arguments.since))
}

/// Bundles that have been in force here, which say what their records hold.
fn earlier(paths: &PathsSection) -> Result<BTreeMap<String, Policy>, Failure> {
    let (history, _) = History::open(&paths.state).map_err(|e| Failure::new(1, e))?;
    let mut policies = BTreeMap::new();
    for entry in history.entries() {
        // One that this build cannot read leaves its decisions out, which is counted.
        if let Ok(sources) = history.sources(entry)
            && let Ok(policy) = policy_offline::compile(&sources, &BTreeMap::new())
        {
            policies.insert(entry.meta.digest.clone(), policy);
        }
    }
    Ok(policies)
}

impl Replayer<'_> {
    fn take(&self, tally: &mut Tally, line: &[u8]) {
        let Ok(line) = Line::parse(line) else {
            return tally.skip("no record that this build can read");
        };
        if line.time < self.since {
            return;
        }
        // What an operator did is no decision.
        let (Some(agent), Some(facts)) = (&line.agent, &line.facts) else {
            return;
        };
        tally.records += 1;
        let digest = line.bundle.as_ref().map(|bundle| &*bundle.digest);
        let old = digest.and_then(|digest| self.earlier.get(digest));
        let decided = match RuleDecision::of(&line, old) {
            Ok(decided) => decided,
            Err(why) => return tally.skip(why),
        };
        let passed = passed_host(&line.resource);
        let (scheme, host, port, method, path) = match (&line.request, line.action_name(), &passed)
        {
            (Some(it), _, _) if !it.path.is_empty() => {
                (&*it.scheme, &*it.host, it.port, &*it.method, &*it.path)
            }
            (None, Some(ActionName::Connect), Some((host, port))) => {
                ("https", host.as_str(), *port, "connect", "/")
            }
            _ => return tally.skip("no whole request"),
        };
        let task = line.task.map(|task| task.to_string());
        let recorded = RecordedAct {
            agent,
            time: line.time,
            scheme,
            host,
            port,
            method,
            path,
            facts,
            task: task.as_deref().zip(line.intent.as_deref()),
            exhausted: decided.exhausted,
            then: decided.then,
        };
        match self.new.replay(&recorded, old) {
            Err(missing) => tally.skip(ReplayGap::why(missing)),
            Ok(new) => tally.compare(&line, &recorded, (decided.outcome, decided.reason), new),
        }
    }
}

/// The host of a connection whose bytes are passed; one to an address is the kernel's.
fn passed_host(resource: &str) -> Option<(HostName, u16)> {
    let (name, port) = resource.rsplit_once(':').unwrap_or((resource, "443"));
    let host = HostName::parse(name)
        .ok()
        .filter(|host| host.ip().is_none())?;
    Some((host, port.parse().ok()?))
}
