use std::fs;
use std::io::Write;

use agentguard_record::{ActionName, DenyReason, Operation, Operator, Outcome, Record};
use uuid::Uuid;

use super::*;
use crate::Durability;
use crate::Log;
use crate::fixture::{append, draft, files, filled};

const ALL: Bounds = Bounds {
    records: usize::MAX,
    bytes: usize::MAX,
};

/// Where the log ends that nobody writes.
fn head(dir: &Path) -> Head {
    let last = segment::list(dir).unwrap().pop().unwrap();
    let offset = fs::metadata(&last.path).unwrap().len();
    Head {
        seq: 0,
        end: Position {
            segment: last.first,
            offset,
        },
    }
}

fn begun(dir: &Path, query: &str, bounds: Bounds, head: Head) -> Search {
    let filter = Filter::from_query(query).unwrap();
    let mut search = Search::new(dir, filter, bounds, head).unwrap();
    while !search.step().unwrap() {}
    search
}

/// The lines that can be read now.
fn read(matches: &mut Matches) -> Vec<String> {
    let pieces = std::iter::from_fn(|| matches.read().unwrap());
    let text = String::from_utf8(pieces.flatten().collect()).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn search(dir: &Path, query: &str) -> Vec<String> {
    read(&mut begun(dir, query, ALL, head(dir)).matches(false))
}

fn resources(lines: &[String]) -> Vec<String> {
    lines
        .iter()
        .map(|line| {
            let line = Line::parse(line.as_bytes()).unwrap();
            line.resource.to_string()
        })
        .collect()
}

/// Six records of different kinds, in small segments.
fn mixed(dir: &Path) {
    let mut log = Log::open_sized(dir, Durability::Batched, 1000).unwrap();
    for (at, (action, resource, outcome, reason)) in [
        ("GET", "api.example", Outcome::Allow, None),
        (
            "POST",
            "api.example",
            Outcome::Deny,
            Some(DenyReason::PolicyDenied),
        ),
        (
            "dns",
            "evil.example",
            Outcome::Deny,
            Some(DenyReason::PolicyDenied),
        ),
        (
            "connect",
            "10.0.0.1:22",
            Outcome::Deny,
            Some(DenyReason::PolicyDenied),
        ),
        (
            "GET",
            "api.example:8443",
            Outcome::Killed,
            Some(DenyReason::AgentKilled),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let mut draft = draft(resource);
        draft.time_us += at as i64 * 1_000_000;
        draft.action =
            ActionName::named(action).unwrap_or_else(|| ActionName::Method(action.into()));
        draft.outcome = outcome;
        draft.reason = reason;
        draft.decision = Uuid::from_u128((at as u128 + 1) << 120);
        append(&mut log, &draft);
    }
    let kill = Operator {
        uid: 0,
        user: Some("root"),
        operation: Operation::Kill,
        agent: Some("planner"),
        resource: "planner",
        outcome: Outcome::Allow,
        detail: "drill",
        bundle: None,
    };
    log.append(Record::Operator(&kill)).unwrap();
}

#[test]
fn filters() {
    let dir = tempfile::tempdir().unwrap();
    mixed(dir.path());
    for (query, expected) in [
        (
            "",
            "api.example api.example evil.example 10.0.0.1:22 api.example:8443 planner",
        ),
        ("agent=planner", "planner"),
        ("agent=plan", ""),
        ("action=get", "api.example api.example:8443"),
        ("action=kill", "planner"),
        ("outcome=deny", "api.example evil.example 10.0.0.1:22"),
        ("outcome=killed", "api.example:8443"),
        ("resource=8443", "api.example:8443"),
        ("outcome=deny&resource=api", "api.example"),
        ("text=drill", "planner"),
        (
            "text=policy%2Ddenied",
            "api.example evil.example 10.0.0.1:22",
        ),
        ("limit=2", "api.example:8443 planner"),
        ("limit=0", ""),
        ("limit=1&action=GET", "api.example:8443"),
        ("limit=9&outcome=allow&follow=true", "api.example planner"),
        (
            "since=2026-01-01T00:00:03Z&until=2026-01-01T00:00:04.2Z",
            "10.0.0.1:22 api.example:8443",
        ),
        ("until=2026-01-01T00:00:00.123456Z", ""),
        (
            "until=2026-01-01T01:00:01.2%2B01:00",
            "api.example api.example",
        ),
        ("id=03", "evil.example"),
    ] {
        let found = search(dir.path(), query);
        assert_eq!(resources(&found).join(" "), expected, "{query}");
    }
}

#[test]
fn bad_queries_are_named() {
    for (query, expected) in [
        ("agnet=a", "unknown search key `agnet`"),
        ("limit=many", "`limit=many` cannot be read: a number"),
        (
            "since=yesterday",
            "`since=yesterday` cannot be read: a time",
        ),
    ] {
        let error = Filter::from_query(query).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn a_filter_survives_its_query() {
    let filter = Filter {
        agent: Some("a&b=c".into()),
        text: Some("ü %2F +".into()),
        since: Some("2026-01-01T00:00:00.5Z".parse().unwrap()),
        limit: Some(3),
        ..Filter::default()
    };
    assert_eq!(Filter::from_query(&filter.to_query()).unwrap(), filter);
}

#[test]
fn long_lines_and_many_segments_are_read_backwards() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open_sized(dir.path(), Durability::Batched, 900_000).unwrap();
    let names: Vec<String> = (0..40)
        .map(|n| format!("{n}-{}", "x".repeat(if n % 3 == 0 { 300_000 } else { n })))
        .collect();
    for name in &names {
        append(&mut log, &draft(name));
    }
    assert!(files(dir.path()).len() > 3);
    let found = search(dir.path(), "");
    assert_eq!(resources(&found), names);
}

#[test]
fn what_is_being_written_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 2, u64::MAX);
    let path = files(dir.path()).remove(0);
    let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
    for partial in ["{", "\"time\":\"2026"] {
        file.write_all(partial.as_bytes()).unwrap();
        let found = search(dir.path(), "");
        assert_eq!(resources(&found), ["h1.example", "h2.example"]);
    }
}

#[tokio::test]
async fn following_misses_and_repeats_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = Log::open_sized(dir.path(), Durability::Batched, 2000).unwrap();
    for n in 0..5 {
        append(&mut log, &draft(&n.to_string()));
    }
    let mut head = log.head();
    let seen = *head.borrow_and_update();
    // Appended between the head and the search: is for the follower.
    append(&mut log, &draft("5"));
    let search = begun(dir.path(), "limit=3", ALL, seen);
    let mut follow = search.matches(true);
    assert_eq!(resources(&read(&mut follow)), ["2", "3", "4", "5"]);

    let writer = std::thread::spawn(move || {
        for n in 6..500 {
            append(&mut log, &draft(&n.to_string()));
        }
    });
    let mut found = Vec::new();
    while found.last().is_none_or(|last| last != "499") {
        let lines = read(&mut follow);
        found.extend(resources(&lines));
        if lines.is_empty() {
            head.changed().await.unwrap();
        }
    }
    writer.join().unwrap();
    let expected: Vec<String> = (6..500).map(|n| n.to_string()).collect();
    assert_eq!(found, expected);
}

