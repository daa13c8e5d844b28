//! Another network namespace is no way out: what gets through its cable without AgentGuard does not with it, and its
//! neighbours notice nothing.

use agentguard_tests::bundle::reach;
use agentguard_tests::client::{Subject, dialer};
use agentguard_tests::process::{Running, listening_ports};
use agentguard_tests::tools::python as interpreter;
use agentguard_tests::{Bundle, Guard, Netns, Nginx, Site};

const NEAR: &str = "10.212.0.1";
const FAR: &str = "10.212.0.2";

#[test]
fn a_namespace_with_a_way_out_of_its_own() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let (netns, outside) = (Netns::new(), Netns::new());
    netns.cable(NEAR, &outside, FAR);
    let mut server = server(&outside);
    let connect = format!("tcp {FAR} 7000");
    let get = format!("get http://{FAR}:7000/");
    let datagram = format!("udp {FAR} 7000");
    let mut control = dialer(&netns);
    assert_eq!(control.tries(&connect), format!("ok {FAR} 7000"));
    assert_eq!(control.tries(&get), "ok 200");
    assert_eq!(control.tries(&datagram), "ok 5");
    for said in ["tcp", "tcp", "udp"] {
        server.line(|line| line.starts_with(&format!("{said} {NEAR}")));
    }

    let policy = reach("origin.test", origin.port, &["GET /v1/**"]);
    let bundle = Bundle::new(1).agent("probe", &policy).agent("bare", "");
    let guard = Guard::start(&site, &bundle);
    let before = guard.audit().len();
    let mut agent = dialer(&netns.agent(&guard, "probe"));
    assert_eq!(agent.tries(&get), "ok 403", "the forwarder's answer");
    assert_eq!(agent.tries(&datagram), "error EPERM");
    let mut bare = dialer(&netns.agent(&guard, "bare"));
    assert_eq!(bare.tries(&connect), "error EPERM");
    let records = guard.audit().split_off(before);
    let mut seen: Vec<_> = records
        .iter()
        .map(|record| (record.agent(), record.action(), record.outcome()))
        .collect();
    // The forwarder's records and the kernel's come by two ways.
    seen.sort_unstable();
    assert_eq!(
        seen,
        [
            ("bare", "connect", "deny"),
            ("probe", "GET", "deny"),
            ("probe", "sendmsg", "deny")
        ],
        "{records:#?}"
    );

    // Who is nobody's agent goes on as before, and unseen. It is also what the server hears of next.
    assert_eq!(control.tries(&get), "ok 200");
    let next = server.line(|line| line.starts_with("tcp ") || line.starts_with("udp "));
    assert!(next.starts_with("tcp"), "{next}");
    server.say("count");
    assert_eq!(server.after("heard "), "4", "nothing of the agents'");
    assert_eq!(guard.audit().len(), before + 3);
}

#[test]
fn moving_there_while_running() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let (netns, outside) = (Netns::new(), Netns::new());
    netns.cable(NEAR, &outside, FAR);
    let mut server = server(&outside);
    let code = format!(
        r#"
import ctypes, errno, os, socket
early = socket.socket()
libc = ctypes.CDLL(None)
assert libc.setns(os.open("/run/netns/{}", os.O_RDONLY), 0x40000000) == 0
late = socket.socket()
for name, made in (("late", late), ("early", early)):
    try:
        made.settimeout(60)
        made.connect(("{FAR}", 7000))
        print(name, "ok")
    except OSError as error:
        print(name, errno.errorcode.get(error.errno, "timeout"))
"#,
        netns.name()
    );
    let control = site.client(&interpreter()).args(["-c", &code]).run().ok();
    assert!(control.stdout.contains("late ok"), "{control:#?}");
    server.line(|line| line.starts_with(&format!("tcp {NEAR}")));

    let guard = Guard::start(
        &site,
        &Bundle::new(1).agent(
            "probe",
            &format!(
                "privileges = \"keep\"\n\n{}",
                reach("origin.test", origin.port, &["GET /v1/**"])
            ),
        ),
    );
    let ran = guard
        .agent("probe")
        .client(&interpreter())
        .args(["-c", &code]);
    let ran = ran.run().ok();
    // Whether it was served in time or not: nothing has left by the cable.
    assert!(
        ran.stdout.contains("late ok") || ran.stdout.contains("late EPERM"),
        "{ran:#?}"
    );
    server.say("count");
    assert_eq!(server.after("heard "), "1");
}

#[test]
fn the_forwarders_port_is_nobodys_in_there_either() {
    let site = Site::new();
    let origin = Nginx::start(&site);
    let netns = Netns::new();
    let mut guard = Guard::start(
        &site,
        &Bundle::new(1).agent("probe", &reach("origin.test", origin.port, &["GET /v1/**"])),
    );
    let mut agent = dialer(&netns.agent(&guard, "probe"));
    assert_eq!(agent.tries("tcp 192.0.2.1 443"), "ok 192.0.2.1 443");
    let forwarder = guard.forwarder_tgid();
    let [port] = listening_ports(forwarder)[..] else {
        panic!("not one port: {:?}", listening_ports(forwarder));
    };
    let mut neighbour = dialer(&netns);
    for host in ["127.0.0.1", "::1", "0.0.0.0"] {
        let connect = format!("tcp {host} {port}");
        assert_eq!(agent.tries(&connect), "error EPERM", "{connect}");
        assert_eq!(neighbour.tries(&connect), "error EPERM", "{connect}");
    }
}

/// Answers every request and hears every datagram; says who they come from.
fn server(netns: &Netns) -> Running {
    let serve = format!(
        r#"
import socket, sys, threading
heard = 0
listener = socket.create_server(("{FAR}", 7000))
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("{FAR}", 7000))
def hear():
    global heard
    while True:
        _, peer = datagrams.recvfrom(100)
        heard += 1
        print("udp", *peer)
def answer():
    global heard
    while True:
        made, peer = listener.accept()
        heard += 1
        print("tcp", *peer)
        if made.recv(65536):
            made.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        made.close()
for loop in (hear, answer):
    threading.Thread(target=loop, daemon=True).start()
print("ready")
for _ in sys.stdin:
    print("heard", heard)
"#
    );
    let mut running = netns.client(&interpreter()).args(["-uc", &serve]).spawn();
    running.line(|line| line == "ready");
    running
}
