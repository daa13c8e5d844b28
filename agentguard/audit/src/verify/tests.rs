use std::fs;

use super::*;
use crate::fixture::{append, draft, files, filled, lines, open};

/// A log of 9 records in 3 segments, changed, and what `verify` says of it.
fn tampered(change: impl FnOnce(&Path, &mut Vec<Vec<String>>)) -> String {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 9, 1500);
    let paths = files(dir.path());
    let mut content: Vec<Vec<String>> = paths
        .iter()
        .map(|path| {
            fs::read_to_string(path)
                .unwrap()
                .lines()
                .map(str::to_owned)
                .collect()
        })
        .collect();
    assert_eq!(content.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 3]);
    change(dir.path(), &mut content);
    for (path, lines) in paths.iter().zip(&content).filter(|(path, _)| path.exists()) {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        fs::write(path, text).unwrap();
    }
    let error = verify(dir.path()).expect_err("not detected").to_string();
    error.replace(&format!("{}/audit-", dir.path().display()), "")
}

#[test]
fn a_whole_log_verifies() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(verify(dir.path()).unwrap().records, 0);
    filled(dir.path(), 9, 1500);
    let found = verify(dir.path()).unwrap();
    assert_eq!((found.segments, found.records), (3, 9));
    let last = lines(dir.path()).pop().unwrap();
    assert_eq!(found.head.as_bytes(), line::hash(last.as_bytes()));
}

#[test]
fn every_kind_of_tampering_is_named_with_its_place() {
    type Change = fn(&Path, &mut Vec<Vec<String>>);
    let cases: &[(&str, Change, &str)] = &[
        (
            "a changed field",
            |_, it| it[1][1] = it[1][1].replace("\"allow\"", "\"deny\""),
            "00000000000000000004.jsonl:3: prev is not the hash",
        ),
        (
            "a changed last record of a segment",
            |_, it| it[0][2] = it[0][2].replace("procurement", "procuremenT"),
            "00000000000000000004.jsonl:1: prev is not the hash",
        ),
        (
            "a removed record",
            |_, it| drop(it[1].remove(1)),
            "00000000000000000004.jsonl:2: seq is 6 where 5 must follow",
        ),
        (
            "a removed first record",
            |_, it| drop(it[0].remove(0)),
            "00000000000000000001.jsonl:1: seq is 2 where 1 must follow",
        ),
        (
            "a repeated record",
            |_, it| {
                let again = it[1][1].clone();
                it[1].insert(1, again);
            },
            "00000000000000000004.jsonl:3: seq is 5 where 6 must follow",
        ),
        (
            "two records swapped",
            |_, it| it[1].swap(0, 1),
            "00000000000000000004.jsonl:1: seq is 5 where 4 must follow",
        ),
        (
            "a removed record, the rest renumbered",
            |_, it| {
                it[1].remove(1);
                it[1][1] = it[1][1].replace("\"seq\":6", "\"seq\":5");
            },
            "00000000000000000004.jsonl:2: prev is not the hash",
        ),
        (
            "another seq, the same link",
            |_, it| it[2][0] = it[2][0].replace("\"seq\":7", "\"seq\":8"),
            "00000000000000000007.jsonl:1: seq is 8 where 7 must follow",
        ),
        (
            "a forged first link",
            |_, it| it[0][0] = it[0][0].replace(&"0".repeat(64), &"1".repeat(64)),
            "00000000000000000001.jsonl:1: prev is not the hash",
        ),
        (
            "an empty line",
            |_, it| it[2].insert(1, String::new()),
            "00000000000000000007.jsonl:2: not a record",
        ),
        (
            "something else than JSON",
            |_, it| it[2][1].push('x'),
            "00000000000000000007.jsonl:2: not a record",
        ),
        (
            "JSON that is no record",
            |_, it| it[2][2] = "{}".into(),
            "00000000000000000007.jsonl:3: not a record",
        ),
        (
            "a removed segment",
            |dir, _| fs::remove_file(segment::path(dir, 4)).unwrap(),
            "00000000000000000007.jsonl: its name says that it starts at seq 7, but 4 must follow",
        ),
        (
            "a removed first segment",
            |dir, _| fs::remove_file(segment::path(dir, 1)).unwrap(),
            "00000000000000000004.jsonl: its name says that it starts at seq 4, but 1 must follow",
        ),
        (
            "an emptied segment",
            |_, it| it[1].clear(),
            "00000000000000000007.jsonl: its name says that it starts at seq 7, but 4 must follow",
        ),
        (
            "a renamed segment",
            |dir, _| fs::rename(segment::path(dir, 7), segment::path(dir, 8)).unwrap(),
            "00000000000000000008.jsonl: its name says that it starts at seq 8, but 7 must follow",
        ),
    ];
    for (name, change, expected) in cases {
        let said = tampered(change);
        assert!(said.starts_with(expected), "{name}: {said}");
    }
}

#[test]
fn a_cut_off_line_is_named_unless_the_daemon_is_writing_it() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 2, u64::MAX);
    let path = files(dir.path()).remove(0);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 9]).unwrap();
    let error = verify(dir.path()).unwrap_err().to_string();
    assert!(error.ends_with(".jsonl:2: the line is cut off"), "{error}");

    fs::write(&path, &whole).unwrap();
    let mut log = open(dir.path());
    append(&mut log, &draft("a.example"));
    let mut more = fs::read(&path).unwrap();
    more.extend_from_slice(b"{\"time\":");
    fs::write(&path, &more).unwrap();
    assert_eq!(verify(dir.path()).unwrap().records, 3);
}
