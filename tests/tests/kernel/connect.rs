use std::io::Read as _;
use std::net::{IpAddr, TcpListener};
use std::time::Duration;

use agentguard_common::abi::{EventKind, Forwarder, Origin};
use agentguard_common::verdict::Refusal;
use agentguard_kernel::{OriginMaps, Rule};
use agentguard_sys::socket::netns_cookie;

use crate::machine::*;

/// The origin of the next connection that the listener accepts.
fn origin_of_next(listener: &TcpListener, origins: &OriginMaps) -> Origin {
    let stream = accept(listener);
    origins
        .accepted(cookie(&stream).unwrap())
        .unwrap()
        .expect("an origin")
}

#[test]
fn a_connection_to_a_host_arrives_at_the_forwarder_with_its_origin() {
    let mut machine = Machine::new();
    machine.rules(&[Rule::Forward]);
    let forwarder = machine.forwarder();
    let origins = machine.origins();
    for (family, address, asked, listener) in [
        ("AF_INET", "127.9.9.9", "127.9.9.9", &forwarder.v4),
        ("AF_INET6", "::ffff:127.9.9.9", "127.9.9.9", &forwarder.v4),
        ("AF_INET6", "::1", "::1", &forwarder.v6),
    ] {
        let mut agent = machine.agent(
            AGENT,
            &format!(
                "s = tcp('{address}', 8443, socket.{family}); say(*s.getpeername()[:2]); wait()"
            ),
        );
        let origin = origin_of_next(listener, &origins);
        assert_eq!(IpAddr::from(origin.addr), asked.parse::<IpAddr>().unwrap());
        assert_eq!((origin.port, origin.agent), (8443, AGENT), "{address}");
        assert_eq!(origin.tgid, agent.tgid());
        assert_eq!(agent.line(), format!("{address} 8443"), "getpeername");
        agent.go();
        agent.finish();
    }
    assert_eq!(machine.counter("flow_missing"), 0);
}

#[test]
fn an_origin_is_forgotten_with_its_connection() {
    let mut machine = Machine::new();
    machine.rules(&[Rule::Forward]);
    let forwarder = machine.forwarder();
    let origins = machine.origins();
    let agent = machine.agent(AGENT, "s = tcp('127.9.9.9', 80); wait()");
    let stream = accept(&forwarder.v4);
    let id = cookie(&stream).unwrap();
    assert!(origins.accepted(id).unwrap().is_some());
    drop(stream);
    assert_eq!(origins.accepted(id).unwrap(), None);
    drop(agent);
}

#[test]
fn what_is_unsent_at_the_close_still_arrives() {
    let mut machine = Machine::new();
    let (direct, port) = server("127.0.0.1");
    machine.rules(&[Rule::Forward, reach_tcp("127.0.0.1/32", port)]);
    let forwarder = machine.forwarder();
    for (listener, to) in [
        (&forwarder.v4, "'127.9.9.9', 443"),
        (&direct, &format!("'127.0.0.1', {port}")),
    ] {
        let script =
            format!("s = tcp({to}); s.sendall(bytes(3 << 20)); s.close(); say('closed'); wait()");
        let mut agent = machine.agent(AGENT, &script);
        let mut stream = accept(listener);
        let mut received = vec![0; 1];
        // The agent's end of the connection closes with most of it in the socket buffers.
        stream.read_exact(&mut received).unwrap();
        let rest = stream.read_to_end(&mut received).unwrap();
        assert_eq!(rest + 1, 3 << 20);
        assert_eq!(agent.line(), "closed");
    }
    assert_eq!(machine.counter("packets_dropped"), 0);
}

