//! Agents in network namespaces of their own are served there: requests, names, the kill and restarts work as on the host,
//! and the namespace ends when they do.

use agentguard_tests::bundle::{direct, reach};
use agentguard_tests::client::{Client, Dialer, Subject, dialer, python};
use agentguard_tests::process::{Running, await_end, pid};
use agentguard_tests::tools::{CLIENT_PATH, PATIENCE, python as interpreter, script};
use agentguard_tests::{Bundle, Cgroup, Guard, Netns, Nginx, Site, Tap};
use nix::sys::signal::{Signal, kill};
use serde_json::json;

#[test]
fn an_unchanged_client_is_served_inside() {
    let (site, origin) = world();
    let netns = Netns::new();
    let guard = start(&site, &origin);
    let inside = netns.agent(&guard, "probe");
    let status = |path: &str| {
        let client = inside.client("curl".as_ref());
        let quiet = ["--silent", "--output", "/dev/null", "--write-out"];
        let ran = client.args(quiet).arg("%{http_code}");
        ran.arg(origin.url(path)).run().ok().stdout
    };
    // There is no route to anywhere in there, and nothing has been set up.
    assert_eq!(status("/v1/inside"), "200");
    assert_eq!(status("/v2/inside"), "403");
    assert_eq!(origin.hits_below("/v").len(), 1);
    let records = guard.requests();
    let seen: Vec<_> = records
        .iter()
        .map(|record| (record.agent(), record.path(), record.outcome()))
        .collect();
    assert_eq!(
        seen,
        [
            ("probe", "/v1/inside", "allow"),
            ("probe", "/v2/inside", "deny")
        ]
    );
    assert!(
        records
            .iter()
            .all(|record| record.text("/process/exe").ends_with("/curl"))
    );
}

#[test]
fn names_are_resolved_inside_as_on_the_host() {
    let (site, origin) = world();
    let netns = Netns::new();
    let guard = start(&site, &origin);
    let inside = netns.agent(&guard, "probe");
    let ask = |name: &str, protocol: &str| {
        // Nobody is there, and no route leads there.
        let client = python(&inside, "dns_query.py").args(["192.0.2.53", name, "A", protocol]);
        client.run().ok().json()
    };
    for protocol in ["udp", "tcp"] {
        let answer = ask("origin.test", protocol);
        assert_eq!(
            answer["answers"],
            json!(["127.0.0.1"]),
            "{protocol}: {answer}"
        );
        let answer = ask("leak.elsewhere.test", protocol);
        let own = json!(["192.0.2.1"]);
        assert_eq!(answer["answers"], own, "{protocol}: {answer}");
    }
    let asked: Vec<_> = guard
        .audit()
        .into_iter()
        .filter(|record| record.action() == "dns")
        .map(|record| (record.agent().to_owned(), record.outcome().to_owned()))
        .collect();
    let pair = [("probe", "allow"), ("probe", "deny")].map(|(a, o)| (a.into(), o.into()));
    assert_eq!(asked, [pair.clone(), pair].concat());
}

#[test]
fn both_families_and_a_namespace_without_ipv6() {
    let (site, origin) = world();
    let (both, four) = (Netns::new(), Netns::new());
    four.sysctl("ipv6/conf/all/disable_ipv6", "1");
    let guard = start(&site, &origin);
    let mut agent = dialer(&both.agent(&guard, "probe"));
    for host in ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1"] {
        let answer = agent.tries(&format!("tcp {host} 443"));
        assert_eq!(answer, format!("ok {host} 443"));
    }
    let mut agent = dialer(&four.agent(&guard, "probe"));
    assert_eq!(agent.tries("tcp 192.0.2.1 443"), "ok 192.0.2.1 443");
    assert!(agent.tries("tcp 2001:db8::1 443").starts_with("error"));
    assert_eq!(namespaces(&guard), 2);
}

