//! Network sockets that an agent's process has not made as that agent's. Only LSM hooks see them used.

use agentguard_common::abi::{EventKind, Label};
use agentguard_common::verdict::Refusal;

use crate::machine::*;

#[test]
fn a_connection_from_before_carries_nothing() {
    let mut machine = Machine::new();
    if let Some(why) = machine.kernel().no_lsm() {
        eprintln!("skipped: {why}");
        return;
    }
    let (_server, port) = server("127.0.0.1");
    machine.rules(&[reach_tcp("127.0.0.0/8", port)]);
    let mut process = Script::start(&format!(
        "s = tcp('127.0.0.1', {port}); say(s.send(b'x')); wait()
say(attempt(s.send, b'x'), attempt(os.write, s.fileno(), b'x'), connect('127.0.0.1', {port}))
n = tcp('127.0.0.1', {port}); say(n.send(b'x')); a, b = socket.socketpair(); say(a.send(b'x'))"
    ));
    process.go();
    assert_eq!(process.line(), "1", "nobody's");
    let label = Label {
        agent: AGENT,
        flags: 0,
    };
    let tgid = process.tgid();
    machine.kernel().set_label(tgid, label).unwrap();
    process.go();
    assert_eq!(process.finish(), "EPERM EPERM ok\n1\n1");
    assert_eq!(
        machine.refused(EventKind::HandedOver, Refusal::HandedOver),
        2
    );
}

#[test]
fn a_connection_is_not_received() {
    let mut machine = Machine::new();
    if let Some(why) = machine.kernel().no_lsm() {
        eprintln!("skipped: {why}");
        return;
    }
    let (_server, port) = server("127.0.0.1");
    let script = "l = socket.socket(socket.AF_UNIX); l.bind('\\0agentguard-test-' + str(os.getpid())); l.listen(); say(os.getpid())
c, _ = l.accept(); m, fds, flags, _ = socket.recv_fds(c, 1, 2); say(len(fds), flags & socket.MSG_CTRUNC != 0)";
    let give = |to: &str| {
        bystander(&format!(
            "c = socket.socket(socket.AF_UNIX); c.connect('\\0agentguard-test-{to}')
s = tcp('127.0.0.1', {port}); socket.send_fds(c, [b'x'], [s.fileno()])"
        ))
    };
    let mut nobodys = Script::start(script);
    nobodys.go();
    let name = nobodys.line();
    give(&name);
    assert_eq!(nobodys.finish(), "1 False");
    let mut agent = machine.agent(AGENT, script);
    let name = agent.line();
    give(&name);
    assert_eq!(agent.finish(), "0 True");
    assert_eq!(
        machine.refused(EventKind::HandedOver, Refusal::HandedOver),
        1
    );
}
