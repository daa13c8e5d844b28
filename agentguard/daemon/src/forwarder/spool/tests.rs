use agentguard_audit::Log;
use agentguard_common::abi::AgentId;
use agentguard_link::spool::{Promise, UnsealedFrame, Writer};
use agentguard_record::{Context, DecidedBy, Ended, Outcome, Record};
use tempfile::TempDir;

use super::*;

/// A spool, a log, and who stands for the forwarder.
struct Rig {
    dir: TempDir,
    spool: Spool,
    writer: Writer,
}

fn draft(resource: &str) -> Draft {
    Draft {
        time_us: 1,
        decision: Uuid::now_v7(),
        tgid: 7,
        resource: resource.to_owned(),
        outcome: Outcome::Allow,
        decided_by: DecidedBy::Rules,
        ended: Ended::Unfinished,
        ..Draft::blank(AgentId(2))
    }
}

fn open(dir: &TempDir) -> Spool {
    let (spool, audit) = (dir.path().join("spool"), dir.path().join("audit"));
    Spool::open(&spool, &audit, Durability::Batched).unwrap()
}

fn frame(draft: &Draft) -> UnsealedFrame {
    UnsealedFrame::over(draft).unwrap()
}

fn unlogged(spool: &Spool) -> Vec<Draft> {
    let left = spool.leftovers().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(left.unlogged()).unwrap()
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("audit")).unwrap();
        let mut spool = open(&dir);
        let writer = Self::next_forwarder(&mut spool, 0);
        Self { dir, spool, writer }
    }

    fn next_forwarder(spool: &mut Spool, seq: u64) -> Writer {
        let (descriptors, clean) = spool.renew(seq).unwrap();
        let files: Vec<File> = descriptors.into_iter().map(File::from).collect();
        let mut writer = Writer::new(&files, SEGMENT_BYTES).unwrap();
        clean.into_iter().for_each(|segment| writer.add(segment));
        writer
    }

    fn log(&self, drafts: &[Draft]) -> u64 {
        let mut log = Log::open(&self.dir.path().join("audit"), Durability::Batched).unwrap();
        let context = Context {
            agent: "a",
            ..Context::default()
        };
        let append = |draft| log.append(Record::Decision(draft, &context)).unwrap();
        drafts.iter().map(append).last().unwrap_or(0)
    }

    fn begin(&mut self, draft: &Draft) -> Promise {
        let mut beginning = UnsealedFrame::begun(draft).unwrap();
        self.writer.begin(&mut beginning).unwrap()
    }

    fn end(&mut self, promise: Promise, draft: &Draft) {
        let draft = Draft {
            ended: Ended::Whole,
            ..draft.clone()
        };
        self.writer.end_of(promise, &mut frame(&draft)).unwrap();
    }

    /// What the next daemon finds when the forwarder is gone.
    fn found(self) -> (TempDir, Vec<(String, Ended)>) {
        let Self { dir, spool, writer } = self;
        drop((spool, writer));
        let left = unlogged(&open(&dir));
        let shown = |draft: Draft| (draft.resource, draft.ended);
        (dir, left.into_iter().map(shown).collect())
    }
}

#[test]
fn what_was_left_is_found_once_and_what_the_log_has_is_not() {
    let mut rig = Rig::new();
    let (logged, over, open) = (draft("logged"), draft("over"), draft("open"));
    let promise = rig.begin(&logged);
    rig.end(promise, &logged);
    let taken = rig.spool.take_up(rig.writer.end()).unwrap();
    rig.log(&taken.drafts);
    let promise = rig.begin(&over);
    rig.end(promise, &over);
    let _never = rig.begin(&open);
    rig.writer.note(&mut frame(&draft("refused"))).unwrap();
    let (_, found) = rig.found();
    let expected = [
        ("over", Ended::Whole),
        ("refused", Ended::Unfinished),
        ("open", Ended::Unfinished),
    ];
    assert_eq!(
        found,
        expected.map(|(name, ended)| (name.to_owned(), ended))
    );
}

