//! 10,000 requests at concurrency 64 with mixed verdicts: what may arrives once, what may not never does, each has its
//! record, and the chain holds.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use agentguard_tests::bundle::reach;
use agentguard_tests::client::Subject;
use agentguard_tests::{Bundle, Guard, Nginx, Site};

const REQUESTS: usize = 10_000;
const PATIENCE: Duration = Duration::from_secs(240);

#[test]
fn http1_on_64_connections() {
    check("--http1.1");
}

#[test]
fn http2_with_64_streams() {
    check("--http2");
}

fn check(version: &str) {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let paths: Vec<String> = (0..REQUESTS)
        .map(|n| format!("/v1/{}/{n}", if may(n) { "allowed" } else { "refused" }))
        .collect();
    let config = site.path("urls");
    let mut urls = String::new();
    for path in &paths {
        let _ = writeln!(
            urls,
            "url = \"{}\"\noutput = \"/dev/null\"",
            origin.url(path)
        );
    }
    std::fs::write(&config, urls).expect("written");
    let call = |subject: &dyn Subject| -> BTreeMap<String, u16> {
        let ran = subject
            .client("curl".as_ref())
            .args([
                "--silent",
                "--show-error",
                version,
                "--parallel",
                "--parallel-max",
                "64",
            ])
            .args(["--write-out", "%{http_code} %{url}\n", "--config"])
            .arg(&config)
            .spawn()
            .finish_within(PATIENCE)
            .ok();
        ran.stdout
            .lines()
            .map(|line| {
                let (status, url) = line.split_once(' ').expect("two values");
                let path = url.strip_prefix(&origin.url("")).expect("the origin's");
                (path.to_owned(), status.parse().expect("a status"))
            })
            .collect()
    };

    let off = call(&site);
    assert_eq!(off.len(), REQUESTS, "without AgentGuard");
    assert!(
        off.values().all(|status| *status == 200),
        "without AgentGuard"
    );
    let before = origin.hits().len();

    let policy = reach("origin.test", origin.port, &["GET /v1/allowed/**"]);
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let on = call(&guard.agent("probe"));

    let mut wanted = BTreeMap::new();
    for (n, path) in paths.iter().enumerate() {
        wanted.insert(path.clone(), if may(n) { 200 } else { 403 });
    }
    assert!(on == wanted, "answers differ from the policy");

    let mut arrived: Vec<String> = origin
        .hits()
        .split_off(before)
        .into_iter()
        .map(|hit| hit.uri)
        .collect();
    arrived.sort();
    let mut allowed: Vec<String> = paths
        .iter()
        .enumerate()
        .filter(|(n, _)| may(*n))
        .map(|(_, path)| path.clone())
        .collect();
    allowed.sort();
    assert!(
        arrived == allowed,
        "{} arrived of {} allowed",
        arrived.len(),
        allowed.len()
    );

    let records = guard.requests();
    assert_eq!(records.len(), REQUESTS, "one record each");
    let recorded: BTreeMap<String, u16> = records
        .iter()
        .map(|record| {
            let status = record.number("/request/status");
            (
                record.path().to_owned(),
                u16::try_from(status).expect("a status"),
            )
        })
        .collect();
    assert!(recorded == wanted, "records differ from the answers");
    guard.cli(["audit", "verify"]).ok();
}

/// Two of three may; neighbours differ.
fn may(n: usize) -> bool {
    n % 3 != 1
}
