use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use agentguard_common::abi::{AgentId, EventKind, Label, TAG_PORT};
use agentguard_common::verdict::Refusal;
use agentguard_kernel::Rule;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, connect, socket,
};

use crate::machine::*;

/// Nothing arrives for as long as a retransmission takes several times over.
fn is_mute(stream: &mut TcpStream) -> bool {
    stream
        .set_read_timeout(Some(Duration::from_millis(400)))
        .unwrap();
    let kind = stream.read(&mut [0; 64]).map_err(|error| error.kind());
    kind == Err(std::io::ErrorKind::WouldBlock)
}

#[test]
fn a_live_connection_falls_mute_and_speaks_again_when_revived() {
    let mut machine = Machine::new();
    let (listener, port) = server("127.0.0.1");
    machine.rules(&[reach_tcp("127.0.0.1/32", port)]);
    let mut agent = machine.agent(
        AGENT,
        &format!(
            "s = tcp('127.0.0.1', {port}); s.sendall(b'before'); say('sent'); wait(); s.sendall(b'after'); say('sent'); wait()"
        ),
    );
    let mut stream = accept(&listener);
    assert_eq!(agent.line(), "sent");
    assert_eq!(stream.read(&mut [0; 64]).unwrap(), 6);
    machine.kernel().set_killed(AGENT, true).unwrap();
    assert!(machine.kernel().killed(AGENT).unwrap());
    agent.go();
    assert_eq!(agent.line(), "sent");
    assert!(is_mute(&mut stream));
    assert!(machine.refused(EventKind::Packet, Refusal::Killed) >= 1);
    machine.kernel().set_killed(AGENT, false).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    assert_eq!(stream.read(&mut [0; 64]).unwrap(), 5);
}

#[test]
fn live_connections_are_destroyed_and_other_agents_are_not() {
    let mut machine = Machine::new();
    let (listener, port) = server("127.0.0.1");
    let (listener6, port6) = server("::1");
    machine.rules(&[reach_tcp("127.0.0.1/32", port), reach_tcp("::1/128", port6)]);
    machine
        .kernel()
        .set_rules(OTHER, &[reach_tcp("127.0.0.1/32", port)])
        .unwrap();
    let script = format!("s = tcp('127.0.0.1', {port}); say('on'); say(attempt(s.recv, 9))");
    let mut agent = machine.agent(
        AGENT,
        &format!(
            "t = tcp('127.0.0.1', {port}); s = tcp('::1', {port6}, socket.AF_INET6); say('on'); say(attempt(s.recv, 9), attempt(t.recv, 9))"
        ),
    );
    assert_eq!(agent.line(), "on");
    let peers = [accept(&listener), accept(&listener6)];
    let mut other = machine.agent(OTHER, &script);
    assert_eq!(other.line(), "on");
    let mut other_peer = accept(&listener);
    machine.kernel().set_killed(AGENT, true).unwrap();
    assert_eq!(machine.kernel().destroy_sockets(AGENT).unwrap(), 2);
    assert_eq!(agent.finish(), "ECONNABORTED ECONNABORTED");
    other_peer.write_all(b"alive").unwrap();
    assert_eq!(other.line(), "b'alive'");
    assert_eq!(machine.kernel().destroy_sockets(AGENT).unwrap(), 0);
    drop(peers);
}

#[test]
fn a_killed_agent_gets_no_further() {
    let mut machine = Machine::new();
    machine.rules(&[Rule::Forward, reach_udp("127.0.0.1/32", 9)]);
    let _forwarder = machine.forwarder();
    let mut agent = machine.agent(
        AGENT,
        "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s = socket.socket(); say('ready'); wait()
say(attempt(s.connect, ('127.9.9.9', 443)), attempt(u.sendto, b'x', ('127.0.0.1', 9)), attempt(u.bind, ('127.0.0.1', 0)), attempt(socket.socket), attempt(u.connect, ('127.0.0.1', 9)))
say(attempt(lambda: subprocess.run(['/bin/true']).returncode))
os.execv('/bin/echo', ['echo', 'ran'])",
    );
    assert_eq!(agent.line(), "ready");
    machine.kernel().set_killed(AGENT, true).unwrap();
    agent.go();
    assert_eq!(agent.line(), "EPERM EPERM EPERM EPERM EPERM");
    let refused = if machine.kernel().lsm() {
        "EPERM"
    } else {
        "-9"
    };
    assert_eq!(agent.line(), refused);
    assert_eq!(agent.finish(), "");
    assert_eq!(machine.refused(EventKind::Exec, Refusal::Killed), 2);
    assert_eq!(machine.counter("signal_failed"), 0);
    machine.kernel().set_killed(AGENT, false).unwrap();
    assert_eq!(machine.run("say(connect('127.9.9.9', 443))"), "ok");
}

