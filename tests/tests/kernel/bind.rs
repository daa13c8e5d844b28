use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use agentguard_common::abi::{EventKind, Label};
use agentguard_common::verdict::Refusal;
use agentguard_kernel::Rule;

use crate::machine::*;

/// Ports that were free a moment ago, no two the same.
fn free_ports<const N: usize>() -> [u16; N] {
    let servers = [(); N].map(|()| server("127.0.0.1"));
    servers.map(|(_, port)| port)
}

#[test]
fn an_agent_listens_only_where_a_rule_says() {
    let mut machine = Machine::new();
    let [port, other] = free_ports();
    machine.rules(&[Rule::ListenTcp {
        addr: Ipv4Addr::LOCALHOST.into(),
        port,
    }]);
    let mut agent = machine.agent(
        AGENT,
        &format!(
            "def bind(host, port, family=socket.AF_INET, kind=socket.SOCK_STREAM):
    return attempt(socket.socket(family, kind).bind, (host, port))
say(bind('127.0.0.1', {other}), bind('0.0.0.0', {port}), bind('127.0.0.2', {port}), bind('127.0.0.1', 0), bind('::', {port}, socket.AF_INET6))
say(bind('127.0.0.1', {other}, kind=socket.SOCK_DGRAM), bind('0.0.0.0', 0, kind=socket.SOCK_DGRAM))
l = socket.socket(); l.bind(('127.0.0.1', {port})); l.listen(); say('listening')
c, _ = l.accept(); c.sendall(b'served'); wait()"
        ),
    );
    assert_eq!(agent.line(), "EPERM EPERM EPERM EPERM EPERM");
    assert_eq!(agent.line(), "EPERM None");
    assert_eq!(agent.line(), "listening");
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let mut answer = [0; 6];
    std::io::Read::read_exact(&mut stream, &mut answer).unwrap();
    assert_eq!(&answer, b"served");
    assert_eq!(machine.refused(EventKind::Bind, Refusal::Listen), 6);
}

#[test]
fn every_address_may_be_listed_at_once() {
    let mut machine = Machine::new();
    let [port] = free_ports();
    machine.rules(&[Rule::ListenTcp {
        addr: Ipv4Addr::UNSPECIFIED.into(),
        port,
    }]);
    let mut agent = machine.agent(
        AGENT,
        &format!(
            "l = socket.socket(); l.bind(('0.0.0.0', {port})); l.listen(); say('listening')
c, _ = l.accept(); c.sendall(b'served'); wait()"
        ),
    );
    assert_eq!(agent.line(), "listening");
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let mut answer = [0; 6];
    std::io::Read::read_exact(&mut stream, &mut answer).unwrap();
}

#[test]
fn listen_without_bind_gets_no_answer_out() {
    let mut machine = Machine::new();
    machine.rules(&[Rule::Forward]);
    let mut agent = machine.agent(
        AGENT,
        "l = socket.socket(); say(attempt(l.listen) or l.getsockname()[1]); wait()",
    );
    let said = agent.line();
    if machine.kernel().lsm() {
        assert_eq!(said, "EPERM");
        assert_eq!(machine.refused(EventKind::Bind, Refusal::Listen), 1);
        return;
    }
    let port: u16 = said.parse().unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let connected = TcpStream::connect_timeout(&address, Duration::from_millis(300));
    assert!(connected.is_err());
    let event = machine.await_event(|event| event.kind == EventKind::Packet as u32);
    assert_eq!(event.reason, Refusal::Listen as u32);
}

#[test]
fn with_lsm_a_listen_is_judged_by_the_port_that_the_socket_has() {
    let mut machine = Machine::new();
    if let Some(why) = machine.kernel().no_lsm() {
        eprintln!("skipped: {why}");
        return;
    }
    let [listed, other] = free_ports();
    machine.rules(&[Rule::ListenTcp {
        addr: Ipv4Addr::LOCALHOST.into(),
        port: listed,
    }]);
    // Bound before they were an agent's, so that no bind was judged.
    let mut process = Script::start(&format!(
        "def bound(family, address):
    s = socket.socket(family); s.bind(address); return s
sockets = [bound(2, ('127.0.0.1', {listed})), bound(2, ('127.0.0.1', {other})), bound(2, ('127.0.0.2', {listed})),
    bound(10, ('::1', {other})), socket.socket(10), bound(1, '\\0agentguard-test-{listed}')]
say('bound'); wait()
say(*[attempt(s.listen) or 'ok' for s in sockets])"
    ));
    process.go();
    assert_eq!(process.line(), "bound");
    let label = Label {
        agent: AGENT,
        flags: 0,
    };
    machine.kernel().set_label(process.tgid(), label).unwrap();
    process.go();
    assert_eq!(process.line(), "ok EPERM EPERM EPERM EPERM ok");
    assert_eq!(machine.refused(EventKind::Bind, Refusal::Listen), 4);
}

#[test]
fn a_listed_datagram_port_answers() {
    let mut machine = Machine::new();
    let [port] = free_ports();
    machine.rules(&[Rule::ListenUdp {
        addr: Ipv4Addr::LOCALHOST.into(),
        port,
    }]);
    let mut agent = machine.agent(
        AGENT,
        &format!(
            "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('127.0.0.1', {port})); say('bound')
data, peer = u.recvfrom(9); say(attempt(u.sendto, b'answer', peer)); wait()"
        ),
    );
    assert_eq!(agent.line(), "bound");
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    client.send_to(b"q", ("127.0.0.1", port)).unwrap();
    assert_eq!(agent.line(), "6");
    assert_eq!(client.recv(&mut [0; 9]).unwrap(), 6);
}
