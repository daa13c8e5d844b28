//! Ways out by an address, a datagram or a system call that somebody may have forgotten: each is judged all the same.

use agentguard_tests::Bundle;
use agentguard_tests::attempt::{AGENT, Attempt, KEEP, prove};
use agentguard_tests::bundle::direct;

/// May reach one port of 127.0.0.1 and ::1, by TCP and UDP, and nothing else.
const LISTED: &str = "listed";

/// A routing header of type 4 with one segment, ::1.
const ROUTING: &str = "bytes([0, 2, 4, 0, 0, 0, 0, 0]) + socket.inet_pton(socket.AF_INET6, '::1')";
/// Loose source routing by way of 127.0.0.2.
const LOOSE: &str = "bytes([131, 7, 4, 127, 0, 0, 2, 0])";

#[test]
fn tcp_however_its_address_is_written() {
    prove(
        &[
            Attempt::python("tcp", "tcp()"),
            Attempt::python(
                "the environment's proxy is ignored",
                "os.environ['HTTP_PROXY'] = os.environ['ALL_PROXY'] = 'http://127.0.0.1:9'; tcp()",
            ),
            Attempt::python("tcp to ipv6", "tcp('::1')"),
            Attempt::python("tcp to a mapped address", "tcp('::ffff:127.0.0.1')"),
            Attempt::python("tcp to the unspecified address", "tcp('0.0.0.0')"),
            Attempt::python("tcp to the unspecified ipv6 address", "tcp('::')"),
            Attempt::python(
                "tcp to an address with a zone",
                "s = socket.socket(socket.AF_INET6)
s.connect(('::1', PORT, 0, socket.if_nametoindex('lo')))",
            ),
            Attempt::python(
                "a connect that does not block",
                "s = socket.socket(); s.setblocking(False)
try: s.connect(('127.0.0.1', PORT))
except BlockingIOError: pass",
            ),
            Attempt::python(
                "fast open with data in the first packet",
                "s = socket.socket(); s.setsockopt(socket.IPPROTO_TCP, 34, 1)
s.sendto(MARK, socket.MSG_FASTOPEN, ('127.0.0.1', PORT))",
            ),
            Attempt::python(
                "fast open that waits for the first data",
                "tcp(prepare=lambda s: s.setsockopt(socket.IPPROTO_TCP, 30, 1))",
            ),
        ],
        |_| Bundle::new(1).agent(AGENT, KEEP),
    );
}

#[test]
fn a_socket_that_is_used_again() {
    prove(
        &[
            Attempt::python(
                "disconnected by AF_UNSPEC and connected elsewhere",
                "s = tcp(port=OPEN); checked(LIBC.connect(s.fileno(), bytes(16), 16)); s.connect(('127.0.0.1', PORT))",
            ),
            Attempt::python(
                "disconnected by AF_UNSPEC, then fast open elsewhere",
                "s = tcp(port=OPEN); checked(LIBC.connect(s.fileno(), bytes(16), 16))
s.setsockopt(socket.IPPROTO_TCP, 34, 1); s.sendto(MARK, socket.MSG_FASTOPEN, ('127.0.0.1', PORT))",
            ),
            Attempt::python(
                "a datagram socket connected twice",
                "u = udp(); u.connect(('127.0.0.1', OPEN)); u.connect(('127.0.0.1', PORT)); u.send(MARK)",
            )
            .leaves("sendmsg", "policy-denied"),
            Attempt::python(
                "a connected datagram socket that names another address",
                "u = udp(); u.connect(('127.0.0.1', OPEN)); u.sendto(MARK, ('127.0.0.1', PORT))",
            )
            .leaves("sendmsg", "policy-denied"),
        ]
        .map(|attempt| attempt.by(LISTED)),
        |field| listed(field.open()),
    );
}

#[test]
fn datagrams() {
    prove(
        &[
            Attempt::python("udp", "udp().sendto(MARK, ('127.0.0.1', PORT))"),
            Attempt::python("udp to ipv6", "udp('::1').sendto(MARK, ('::1', PORT))"),
            Attempt::python(
                "udp to a mapped address",
                "udp('::1').sendto(MARK, ('::ffff:127.0.0.1', PORT))",
            ),
            Attempt::python(
                "connected udp",
                "u = udp(); u.connect(('127.0.0.1', PORT)); u.send(MARK)",
            ),
            Attempt::python(
                "connected udp to a mapped address",
                "u = udp('::1'); u.connect(('::ffff:127.0.0.1', PORT)); u.send(MARK)",
            ),
            // The first packet of a QUIC connection is of 1200 bytes at least (RFC 9000, section 14.1).
            Attempt::python(
                "a first packet as of quic",
                "udp().sendto(b'\\xc3\\0\\0\\0\\1\\x08' + bytes(1194), ('127.0.0.1', PORT))",
            ),
            // `udp_sendmsg` takes AF_UNSPEC for AF_INET.
            Attempt::python(
                "udp to an address of family AF_UNSPEC",
                "u = udp(); checked(LIBC.sendto(u.fileno(), MARK, len(MARK), 0, sockaddr('127.0.0.1', family=0), 16))",
            ),
            Attempt::python(
                "many datagrams by one call",
                "name, data = ctypes.create_string_buffer(sockaddr('127.0.0.1'), 16), ctypes.create_string_buffer(MARK)
vector = ctypes.create_string_buffer(struct.pack('QQ', ctypes.addressof(data), len(MARK)))
head = struct.pack('QIxxxxQQQQixxxxIxxxx', ctypes.addressof(name), 16, ctypes.addressof(vector), 1, 0, 0, 0, 0)
u = udp(); checked(LIBC.sendmmsg(u.fileno(), ctypes.create_string_buffer(head), 1, 0))",
            ),
            Attempt::python(
                "a datagram of several calls",
                "u = udp(); u.sendto(MARK, socket.MSG_MORE, ('127.0.0.1', PORT)); u.sendto(MARK, ('127.0.0.1', PORT))",
            ),
            Attempt::python(
                "a file sent as a datagram",
                "f = os.memfd_create('data'); os.write(f, MARK)
u = udp(); u.connect(('127.0.0.1', PORT)); os.sendfile(u.fileno(), f, 0, len(MARK))",
            ),
            Attempt::python(
                "multicast",
                "u = udp(); u.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton('127.0.0.1'))
u.sendto(MARK, ('239.1.2.3', PORT))",
            ),
        ]
        .map(|attempt| attempt.leaves("sendmsg", "policy-denied")),
        |_| Bundle::new(1).agent(AGENT, KEEP),
    );
}

