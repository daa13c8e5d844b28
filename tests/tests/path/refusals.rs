//! What the kernel itself refuses an agent: each attempt succeeds without AgentGuard, is `EPERM` with it, and leaves one
//! record.

use std::net::{TcpListener, UdpSocket};

use agentguard_tests::bundle::{direct, reach};
use agentguard_tests::client::dialer;
use agentguard_tests::{Bundle, Guard, Nginx, Record, Site};

/// Without this, `run` takes away what raw sockets need, and the hooks would go untried.
const KEEP: &str = "privileges = \"keep\"\n\n";

#[test]
fn every_way_out_that_no_rule_names() {
    let site = Site::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let listener6 = TcpListener::bind("[::1]:0").expect("a port");
    let tcp = listener.local_addr().expect("bound").port();
    let tcp6 = listener6.local_addr().expect("bound").port();
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let port = udp.local_addr().expect("bound").port();
    let ways = [
        (format!("tcp 127.0.0.1 {tcp}"), "connect"),
        (format!("tcp ::1 {tcp6}"), "connect"),
        (format!("tcp ::ffff:127.0.0.1 {tcp}"), "connect"),
        (format!("udp 127.0.0.1 {port}"), "sendmsg"),
        (format!("udp ::ffff:127.0.0.1 {port}"), "sendmsg"),
        (format!("send 127.0.0.1 {port}"), "sendmsg"),
        ("bind stream 127.0.0.1 0".to_owned(), "bind"),
        ("bind stream ::1 0".to_owned(), "bind"),
        ("bind dgram 127.0.0.1 34567".to_owned(), "bind"),
        ("socket inet raw 1".to_owned(), "socket"),
        ("socket inet6 raw 58".to_owned(), "socket"),
        ("socket inet raw 255".to_owned(), "socket"),
        ("socket inet stream 262".to_owned(), "socket"),
        ("socket inet6 stream 262".to_owned(), "socket"),
    ];
    let mut control = dialer(&site);
    for (way, _) in &ways {
        let answer = control.tries(way);
        assert!(
            answer.starts_with("ok"),
            "without AgentGuard, {way}: {answer}"
        );
    }

    // No host at all, so that nothing goes to the forwarder.
    let bundle = Bundle::new(1).agent("probe", KEEP);
    let guard = Guard::start(&site, &bundle);
    let mut agent = dialer(&guard.agent("probe"));
    udp.set_nonblocking(true).expect("set");
    while udp.recv(&mut [0; 16]).is_ok() {}
    for (way, action) in &ways {
        let before = guard.audit().len();
        assert_eq!(agent.tries(way), "error EPERM", "{way}");
        let after = guard.audit();
        let new: Vec<&Record> = after[before..].iter().collect();
        let [record] = &new[..] else {
            panic!("{way}: not one record: {new:#?}");
        };
        assert_eq!(
            (record.action(), record.outcome(), record.agent()),
            (*action, "deny", "probe"),
            "{way}"
        );
        let tgid = record.number("/process/tgid");
        assert_eq!(tgid, u64::from(agent.tgid), "{way}: {record:?}");
    }
    assert!(udp.recv(&mut [0; 16]).is_err(), "a datagram came through");
    assert!(
        agent.tries("bind dgram 127.0.0.1 0").starts_with("ok"),
        "resolvers need it"
    );
}

#[test]
fn what_a_kernel_rule_names_goes_straight_through() {
    let site = Site::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let tcp = listener.local_addr().expect("bound").port();
    let other = TcpListener::bind("127.0.0.1:0").expect("a port");
    let closed = other.local_addr().expect("bound").port();
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let port = udp.local_addr().expect("bound").port();
    let policy = direct(&format!("127.0.0.0/8:{tcp}"), "tcp")
        + &direct(&format!("127.0.0.1/32:{port}"), "udp")
        + "[[listen]]\non = \"127.0.0.1:14568\"\n";
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let mut agent = dialer(&guard.agent("probe"));
    assert_eq!(
        agent.tries(&format!("tcp 127.0.0.1 {tcp}")),
        format!("ok 127.0.0.1 {tcp}")
    );
    assert_eq!(
        agent.tries(&format!("tcp ::ffff:127.0.0.1 {tcp}")),
        format!("ok ::ffff:127.0.0.1 {tcp}")
    );
    assert_eq!(
        agent.tries(&format!("tcp 127.0.0.1 {closed}")),
        "error EPERM"
    );
    assert_eq!(agent.tries(&format!("udp 127.0.0.1 {port}")), "ok 5");
    assert_eq!(agent.tries(&format!("send 127.0.0.1 {port}")), "ok 5");
    assert_eq!(agent.tries(&format!("udp 127.0.0.2 {port}")), "error EPERM");
    assert_eq!(
        agent.tries("bind stream 127.0.0.1 14568"),
        "ok 127.0.0.1 14568"
    );
    assert_eq!(agent.tries("bind stream 127.0.0.1 14569"), "error EPERM");
    assert_eq!(agent.tries("bind stream 127.0.0.2 14568"), "error EPERM");

    let mut bytes = [0; 16];
    assert_eq!(udp.recv(&mut bytes).expect("it came"), 5);
    assert_eq!(&bytes[..5], b"hello");
    let allowed: Vec<_> = guard
        .audit()
        .into_iter()
        .filter(|record| record.action() == "connect" && record.outcome() == "allow")
        .collect();
    assert_eq!(allowed.len(), 2, "{allowed:#?}");
    assert!(
        allowed
            .iter()
            .all(|record| record.resource().ends_with(&format!(":{tcp}"))),
        "{allowed:#?}"
    );
}

#[test]
fn listening_without_bind_is_answered_to_nobody() {
    let site = Site::new();
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", ""));
    let code = r#"
listener = socket.socket()
try:
    listener.listen()
except OSError as error:
    print("refused", errno.errorcode[error.errno]); sys.exit()
print("port", listener.getsockname()[1], flush=True)
sys.stdin.readline()
"#;
    let mut agent = guard.agent("probe").python(code).spawn();
    let said = agent.line(|line| line.starts_with("port ") || line.starts_with("refused "));
    let Some(port) = said.strip_prefix("port ") else {
        return;
    };
    let address = format!("127.0.0.1:{port}").parse().expect("an address");
    let answer =
        std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_millis(1500));
    assert!(
        answer.is_err(),
        "somebody could connect to an agent that may not listen"
    );
}

#[test]
fn the_agent_sees_the_address_that_it_asked_for() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let policy = reach("origin.test", origin.port, &["GET /v1/**"]);
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let mut agent = dialer(&guard.agent("probe"));
    for host in [
        "127.0.0.1",
        "127.0.0.7",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:127.0.0.8",
    ] {
        let answer = agent.tries(&format!("tcp {host} {}", origin.port));
        assert_eq!(answer, format!("ok {host} {}", origin.port));
    }
}
