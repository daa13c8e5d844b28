use std::path::Path;
use std::sync::mpsc::channel;

use agentguard_policy::Settlement;
use agentguard_policy::{Charge, Counter, LimitKey, Room, Span};
use proptest::prelude::*;

use super::counters::{Change, Counters, Part};
use super::journal::Journal;
use super::ledger::Ledger;

/// A Monday in November.
const NOW: i64 = 1_795_420_000_000;
const MINUTE: u64 = 60_000;

fn rate(most: u64, ms: u64) -> Charge {
    Charge {
        counter: Counter {
            agent: Some("a".into()),
            rule: "r".into(),
            unit: format!("requests in {ms} ms"),
            host: None,
            task: None,
        },
        span: Span::Rolling(ms),
        zone: None,
        text: String::new(),
        most,
        amount: 1,
        key: None,
    }
}

/// Of 10.00 a day.
fn budget(amount: u64, key: Option<u8>) -> Charge {
    Charge {
        span: Span::Day,
        zone: Some("UTC".into()),
        amount,
        key: key.map(|key| LimitKey {
            value: [key; 16],
            request: [amount.to_le_bytes()[0]; 16],
        }),
        ..rate(100_000, 0)
    }
}

fn taken(counters: &mut Counters, now: i64, charge: &Charge) -> Result<Part, Room> {
    let taken = counters.take(now, std::slice::from_ref(charge));
    taken.map(|mut taken| taken.parts.pop().unwrap())
}

fn full(room: &Result<Part, Room>) -> Option<i64> {
    match room {
        Err(Room::Full { until, .. }) => *until,
        other => panic!("{other:?}"),
    }
}

#[test]
fn sums_are_exact_and_say_when_there_is_room_again() {
    let mut counters = Counters::default();
    // 0.1 + 0.2 of 0.3.
    let charge = |amount| Charge {
        most: 3_000,
        ..budget(amount, None)
    };
    taken(&mut counters, NOW, &charge(1_000)).unwrap();
    taken(&mut counters, NOW, &charge(2_000)).unwrap();
    let midnight = charge(1).until(NOW);
    let more = taken(&mut counters, NOW, &charge(1));
    assert_eq!(full(&more), midnight);
    taken(&mut counters, NOW, &charge(0)).unwrap();
    assert_eq!(full(&taken(&mut counters, NOW, &charge(3_001))), None);
    let next_day = midnight.unwrap();
    taken(&mut counters, next_day, &charge(3_000)).unwrap();
}

#[test]
fn all_of_a_request_is_taken_or_nothing() {
    let mut counters = Counters::default();
    let (first, mut second) = (rate(5, MINUTE), rate(1, MINUTE));
    second.counter.rule = "other".into();
    counters
        .take(NOW, &[first.clone(), second.clone()])
        .unwrap();
    let refused = counters.take(NOW, &[first, second]).unwrap_err();
    assert!(matches!(
        refused,
        Room::Full {
            charge: 1,
            used: 1,
            ..
        }
    ));
    let used: Vec<u64> = counters.of(NOW, "a").iter().map(|it| it.used).collect();
    assert_eq!(used, [1, 1]);
}

#[test]
fn a_key_is_charged_once_and_given_back_when_nobody_has_used_it() {
    let mut counters = Counters::default();
    let used = |counters: &Counters| counters.of(NOW, "a").first().map_or(0, |it| it.used);
    let charge = budget(60_000, Some(1));
    let first = taken(&mut counters, NOW, &charge).unwrap();
    let retry = taken(&mut counters, NOW, &charge).unwrap();
    assert_eq!(used(&counters), 60_000);
    let other = taken(&mut counters, NOW, &budget(50_000, Some(1)));
    assert!(matches!(other, Err(Room::Reused { charge: 0 })));
    assert!(full(&taken(&mut counters, NOW, &budget(50_000, Some(2)))).is_some());
    // The first is refused upstream while its retry is under way there.
    assert_eq!(counters.give_back(&first), None);
    assert_eq!(used(&counters), 60_000);
    assert!(matches!(
        counters.give_back(&retry),
        Some(Change::GivenBack(_))
    ));
    assert_eq!(used(&counters), 0);
    // Once it has gone out, a retry gives nothing back.
    let sent = taken(&mut counters, NOW, &charge).unwrap();
    counters.keep(&sent);
    let retry = taken(&mut counters, NOW, &charge).unwrap();
    assert_eq!(counters.give_back(&retry), None);
    assert_eq!(used(&counters), 60_000);
}

