use std::fs::File;
use std::os::unix::fs::FileExt;

use agentguard_common::abi::AgentId;
use agentguard_record::{DecidedBy, Draft, Ended, Outcome};
use uuid::Uuid;

use super::frame::MAX_FRAME;
use super::*;

const BYTES: u64 = 600 * 1024;

fn draft(resource: &str) -> Draft {
    Draft {
        time_us: 1,
        decision: Uuid::now_v7(),
        tgid: 7,
        resource: resource.to_owned(),
        outcome: Outcome::Allow,
        decided_by: DecidedBy::Rules,
        ended: Ended::Whole,
        ..Draft::blank(AgentId(2))
    }
}

/// Two files, and a writer that may use the first.
fn spool() -> (Vec<File>, Writer) {
    let files: Vec<File> = (0..2).map(|_| tempfile::tempfile().unwrap()).collect();
    for file in &files {
        prepare(file, BYTES).unwrap();
    }
    let mut writer = Writer::new(&files, BYTES).unwrap();
    writer.add(CleanSegment {
        index: 0,
        generation: 1,
    });
    (files, writer)
}

fn begin(writer: &mut Writer, draft: &Draft) -> Result<Promise, SpoolError> {
    writer.begin(&mut UnsealedFrame::begun(draft)?)
}

fn over(draft: &Draft) -> UnsealedFrame {
    UnsealedFrame::over(draft).unwrap()
}

fn stages(file: &File, generation: u64) -> Vec<(Stage, String)> {
    let (frames, _) = read(file, generation, HEADER_BYTES, BYTES).unwrap();
    let shown = |frame: &Frame| (frame.stage, frame.draft().unwrap().resource);
    frames.iter().map(shown).collect()
}

#[test]
fn what_is_written_is_read_in_order() {
    let (files, mut writer) = spool();
    let begun = draft("a");
    let promise = begin(&mut writer, &begun).unwrap();
    writer.note(&mut over(&draft("refused"))).unwrap();
    writer.end_of(promise, &mut over(&begun)).unwrap();
    let expected = [
        (Stage::Begun, "a".to_owned()),
        (Stage::Over, "refused".to_owned()),
        (Stage::Over, "a".to_owned()),
    ];
    assert_eq!(stages(&files[0], 1), expected);
    let end = writer.end();
    let (frames, at) = read(&files[0], 1, HEADER_BYTES, end.offset).unwrap();
    assert_eq!((frames.len(), at), (3, end.offset));
    assert_eq!(
        (frames[0].decision, frames[2].decision),
        (begun.decision, begun.decision)
    );
}

#[test]
fn a_frame_that_is_cut_anywhere_or_of_another_use_is_none() {
    let (files, mut writer) = spool();
    writer.note(&mut over(&draft("whole"))).unwrap();
    let first = writer.end().offset;
    writer.note(&mut over(&draft("cut"))).unwrap();
    let end = writer.end().offset;
    let mut bytes = vec![0; (end - first) as usize];
    files[0].read_exact_at(&mut bytes, first).unwrap();
    assert!(stages(&files[0], 2).is_empty(), "of another generation");
    for cut in 0..bytes.len() {
        let mut torn = bytes.clone();
        // The byte that was there before is another one.
        torn[cut..].iter_mut().for_each(|byte| *byte ^= 0x55);
        files[0].write_all_at(&torn, first).unwrap();
        assert_eq!(stages(&files[0], 1).len(), 1, "cut at {cut}");
    }
    files[0].write_all_at(&bytes, first).unwrap();
    assert_eq!(stages(&files[0], 1).len(), 2);
}

#[test]
fn what_has_begun_finds_room_for_its_end_in_a_full_spool() {
    let (files, mut writer) = spool();
    let mut begun = Vec::new();
    let agents = (1..).flat_map(|agent| [AgentId(agent); 20]);
    for agent in agents {
        let draft = Draft {
            agent,
            ..draft("begun")
        };
        match begin(&mut writer, &draft) {
            Ok(promise) => begun.push(promise),
            Err(error) => {
                assert!(matches!(error, SpoolError::Full), "{error}");
                break;
            }
        }
    }
    assert!(begun.len() > 100, "{}", begun.len());
    assert!(matches!(
        writer.note(&mut over(&draft("refused"))),
        Err(SpoolError::Full)
    ));
    let mut count = 2 * begun.len();
    while writer.note_done(&mut over(&draft("done"))).is_ok() {
        count += 1;
    }
    for promise in begun {
        writer
            .end_of(promise, &mut over(&draft(&"e".repeat(500))))
            .unwrap();
    }
    assert_eq!(stages(&files[0], 1).len(), count);
    writer.add(CleanSegment {
        index: 1,
        generation: 2,
    });
    let promise = begin(&mut writer, &draft("next")).unwrap();
    writer.end_of(promise, &mut over(&draft("next"))).unwrap();
    let all = stages(&files[0], 1).len() + stages(&files[1], 2).len();
    assert_eq!(all, count + 2);
}

#[test]
fn one_agents_open_acts_leave_the_spool_to_others() {
    let (_files, mut writer) = spool();
    let long = draft(&"x".repeat(10_000));
    let mut begun = Vec::new();
    let error = loop {
        match begin(&mut writer, &long) {
            Ok(promise) => begun.push(promise),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, SpoolError::OwnShare), "{error}");
    let other = Draft {
        agent: AgentId(3),
        ..draft("other")
    };
    let promise = begin(&mut writer, &other).unwrap();
    writer.end_of(promise, &mut over(&other)).unwrap();
    writer
        .end_of(begun.pop().unwrap(), &mut over(&long))
        .unwrap();
    let _again = begin(&mut writer, &long).unwrap();
}

#[test]
fn refusals_leave_room_for_what_begins() {
    let (_files, mut writer) = spool();
    writer.add(CleanSegment {
        index: 1,
        generation: 2,
    });
    while writer.note(&mut over(&draft("refused"))).is_ok() {}
    let promise = begin(&mut writer, &draft("permitted")).unwrap();
    writer
        .end_of(promise, &mut over(&draft("permitted")))
        .unwrap();
    writer.note_done(&mut over(&draft("answered"))).unwrap();
}

#[test]
fn a_record_that_is_too_long_is_none() {
    let (_files, writer) = spool();
    let long = draft(&"x".repeat(MAX_FRAME));
    assert!(matches!(
        UnsealedFrame::begun(&long),
        Err(SpoolError::TooLarge(_))
    ));
    assert_eq!(writer.end(), SpoolEnd::default());
}

#[test]
fn a_header_is_read_as_it_was_written() {
    let file = tempfile::tempfile().unwrap();
    assert_eq!(Header::read(&file).unwrap(), None);
    prepare(&file, BYTES).unwrap();
    assert_eq!(Header::read(&file).unwrap(), None);
    let header = Header {
        generation: 7,
        after_seq: 1 << 40,
    };
    header.write(&file).unwrap();
    assert_eq!(Header::read(&file).unwrap(), Some(header));
    assert_eq!(file.metadata().unwrap().len(), BYTES);
}
