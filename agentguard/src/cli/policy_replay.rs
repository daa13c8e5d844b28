//! `agentguard policy replay`: the audit log's decisions, taken again by another bundle.

mod bar;
mod tally;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;
use serde::Deserialize;

use self::bar::Bar;
use self::tally::Tally;
use super::audit::when;
use super::policy::valid;
use super::{Failure, policy_offline, print, print_json};
use crate::agents::registry::Registry;
use crate::audit::scan::Scan;
use crate::config::Paths;
use crate::daemon::audit_dir;
use crate::daemon::history::History;
use crate::forwarder::CUT;
use crate::policy::replay::{Missing, Outcome, Recorded, Then};
use crate::policy::{HostName, Policy};
use crate::reason::DenyReason;

#[derive(Debug, Args)]
pub struct Replay {
    /// The bundle that would come into force: its folder, or packed
    bundle: PathBuf,
    /// From this time on: 2026-01-31T12:00:00Z, or 2h, 7d ago
    #[arg(long, value_name = "TIME", value_parser = when, default_value = "7d")]
    since: Timestamp,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// What of a record a decision is taken again from.
#[derive(Deserialize)]
struct Line<'l> {
    time: Timestamp,
    #[serde(borrow)]
    decision: Cow<'l, str>,
    #[serde(borrow)]
    agent: Option<Cow<'l, str>>,
    #[serde(borrow, default)]
    task: Option<Cow<'l, str>>,
    #[serde(borrow, default)]
    intent: Option<Cow<'l, str>>,
    #[serde(borrow)]
    action: Cow<'l, str>,
    #[serde(borrow)]
    resource: Cow<'l, str>,
    request: Option<Request<'l>>,
    facts: Option<BTreeMap<String, String>>,
    #[serde(borrow)]
    outcome: Cow<'l, str>,
    policies: Vec<String>,
    #[serde(borrow)]
    reason: Option<Cow<'l, str>>,
    #[serde(borrow)]
    detail: Option<Cow<'l, str>>,
    #[serde(borrow)]
    bundle: Option<Bundle<'l>>,
}

#[derive(Deserialize)]
struct Request<'l> {
    #[serde(borrow)]
    scheme: Cow<'l, str>,
    #[serde(borrow)]
    host: Cow<'l, str>,
    port: u16,
    #[serde(borrow)]
    method: Cow<'l, str>,
    #[serde(borrow)]
    path: Cow<'l, str>,
}

#[derive(Deserialize)]
struct Bundle<'l> {
    #[serde(borrow)]
    digest: Cow<'l, str>,
}

struct Replayer<'p> {
    new: &'p Policy,
    earlier: BTreeMap<String, Policy>,
    since: Timestamp,
}

pub fn replay(arguments: &Replay, paths: &Paths) -> Result<ExitCode, Failure> {
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
fn earlier(paths: &Paths) -> Result<BTreeMap<String, Policy>, Failure> {
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
        let Ok(line) = serde_json::from_slice::<Line<'_>>(line) else {
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
        let old = line
            .bundle
            .as_ref()
            .and_then(|it| self.earlier.get(it.digest.as_ref()));
        let passed = passed_host(&line.resource);
        let (scheme, host, port, method, path) = match (&line.request, line.action.as_ref()) {
            (Some(it), _) if it.scheme.starts_with("http") && !it.path.is_empty() => (
                it.scheme.as_ref(),
                it.host.as_ref(),
                it.port,
                it.method.as_ref(),
                it.path.as_ref(),
            ),
            (None, "connect") => match &passed {
                Some((host, port)) => ("https", host.as_str(), *port, "connect", "/"),
                None => return tally.skip("decided by the kernel"),
            },
            (None, "bind" | "sendmsg" | "exec" | "socket" | "unix") => {
                return tally.skip("decided by the kernel");
            }
            (_, "dns") => return tally.skip("a name that was looked up"),
            _ => return tally.skip("no whole request"),
        };
        let decided = match decided(&line, facts, old) {
            Ok(decided) => decided,
            Err(why) => return tally.skip(why),
        };
        let recorded = Recorded {
            agent,
            time: line.time,
            scheme,
            host,
            port,
            method,
            path,
            facts,
            task: line.task.as_deref().zip(line.intent.as_deref()),
            exhausted: decided.exhausted,
            then: decided.then,
        };
        match self.new.replay(&recorded, old) {
            Err(missing) => tally.skip(Missing::why(missing)),
            Ok(new) => tally.compare(&line, &recorded, (decided.outcome, decided.reason), new),
        }
    }
}

