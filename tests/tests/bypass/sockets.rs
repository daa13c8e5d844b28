//! Kinds of sockets and socket options that lead past a judgement of addresses, and listening where nobody allowed it.

use std::io::IoSlice;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use agentguard_tests::attempt::{AGENT, Attempt, KEEP, User, alone, prove, python, under};
use agentguard_tests::bundle::reach;
use agentguard_tests::field::Field;
use agentguard_tests::standing::{Standing, Standings};
use agentguard_tests::{Bundle, Client, Guard, Site};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

#[test]
fn other_protocols_of_the_internet_families() {
    let made = |name: &str, family: &str, kind: &str, protocol: u16| {
        Attempt::python(name, format!("socket.socket({family}, {kind}, {protocol})"))
            .leaves("socket", "protocol-refused")
            .sends_nothing()
    };
    let (v4, v6) = ("socket.AF_INET", "socket.AF_INET6");
    prove(
        &[
            Attempt::python(
                "icmp tunnel",
                "s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
s.sendto(bytes([8, 0, 0, 0, 0, 1, 0, 1]) + MARK, ('127.0.0.1', 0))",
            )
            .leaves("socket", "protocol-refused")
            .root_only(),
            Attempt::python(
                "icmpv6 tunnel",
                "s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58)
s.sendto(bytes([128, 0, 0, 0, 0, 1, 0, 1]) + MARK, ('::1', 0))",
            )
            .leaves("socket", "protocol-refused")
            .root_only(),
            Attempt::python(
                "udp written by hand on a raw socket",
                "s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
ip = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 46, 1, 0, 64, 17, 0, socket.inet_aton('127.0.0.1'), socket.inet_aton('127.0.0.1'))
s.sendto(ip + struct.pack('!HHHH', 9, PORT, 26, 0) + MARK, ('127.0.0.1', 0))",
            )
            .leaves("socket", "protocol-refused")
            .root_only(),
            // Whose group may make one is a setting of the network namespace's; only there it is ours to change.
            Attempt::python(
                "ping socket",
                "checked(LIBC.unshare(0x40000000))
with open('/proc/sys/net/ipv4/ping_group_range', 'w') as setting: setting.write('0 65535')
socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1)",
            )
            .leaves("socket", "protocol-refused")
            .sends_nothing()
            .root_only(),
            Attempt::python(
                "mptcp",
                "s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262); s.connect(('127.0.0.1', PORT)); s.send(MARK)",
            )
            .leaves("socket", "protocol-refused"),
            Attempt::python(
                "mptcp over ipv6",
                "s = socket.socket(socket.AF_INET6, socket.SOCK_STREAM, 262); s.connect(('::1', PORT)); s.send(MARK)",
            )
            .leaves("socket", "protocol-refused"),
            Attempt::python(
                "udp lite",
                "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136); s.sendto(MARK, ('127.0.0.1', PORT))",
            )
            .leaves("socket", "protocol-refused"),
            made("sctp", v4, "socket.SOCK_STREAM", 132),
            made("sctp over ipv6", v6, "socket.SOCK_SEQPACKET", 132),
            // 6 is SOCK_DCCP.
            made("dccp", v4, "6", 33),
        ],
        |_| Bundle::new(1).agent(AGENT, KEEP),
    );
}

/// No hook of a cgroup's sees these; where the kernel takes no LSM program they stay open.
#[test]
fn other_families() {
    let family = |name: &str, number: u16, kind: &str| {
        Attempt::python(name, format!("socket.socket({number}, {kind}, 0)"))
            .leaves("socket", "protocol-refused")
            .sends_nothing()
    };
    prove(
        &[
            Attempt::python(
                "packet socket",
                "s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
ip = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 46, 1, 0, 64, 17, 0, socket.inet_aton('127.0.0.1'), socket.inet_aton('127.0.0.1'))
s.sendto(ip + struct.pack('!HHHH', 9, PORT, 26, 0) + MARK, ('lo', 0x800, 0, 0, bytes(6)))",
            )
            .leaves("socket", "protocol-refused")
            .root_only(),
            family("xdp socket", 44, "socket.SOCK_RAW").root_only(),
            family("vsock", 40, "socket.SOCK_STREAM"),
            family("smc", 43, "socket.SOCK_STREAM"),
            family("tipc", 30, "socket.SOCK_RDM"),
            family("rds", 21, "socket.SOCK_SEQPACKET"),
            family("bluetooth", 31, "socket.SOCK_SEQPACKET"),
        ],
        |_| Bundle::new(1).agent(AGENT, KEEP),
    );
}