#[test]
fn two_namespaces_with_the_same_addresses_and_ports_are_told_apart() {
    let (site, origin) = world();
    let (first, second) = (Netns::new(), Netns::new());
    for netns in [&first, &second] {
        netns.sysctl("ipv4/ip_local_port_range", "40000 40000");
    }
    let plain = |route: &str| reach("origin.test", origin.port_plain, &[route]);
    let bundle = Bundle::new(1)
        .agent("one", &plain("GET /one/**"))
        .agent("two", &plain("GET /two/**"));
    let guard = Guard::start(&site, &bundle);
    let code = format!(
        r#"
made = socket.create_connection(("127.0.0.1", {port}))
print("from", *made.getsockname(), flush=True)
for line in sys.stdin:
    made.sendall(f"GET {{line.strip()}} HTTP/1.1\r\nHost: origin.test:{port}\r\n\r\n".encode())
    print("status", made.recv(65536).split()[1].decode(), flush=True)
"#,
        port = origin.port_plain
    );
    let client = |netns: &Netns, name: &str| {
        let inside = netns.agent(&guard, name).client(&interpreter());
        inside
            .arg("-c")
            .arg(format!("import socket, sys\n{code}"))
            .spawn()
    };
    let mut clients = [client(&first, "one"), client(&second, "two")];
    for running in &mut clients {
        assert_eq!(
            running.after("from "),
            "127.0.0.1 40000",
            "at the same time"
        );
    }
    for (client, path, expected) in [
        (0, "/one/a", "200"),
        (1, "/two/a", "200"),
        (0, "/two/b", "403"),
        (1, "/one/b", "403"),
        (1, "/two/c", "200"),
        (0, "/one/c", "200"),
    ] {
        let running = &mut clients[client];
        running.say(path);
        assert_eq!(running.after("status "), expected, "{client} {path}");
    }
    for record in guard.requests() {
        let whose = if record.outcome() == "allow" {
            format!("/{}/", record.agent())
        } else {
            String::from("/")
        };
        assert!(record.path().starts_with(&whose), "{record:?}");
    }
}

#[test]
fn the_kill_cuts_what_runs_inside() {
    let (site, origin) = world();
    let file = std::fs::File::create(origin.files().join("endless")).expect("made");
    file.set_len(1 << 40).expect("set");
    let (netns, outside) = (Netns::new(), Netns::new());
    netns.cable("10.213.0.1", &outside, "10.213.0.2");
    let mut server = listener(&outside);
    let policy = reach("origin.test", origin.port, &["GET /files/**"])
        + &direct("10.213.0.2/32:7000", "tcp");
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let inside = netns.agent(&guard, "probe");
    let mut tap = Tap::start();
    let mut download = inside
        .client("curl".as_ref())
        .args(["--silent", "--output", "/dev/null"])
        .arg(origin.url("/files/endless"))
        .spawn();
    while tap.from_port(origin.port).bytes < 16 << 20 {
        assert!(download.is_running(), "{}", download.rest());
    }
    // A rule of the kernel's: no forwarder is in between.
    let mut straight = inside
        .client(&interpreter())
        .args(["-uc", STRAIGHT])
        .spawn();
    straight.line(|line| line == "connected");
    server.line(|line| line.starts_with("from 10.213.0.1"));

    let ran = guard.cli(["kill", "probe", "--reason", "test", "--json"]);
    let told = ran.ok().json();
    assert!(told.to_string().contains("probe"), "{told}");
    assert_ne!(download.finish().code(), 0);
    straight.line(|line| line == "ECONNABORTED");
    server.line(|line| line == "ended");
    let hit = origin.await_hit(|hit| hit.uri == "/files/endless");
    assert!(!hit.complete, "{hit:?}");
}

/// Waits in a read until the socket is ended under it.
const STRAIGHT: &str = r#"
import errno, socket
made = socket.create_connection(("10.213.0.2", 7000))
print("connected")
try:
    made.recv(1)
except OSError as error:
    print(errno.errorcode[error.errno])
"#;

#[test]
fn restarts_of_both_processes_leave_nobody_out() {
    let (site, origin) = world();
    let netns = Netns::new();
    let mut guard = start(&site, &origin);
    let mut agent = dialer(&netns.agent(&guard, "probe"));
    let get = format!("get {}", origin.url("/v1/x"));
    let refused = format!("get {}", origin.url("/v2/x"));
    assert_eq!(agent.tries(&get), "ok 200");

    let forwarder = guard.forwarder_tgid();
    kill(pid(forwarder), Signal::SIGKILL).expect("it runs");
    await_end(forwarder);
    until(&mut agent, &get, "ok 200");
    assert_eq!(agent.tries(&refused), "ok 403");

    let forwarder = guard.forwarder_tgid();
    guard.crash();
    await_end(forwarder);
    let connect = format!("tcp 127.0.0.1 {}", origin.port);
    assert_eq!(agent.tries(&connect), "error EPERM", "closed, inside too");
    guard.restart();
    assert_eq!(agent.tries(&get), "ok 200", "served before it was ready");
    assert_eq!(agent.tries(&refused), "ok 403");
}