/// A socket bound as the forwarder binds those to an upstream.
fn tagged(agent: AgentId, to: SocketAddr) -> nix::Result<TcpStream> {
    let stream = |family| socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
    let [a, b, c, d] = agent.0.to_be_bytes();
    let fd: OwnedFd = match to {
        SocketAddr::V4(to) => {
            let fd = stream(AddressFamily::Inet)?;
            bind(fd.as_raw_fd(), &SockaddrIn::new(a, b, c, d, TAG_PORT))?;
            connect(fd.as_raw_fd(), &SockaddrIn::from(to))?;
            fd
        }
        SocketAddr::V6(to) => {
            let fd = stream(AddressFamily::Inet6)?;
            let tag = std::net::Ipv6Addr::from(u128::from(agent.0));
            let tag = std::net::SocketAddrV6::new(tag, TAG_PORT, 0, 0);
            bind(fd.as_raw_fd(), &SockaddrIn6::from(tag))?;
            connect(fd.as_raw_fd(), &SockaddrIn6::from(to))?;
            fd
        }
    };
    Ok(TcpStream::from(fd))
}

#[test]
fn the_forwarders_upstream_sockets_fall_mute_with_their_agent() {
    let mut machine = Machine::alone();
    machine.rules(&[Rule::Forward]);
    let _forwarder = machine.forwarder();
    for ip in ["127.0.0.1", "::1"] {
        let (listener, _) = server(ip);
        let to = listener.local_addr().unwrap();
        let mut upstream = tagged(AGENT, to).unwrap();
        let mut others = tagged(OTHER, to).unwrap();
        let (mut peer, mut others_peer) = (accept(&listener), accept(&listener));
        assert_eq!(upstream.local_addr().unwrap().ip(), to.ip());
        upstream.write_all(b"before").unwrap();
        assert_eq!(peer.read(&mut [0; 64]).unwrap(), 6);
        machine.kernel().set_killed(AGENT, true).unwrap();
        upstream.write_all(b"after").unwrap();
        assert!(is_mute(&mut peer));
        others.write_all(b"alive").unwrap();
        assert_eq!(others_peer.read(&mut [0; 64]).unwrap(), 5);
        assert_eq!(tagged(AGENT, to).err(), Some(nix::errno::Errno::EPERM));
        assert_eq!(machine.kernel().destroy_sockets(AGENT).unwrap(), 1);
        machine.kernel().set_killed(AGENT, false).unwrap();
        // What was unsent at the kill stays unsent; the reset alone tells the peer.
        let told = peer.read(&mut [0; 64]).unwrap_err();
        assert_eq!(told.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

#[test]
fn only_the_forwarder_can_tag_a_socket() {
    let mut machine = Machine::alone();
    machine.rules(&[Rule::Forward]);
    let _forwarder = machine.forwarder();
    // As root, a bind to port 1 of an address that is not ours fails for what it says.
    let script = "say(attempt(socket.socket().bind, ('0.0.0.2', 1)))";
    assert_eq!(bystander(script), "EADDRNOTAVAIL");
    assert_eq!(machine.run(script), "EPERM");
    for agent in [AgentId::NONE, AgentId::AMBIGUOUS, AgentId(5000)] {
        let to = server("127.0.0.1").0.local_addr().unwrap();
        assert_eq!(tagged(agent, to).err(), Some(nix::errno::Errno::EPERM));
    }
}

#[test]
fn a_label_that_denies_all_is_as_good_as_a_kill() {
    let mut machine = Machine::new();
    machine.rules(&[Rule::Forward]);
    let _forwarder = machine.forwarder();
    let mut agent = Script::start("say(connect('127.9.9.9', 443))");
    let label = Label {
        agent: AGENT,
        flags: Label::DENY_ALL,
    };
    machine.kernel().set_label(agent.tgid(), label).unwrap();
    agent.go();
    assert_eq!(agent.finish(), "EPERM");
}

#[test]
fn an_ambiguous_process_may_do_nothing() {
    let mut machine = Machine::new();
    let mut agent = machine.agent(
        AgentId::AMBIGUOUS,
        "say(attempt(socket.socket), subprocess.run(['/bin/true']).returncode)",
    );
    assert_eq!(agent.line(), "EPERM 0");
    assert_eq!(machine.refused(EventKind::Socket, Refusal::Ambiguous), 1);
}