#[test]
fn an_answer_has_the_newest_that_fit() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 9, 1500);
    let line = search(dir.path(), "limit=1")[0].len() + 1;
    for (query, records, bytes, count, is_cut) in [
        ("", 9, usize::MAX, 9, false),
        ("", 4, usize::MAX, 4, true),
        ("limit=4", 4, usize::MAX, 4, false),
        ("limit=5", 4, usize::MAX, 4, true),
        ("resource=h2", 1, usize::MAX, 1, false),
        ("", 9, 3 * line, 3, true),
        ("", 9, line - 1, 0, true),
    ] {
        let search = begun(
            dir.path(),
            query,
            Bounds { records, bytes },
            head(dir.path()),
        );
        assert_eq!(search.is_cut(), is_cut, "{query} {records} {bytes}");
        let found = resources(&read(&mut search.matches(false)));
        let newest: Vec<String> = (10 - count..=9).map(|n| format!("h{n}.example")).collect();
        let expected = if query.contains("h2") {
            vec!["h2.example".to_owned()]
        } else {
            newest
        };
        assert_eq!(found, expected, "{query} {records} {bytes}");
    }
}

#[test]
fn no_step_and_no_read_is_more_than_a_piece() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 2_000, u64::MAX);
    let bytes = fs::metadata(&files(dir.path())[0]).unwrap().len() as usize;
    assert!(bytes > 3 * PIECE);
    let mut search = Search::new(dir.path(), Filter::default(), ALL, head(dir.path())).unwrap();
    let mut steps = 1;
    while !search.step().unwrap() {
        steps += 1;
    }
    assert!(steps > bytes / (PIECE + 4096), "{steps} steps");
    let mut matches = search.matches(false);
    while let Some(found) = matches.read().unwrap() {
        assert!(found.len() < PIECE + 4096 && matches.partial.capacity() < 2 * PIECE);
    }
}
