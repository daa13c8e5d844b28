//! One agent that is refused without pause, and what is recorded of it and of others meanwhile.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use agentguard_tests::bundle::{direct, reach};
use agentguard_tests::client::dialer;
use agentguard_tests::process::Running;
use agentguard_tests::{Bundle, Guard, Nginx, Record, Site};

/// Refused calls of each of the two processes; more by hand, with `AGENTGUARD_REFUSED`.
const REFUSED: usize = 200_000;

/// Direct connects of the storming agent, and requests of the other, meanwhile.
const PERMITTED: usize = 200;

#[test]
fn a_storm_of_refusals_hides_nothing_and_costs_little_room() {
    let each =
        std::env::var("AGENTGUARD_REFUSED").map_or(REFUSED, |it| it.parse().expect("a number"));
    let site = Site::new();
    let origin = Nginx::start(&site);
    let sink = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = sink.local_addr().expect("bound").port();
    let policy = Bundle::new(1)
        .agent("storm", &direct(&format!("127.0.0.1:{port}"), "tcp"))
        .agent("probe", &reach("origin.test", origin.port, &["GET /v1/**"]));
    let guard = Guard::start(&site, &policy);
    let mut probe = dialer(&guard.agent("probe"));
    let over = AtomicBool::new(false);
    let (refused, connected, answered, accepted) = thread::scope(|scope| {
        let accepting = scope.spawn(|| accept_all(&sink, &over));
        let storms: Vec<Running> = (0..2).map(|_| storm(&guard, each)).collect();
        let connects = guard.agent("storm").python(&format!(
            "import socket\n\
             ok = 0\n\
             for _ in range({PERMITTED}):\n\
             \x20   try: socket.create_connection(('127.0.0.1', {port})).close(); ok += 1\n\
             \x20   except PermissionError: pass\n\
             print(ok, flush=True)\n"
        ));
        let connects = connects.spawn();
        let answered: Vec<String> = (0..PERMITTED)
            .map(|n| format!("/v1/{n}"))
            .filter(|path| probe.tries(&format!("get {}", origin.url(path))) == "ok 200")
            .collect();
        let connected = number(connects);
        let refused: u64 = storms.into_iter().map(number).sum();
        over.store(true, Ordering::Relaxed);
        (
            refused,
            connected,
            answered,
            accepting.join().expect("no panic"),
        )
    });
    assert_eq!(refused, 2 * each as u64, "each call was refused");
    assert_eq!(answered.len(), PERMITTED, "another agent goes on");
    assert_eq!(
        connected, PERMITTED as u64,
        "what it may do it goes on with"
    );
    assert_eq!(connected, accepted);
    let records = guard.audit();
    let of = |agent: &'static str, outcome: &'static str| {
        records
            .iter()
            .filter(move |record| record.agent() == agent && record.outcome() == outcome)
    };
    let to_sink = format!("127.0.0.1:{port}");
    let connects = of("storm", "allow").filter(|record| record.resource() == to_sink);
    assert_eq!(
        connects.count() as u64,
        accepted,
        "each connect is recorded"
    );
    for path in &answered {
        let found = of("probe", "allow").filter(|record| record.path() == path);
        assert_eq!(found.count(), 1, "{path}");
    }
    let told: u64 = of("storm", "deny").map(Record::count).sum();
    assert_eq!(told, refused, "each refusal is told of");
    let lines = of("storm", "deny").count() as u64;
    assert!(
        lines < refused / 10,
        "{lines} records of {refused} refusals"
    );
    guard.cli(["audit", "verify"]).ok();
}

fn storm(guard: &Guard<'_>, calls: usize) -> Running {
    guard
        .agent("storm")
        .python(&format!(
            "import socket\n\
             s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
             refused = 0\n\
             for _ in range({calls}):\n\
             \x20   try: s.sendto(b'x', ('127.0.0.1', 9))\n\
             \x20   except PermissionError: refused += 1\n\
             print(refused, flush=True)\n"
        ))
        .spawn()
}

fn number(client: Running) -> u64 {
    client
        .finish()
        .ok()
        .stdout
        .trim()
        .parse()
        .expect("a number")
}

/// How many connections there were until it was `over`.
fn accept_all(sink: &TcpListener, over: &AtomicBool) -> u64 {
    sink.set_nonblocking(true).expect("a socket");
    let mut accepted = 0;
    loop {
        let is_over = over.load(Ordering::Relaxed);
        match sink.accept() {
            Ok(_) => accepted += 1,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if is_over {
                    return accepted;
                }
                thread::yield_now();
            }
            Err(error) => panic!("{error}"),
        }
    }
}