#[test]
fn what_a_clock_that_was_wrong_has_charged_counts_for_one_time_more() {
    let mut counters = Counters::default();
    let charge = rate(1, MINUTE);
    taken(&mut counters, NOW + 365 * 86_400_000, &charge).unwrap();
    let until = full(&taken(&mut counters, NOW, &charge)).unwrap();
    assert!(until <= NOW + 61_000, "{}", until - NOW);
    taken(&mut counters, NOW + 61_000, &charge).unwrap();
    // Set back by a second, over midnight: neither day gets anything twice.
    let midnight = budget(0, None).until(NOW).unwrap();
    let whole = budget(100_000, None);
    taken(&mut counters, midnight, &whole).unwrap();
    assert!(taken(&mut counters, midnight - 1000, &whole).is_err());
    assert!(taken(&mut counters, midnight, &whole).is_err());
}

#[test]
fn a_clock_that_goes_forth_and_back_gives_no_day_twice() {
    let mut counters = Counters::default();
    let midnight = budget(0, None).until(NOW).unwrap();
    let tenth = budget(10_000, None);
    for _ in 0..10 {
        taken(&mut counters, NOW, &tenth).unwrap();
    }
    assert!(taken(&mut counters, NOW, &tenth).is_err());
    // The next day has its own.
    taken(&mut counters, midnight + 1000, &tenth).unwrap();
    assert!(taken(&mut counters, NOW, &tenth).is_err());
    for _ in 1..10 {
        taken(&mut counters, midnight + 2000, &tenth).unwrap();
    }
    assert!(taken(&mut counters, midnight + 2000, &tenth).is_err());
}

#[test]
fn memory_is_bounded_and_closed_when_it_is_full() {
    let mut counters = Counters::default();
    let at = |host: usize| {
        let mut charge = rate(1, MINUTE);
        charge.counter.host = Some(format!("h{host}"));
        charge
    };
    let refused = (0..2000).find(|host| taken(&mut counters, NOW, &at(*host)).is_err());
    assert_eq!(refused, Some(1024));
    let mut other = at(5000);
    other.counter.agent = Some("b".into());
    taken(&mut counters, NOW, &other).unwrap();
    taken(&mut counters, NOW + 120_000, &at(5000)).unwrap();
    let keyed = |key: usize| {
        let mut charge = budget(0, Some(0));
        let digest = charge.key.as_mut().unwrap();
        digest.value[..8].copy_from_slice(&key.to_le_bytes());
        charge
    };
    let refused = (0..20_000).find(|key| taken(&mut counters, NOW, &keyed(*key)).is_err());
    assert_eq!(refused, Some(10_000));
    assert!(taken(&mut counters, NOW, &keyed(7)).is_ok(), "a retry");
    // Of all its counters together, and of nobody else's.
    let at = |rule: &str, agent: Option<&str>, key: usize| {
        let mut charge = keyed(key);
        charge.counter.rule = rule.into();
        charge.counter.agent = agent.map(Into::into);
        charge
    };
    let first = full(&taken(&mut counters, NOW, &at("s", Some("a"), 0)));
    assert_eq!(first, budget(0, None).until(NOW));
    taken(&mut counters, NOW, &at("s", Some("b"), 0)).unwrap();
    taken(&mut counters, NOW, &at("s", None, 0)).unwrap();
    taken(&mut counters, first.unwrap(), &at("s", Some("a"), 0)).unwrap();
}

#[test]
fn nobody_waits_for_what_another_agent_has() {
    let mut counters = Counters::default();
    let at = |agent: &str, host: usize| {
        let mut charge = rate(1, MINUTE);
        charge.counter.agent = Some(agent.into());
        charge.counter.host = Some(format!("h{host}"));
        charge
    };
    for host in 0..1024 {
        taken(&mut counters, NOW, &at("a", host)).unwrap();
        taken(&mut counters, NOW, &at("b", host)).unwrap();
    }
    for host in 1024..2000 {
        taken(&mut counters, NOW, &at("a", host)).unwrap_err();
    }
    assert_eq!(counters.visited, 0, "none is over");
    taken(&mut counters, NOW + 61_000, &at("a", 2000)).unwrap();
    assert_eq!(counters.visited, 1024, "its own alone");
    // As many as before, and as many keys, once what is over is gone.
    for host in 0..1023 {
        taken(&mut counters, NOW + 61_000, &at("a", host)).unwrap();
    }
    taken(&mut counters, NOW + 61_000, &at("a", 1024)).unwrap_err();
    // What is given back leaves its place at once.
    for host in 1024..3000 {
        let part = taken(&mut counters, NOW, &at("c", host)).unwrap();
        counters.give_back(&part).unwrap();
    }
}

