use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process;

use std::time::Duration;

use agentguard_record::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::*;
use crate::fixture::{append, draft, files, filled, lines, open};
use crate::verify::verify;

/// Bytes in front of the last record's line in a log of one file.
fn before_last_line(bytes: &[u8]) -> usize {
    bytes[..bytes.len() - 1]
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |newline| newline + 1)
}

#[test]
fn the_chain_goes_on_over_segments_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 10, 1000);
    filled(dir.path(), 10, 1000);
    let found = verify(dir.path()).unwrap();
    assert_eq!(
        (found.records, found.first_seq, found.last_seq),
        (20, 1, 20)
    );
    assert!(found.segments > 5, "{found:?}");
    let lines = lines(dir.path());
    assert!(lines[0].contains(&format!("\"prev\":\"{}\"", "0".repeat(64))));
    assert!(lines[19].contains("h10.example"));
    for path in files(dir.path()) {
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o600);
    }
}

#[test]
fn a_batch_is_seen_when_committed() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    let draft = draft("a.example");
    let context = Context::default();
    for _ in 0..3 {
        log.stage(Record::Decision(&draft, &context)).unwrap();
    }
    assert_eq!((lines(dir.path()).len(), log.head().borrow().seq), (0, 0));
    log.commit().unwrap();
    assert_eq!((lines(dir.path()).len(), log.head().borrow().seq), (3, 3));
    assert_eq!(log.chain().0, 3);
}

#[test]
fn the_second_opener_is_refused_and_told_who_is_first() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let error = Log::open(dir.path(), Durability::Batched).err().unwrap();
    assert!(
        error.to_string().contains(&process::id().to_string()),
        "{error}"
    );
    drop(log);
    open(dir.path());
}

#[test]
fn a_tail_torn_at_any_byte_loses_no_complete_record() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 3, u64::MAX);
    let whole = fs::read(&files(dir.path())[0]).unwrap();
    let start = before_last_line(&whole);
    for end in start..whole.len() {
        let dir = tempfile::tempdir().unwrap();
        let path = segment::path(dir.path(), 1);
        fs::write(&path, &whole[..end]).unwrap();
        let mut log = open(dir.path());
        append(&mut log, &draft("after.example"));
        drop(log);
        let found = verify(dir.path()).unwrap_or_else(|error| panic!("cut at {end}: {error}"));
        let kept = fs::read(path.with_extension("torn")).unwrap_or_default();
        let lines = lines(dir.path());
        let (records, torn, noted) = match end {
            // Nothing was torn.
            end if end == start => (3, start..start, false),
            // Only its newline is missing: the record is complete.
            end if end + 1 == whole.len() => (4, start..start, false),
            end => (4, start..end, true),
        };
        assert_eq!(found.records, records, "cut at {end}");
        assert_eq!(kept, &whole[torn], "cut at {end}");
        assert_eq!(
            lines[2].contains("\"audit-recover\""),
            noted,
            "cut at {end}"
        );
        assert!(lines[0].contains("h1.example") && lines[1].contains("h2.example"));
    }
}

#[test]
fn blocks_that_never_reached_the_disk_are_torn_too() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 3, u64::MAX);
    let path = files(dir.path()).remove(0);
    let length = fs::metadata(&path).unwrap().len();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0; 4096], length - 100).unwrap();
    drop(open(dir.path()));
    assert_eq!(verify(dir.path()).unwrap().records, 3);
    let lines = lines(dir.path());
    assert!(lines[1].contains("h2.example") && lines[2].contains("audit-recover"));
    // A second crash does not overwrite what the first left.
    OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap()
        .write_all(b"{\"seq\":4,")
        .unwrap();
    drop(open(dir.path()));
    assert_eq!(
        fs::read(path.with_extension("torn.1")).unwrap(),
        b"{\"seq\":4,"
    );
}

#[test]
fn a_crash_right_after_rotation_is_no_gap() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 3, u64::MAX);
    segment::create(dir.path(), 4).unwrap();
    let mut log = open(dir.path());
    assert_eq!(append(&mut log, &draft("a.example")), 4);
    drop(log);
    assert_eq!(verify(dir.path()).unwrap().records, 4);
    assert_eq!(files(dir.path()).len(), 2);
}

#[test]
fn a_changed_older_segment_is_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path(), 3, u64::MAX);
    segment::create(dir.path(), 4).unwrap();
    let older = files(dir.path()).remove(0);
    OpenOptions::new()
        .append(true)
        .open(&older)
        .unwrap()
        .write_all(b"junk")
        .unwrap();
    let before = fs::read(&older).unwrap();
    drop(open(dir.path()));
    assert_eq!(fs::read(&older).unwrap(), before);
    assert!(verify(dir.path()).is_err());
}

/// Runs this test's `child` in a process of its own, whose files may not grow over 16 or 32 KiB: the limit is the
/// process's.
fn in_limited_child(child: &str) {
    let script = "trap '' XFSZ; ulimit -S -f 32; exec \"$0\" --exact --ignored \"$1\"";
    let output = process::Command::new("sh")
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap())
        .arg(format!("log::tests::{child}"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

fn lift_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, hard, hard).unwrap();
}

#[test]
fn a_full_disk_leaves_a_sound_chain_and_loses_nothing() {
    in_limited_child("full_disk_child");
}

#[test]
#[ignore = "run by a_full_disk_leaves_a_sound_chain_and_loses_nothing with a file size limit"]
fn full_disk_child() {
    for durability in [Durability::Batched, Durability::Strict] {
        let (soft, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::open(dir.path(), durability).unwrap();
        let (draft, context) = (draft("a.example"), Context::default());
        let mut appended = 0;
        let failed = loop {
            appended += 1;
            if let Err(error) = log.append(Record::Decision(&draft, &context)) {
                break error;
            }
        };
        assert!(failed.to_string().contains("cannot write"), "{failed}");
        // Closed for good, or looked at while full: whole records only.
        assert_eq!(lines(dir.path()).len(), appended - 1);
        let bytes = fs::read(&files(dir.path())[0]).unwrap();
        assert!(bytes.ends_with(b"\n") && (bytes.len() as u64) < soft);
        appended += 1;
        log.append(Record::Decision(&draft, &context)).unwrap_err();
        log.commit().unwrap_err();
        lift_limit();
        log.commit().unwrap();
        drop(log);
        let found = verify(dir.path()).unwrap();
        assert_eq!(found.records as usize, appended + 1);
        let last = lines(dir.path()).pop().unwrap();
        assert!(
            last.contains("audit-recover") && last.contains("0 records lost"),
            "{last}"
        );
        setrlimit(Resource::RLIMIT_FSIZE, soft, hard).unwrap();
    }
}

#[test]
fn what_cannot_be_kept_either_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    let (draft, context) = (draft("a.example"), Context::default());
    log.pending.resize(PENDING_BYTES, b' ');
    assert!(matches!(
        log.stage(Record::Decision(&draft, &context)),
        Err(LogError::Full)
    ));
    log.pending.clear();
    log.commit().unwrap();
    let lines = lines(dir.path());
    assert!(lines[0].contains("1 records lost"), "{lines:?}");
}

#[test]
fn batched_records_are_synced_without_being_asked() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = open(dir.path());
    append(&mut log, &draft("a.example"));
    let syncer = log.syncer.as_ref().unwrap();
    assert!(syncer.wait_until_clean(Duration::from_secs(10)));
}