#[test]
fn a_direct_rule_leads_straight_to_the_address() {
    let mut machine = Machine::new();
    let (v4, port4) = server("127.0.0.1");
    let (v6, port6) = server("::1");
    machine.rules(&[
        reach_tcp("127.0.0.1/32", port4),
        reach_tcp("::1/128", port6),
    ]);
    for (listener, address, port, family) in [
        (&v4, "127.0.0.1", port4, "AF_INET"),
        (&v4, "::ffff:127.0.0.1", port4, "AF_INET6"),
        (&v6, "::1", port6, "AF_INET6"),
    ] {
        let agent = machine.agent(
            AGENT,
            &format!("s = tcp('{address}', {port}, socket.{family}); s.sendall(b'hello')"),
        );
        let mut text = String::new();
        accept(listener).read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello", "{address}");
        agent.finish();
    }
    let allowed = machine
        .events()
        .iter()
        .filter(|event| event.kind == EventKind::Connect as u32 && event.reason == 0);
    assert_eq!(allowed.count(), 3);
}

#[test]
fn what_no_rule_names_is_refused() {
    let mut machine = Machine::new();
    let (_server, port) = server("127.0.0.1");
    machine.rules(&[reach_tcp("127.0.0.1/32", port ^ 1)]);
    let said = machine.run(&format!(
        "say(connect('127.0.0.1', {port}), connect('::ffff:127.0.0.1', {port}, socket.AF_INET6), connect('::1', {port}, socket.AF_INET6))"
    ));
    assert_eq!(said, "EPERM EPERM EPERM");
    assert_eq!(machine.refused(EventKind::Connect, Refusal::NoRule), 3);
}

#[test]
fn an_agent_without_rules_reaches_nothing() {
    let mut machine = Machine::new();
    let (_server, port) = server("127.0.0.1");
    let said = machine.run(&format!("say(connect('127.0.0.1', {port}))"));
    assert_eq!(said, "EPERM");
}

#[test]
fn a_bystander_is_neither_touched_nor_recorded() {
    let mut machine = Machine::new();
    machine.rules(&[Rule::Forward]);
    let _forwarder = machine.forwarder();
    let (listener, port) = server("127.0.0.1");
    let said = bystander(&format!(
        "s = tcp('127.0.0.1', {port}); say(*s.getpeername())
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('127.0.0.1', 0)); u.sendto(b'x', u.getsockname()); say(u.recvfrom(9)[1] == u.getsockname())
l = socket.socket(); l.listen(); say(connect('127.0.0.1', l.getsockname()[1]))
say(attempt(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1).__class__.__name__)"
    ));
    accept(&listener);
    assert_eq!(said, format!("127.0.0.1 {port}\nTrue\nok\nsocket"));
    assert_eq!(machine.events().len(), 0);
    assert_eq!(machine.counter("refused"), 0);
}

#[test]
fn the_forwarders_port_is_refused_to_everyone() {
    let mut machine = Machine::new();
    machine.rules(&[Rule::Forward, reach_tcp("127.0.0.0/8", 0)]);
    let forwarder = machine.forwarder();
    let port = forwarder.port;
    let script = format!(
        "say(connect('127.0.0.1', {port}), connect('0.0.0.0', {port}), connect('::1', {port}, socket.AF_INET6), connect('::', {port}, socket.AF_INET6))"
    );
    assert_eq!(bystander(&script), "EPERM EPERM EPERM EPERM");
    assert_eq!(machine.run(&script), "EPERM EPERM EPERM EPERM");
}

#[test]
fn without_a_forwarder_a_connect_fails() {
    let mut machine = Machine::new();
    machine.rules(&[Rule::Forward]);
    let script = "say(connect('127.9.9.9', 443))";
    assert_eq!(machine.run(script), "EPERM");
    let forwarder = machine.forwarder();
    assert_eq!(machine.run(script), "ok");
    drop(forwarder.v6);
    assert_eq!(
        machine.run(script),
        "EPERM",
        "after the release of a listener"
    );
    machine.await_event(|event| event.kind == EventKind::ForwarderDown as u32);
    assert_eq!(
        machine.refused(EventKind::Connect, Refusal::ForwarderDown),
        2
    );
}

