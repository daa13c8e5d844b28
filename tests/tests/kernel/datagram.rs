use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use agentguard_common::abi::EventKind;
use agentguard_common::verdict::Refusal;
use agentguard_kernel::Rule;

use crate::machine::*;

#[test]
fn a_question_arrives_at_the_resolver_and_its_answer_from_the_address_asked() {
    let mut machine = Machine::new();
    machine.rules(&[Rule::Forward]);
    let forwarder = machine.forwarder();
    let origins = machine.origins();
    let connected = "u.connect(to); say(*u.getpeername()[:2]); u.send(b'q'); say(u.recv(9).decode(), *u.getpeername()[:2]); wait()";
    let unconnected = "u.sendto(b'q', to); say('-'); data, peer = u.recvfrom(9); say(data.decode(), *peer[:2]); wait()";
    for (family, address, asked, resolver) in [
        ("AF_INET", "127.9.9.9", "127.9.9.9", &forwarder.dns),
        ("AF_INET6", "::ffff:127.9.9.9", "127.9.9.9", &forwarder.dns),
        ("AF_INET6", "::1", "::1", &forwarder.dns6),
    ] {
        for way in [connected, unconnected] {
            let mut agent = machine.agent(
                AGENT,
                &format!(
                    "u = socket.socket(socket.{family}, socket.SOCK_DGRAM); u.settimeout(5); to = ('{address}', 53); {way}"
                ),
            );
            let question = Question::receive(resolver);
            let origin = question.origin(&origins).expect("an origin");
            assert_eq!(IpAddr::from(origin.addr), asked.parse::<IpAddr>().unwrap());
            assert_eq!((origin.port, origin.agent), (53, AGENT));
            resolver.send_to(b"answer", question.peer).unwrap();
            agent.line();
            assert_eq!(agent.line(), format!("answer {address} 53"));
            agent.go();
            agent.finish();
        }
    }
}

#[test]
fn questions_asked_at_once_on_one_socket_all_have_their_origin() {
    let mut machine = Machine::new();
    machine.rules(&[Rule::Forward]);
    let forwarder = machine.forwarder();
    let origins = machine.origins();
    let agent = machine.agent(
        AGENT,
        "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for n in range(1, 9): u.sendto(b'q', ('127.9.9.%d' % n, 53))
say('sent'); wait()",
    );
    for _ in 0..8 {
        let question = Question::receive(&forwarder.dns);
        assert!(question.origin(&origins).is_some());
    }
    drop(agent);
}

/// The address and port of an agent's question are others' too, by `SO_REUSEADDR`.
#[test]
fn who_asks_is_known_by_the_socket_and_not_by_its_address() {
    const ASK: &str = "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
u.bind(('127.0.0.1', int(wait()))); say(u.getsockname()[1])
while wait(): u.sendto(b'q', ('127.9.9.9', 53))";
    let mut machine = Machine::new();
    machine.rules(&[Rule::Forward]);
    let forwarder = machine.forwarder();
    let origins = machine.origins();
    let mut first = machine.agent(AGENT, ASK);
    first.tell("0");
    let port = first.number();
    let shared = Rule::ListenUdp {
        addr: "127.0.0.1".parse().unwrap(),
        port: u16::try_from(port).unwrap(),
    };
    let rules = [Rule::Forward, shared];
    machine.kernel().set_rules(OTHER, &rules).unwrap();
    let mut second = machine.agent(OTHER, ASK);
    second.tell(&port.to_string());
    assert_eq!(second.number(), port);
    // All of them are under way before the first is looked at.
    let agents = [AGENT, OTHER];
    let mut scripts = [first, second];
    let asked = [0, 1, 0].map(|n| {
        scripts[n].tell("ask");
        let question = Question::receive(&forwarder.dns);
        assert_eq!(u32::from(question.peer.port()), port);
        (question, agents[n], scripts[n].tgid())
    });
    for (question, agent, tgid) in &asked {
        let origin = question.origin(&origins).expect("an origin");
        assert_eq!((origin.agent, origin.tgid), (*agent, *tgid));
    }

    // Nobody's, from there, by either way to have that address.
    let to = forwarder.port;
    let said = bystander(&format!(
        "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); u.bind(('127.0.0.1', {port}))
say(attempt(u.sendto, b'q', ('127.0.0.1', {to})))
v = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
v.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); v.bind(('0.0.0.0', {port}))
info = struct.pack('i4s4s', 0, bytes([127, 0, 0, 1]), bytes(4))
say(attempt(v.sendmsg, [b'q'], [(socket.IPPROTO_IP, 8, info)], 0, ('127.0.0.1', {to})))"
    ));
    assert_eq!(said, "1\n1", "a process that is nobody's is not refused");
    assert!(!is_readable(&forwarder.dns, Duration::from_millis(50)));
    // Who may mark packets as it likes has to guess.
    let said = bystander(&format!(
        "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); u.bind(('127.0.0.1', {port}))
u.setsockopt(socket.SOL_SOCKET, 36, 77); say(u.sendto(b'q', ('127.0.0.1', {to})))"
    ));
    assert_eq!(said, "1");
    let guessed = Question::receive(&forwarder.dns);
    assert_eq!(guessed.origin(&origins), None);
    drop(scripts);
}