/// The attempts above keep root's capabilities by the agent's own file; without that `run` takes them away.
#[test]
fn run_takes_what_raw_and_packet_sockets_need() {
    let site = Site::new();
    let guard = Guard::start(&site, &Bundle::new(1).agent(AGENT, ""));
    let code = "
for family, kind, protocol in [(socket.AF_PACKET, socket.SOCK_RAW, 3), (socket.AF_PACKET, socket.SOCK_DGRAM, 0), (44, socket.SOCK_RAW, 0)]:
    try: print('open', socket.socket(family, kind, protocol))
    except OSError as error: print(errno.errorcode[error.errno])";
    let ran = guard.agent(AGENT).python_code(code).ok();
    assert_eq!(ran.stdout, "EPERM\nEPERM\nEPERM", "{ran:#?}");
}

/// The agent has a host to reach, so that its connections go to the forwarder, if nothing leads them elsewhere.
#[test]
fn options_that_lead_a_connection_elsewhere() {
    let option = |name: &str, level: &str, option: u16, value: &str| {
        Attempt::python(
            name,
            format!(
                "s = socket.socket(); s.setsockopt({level}, {option}, {value})
s.connect(('127.0.0.1', PORT)); ask(b'GET /v2/' + MARK + b' HTTP/1.1\\r\\nHost: origin.test:%d\\r\\nConnection: close\\r\\n\\r\\n' % PORT, stream=s)"
            ),
        )
    };
    prove(
        &[
            option("SO_BINDTODEVICE", "socket.SOL_SOCKET", 25, "b'lo'")
                .leaves("connect", "protocol-refused"),
            option("IP_UNICAST_IF", "socket.IPPROTO_IP", 50, "struct.pack('!I', 1)")
                .answers(&["EACCES"])
                .leaves("GET", "policy-denied"),
            option("SO_MARK", "socket.SOL_SOCKET", 36, "7")
                .answers(&["EACCES"])
                .leaves("GET", "policy-denied")
                .root_only(),
            Attempt::python(
                "IP_TRANSPARENT",
                "s = socket.socket(); s.setsockopt(socket.IPPROTO_IP, 19, 1); s.bind(('192.0.2.1', 0))
try: s.connect(('127.0.0.1', PORT))
except TimeoutError: pass",
            )
            .leaves("bind", "policy-denied")
            .root_only(),
            Attempt::python(
                "IP_FREEBIND",
                "s = udp(); s.setsockopt(socket.IPPROTO_IP, 15, 1); s.bind(('192.0.2.1', 9999))",
            )
            .leaves("bind", "policy-denied")
            .sends_nothing(),
        ],
        |field| {
            let hosts = reach("origin.test", field.port(), &["GET /v1/**"]);
            Bundle::new(1).agent(AGENT, &format!("{KEEP}{hosts}"))
        },
    );
}

#[test]
fn listening_by_a_bind_that_no_rule_names() {
    let bind = |name: &str, code: &str| {
        Attempt::python(name, code)
            .leaves("bind", "policy-denied")
            .sends_nothing()
    };
    prove(
        &[
            bind(
                "bind shell",
                "l = socket.socket(); l.bind(('127.0.0.1', 0)); l.listen()",
            ),
            bind(
                "bind shell on every address",
                "l = socket.socket(socket.AF_INET6); l.bind(('::', 0)); l.listen()",
            ),
            // `__inet_bind` takes AF_UNSPEC for AF_INET where the address is the unspecified one.
            bind(
                "bind to an address of family AF_UNSPEC",
                "l = socket.socket(); checked(LIBC.bind(l.fileno(), sockaddr('0.0.0.0', 0, 0), 16)); l.listen()",
            ),
            bind("a datagram port", "udp().bind(('127.0.0.2', PORT))"),
            bind(
                "a port that another shares by SO_REUSEPORT",
                "l = socket.socket(); l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1); l.bind(('127.0.0.3', PORT)); l.listen()",
            ),
        ],
        |_| Bundle::new(1).agent(AGENT, KEEP),
    );
}

