//! The forwarder itself as a way around: its port, another agent's flow, and its place while it is away.

use std::net::TcpListener;

use agentguard_tests::attempt::{AGENT, KEEP, User, alone, python, under};
use agentguard_tests::bundle::reach;
use agentguard_tests::process::{await_end, listening_ports};
use agentguard_tests::{Bundle, Client, Guard, Nginx, Site};

/// Ways to a port of one's choice.
const WAYS: [(&str, &str); 7] = [
    ("tcp", "tcp()"),
    ("tcp to the unspecified address", "tcp('0.0.0.0')"),
    ("tcp to ipv6", "tcp('::1')"),
    ("tcp to the unspecified ipv6 address", "tcp('::')"),
    ("tcp to a mapped address", "tcp('::ffff:127.0.0.1')"),
    (
        "fast open with data in the first packet",
        "s = socket.socket(); s.setsockopt(socket.IPPROTO_TCP, 34, 1)
s.sendto(MARK, socket.MSG_FASTOPEN, ('127.0.0.1', PORT))",
    ),
    (
        "fast open that waits for the first data",
        "tcp(prepare=lambda s: s.setsockopt(socket.IPPROTO_TCP, 30, 1))",
    ),
];

#[test]
fn its_port_is_closed_to_everyone() {
    let site = Site::new();
    let mut guard = Guard::start(&site, &one_host(443));
    let [port] = listening_ports(guard.forwarder_tgid())[..] else {
        panic!("the forwarder listens on one port");
    };
    for (name, code) in WAYS {
        let words = python(port, 0, code);
        for user in User::ALL {
            let before = guard.audit().len();
            let said = said(alone(&words).as_user(user));
            assert_eq!(said, "refused EPERM", "{name}, as {}", user.name());
            assert_eq!(
                guard.audit().len(),
                before,
                "{name}: nobody's is not recorded"
            );
            let agent = guard.agent(AGENT).user(user.name());
            let said = self::said(under(&agent, &words));
            assert_eq!(said, "refused EPERM", "{name}, as {}", user.name());
            let records = guard.audit().split_off(before);
            let [record] = &records[..] else {
                panic!("{name}: not one record: {records:#?}");
            };
            assert_eq!(
                (
                    record.agent(),
                    record.action(),
                    record.outcome(),
                    record.reason()
                ),
                (AGENT, "connect", "deny", "policy-denied"),
                "{name}"
            );
        }
    }
    drop(guard);
    // The same port, once nothing is loaded.
    let _v4 = TcpListener::bind(("127.0.0.1", port)).expect("free again");
    let _v6 = TcpListener::bind(("::1", port)).expect("free again");
    for (name, code) in WAYS {
        for user in User::ALL {
            let said = said(alone(&python(port, 0, code)).as_user(user));
            assert_eq!(said, "through", "{name}, as {}", user.name());
        }
    }
}

/// An agent that takes the source port of another one's connection is judged as itself.
#[test]
fn a_flow_is_not_inherited_with_its_port() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let own = TcpListener::bind("127.0.0.1:0").expect("a port");
    let source = own.local_addr().expect("bound").port();
    drop(own);
    let policy = |route: &str| {
        let listen = format!("[[listen]]\non = \"127.0.0.1:{source}\"\n");
        format!(
            "{KEEP}{}{listen}",
            reach("origin.test", origin.port_plain, &[route])
        )
    };
    let bundle = Bundle::new(1)
        .agent("first", &policy("GET /v1/**"))
        .agent("second", &policy("GET /v2/**"));
    let code = "s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(('127.0.0.1', OPEN)); s.connect(('127.0.0.1', PORT))
# A reset, so that the port is free at once.
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
s.sendall(b'GET /v1/x HTTP/1.1\\r\\nHost: origin.test:%d\\r\\n\\r\\n' % PORT)
print(s.recv(65536)[9:12].decode())";
    let words = python(origin.port_plain, source, code);
    let status = |client: Client| {
        let ran = client.run();
        ran.stdout.lines().next().unwrap_or_default().to_owned()
    };
    assert_eq!(status(alone(&words)), "200", "without AgentGuard");
    let guard = Guard::start(&site, &bundle);
    for (agent, wanted) in [("first", "200"), ("second", "403"), ("first", "200")] {
        let before = guard.requests().len();
        assert_eq!(
            status(under(&guard.agent(agent), &words)),
            wanted,
            "{agent}"
        );
        let records = guard.requests().split_off(before);
        let [record] = &records[..] else {
            panic!("{agent}: not one record: {records:#?}");
        };
        assert_eq!(record.agent(), agent);
    }
}

/// Who takes the port while the forwarder is away gets nothing of the agent's.
#[test]
fn its_port_taken_while_it_is_away() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let mut guard = Guard::start(&site, &one_host(origin.port_plain));
    let words = python(
        origin.port_plain,
        0,
        "ask(b'GET /v1/x HTTP/1.1\\r\\nHost: origin.test:%d\\r\\nConnection: close\\r\\n\\r\\n' % PORT)",
    );
    let forwarder = guard.forwarder_tgid();
    let [port] = listening_ports(forwarder)[..] else {
        panic!("the forwarder listens on one port");
    };
    assert_eq!(said(under(&guard.agent(AGENT), &words)), "through");
    // An agent that is there when the daemon goes: `run` needs it.
    let held = python(
        origin.port_plain,
        0,
        &format!(
            "print('up', flush=True); sys.stdin.readline()\n{}",
            words[words.len() - 1]
        ),
    );
    let mut agent = under(&guard.agent(AGENT), &held).spawn();
    agent.line(|line| line == "up");
    guard.crash();
    await_end(forwarder);
    let impostors = ["127.0.0.1", "::1"].map(|host| {
        let impostor = TcpListener::bind((host, port)).expect("free");
        impostor.set_nonblocking(true).expect("set");
        impostor
    });
    agent.say("go");
    agent.line(|line| line == "refused EPERM");
    for impostor in &impostors {
        assert!(impostor.accept().is_err(), "the agent came");
    }
    assert_eq!(said(alone(&words)), "through", "as no agent");
    // The new forwarder takes another port, or waits for nobody.
    guard.restart();
    assert_eq!(said(under(&guard.agent(AGENT), &words)), "through");
    for impostor in &impostors {
        assert!(impostor.accept().is_err(), "the agent came");
    }
}

fn one_host(port: u16) -> Bundle {
    let hosts = reach("origin.test", port, &["GET /v1/**"]);
    Bundle::new(1).agent(AGENT, &format!("{KEEP}{hosts}"))
}

fn said(client: Client) -> String {
    let ran = client.run();
    let last = ran.stdout.lines().last().map(str::to_owned);
    last.unwrap_or(ran.stderr)
}