/// What rules decided, whatever became of it.
struct Decided<'l> {
    outcome: Outcome,
    reason: Option<&'l str>,
    then: Then,
    /// Limits that had no room.
    exhausted: &'l [String],
}

fn decided<'l>(
    line: &'l Line<'_>,
    facts: &BTreeMap<String, String>,
    old: Option<&Policy>,
) -> Result<Decided<'l>, &'static str> {
    const NOT_BY_RULES: &str = "not decided by rules";
    let permitted = Decided {
        outcome: Outcome::Allow,
        reason: None,
        then: Then::All,
        exhausted: &[],
    };
    let cut = line.detail.as_deref() == Some(CUT);
    let outcome = match line.outcome.as_ref() {
        "allow" if line.policies.is_empty() => return Err(NOT_BY_RULES),
        "allow" => return Ok(permitted),
        "killed" | "error" => return ended(line, old).map(|()| permitted),
        "deny" if cut => return ended(line, old).map(|()| permitted),
        "deny" => Outcome::Deny,
        "approval-required" => Outcome::ApprovalRequired,
        "observed" => Outcome::Observed,
        _ => return Err(NOT_BY_RULES),
    };
    let reason = line.reason.as_deref();
    let slug = |reason: DenyReason| Some(reason.slug());
    let unread = [
        DenyReason::BodyAmbiguous,
        DenyReason::BodyUnreadable,
        DenyReason::BodyTooLarge,
        DenyReason::AttributeUnavailable,
    ];
    let by_rules = [
        DenyReason::PolicyDenied,
        DenyReason::ApprovalRequired,
        DenyReason::OutsideHours,
        DenyReason::UntrustedNetwork,
        DenyReason::RateLimited,
    ];
    // A task that leaves it out is nothing that rules decide.
    let by_forbid = reason == slug(DenyReason::OutsideTask) && !line.policies.is_empty();
    // What has been judged has its path among its facts; a connection has none.
    let judged = line.request.is_none() || facts.contains_key("path");
    let then = if unread.into_iter().map(slug).any(|it| it == reason) {
        Then::Nobody
    } else if (by_forbid || by_rules.into_iter().map(slug).any(|it| it == reason)) && judged
        // Operators stop agents for the same reasons.
        || reason == slug(DenyReason::AgentSuspended) && facts.contains_key("path")
        || reason == slug(DenyReason::DelegationExceeded) && facts.contains_key("parent_refused")
    {
        Then::Own
    } else {
        return Err(NOT_BY_RULES);
    };
    Ok(Decided {
        outcome,
        reason,
        then,
        exhausted: match reason == slug(DenyReason::RateLimited) {
            true => &line.policies,
            false => &[],
        },
    })
}

