//! What the programs tell: every verdict by an event or by its number, and no permit without a place for its record.

use agentguard_common::abi::EventKind;
use agentguard_common::share::{REFUSALS_IN_A_ROW, RING_SHARE};
use agentguard_common::verdict::{Finding, Refusal};
use agentguard_kernel::{ExecFile, ExecRules, Rule};

use crate::machine::*;

/// What an event without a path takes of the ring.
const TAKES: u64 = 88;

/// Connects until one is refused, and says how many were not.
const FILL: &str = "
n = 0
while n < 40000 and connect('127.0.0.1', 9) != 'EPERM': n += 1
say(n)
";

/// The agent may reach every port of 127.0.0.1, and so may the other.
fn with_rules() -> Machine {
    let mut machine = Machine::new();
    let rules: [Rule; 2] = [reach_tcp("127.0.0.1/32", 0), reach_udp("127.0.0.1/32", 0)];
    machine.kernel().set_rules(OTHER, &rules).unwrap();
    machine.rules(&rules);
    machine
}

#[test]
fn refusals_beyond_some_are_told_by_their_number() {
    const TRIES: u64 = 30_000;
    let mut machine = Machine::new();
    let before = machine.counter("refused");
    let said = machine.run(&format!(
        "said = set()
for _ in range({TRIES}): said.add(attempt(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1))
say(*said)"
    ));
    assert_eq!(said, "EPERM");
    let refused = machine.counter("refused") - before;
    assert_eq!(refused, TRIES, "by the kernel's own count");
    let told = machine.refused(EventKind::Socket, Refusal::Protocol) as u64;
    assert!(
        (REFUSALS_IN_A_ROW..TRIES / 2).contains(&told),
        "{told} told one by one"
    );
    let counted = machine.counted(AGENT);
    let [counted] = counted[..] else {
        panic!("{counted:?}");
    };
    assert_eq!(counted.kind, EventKind::Socket);
    assert_eq!(counted.finding, Finding::Refused(Refusal::Protocol));
    assert_eq!(counted.count + told, TRIES);
    assert_eq!(machine.counted(AGENT), [], "each is counted once");
    assert_eq!(machine.counter("ring_full"), 0);
}

#[test]
fn what_is_only_observed_is_counted_apart() {
    let mut machine = Machine::new();
    machine.rules(&[Rule::Observe]);
    let said = machine.run(
        "said = set()
for _ in range(14000):
    s = socket.socket(); said.add(attempt(s.bind, ('127.0.0.1', 0))); s.close()
    said.add(attempt(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1))
say(*sorted(map(str, said)))",
    );
    assert_eq!(said, "EPERM None");
    let counted = machine.counted(AGENT);
    let of = |finding| counted.iter().find(|counted| counted.finding == finding);
    assert!(
        of(Finding::Observed(Refusal::Listen)).is_some(),
        "{counted:?}"
    );
    assert!(
        of(Finding::Refused(Refusal::Protocol)).is_some(),
        "{counted:?}"
    );
}

#[test]
fn without_a_place_for_its_record_nothing_is_permitted() {
    let mut machine = with_rules();
    let (_server, port) = server("127.0.0.1");
    machine
        .kernel()
        .set_exec(&[ExecRules {
            agent: AGENT,
            default_allow: true,
            deny: vec![ExecFile::from("/nowhere")],
            ..ExecRules::default()
        }])
        .unwrap();
    let said = machine.run(&format!(
        "{FILL}
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
say(connect('127.0.0.1', {port}), attempt(udp.sendto, b'x', ('127.0.0.1', 9)))
pid = os.fork()
if pid == 0:
    try: os.execv('/usr/bin/true', ['true'])
    finally: os._exit(9)
status = os.waitpid(pid, 0)[1]
say('killed' if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))
wait()"
    ));
    let lines: Vec<&str> = said.lines().collect();
    let permitted: u64 = lines[0].parse().unwrap();
    // The script's own exec and what it starts take of the share too.
    assert!(
        permitted * TAKES <= RING_SHARE && (permitted + 500) * TAKES > RING_SHARE,
        "{permitted} connects were permitted while nobody recorded them"
    );
    assert_eq!(lines[1..], ["EPERM EPERM", "killed"]);
    // Another agent has its own share, and nobody has none.
    let elsewhere = format!("say(connect('127.0.0.1', {port}))");
    assert_eq!(machine.agent(OTHER, &elsewhere).finish(), "ok");
    assert_eq!(bystander(&elsewhere), "ok");
    // Each of the permitted is told of, and each of the refused by its number.
    let connects = |event: &agentguard_common::abi::Event| {
        event.agent == AGENT && event.kind == EventKind::Connect as u32
    };
    let told = machine
        .events()
        .iter()
        .filter(|event| connects(event) && event.reason == 0);
    assert_eq!(told.count() as u64, permitted);
    let counted = machine.counted(AGENT);
    assert!(!counted.is_empty());
    for counted in counted {
        assert_eq!(counted.finding, Finding::Refused(Refusal::Unrecorded));
    }
    // Recorded, they make room.
    assert_eq!(machine.run(&elsewhere), "ok");
}

#[test]
fn what_was_read_and_not_recorded_is_read_again() {
    let mut machine = with_rules();
    let connects = |event: &agentguard_common::abi::Event| {
        event.agent == AGENT && event.kind == EventKind::Connect as u32
    };
    let permitted: usize = machine.run(FILL).trim().parse().unwrap();
    // The daemon dies with what it has read.
    let read = machine.read_unrecorded();
    assert_eq!(
        read.iter().filter(|event| connects(event)).count(),
        permitted
    );
    machine.forget();
    machine.load();
    let said = machine.run("say(connect('127.0.0.1', 9))");
    assert_eq!(said, "EPERM", "the share is as full as it was");
    let read = machine.events().iter().filter(|event| connects(event));
    assert_eq!(read.count(), permitted);
    assert_eq!(machine.run("say(connect('127.0.0.1', 9))"), "ECONNREFUSED");
}