#[test]
fn the_death_of_the_forwarder_closes_the_way() {
    let mut machine = Machine::new();
    machine.rules(&[Rule::Forward]);
    let mut process = Script::start(
        "l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen(); say(l.getsockname()[1]); wait()",
    );
    process.go();
    let forwarder = Forwarder {
        up: 1,
        port: process.number(),
        tgid: process.tgid(),
        ..Forwarder::default()
    };
    let netns = netns_cookie().unwrap();
    machine.kernel().set_forwarder(netns, forwarder).unwrap();
    let script = "say(connect('127.9.9.9', 443), connect('::1', 443, socket.AF_INET6))";
    assert_eq!(machine.run(script), "ok EPERM", "there is no v6 listener");
    drop(process);
    machine.await_event(|event| event.kind == EventKind::ForwarderDown as u32);
    assert_eq!(machine.run(script), "EPERM EPERM");
}

#[test]
fn in_another_network_namespace_nobody_forwards() {
    let mut machine = Machine::new();
    machine.rules(&[Rule::Forward]);
    let _forwarder = machine.forwarder();
    let said = machine.run(
        "CLONE_NEWNET = 0x40000000
assert ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0
subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True)
say(connect('127.9.9.9', 443))",
    );
    assert_eq!(said, "EPERM");
    assert_eq!(machine.refused(EventKind::Connect, Refusal::Namespace), 1);
}

#[test]
fn an_agent_whose_rules_are_removed_reaches_nothing() {
    let mut machine = Machine::new();
    let (_server, port) = server("127.0.0.1");
    let script = format!("say(connect('127.0.0.1', {port}))");
    machine.rules(&[reach_tcp("127.0.0.1/32", port)]);
    assert_eq!(machine.run(&script), "ok");
    machine.kernel().remove_rules(AGENT).unwrap();
    assert_eq!(machine.run(&script), "EPERM");
    machine.kernel().remove_rules(AGENT).unwrap();
}

#[test]
fn a_socket_bound_to_a_device_is_not_redirected() {
    let mut machine = Machine::new();
    machine.rules(&[Rule::Forward]);
    let _forwarder = machine.forwarder();
    let said = machine.run(
        "s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'lo')
say(attempt(s.connect, ('127.9.9.9', 443)))",
    );
    assert_eq!(said, "EPERM");
    assert_eq!(
        machine.refused(EventKind::Connect, Refusal::BoundToDevice),
        1
    );
}

#[test]
fn a_socket_that_is_used_twice_is_judged_twice() {
    let mut machine = Machine::new();
    let (listener, port) = server("127.0.0.1");
    machine.rules(&[reach_tcp("127.0.0.1/32", port)]);
    // AF_UNSPEC takes the socket back to before its first connect.
    let said = machine.run(&format!(
        "s = tcp('127.0.0.1', {port})
libc = ctypes.CDLL(None); unspec = ctypes.create_string_buffer(16)
say(libc.connect(s.fileno(), unspec, 16), attempt(s.connect, ('127.0.0.1', {port} ^ 1)))"
    ));
    accept(&listener);
    assert_eq!(said, "0 EPERM");
}

#[test]
fn rules_are_switched_without_a_moment_between() {
    let mut machine = Machine::new();
    let (listener, port) = server("127.0.0.1");
    let rules = [
        [reach_tcp("127.0.0.1/32", port), reach_tcp("10.0.0.0/8", 1)],
        [reach_tcp("127.0.0.0/8", port), reach_tcp("10.1.0.0/16", 2)],
    ];
    machine.rules(&rules[0]);
    let mut agent = machine.agent(
        AGENT,
        &format!(
            "stop = threading.Event(); threading.Thread(target=lambda: (wait(), stop.set())).start()
said = set()
while not stop.is_set(): said.add(connect('127.0.0.1', {port}))
say(*said)"
        ),
    );
    let taker = std::thread::spawn(move || {
        while is_readable(&listener, Duration::from_secs(2)) {
            drop(listener.accept());
        }
    });
    for n in 0..60 {
        machine.rules(&rules[n % 2]);
    }
    agent.go();
    assert_eq!(agent.finish(), "ok");
    taker.join().unwrap();
}