#[test]
fn what_began_long_ago_outlives_its_segment() {
    let mut rig = Rig::new();
    let old = draft("old");
    let promise = rig.begin(&old);
    let long = "x".repeat(100_000);
    for round in 0..3 {
        let mut left = Vec::new();
        while left.is_empty() {
            let draft = draft(&long);
            let promise = rig.begin(&draft);
            rig.end(promise, &draft);
            let taken = rig.spool.take_up(rig.writer.end()).unwrap();
            rig.log(&taken.drafts);
            left = taken.left;
        }
        let seq = decisions_after(&rig.spool.audit, 0);
        let seq = seq.unwrap().len() as u64;
        for index in left {
            let clean = rig.spool.clean(index, seq).unwrap();
            rig.writer.add(clean);
        }
        assert!(!rig.spool.is_over(), "round {round}");
    }
    let later = rig.dir.path().join("copy");
    fs::create_dir(&later).unwrap();
    for file in fs::read_dir(rig.dir.path().join("spool")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), later.join(file.file_name())).unwrap();
    }
    let copy = Spool::open(&later, &rig.spool.audit, Durability::Batched).unwrap();
    let left = unlogged(&copy);
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].decision, old.decision);
    rig.end(promise, &old);
    let taken = rig.spool.take_up(rig.writer.end()).unwrap();
    assert_eq!(taken.drafts.len(), 1);
    assert!(rig.spool.is_over());
}

#[test]
fn a_spool_that_a_forwarder_may_still_write_to_is_not_taken() {
    let rig = Rig::new();
    let mut next = open(&rig.dir);
    assert!(matches!(next.leftovers(), Err(TakeUpError::InUse(_))));
    assert!(matches!(next.renew(0), Err(TakeUpError::InUse(_))));
    drop(rig.writer);
    assert!(unlogged(&next).is_empty());
    next.renew(0).unwrap();
}

#[test]
fn a_forwarder_that_says_more_than_it_wrote_is_found_out() {
    let mut rig = Rig::new();
    rig.writer.note(&mut frame(&draft("a"))).unwrap();
    let end = rig.writer.end();
    for said in [
        SpoolEnd {
            offset: end.offset + 9,
            ..end
        },
        SpoolEnd {
            generation: 99,
            ..end
        },
    ] {
        let mut spool = Rig::new().spool;
        assert!(matches!(spool.take_up(said), Err(TakeUpError::Short)));
    }
    assert_eq!(rig.spool.take_up(end).unwrap().drafts.len(), 1);
}

#[test]
fn nothing_of_an_earlier_forwarder_is_found_twice() {
    let mut rig = Rig::new();
    let first = draft("first");
    let promise = rig.begin(&first);
    rig.end(promise, &first);
    rig.writer = Writer::new(&[], SEGMENT_BYTES).unwrap();
    let left = unlogged(&rig.spool);
    assert_eq!(left.len(), 1);
    let seq = rig.log(&left);
    drop(Rig::next_forwarder(&mut rig.spool, seq));
    assert!(unlogged(&rig.spool).is_empty());
}

#[tokio::test]
async fn a_log_that_is_read_for_long_keeps_nobody_else_waiting() {
    let mut rig = Rig::new();
    rig.writer.note(&mut frame(&draft("left"))).unwrap();
    rig.writer = Writer::new(&[], SEGMENT_BYTES).unwrap();
    // Who opens it to read waits for one who writes.
    let segment = rig.spool.audit.join("audit-00000000000000000001.jsonl");
    rig.log(&[draft("logged")]);
    assert!(segment.exists(), "{:?}", fs::read_dir(&rig.spool.audit));
    fs::remove_file(&segment).unwrap();
    nix::unistd::mkfifo(&segment, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let reading = tokio::spawn(rig.spool.leftovers().unwrap().unlogged());
    tokio::task::yield_now().await;
    assert!(!reading.is_finished());
    let _writer = tokio::task::spawn_blocking(move || OpenOptions::new().write(true).open(segment));
    let left = reading.await.unwrap().unwrap();
    assert_eq!(left.len(), 1);
}
