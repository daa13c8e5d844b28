//! `policy replay` over a log that the audit log's own writer has written.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use agentguard_audit::Durability;
use agentguard_audit::Log;
use agentguard_common::abi::AgentId;
use agentguard_record::{
    ActionName, Context, DecidedBy, Draft, DraftTask, Ended, Latency, Outcome, Process, Record,
    RequestInfo, UpstreamInfo,
};
use agentguard_tests::bundle::reach;
use agentguard_tests::tools::agentguard;
use agentguard_tests::{Bundle, Site};
use anyhow::{Context as _, bail};
use jiff::Timestamp;
use serde_json::Value;
use uuid::Uuid;

use super::Plan;
use crate::report::{GUARDED, Report, Row};

pub(super) const NAME: &str = "replay";

const RULES: &str = r#"
@id("orders") permit (principal == Agent::"bench", action == Action::"GET", resource == Host::"rule.example")
when { context.path == "/v1/orders" && context.time.hour < 24 };
@id("deep") forbid (principal, action in Action::"request", resource == Host::"rule.example")
when { context.segments > 20 || !context.routes.contains("/v1/**") };
"#;

pub(super) fn measure(site: &Site, plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    let folder = site.path("replay");
    let (state, config, bundle) = (
        folder.join("state"),
        folder.join("config"),
        folder.join("bundle"),
    );
    std::fs::create_dir_all(state.join("audit"))?;
    std::fs::write(
        &config,
        format!(
            "[paths]\nstate = {state:?}\nruntime = {:?}\n",
            folder.join("run")
        ),
    )?;
    let reaches =
        reach("plain.example", 443, &["GET /v1/catalog/**"]) + &reach("rule.example", 443, &[]);
    Bundle::new(1)
        .file(
            "bundle.toml",
            "name = \"bench\"\nserial = 1\n[time]\nzone = \"Europe/Vienna\"\n",
        )
        .agent("bench", &reaches)
        .rules("orders", RULES)
        .write(&bundle);
    fill(&state.join("audit"), plan.records)?;
    for _ in 0..plan.rounds.min(3) {
        let started = Instant::now();
        let words = ["policy", "replay", "--since", "1h", "--json", "--config"];
        let mut command = Command::new(agentguard());
        let output = command.args(words).arg(&config).arg(&bundle).output()?;
        let seconds = started.elapsed().as_secs_f64();
        let answer: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        if answer["replayed"] != plan.records || answer["changed"] != 0 {
            bail!("replayed otherwise than written: {answer}");
        }
        report.add(Row::Replayed, GUARDED, plan.records as f64 / seconds);
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

/// A closed log with so many records of requests, every other of one that a rule permitted.
fn fill(dir: &Path, records: u64) -> anyhow::Result<()> {
    let mut log = Log::open(dir, Durability::Batched)?;
    let process = Process {
        tgid: 4711,
        start: 12_345_678_901,
        exe: "/usr/bin/python3.11".into(),
        uid: 1000,
        cgroup: "/user.slice/user-1000.slice/session-1.scope".into(),
        parents: vec![
            "/usr/bin/bash[4000]".into(),
            "/usr/lib/systemd/systemd[1]".into(),
        ],
        ..Process::default()
    };
    let context = Context {
        agent: "bench",
        owner: Some("bench-owner@example.com"),
        process: Some(&process),
        ..Context::default()
    };
    let now = Timestamp::now().as_microsecond();
    for index in 0..records {
        let (host, path, policy) = match index % 2 {
            0 => (
                "plain.example",
                format!("/v1/catalog/items/{}", index % 1000),
                "bench/agents/bench.toml:8:10",
            ),
            _ => ("rule.example", "/v1/orders".to_owned(), "orders"),
        };
        let facts = [("method", "GET"), ("path", path.as_str())];
        let facts = facts.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let draft = Draft {
            time_us: now,
            decision: Uuid::now_v7(),
            agent: AgentId(AgentId::FIRST),
            tgid: process.tgid,
            task: DraftTask::None,
            action: ActionName::Method("GET".into()),
            resource: host.into(),
            facts: BTreeMap::from(facts),
            request: Some(RequestInfo {
                scheme: "https".into(),
                host: host.into(),
                port: 443,
                method: "GET".into(),
                path,
                status: 200,
            }),
            outcome: Outcome::Allow,
            decided_by: DecidedBy::Rules,
            ended: Ended::Whole,
            policies: vec![policy.into()],
            reason: None,
            detail: None,
            bundle: Some("0".repeat(64)),
            approval: Vec::new(),
            upstream: Some(UpstreamInfo {
                addr: "192.0.2.1:443".into(),
                tls: "TLSv1.3".into(),
                proxy: String::new(),
            }),
            bytes_up: 120,
            bytes_down: 4096,
            count: 1,
            latency: Latency::default(),
        };
        log.stage(Record::Decision(&draft, &context))?;
        if index.is_multiple_of(256) {
            log.commit()?;
        }
    }
    log.commit()?;
    Ok(log.flush()?)
}