/// `listen()` takes a port by itself and passes no bind hook: nobody gets an answer from it.
#[test]
fn listening_without_a_bind() {
    let site = Site::new();
    let words = python(0, 0, LISTEN);
    for user in User::ALL {
        assert!(
            answers(alone(&words).as_user(user)),
            "without AgentGuard, as {}",
            user.name()
        );
    }
    let guard = Guard::start(&site, &Bundle::new(1).agent(AGENT, KEEP));
    for user in User::ALL {
        let before = guard.audit().len();
        let agent = guard.agent(AGENT).user(user.name());
        assert!(!answers(under(&agent, &words)), "as {}", user.name());
        let records = guard.audit().split_off(before);
        let [record] = &records[..] else {
            panic!("as {}: not one record: {records:#?}", user.name());
        };
        assert_eq!(
            (record.agent(), record.outcome(), record.reason()),
            (AGENT, "deny", "policy-denied"),
            "{record:?}"
        );
        assert!(
            answers(alone(&words).as_user(user)),
            "as no agent, as {}",
            user.name()
        );
    }
}

/// A process that is nobody's agent connects, and hands the connection to an agent over the pair that is its standard input.
#[test]
fn a_connection_that_is_handed_over() {
    let attempt = "a connection that is handed over";
    let is_open = Standings::of_this_kernel().of_attempt(attempt, User::Root) == Standing::Open;
    let site = Site::new();
    let mut field = Field::new();
    let code = "
data, fds, flags, _ = socket.recv_fds(socket.socket(fileno=0), 1, 2)
if not fds: raise PermissionError(errno.EPERM, 'nothing came')
socket.socket(fileno=fds[0]).sendall(MARK)";
    let words = python(field.port(), 0, code);
    let mut hand_over = |client: Client| {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let receiver = client.input_from(theirs.into()).spawn();
        let goal = TcpStream::connect(("127.0.0.1", field.port())).expect("it listens");
        field.seen();
        let fds = [goal.as_raw_fd()];
        let data = [IoSlice::new(b"x")];
        let rights = [ControlMessage::ScmRights(&fds)];
        let sent = sendmsg::<()>(ours.as_raw_fd(), &data, &rights, MsgFlags::empty(), None);
        assert_eq!(sent, Ok(1));
        let said = receiver.finish().ok().stdout;
        (said, field.seen().mark)
    };
    let through = ("through".to_owned(), true);
    assert_eq!(hand_over(alone(&words)), through, "without AgentGuard");
    let guard = Guard::start(&site, &Bundle::new(1).agent(AGENT, KEEP));
    for user in User::ALL {
        let before = guard.audit().len();
        let said = hand_over(under(&guard.agent(AGENT).user(user.name()), &words));
        let records = guard.audit().split_off(before);
        let name = user.name();
        if is_open {
            assert_eq!((said, records.len()), (through.clone(), 0), "as {name}");
        } else {
            assert_eq!(said, ("refused EPERM".to_owned(), false), "as {name}");
            let [record] = &records[..] else {
                panic!("as {name}: not one record: {records:#?}");
            };
            let told = (record.agent(), record.action(), record.outcome());
            assert_eq!(told, (AGENT, "handed-over", "deny"), "as {name}");
        }
        let before = guard.audit().len();
        let beside = hand_over(alone(&words).as_user(user));
        assert_eq!((beside, guard.audit().len()), (through.clone(), before));
    }
}

const LISTEN: &str = "
l = socket.socket(); l.listen(); print('port', l.getsockname()[1], flush=True); sys.stdin.readline()";

/// Whether what listens says a port and takes a connection there.
fn answers(client: Client) -> bool {
    let mut listener = client.spawn();
    let said = listener.line(|line| line.starts_with("port ") || line.starts_with("refused "));
    let Some(port) = said.strip_prefix("port ") else {
        return false;
    };
    let port: u16 = port.parse().expect("a port");
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    // A SYN-ACK that is dropped is told by nobody.
    TcpStream::connect_timeout(&address, Duration::from_millis(1500)).is_ok()
}