#[test]
fn a_user_namespace_of_ones_own_is_served_and_ends_with_its_agent() {
    let (site, origin) = world();
    let outside = Netns::new();
    // To become that user takes a capability, which ends with it.
    let policy = format!(
        "privileges = \"keep\"\n\n{}",
        reach("origin.test", origin.port_plain, &["GET /v1/**"])
    );
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let mut agent = in_user_namespace(&guard);
    await_namespaces(&guard, 1);
    for (path, expected) in [("/v1/x", "ok 200"), ("/v2/x", "ok 403")] {
        let get = format!("get {}", origin.plain_url(path));
        assert_eq!(agent.tries(&get), expected);
    }
    assert_eq!(agent.tries("tcp 2001:db8::1 443"), "ok 2001:db8::1 443");
    let records = guard.requests();
    assert!(
        records
            .iter()
            .all(|record| record.number("/process/uid") == 1000),
        "{records:#?}"
    );

    // A cable whose other end goes when the namespace does.
    let mut monitor = outside.monitor();
    let tgid = agent.tgid.to_string();
    outside.ip(&[
        "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", &tgid,
    ]);
    monitor.line(|line| line.contains("cable") && !line.starts_with("Deleted"));
    drop(agent);
    monitor.line(|line| line.starts_with("Deleted") && line.contains("cable"));
    assert_eq!(namespaces(&guard), 0);
}

#[test]
fn a_container_is_an_agent_by_its_cgroup() {
    let (site, origin) = world();
    let slice = Cgroup::new();
    let policy = format!(
        "{}[[identify]]\ncgroup = \"{}/docker-*.scope\"\n",
        reach("origin.test", origin.port_plain, &["GET /v1/**"]),
        slice.name()
    );
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let id = "0123456789abcdef".repeat(4);
    let scope = Cgroup(slice.0.join(format!("docker-{id}.scope")));
    std::fs::create_dir(&scope.0).expect("made");
    // The order of a container's runtime: its cgroup, its namespaces, its program.
    const ENTER: &str = "echo $$ > \"$1/cgroup.procs\" && shift && exec unshare \
        --net --pid --fork --kill-child --mount-proc --cgroup --ipc --uts \"$@\"";
    let container = Client::new("sh").args(["-c", ENTER, "sh"]).arg(&scope.0);
    let mut container = container
        .arg(interpreter())
        .arg(script("dialer.py"))
        .env("PATH", CLIENT_PATH)
        .spawn();
    container.say("pid");
    assert_eq!(
        container.after("ok "),
        "1",
        "in a namespace of processes too"
    );
    await_namespaces(&guard, 1);
    let mut agent = Dialer::of(container, 0);
    for (path, expected) in [("/v1/x", "ok 200"), ("/v2/x", "ok 403")] {
        let get = format!("get {}", origin.plain_url(path));
        assert_eq!(agent.tries(&get), expected);
    }
    let records = guard.requests();
    let cgroup = format!("{}/docker-{id}.scope", slice.name());
    assert_eq!(records.len(), 2);
    assert!(
        records
            .iter()
            .all(|record| record.agent() == "probe" && record.text("/process/cgroup") == cgroup),
        "{records:#?}"
    );
}

#[test]
fn what_runs_inside_already_is_adopted_and_its_connections_are_cut() {
    let (site, origin) = world();
    let (netns, outside) = (Netns::new(), Netns::new());
    netns.cable("10.213.0.1", &outside, "10.213.0.2");
    let mut server = listener(&outside);
    let program = site.path("agent");
    let real = std::fs::canonicalize(interpreter()).expect("there");
    std::fs::copy(real, &program).expect("copied");
    let code = format!(
        r#"
{STRAIGHT}
import sys, urllib.request
sys.stdin.readline()
print("status", urllib.request.urlopen("{}").status)
"#,
        origin.plain_url("/v1/x")
    );
    let mut early = netns.client(&program).args(["-S", "-uc", &code]).spawn();
    early.line(|line| line == "connected");
    server.line(|line| line.starts_with("from 10.213.0.1"));

    let policy = format!(
        "{}[[identify]]\nexe = \"{}\"\n",
        reach("origin.test", origin.port_plain, &["GET /v1/**"]),
        program.display()
    );
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    early.line(|line| line == "ECONNABORTED");
    server.line(|line| line == "ended");
    // Served before the daemon said that it is ready.
    assert_eq!(namespaces(&guard), 1);
    early.say("go on");
    assert_eq!(early.after("status "), "200");
}

#[test]
fn a_process_that_leaves_its_namespace_while_it_runs_is_found() {
    let (site, origin) = world();
    // Without them it could not even leave.
    let policy = format!(
        "privileges = \"keep\"\n\n{}",
        reach("origin.test", origin.port, &["GET /v1/**"])
    );
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let code = format!(
        r#"
import ctypes
assert ctypes.CDLL(None).unshare(0x50000000) == 0
answers = []
while "ok" not in answers:
    try:
        socket.create_connection(("192.0.2.1", {}), 60)
        answers.append("ok")
    except OSError as error:
        answers.append(errno.errorcode[error.errno])
print("answers", *sorted(set(answers)))
"#,
        origin.port
    );
    let ran = guard.agent("probe").python_code(&code).ok();
    // What comes before it is served is refused, never let through.
    assert!(
        ["answers ok", "answers EPERM ok"].contains(&ran.stdout.trim()),
        "{ran:#?}"
    );
}

