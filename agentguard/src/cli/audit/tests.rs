use agentguard_policy::acts_on_terminal;
use clap::Parser;
use futures_util::stream;
use serde_json::json;

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: AuditCommand,
}

fn command(line: &str) -> AuditCommand {
    let words = ["audit"].into_iter().chain(line.split_whitespace());
    Cli::try_parse_from(words).unwrap().command
}

/// A record as the daemon sends it.
fn record(
    agent: Option<&str>,
    resource: &str,
    path: &str,
    outcome: &str,
    reason: Option<&str>,
) -> String {
    json!({
        "time": "2026-01-01T00:00:00.123456Z",
        "seq": 1,
        "prev": "0",
        "decision": "0197f6a0-0000-7000-8000-000000000001",
        "agent": agent,
        "action": "GET",
        "resource": resource,
        "request": {"scheme": "https", "host": resource, "port": 443, "method": "GET", "path": path, "status": 200},
        "outcome": outcome,
        "policies": ["a", "b"],
        "reason": reason,
        "detail": null,
    })
    .to_string()
}

/// What the command prints, given these lines.
fn printed(line: &str, lines: &[String], colour: bool) -> anyhow::Result<String> {
    let lines: Vec<anyhow::Result<String>> = lines.iter().cloned().map(Ok).collect();
    let mut out = Vec::new();
    let command = command(line);
    let printing = print(&command, stream::iter(lines), &mut out, colour);
    tokio::runtime::Builder::new_current_thread()
        .build()?
        .block_on(printing)?;
    Ok(String::from_utf8(out)?)
}

#[test]
fn every_outcome_can_be_searched_for_and_nothing_else() {
    for outcome in OUTCOMES {
        let parsed = serde_json::from_value::<agentguard_record::Outcome>(json!(outcome));
        assert!(parsed.is_ok(), "{outcome}");
        command(&format!("search --outcome {outcome}"));
    }
    let unknown = ["audit", "search", "--outcome", "denied"];
    let error = Cli::try_parse_from(unknown).err().unwrap().to_string();
    assert!(error.contains("approval-required"), "{error}");
}

#[test]
fn what_the_daemon_is_asked() {
    for (line, expected) in [
        ("tail", "/v1/audit?limit=10"),
        ("tail -f -n 3", "/v1/audit?limit=3&follow=true"),
        ("search", "/v1/audit?"),
        (
            "search --agent a&b --outcome deny -n 5",
            "/v1/audit?agent=a%26b&outcome=deny&limit=5",
        ),
        (
            "search --since 2026-01-01T00:00:00Z",
            "/v1/audit?since=2026%2D01%2D01T00%3A00%3A00Z",
        ),
        ("show urn:uuid:0197f6a0", "/v1/audit?id=0197f6a0&limit=2"),
    ] {
        assert_eq!(command(line).path(), expected, "{line}");
    }
}

#[test]
fn times_are_absolute_or_ago() {
    let now = Timestamp::now();
    for (text, seconds) in [("90s", 90), ("15m", 900), ("2h", 7200), ("7d", 604_800)] {
        let ago = when(text).unwrap().duration_until(now).as_secs();
        assert!((seconds - 5..=seconds).contains(&ago), "{text}: {ago}");
    }
    for text in ["", "s", "5", "5y", "-5s", "yesterday", "5µ", "99999999999d"] {
        assert!(when(text).is_err(), "{text}");
    }
}