#[test]
fn other_datagrams_are_refused() {
    let mut machine = Machine::new();
    machine.rules(&[Rule::Forward]);
    let _forwarder = machine.forwarder();
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let said = machine.run(&format!(
        "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
say(attempt(u.sendto, b'x', ('127.0.0.1', {port})))
say(attempt(u.connect, ('127.0.0.1', {port})), attempt(u.send, b'x'))
v = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
say(attempt(v.sendto, b'x', ('::1', {port})), attempt(v.sendto, b'x', ('::ffff:127.0.0.1', {port})))
# AF_UNSPEC as the family of a destination means AF_INET to udp_sendmsg.
name = struct.pack('<H', 0) + struct.pack('>H', {port}) + bytes([127, 0, 0, 1]) + bytes(8)
libc = ctypes.CDLL(None, use_errno=True)
w = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
say(libc.sendto(w.fileno(), b'x', 1, 0, name, 16), errno.errorcode[ctypes.get_errno()])"
    ));
    assert_eq!(said, "EPERM\nNone EPERM\nEPERM EPERM\n-1 EPERM");
    server
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    assert!(server.recv(&mut [0; 9]).is_err(), "nothing arrived");
    assert_eq!(machine.refused(EventKind::Send, Refusal::NoRule), 5);
}

#[test]
fn a_rule_lets_datagrams_through_and_makes_one_event() {
    let mut machine = Machine::new();
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let port = server.local_addr().unwrap().port();
    machine.rules(&[reach_udp("127.0.0.1/32", port)]);
    let agent = machine.agent(
        AGENT,
        &format!(
            "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.settimeout(5)
for _ in range(3): u.sendto(b'x', ('127.0.0.1', {port}))
say(u.recvfrom(9)[1] == ('127.0.0.1', {port}))"
        ),
    );
    let mut peer = None;
    for _ in 0..3 {
        peer = Some(server.recv_from(&mut [0; 9]).unwrap().1);
    }
    server.send_to(b"y", peer.unwrap()).unwrap();
    assert_eq!(agent.finish(), "True");
    let allowed = machine
        .events()
        .iter()
        .filter(|event| event.kind == EventKind::Send as u32 && event.reason == 0)
        .count();
    assert_eq!(allowed, 1);
}

#[test]
fn a_listening_socket_answers_whom_it_has_heard_and_nobody_else() {
    let mut machine = Machine::new();
    for (family, any) in [("AF_INET", "0.0.0.0"), ("AF_INET6", "::")] {
        let port = UdpSocket::bind((any, 0))
            .and_then(|socket| socket.local_addr())
            .unwrap()
            .port();
        machine.rules(&[Rule::ListenUdp {
            addr: any.parse().unwrap(),
            port,
        }]);
        let [peer, stranger] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        for socket in [&peer, &stranger] {
            let soon = Duration::from_secs(5);
            socket.set_read_timeout(Some(soon)).unwrap();
        }
        let other = stranger.local_addr().unwrap().port();
        let before = machine.events().len();
        let mut agent = machine.agent(
            AGENT,
            &format!(
                "l = socket.socket(socket.{family}, socket.SOCK_DGRAM); l.bind(('{any}', {port}))
to = ('127.0.0.1' if '{family}' == 'AF_INET' else '::ffff:127.0.0.1', {other})
say(attempt(l.sendto, b'x', to))
data, peer = l.recvfrom(9)
for _ in range(3): l.sendto(b'answer', peer)
say(attempt(l.sendto, b'x', to))
l.recv(9); say(attempt(l.sendto, b'x', to))
l.connect(to); say(attempt(l.send, b'x'))"
            ),
        );
        assert_eq!(agent.line(), "EPERM");
        peer.send_to(b"question", ("127.0.0.1", port)).unwrap();
        assert_eq!(agent.line(), "EPERM", "one that was not heard");
        // A datagram that is read without its sender's address.
        stranger.send_to(b"question", ("127.0.0.1", port)).unwrap();
        assert_eq!(
            agent.line(),
            "EPERM",
            "one that was not asked for its address"
        );
        assert_eq!(agent.line(), "EPERM", "one that it is connected to");
        for _ in 0..3 {
            assert_eq!(peer.recv(&mut [0; 9]).unwrap(), b"answer".len());
        }
        let events = machine.events();
        let allowed = events[before..]
            .iter()
            .filter(|event| event.kind == EventKind::Send as u32 && event.reason == 0);
        assert_eq!(allowed.count(), 1, "the first answer");
        let quiet = Duration::from_millis(50);
        stranger.set_read_timeout(Some(quiet)).unwrap();
        assert!(stranger.recv(&mut [0; 9]).is_err(), "nothing arrived");
    }
}

#[test]
fn a_connected_socket_with_a_control_message_is_judged_by_its_packets() {
    let mut machine = Machine::new();
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let script = format!(
        "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.connect(('127.0.0.1', {port}))
say(attempt(u.sendmsg, [b'x'], [(socket.IPPROTO_IP, socket.IP_TTL, struct.pack('i', 9))]))"
    );
    assert_eq!(machine.run(&script), "EPERM");
    machine.rules(&[reach_udp("127.0.0.1/32", port)]);
    assert_eq!(machine.run(&script), "1");
}

#[test]
fn without_a_resolver_questions_are_refused() {
    let mut machine = Machine::new();
    machine.rules(&[Rule::Forward]);
    let said = machine.run(
        "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
say(attempt(u.sendto, b'q', ('127.9.9.9', 53)), attempt(u.connect, ('127.9.9.9', 53)))",
    );
    assert_eq!(said, "EPERM EPERM");
}