#[test]
fn what_a_crash_cut_off_is_dropped_and_what_is_damaged_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("limits.log");
    let (mut journal, mut counters) = Journal::open(&path, NOW).unwrap();
    for key in [None, Some(1), Some(2)] {
        let taken = counters.take(NOW, &[budget(10_000, key)]).unwrap();
        journal.append(&taken.changes, true).unwrap();
    }
    let whole = std::fs::read(&path).unwrap();
    let used = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let opened = Journal::open(&path, NOW).map_err(|error| error.to_string());
        opened.map(|(_, counters)| counters.of(NOW, "a").iter().map(|it| it.used).sum::<u64>())
    };
    assert_eq!(used(&whole), Ok(30_000));
    let lines: Vec<usize> = whole
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == b'\n')
        .map(|(at, _)| at + 1)
        .collect();
    for end in lines[0]..=whole.len() {
        let read = lines.iter().filter(|line| **line <= end).count() as u64 - 1;
        assert_eq!(used(&whole[..end]), Ok(read * 10_000), "{end} bytes");
        let padded = [&whole[..end], &[0; 300][..]].concat();
        assert_eq!(used(&padded), Ok(read * 10_000), "{end} bytes and nothing");
    }
    for at in [0, lines[0] + 3, lines[1] + 40] {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        let why = used(&damaged).unwrap_err();
        assert!(why.contains("is damaged in line"), "{why}");
    }
    let dropped = [&whole[..lines[0]], &whole[lines[0] + 1..]].concat();
    assert!(used(&dropped).is_err());
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(future)
}

fn ask(session: &super::Session, token: u64, charge: Charge) -> Room {
    let (tell, told) = channel();
    let answer = move |room| tell.send(room).unwrap();
    wait(session.take(token, vec![charge], answer));
    told.recv().unwrap()
}

#[test]
fn many_at_once_never_take_more_than_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("limits.log");
    let take = |ledger: &Ledger, from: u64| {
        let (tell, told) = channel();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let session = wait(ledger.session());
                let tell = tell.clone();
                scope.spawn(move || {
                    for token in 0..20 {
                        let tell = tell.clone();
                        let answer = move |room| tell.send(room).unwrap();
                        let charge = rate(100, 86_400_000);
                        let token = from + thread * 100 + token;
                        wait(session.take(token, vec![charge], answer));
                        wait(session.settle(token, Settlement::Refused));
                    }
                });
            }
        });
        drop(tell);
        told.iter()
            .filter(|room| matches!(room, Room::Taken(_)))
            .count()
    };
    // What is refused upstream has been a request all the same.
    assert_eq!(take(&Ledger::start(&path).unwrap(), 0), 100);
    assert_eq!(take(&Ledger::start(&path).unwrap(), 5000), 0);
    let ledger = Ledger::start(&path).unwrap();
    let session = wait(ledger.session());
    let spend = |amount| Charge {
        span: Span::Month,
        ..budget(amount, None)
    };
    assert!(matches!(ask(&session, 1, spend(90_000)), Room::Taken(_)));
    assert!(matches!(ask(&session, 2, spend(20_000)), Room::Full { .. }));
    wait(session.settle(1, Settlement::Refused));
    assert!(matches!(ask(&session, 3, spend(20_000)), Room::Taken(_)));
    // A forwarder that is gone may have sent what it held.
    drop(session);
    let session = wait(ledger.session());
    assert!(matches!(ask(&session, 3, spend(90_000)), Room::Full { .. }));
    assert_eq!(ledger.trouble(), None);
}