/// Of what was ended or failed: whether it had been permitted. Of an agent that was only observed the record does not tell.
fn ended(line: &Line<'_>, old: Option<&Policy>) -> Result<(), &'static str> {
    if line.policies.is_empty() {
        return Err("it ended before it was decided");
    }
    let old = old.ok_or(Missing::Bundle.why())?;
    let mut agents = old.agents();
    let agent = agents.find(|agent| line.agent.as_deref() == Some(&*agent.name));
    match agent.is_some_and(|agent| agent.observe) {
        true => Err("it was observed, and ended before its record was whole"),
        false => Ok(()),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Sources;

    #[test]
    fn only_what_rules_decided_is_taken_again() {
        let by = [r#""policies":["p"]"#, r#""policies":[]"#];
        let cases = [
            (r#""outcome":"allow""#, by[0], r#"{}"#, "allow All"),
            (r#""outcome":"allow""#, by[1], r#"{}"#, "-"),
            (
                r#""outcome":"killed","reason":"agent-killed""#,
                by[0],
                "{}",
                "allow All",
            ),
            (
                r#""outcome":"killed","reason":"agent-killed""#,
                by[1],
                "{}",
                "-",
            ),
            (
                r#""outcome":"error","reason":"upstream-tls""#,
                by[0],
                "{}",
                "allow All",
            ),
            (r#""outcome":"error","detail":"aborted""#, by[1], "{}", "-"),
            (
                r#""outcome":"deny","reason":"policy-denied""#,
                by[1],
                r#"{"path":"/"}"#,
                "deny Own",
            ),
            (
                r#""outcome":"deny","reason":"policy-denied""#,
                by[1],
                "{}",
                "-",
            ),
            (
                r#""outcome":"observed","reason":"policy-denied""#,
                by[0],
                r#"{"path":"/"}"#,
                "observed Own",
            ),
            (
                r#""outcome":"approval-required","reason":"approval-required""#,
                by[0],
                r#"{"path":"/"}"#,
                "approval-required Own",
            ),
            (
                r#""outcome":"deny","reason":"body-too-large""#,
                by[1],
                "{}",
                "deny Nobody",
            ),
            (
                r#""outcome":"deny","reason":"agent-suspended""#,
                by[1],
                "{}",
                "-",
            ),
            (
                r#""outcome":"deny","reason":"delegation-exceeded""#,
                by[1],
                r#"{"path":"/"}"#,
                "-",
            ),
            (
                r#""outcome":"deny","reason":"delegation-exceeded""#,
                by[1],
                r#"{"path":"/","parent_refused":"p"}"#,
                "deny Own",
            ),
            (
                r#""outcome":"deny","reason":"protocol-refused""#,
                by[1],
                "{}",
                "-",
            ),
        ];
        let enforced = bundle("");
        for (outcome, policies, facts, expected) in cases {
            let text = line(outcome, policies, facts);
            assert_eq!(taken(&text, Some(&enforced)), expected, "{text}");
        }
        let cut = format!(r#""outcome":"deny","reason":"policy-denied","detail":"{CUT}""#);
        let cut = line(&cut, by[0], r#"{"path":"/"}"#);
        assert_eq!(taken(&cut, Some(&enforced)), "allow All");
        // What was let through and cut may have been observed.
        assert_eq!(taken(&cut, None), "-");
        assert_eq!(taken(&cut, Some(&bundle("mode = \"observe\"\n"))), "-");
    }

    fn bundle(mode: &str) -> Policy {
        let agent = format!("[agent]\nname = \"a\"\nowner = \"o\"\nrisk = \"low\"\n{mode}");
        let files = [
            ("bundle.toml", "name = \"b\"\nserial = 1\n"),
            ("agents/a.toml", &*agent),
        ];
        let sources = Sources {
            files: files.map(|(path, text)| (path.into(), text.into())).into(),
        };
        policy_offline::compile(&sources, &BTreeMap::new()).unwrap()
    }

    fn line(outcome: &str, policies: &str, facts: &str) -> String {
        format!(
            r#"{{"time":"2026-11-23T09:00:00Z","decision":"d","agent":"a","action":"GET","resource":"h","request":{{"scheme":"https","host":"h","port":443,"method":"GET","path":"/"}},"facts":{facts},{policies},{outcome}}}"#
        )
    }

    fn taken(text: &str, old: Option<&Policy>) -> String {
        let line: Line<'_> = serde_json::from_str(text).unwrap();
        let facts = line.facts.as_ref().unwrap();
        decided(&line, facts, old).map_or("-".to_owned(), |decided| {
            format!("{} {:?}", decided.outcome.name(), decided.then)
        })
    }
}