#[test]
fn listeners_destroyed_by_the_namespaces_own_root_come_back() {
    let (site, origin) = world();
    let netns = Netns::new();
    let guard = start(&site, &origin);
    let mut agent = dialer(&netns.agent(&guard, "probe"));
    let get = format!("get {}", origin.url("/v1/x"));
    assert_eq!(agent.tries(&get), "ok 200");
    let destroy = netns.client("ss".as_ref());
    let destroyed = destroy.args(["-K", "-t", "-l", "-H"]).run().ok();
    assert!(destroyed.stdout.contains("127.0.0.1"), "{destroyed:#?}");
    until(&mut agent, &get, "ok 200");
}

#[test]
fn one_agents_namespaces_are_served_up_to_its_share_and_anothers_too() {
    let (site, origin) = world();
    // Without privileges it could not make any.
    let policy = format!(
        "privileges = \"keep\"\n\n{}",
        reach("origin.test", origin.port, &["GET /v1/**"])
    );
    // One namespace for every eight files.
    let bundle = Bundle::new(1)
        .agent("probe", &policy)
        .agent("other", &policy);
    let guard = Guard::start_by(&site, &bundle, &["prlimit", "--nofile=200"]);
    const CODE: &str = r#"
import ctypes, signal
for _ in range(30):
    if os.fork() == 0:
        assert ctypes.CDLL(None).unshare(0x50000000) == 0
        signal.pause()
print("all", flush=True)
sys.stdin.readline()
"#;
    let mut crowd = guard.agent("probe").python(CODE).spawn();
    crowd.line(|line| line == "all");
    await_alarms(&guard, |alarms| {
        alarms.contains(
            "6 network namespaces of probe are served, the most there can be of one agent",
        )
    });
    assert_eq!(namespaces(&guard), 6);
    // The host's own is not one of them, and another agent's container is served.
    let get = format!("get {}", origin.url("/v1/x"));
    assert_eq!(dialer(&guard.agent("probe")).tries(&get), "ok 200");
    let netns = Netns::new();
    let mut contained = dialer(&netns.agent(&guard, "other"));
    assert_eq!(contained.tries(&get), "ok 200");
    drop((contained, crowd));
    await_namespaces(&guard, 0);
    await_alarms(&guard, |alarms| !alarms.contains("namespaces"));
}

fn await_alarms(guard: &Guard<'_>, wanted: impl Fn(&str) -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let status = guard.cli(["status", "--json"]).ok().json();
        let alarms = status["alarms"].to_string();
        if wanted(&alarms) {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{alarms}");
    }
}

fn world() -> (Site, Nginx) {
    let site = Site::new();
    let origin = Nginx::start(&site);
    (site, origin)
}

fn start<'site>(site: &'site Site, origin: &Nginx) -> Guard<'site> {
    let policy = reach("origin.test", origin.port, &["GET /v1/**"]);
    Guard::start(site, &Bundle::new(1).agent("probe", &policy))
}

/// A user who is nobody special, in user and network namespaces of their own.
fn in_user_namespace(guard: &Guard<'_>) -> Dialer {
    let client: Client = guard.agent("probe").client("setpriv".as_ref());
    let mut running = client
        .args(["--reuid=1000", "--regid=1000", "--clear-groups"])
        .args(["unshare", "--map-root-user", "--net"])
        .arg(interpreter())
        .arg(script("dialer.py"))
        .spawn();
    running.say("pid");
    let tgid = running.after("ok ").parse().expect("a process id");
    Dialer::of(running, tgid)
}

/// Says who connects and when they are gone.
fn listener(netns: &Netns) -> Running {
    const SERVE: &str = r#"
import socket
listener = socket.create_server(("10.213.0.2", 7000))
print("ready")
while True:
    made, peer = listener.accept()
    print("from", *peer)
    try:
        made.recv(1)
    except OSError:
        pass
    print("ended")
"#;
    let mut running = netns.client(&interpreter()).args(["-uc", SERVE]).spawn();
    running.line(|line| line == "ready");
    running
}

fn namespaces(guard: &Guard<'_>) -> u64 {
    let status = guard.cli(["status", "--json"]).ok().json();
    status["forwarder"]["namespaces"]
        .as_u64()
        .expect("a number")
}

fn await_namespaces(guard: &Guard<'_>, wanted: u64) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while namespaces(guard) != wanted {
        assert!(std::time::Instant::now() < deadline, "never {wanted}");
    }
}

fn until(agent: &mut Dialer, what: &str, wanted: &str) {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        match &*agent.tries(what) {
            answer if answer == wanted => return,
            answer => assert!(std::time::Instant::now() < deadline, "still {answer}"),
        }
    }
}
