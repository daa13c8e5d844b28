use agentguard_common::abi::{Event, EventKind, UnixName};
use agentguard_common::verdict::Refusal;
use agentguard_kernel::UnixJudged;

use crate::machine::*;

/// A connect by a stream socket and a send by a datagram socket, each to a path and to an abstract name.
const CALLS: &str = "
def stream(name):
    s = socket.socket(socket.AF_UNIX); r = attempt(s.connect, name); return 'ok' if r is None else r
def send(name):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); r = attempt(s.sendto, b'x', name); return 'ok' if r == 1 else r
";

/// Sockets of the test's own, which live with the process that prints their folder.
fn servers() -> (Script, String) {
    let mut process = Script::start(
        "import tempfile
d = tempfile.mkdtemp(); os.chdir(d); keep = []
for kind, name in ((socket.SOCK_STREAM, 's'), (socket.SOCK_DGRAM, 'd')):
    for address in (d + '/' + name, '\\0' + d + name):
        s = socket.socket(socket.AF_UNIX, kind); s.bind(address); keep.append(s)
        if kind == socket.SOCK_STREAM: s.listen()
say(d); wait()
import shutil; shutil.rmtree(d)",
    );
    process.go();
    let folder = process.line();
    (process, folder)
}

fn name(text: &str) -> UnixName {
    UnixName::new(text.as_bytes()).unwrap()
}

#[test]
fn only_listed_sockets_are_reached() {
    let mut machine = Machine::new();
    let judged = machine.kernel().unix_judged();
    if judged == UnixJudged::Never {
        eprintln!("skipped: no hook judges Unix sockets");
        return;
    }
    let (mut servers, dir) = servers();
    let calls = format!(
        "{CALLS}os.chdir('{dir}')
say(stream('{dir}/s'), send('{dir}/d'), stream('\\0{dir}s'), send('\\0{dir}d'))
say(stream('s'), stream('{dir}/./s'), stream('{dir}//s'), stream('{dir}/s\\0'))
a, b = socket.socketpair(); a.send(b'x'); say(b.recv(1).decode(), os.listdir('.') != [])"
    );
    assert_eq!(
        bystander(&calls).lines().next(),
        Some("ok ok ok ok"),
        "without an agent"
    );
    let said = machine.run(&calls);
    let mut lines = said.lines();
    assert_eq!(lines.next(), Some("EPERM EPERM EPERM EPERM"));
    assert_eq!(lines.next(), Some("EPERM EPERM EPERM EPERM"));
    assert_eq!(lines.next(), Some("x True"), "pairs are free");
    assert_eq!(machine.refused(EventKind::Unix, Refusal::UnixSocket), 8);

    machine
        .kernel()
        .set_unix(
            AGENT,
            &[
                name(&format!("{dir}/s")),
                name(&format!("{dir}/d")),
                name(&format!("\0{dir}s")),
            ],
        )
        .unwrap();
    let said = machine.run(&calls);
    let mut lines = said.lines();
    assert_eq!(lines.next(), Some("ok ok ok EPERM"));
    let (other_spellings, refused) = match judged {
        UnixJudged::AsBound => ("ok ok ok ok", 1),
        _ => ("EPERM EPERM EPERM ok", 4),
    };
    assert_eq!(lines.next(), Some(other_spellings));
    let all = machine.refused(EventKind::Unix, Refusal::UnixSocket);
    assert_eq!(all, 8 + refused);
    let allowed = machine.events().iter().filter(|event| {
        event.kind == EventKind::Unix as u32 && event.reason == 0 && event.proto != Event::UNIX_SEND
    });
    // The path, the abstract name, and as far as they count the other spellings.
    let connects = match judged {
        UnixJudged::AsBound => 6,
        _ => 3,
    };
    assert_eq!(
        allowed.count(),
        connects,
        "each connect is recorded, no send"
    );
    servers.tell("");
    servers.finish();
}

#[test]
fn names_are_reported_as_they_are() {
    let mut machine = Machine::new();
    // With LSM hooks it takes a socket that is there.
    if machine.kernel().unix_judged() != UnixJudged::AsWritten {
        eprintln!("skipped: names are not judged as they are written");
        return;
    }
    let longest = format!("/{}", "x".repeat(106));
    machine.run(&format!(
        "{CALLS}stream('/nowhere/a'); stream('\\0abstract'); stream('{longest}'); stream('\\0' + 'y' * 107); stream('\\0')"
    ));
    let names: Vec<Vec<u8>> = machine
        .events()
        .iter()
        .filter(|event| event.kind == EventKind::Unix as u32)
        .map(|event| event.path[..event.path_len as usize].to_vec())
        .collect();
    let expected = [
        b"/nowhere/a".to_vec(),
        b"\0abstract".to_vec(),
        longest.into_bytes(),
        [b"\0".to_vec(), vec![b'y'; 107]].concat(),
        b"\0".to_vec(),
    ];
    assert_eq!(names, expected);
}

#[test]
fn the_kill_reaches_listed_sockets() {
    let mut machine = Machine::new();
    if machine.kernel().unix_judged() == UnixJudged::Never {
        eprintln!("skipped: no hook judges Unix sockets");
        return;
    }
    let (mut servers, dir) = servers();
    machine
        .kernel()
        .set_unix(AGENT, &[name(&format!("{dir}/s"))])
        .unwrap();
    let mut agent = machine.agent(
        AGENT,
        &format!("{CALLS}say(stream('{dir}/s')); wait(); say(stream('{dir}/s'))"),
    );
    assert_eq!(agent.line(), "ok");
    machine.kernel().set_killed(AGENT, true).unwrap();
    agent.go();
    assert_eq!(agent.line(), "EPERM");
    machine.kernel().set_killed(AGENT, false).unwrap();
    servers.tell("");
    servers.finish();
}