#[test]
fn records_are_aligned_and_fit_the_screen() {
    let long = "x".repeat(300);
    let lines = [
        record(
            Some("procurement"),
            "api.supplier.example",
            "/v1/catalog/1",
            "allow",
            None,
        ),
        record(Some("p"), "a.example", "/", "deny", Some("policy-denied")),
        record(
            Some(&long),
            &long,
            &long,
            "approval-required",
            Some("approver-unavailable"),
        ),
        record(None, "planner", "", "allow", None),
        "not a record\x1b[2J".to_owned(),
    ];
    let short = printed("search", &lines[..2], false).unwrap();
    assert_eq!(
        short,
        "TIME                 AGENT       ACTION RESOURCE                          OUTCOME REASON\n\
         2026-01-01T00:00:00Z procurement GET    api.supplier.example/v1/catalog/1 allow\n\
         2026-01-01T00:00:00Z p           GET    a.example/                        deny    policy-denied\n"
    );
    for command in ["search", "tail", "tail -f"] {
        let all = printed(command, &lines, false).unwrap();
        let rows: Vec<&str> = all.lines().collect();
        assert_eq!(rows.len(), 6, "{command}");
        let column = rows[0].find("OUTCOME").unwrap();
        for row in &rows[..5] {
            assert!(row.chars().count() <= 100, "{command}: {row}");
        }
        for (row, outcome) in [(rows[1], "allow"), (rows[2], "deny"), (rows[4], "allow")] {
            let at: String = row.chars().skip(column).collect();
            assert!(at.starts_with(outcome), "{command}: {row}");
        }
        assert!(rows[3].contains('…'));
        assert_eq!(rows[5], "not a record\\u{1b}[2J");
    }
}

#[test]
fn an_agents_text_cannot_steer_the_terminal() {
    let line = record(
        Some("p"),
        "a\x1b]0;x\x07\u{9b}31m\u{202e}\n.example",
        "/\r",
        "allow",
        None,
    );
    for (command, escape) in [
        ("search", "\\u{1b}"),
        ("tail -f", "\\u{1b}"),
        ("show 01", "\\u{1b}"),
        ("search --json", "\\u001b"),
        ("tail --json", "\\u001b"),
        ("show 01 --json", "\\u001b"),
    ] {
        let text = printed(command, std::slice::from_ref(&line), false).unwrap();
        assert!(
            !text.contains(|char| char != '\n' && acts_on_terminal(char)),
            "{command}: {text:?}"
        );
        assert!(
            text.contains(&format!("a{escape}]0;x")),
            "{command}: {text:?}"
        );
    }
}

#[test]
fn refusals_have_colour_only_if_asked() {
    let line = [record(Some("p"), "a.example", "/", "deny", None)];
    assert!(
        printed("search", &line, true)
            .unwrap()
            .contains("\x1b[31mdeny\x1b[0m")
    );
    assert!(!printed("search", &line, false).unwrap().contains('\x1b'));
}

#[test]
fn json_is_an_array_or_lines() {
    let lines = [1, 2].map(|n| record(Some("p"), &format!("h{n}"), "/", "allow", None));
    for count in 0..=2 {
        let text = printed("search --json", &lines[..count], false).unwrap();
        let array: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(array.len(), count);
    }
    let text = printed("tail -f --json", &lines, false).unwrap();
    assert_eq!(text.lines().map(str::to_owned).collect::<Vec<_>>(), lines);
}

#[test]
fn one_record_is_shown_whole() {
    let lines = [1, 2].map(|n| record(Some("p"), &format!("h{n}"), "/", "allow", None));
    let text = printed("show 01", &lines[..1], false).unwrap();
    for expected in [
        "seq                  1",
        "request.path         /",
        "policies             a, b",
    ] {
        assert!(
            text.lines().any(|line| line == expected),
            "{expected:?} not in {text}"
        );
    }
    assert!(!text.contains("reason"), "what is null is left out: {text}");
    for (lines, expected) in [(&lines[..0], "no record"), (&lines[..2], "more than one")] {
        let error = printed("show 01", lines, false).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn verify_says_where() {
    let dir = tempfile::tempdir().unwrap();
    let mut out = Vec::new();
    let options = Verify { json: false };
    check(dir.path(), &options, &mut out).unwrap();
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "0 records in 0 files: the chain holds\n"
    );
    let missing = check(&dir.path().join("none"), &options, &mut Vec::new()).unwrap_err();
    assert!(missing.to_string().contains("cannot read"), "{missing}");
}