#[test]
fn whatever_a_forwarder_asks_the_counting_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::start(&dir.path().join("limits.log")).unwrap();
    let session = wait(ledger.session());
    let most = Charge {
        most: u64::MAX,
        amount: u64::MAX,
        ..rate(1, MINUTE)
    };
    let mut long = rate(1, MINUTE);
    long.counter.rule = "r".repeat(5000);
    let far = |ms| Charge {
        most: 5,
        ..rate(5, ms)
    };
    let nowhere = Charge {
        zone: Some("../../etc/passwd".into()),
        ..budget(1, None)
    };
    let strange = [
        most,
        long,
        far(0),
        far(u64::MAX),
        far(i64::MAX as u64),
        far(9_000_000_000_000_000_000),
        nowhere,
    ];
    for (token, charge) in (0..).zip(strange.iter().chain(&strange)) {
        ask(&session, token, charge.clone());
    }
    let many = vec![rate(5, MINUTE); 1000];
    let (tell, told) = channel();
    wait(session.take(50, many, move |room| tell.send(room).unwrap()));
    assert!(matches!(told.recv(), Ok(Room::Unavailable(_))));
    // What is under way already is not taken twice.
    let once = ask(&session, 0, rate(5, 2 * MINUTE));
    assert!(matches!(once, Room::Unavailable(_)), "{once:?}");
    assert!(matches!(
        ask(&session, 60, rate(5, 3 * MINUTE)),
        Room::Taken(_)
    ));
    assert!(!ledger.of("a").is_empty());
}

#[test]
fn what_cannot_be_written_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("limits.log");
    std::fs::write(&path, "something else\n").unwrap();
    let ledger = Ledger::start(&path).unwrap();
    let room = ask(&wait(ledger.session()), 1, rate(5, MINUTE));
    assert!(matches!(room, Room::Unavailable(why) if why.contains("damaged in line 1")));
    assert!(ledger.trouble().is_some());
    assert_eq!(std::fs::read(&path).unwrap(), b"something else\n");

    // Nothing opens it again but a restart; what cannot be added to it is tried again with the next request.
    let folder = dir.path().join("folder.log");
    std::fs::create_dir(&folder).unwrap();
    let trouble = Ledger::start(&folder).unwrap().trouble().unwrap();
    assert!(
        trouble.ends_with("; mend that, and restart the daemon"),
        "{trouble}"
    );

    let full = Path::new("/dev/full");
    let mut journal = Journal::open(&dir.path().join("other.log"), NOW).unwrap().0;
    journal.write_to(full);
    let taken = Counters::default().take(NOW, &[budget(1, None)]);
    let changes = taken.unwrap().changes;
    let failed = journal.append(&changes, true).unwrap_err().to_string();
    assert!(!failed.contains("restart"), "{failed}");
    assert!(journal.append(&changes, true).is_err());
}

#[derive(Clone, Debug)]
enum Step {
    Take,
    Later(i64),
    GiveBack(usize),
    Keep(usize),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => Just(Step::Take),
        4 => (0i64..3_000).prop_map(Step::Later),
        2 => (0usize..20).prop_map(Step::GiveBack),
        2 => (0usize..20).prop_map(Step::Keep),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn never_more_than_it_says_in_any_window(most in 1u64..6, steps in prop::collection::vec(step(), 1..200)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("limits.log");
        let charge = rate(most, 5_000);
        let (mut journal, mut counters) = Journal::open(&path, NOW).unwrap();
        let (mut now, mut held, mut sent) = (NOW, Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Later(ms) => now += ms,
                Step::Take => if let Ok(mut taken) = counters.take(now, std::slice::from_ref(&charge)) {
                    journal.append(&taken.changes, false).unwrap();
                    held.push((now, taken.parts.pop().unwrap()));
                },
                Step::GiveBack(index) if index < held.len() => {
                    let (_, part) = held.swap_remove(index);
                    let change: Vec<_> = counters.give_back(&part).into_iter().collect();
                    journal.append(&change, false).unwrap();
                }
                Step::Keep(index) if index < held.len() => {
                    let (at, part) = held.swap_remove(index);
                    counters.keep(&part);
                    sent.push(at);
                }
                Step::Restart => {
                    // Whatever was under way has gone out.
                    sent.extend(held.drain(..).map(|(at, _)| at));
                    (journal, counters) = Journal::open(&path, now).unwrap();
                }
                Step::GiveBack(_) | Step::Keep(_) => {}
            }
            let mut all: Vec<i64> = sent.iter().copied().chain(held.iter().map(|(at, _)| *at)).collect();
            all.sort_unstable();
            for window in all.windows(usize::try_from(most).unwrap() + 1) {
                prop_assert!(window[window.len() - 1] - window[0] > 5_000, "{window:?}");
            }
        }
    }
}