#[test]
fn a_listening_socket_that_writes_to_others() {
    let listening = "port = 21845
def listening(host='127.0.0.1'):
    u = udp(host); u.bind((host, port)); return u
";
    let attempt = |name: &'static str, code: &str| {
        Attempt::python(name, format!("{listening}{code}")).leaves("sendmsg", "policy-denied")
    };
    prove(
        &[
            attempt("datagram", "listening().sendto(MARK, ('127.0.0.1', PORT))"),
            attempt(
                "connected",
                "u = listening(); u.connect(('127.0.0.1', PORT)); u.send(MARK)",
            ),
            attempt("ipv6", "listening('::1').sendto(MARK, ('::1', PORT))"),
        ],
        |_| {
            let listen = |on: &str| format!("[[listen]]\non = \"{on}:21845\"\nproto = \"udp\"\n");
            let policy = format!("{KEEP}{}{}", listen("127.0.0.1"), listen("[::1]"));
            Bundle::new(1).agent(AGENT, &policy)
        },
    );
}

#[test]
fn system_calls_that_a_filter_would_not_know() {
    prove(
        &[
            Attempt::c("io_uring connect", "ring", &["connect"]),
            Attempt::c("io_uring connect by a worker", "ring", &["worker"]),
            Attempt::c("io_uring connect by a polling thread", "ring", &["sqpoll"]),
            Attempt::c("io_uring datagram", "ring", &["send"]).leaves("sendmsg", "policy-denied"),
            Attempt::c("io_uring raw socket", "ring", &["raw"])
                .leaves("socket", "protocol-refused")
                .sends_nothing()
                .root_only(),
            Attempt::c("i386 connect", "abi", &["i386"]),
            Attempt::c("x32 connect", "abi", &["x32"]),
        ],
        |_| Bundle::new(1).agent(AGENT, KEEP),
    );
}

/// The hooks see the address that the agent names; the packet goes to another one first. IPv4's options are the
/// privileged's alone (`ip_options_compile`).
#[test]
fn source_routing() {
    let connect = |prepare: &str, host: &str| {
        // Where the SYN goes nobody takes it up, so that only the wire tells.
        format!(
            "try: tcp('{host}', prepare=lambda s: {prepare})
except TimeoutError: pass"
        )
    };
    let option = format!("s.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, {LOOSE})");
    let header = format!("s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RTHDR, {ROUTING})");
    let packet = ("packet", "protocol-refused");
    prove(
        &[
            Attempt::python("source route on tcp", connect(&option, "127.0.0.1"))
                .answers(&["through"])
                .root_only(),
            Attempt::python("routing header on tcp", connect(&header, "::1")).answers(&["through"]),
            Attempt::python(
                "source route in a fast open packet",
                connect(
                    &format!("(s.setsockopt(socket.IPPROTO_TCP, 34, 1), s.setsockopt(socket.IPPROTO_TCP, 30, 1), {option})"),
                    "127.0.0.1",
                ),
            )
            .answers(&["through"])
            .root_only(),
            Attempt::python(
                "source route on udp",
                format!("s = udp(); {option}; s.sendto(MARK, ('127.0.0.1', PORT))"),
            )
            .root_only(),
            Attempt::python(
                "source route in a control message",
                format!("udp().sendmsg([MARK], [(socket.IPPROTO_IP, socket.IP_RETOPTS, {LOOSE})], 0, ('127.0.0.1', PORT))"),
            )
            .root_only(),
            Attempt::python(
                "routing header on udp",
                format!("s = udp('::1'); {header}; s.sendto(MARK, ('::1', PORT))"),
            ),
            // Sticky or not, what is no routing header takes CAP_NET_RAW.
            Attempt::python(
                "an extension header in a control message",
                "udp('::1').sendmsg([MARK], [(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, bytes([0, 0, 1, 4, 0, 0, 0, 0]))], 0, ('::1', PORT))",
            )
            .root_only(),
        ]
        .map(|attempt| attempt.by(LISTED).leaves(packet.0, packet.1)),
        |field| listed(field.port()),
    );
}

fn listed(port: u16) -> Bundle {
    let rules: String = ["127.0.0.1", "::1"]
        .into_iter()
        .flat_map(|host| ["tcp", "udp"].map(|proto| direct(&to(host, port), proto)))
        .collect();
    Bundle::new(1).agent(LISTED, &format!("{KEEP}{rules}"))
}

fn to(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}
