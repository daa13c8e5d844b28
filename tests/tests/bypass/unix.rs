//! Asking a daemon to do it, over a Unix socket: each way to name one reaches it without AgentGuard, is `EPERM` with it, and
//! leaves one record. Where the kernel takes LSM programs, the name is the one that the socket's owner has bound, whatever
//! the agent wrote; a kernel with neither kind of hook leaves it all open.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

use agentguard_tests::attempt::User;
use agentguard_tests::client::Subject;
use agentguard_tests::standing::{Standing, Standings};
use agentguard_tests::tools::python;
use agentguard_tests::{Bundle, Client, Guard, Record, Site};

/// Tries one line of stdin after another: `stream`, `dgram` or `connected` and a name, `@` for the NUL of an abstract one.
const SCRIPT: &str = r#"
import errno, os, socket, sys
os.chdir(sys.argv[1])
def call(kind, name):
    name = name.replace("@", "\0", 1) if name.startswith("@") else name
    if kind == "stream":
        s = socket.socket(socket.AF_UNIX); s.settimeout(60); s.connect(name); return s.recv(5).decode()
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    if kind == "connected":
        s.connect(name); return "ok" if s.send(b"x") == 1 else "short"
    return "ok" if s.sendto(b"x", name) == 1 else "short"
for line in iter(sys.stdin.readline, ""):
    try:
        print("said", call(*line.split()), flush=True)
    except OSError as error:
        print("said", errno.errorcode.get(error.errno, repr(error)), flush=True)
"#;

/// By which name a socket is judged here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Judged {
    AsBound,
    AsWritten,
    Never,
}

impl Judged {
    fn here() -> Self {
        match Standings::of_this_kernel().of_attempt("a unix socket", User::Root) {
            Standing::Closed if agentguard_kernel::lsm().is_ok() => Self::AsBound,
            Standing::Closed => Self::AsWritten,
            _ => Self::Never,
        }
    }
}

/// What stands in for the Docker daemon: it says hello to whoever comes.
struct Daemon {
    dir: tempfile::TempDir,
    name: String,
    _datagrams: [UnixDatagram; 2],
}

impl Daemon {
    fn start() -> Self {
        use std::os::linux::net::SocketAddrExt;
        let dir = tempfile::tempdir().expect("a folder");
        open_to_all(dir.path());
        let name = format!("agentguard-test-{}", dir.path().display());
        let at = |file: &str| dir.path().join(file);
        let abstract_name = |end: &str| {
            std::os::unix::net::SocketAddr::from_abstract_name(format!("{name}{end}"))
                .expect("short enough")
        };
        let listeners = [
            UnixListener::bind(at("docker.sock")).expect("bound"),
            UnixListener::bind_addr(&abstract_name("-stream")).expect("bound"),
        ];
        let datagrams = [
            UnixDatagram::bind(at("log")).expect("bound"),
            UnixDatagram::bind_addr(&abstract_name("-dgram")).expect("bound"),
        ];
        for file in ["docker.sock", "log"] {
            open_to_all(&at(file));
        }
        std::os::unix::fs::symlink(at("docker.sock"), at("link")).expect("linked");
        std::fs::hard_link(at("docker.sock"), at("hard")).expect("linked");
        for listener in listeners {
            // Ends with the test's process; it holds nothing.
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let _ = stream.and_then(|mut stream| stream.write_all(b"hello"));
                }
            });
        }
        Self {
            dir,
            name,
            _datagrams: datagrams,
        }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// What to try, what it says when it works, and how the log names it.
    fn ways(&self, judged: Judged) -> Vec<(String, &'static str, String)> {
        let dir = self.dir.path().display();
        let name = &self.name;
        let way = |kind: &str, name: String, works| {
            let as_bound = judged == Judged::AsBound;
            let action = match kind {
                "dgram" => "sendmsg",
                // `unix_dgram_connect` asks whether it may send.
                "connected" if as_bound => "sendmsg",
                _ => "connect",
            };
            let judged = if as_bound && kind == "stream" && !name.starts_with('@') {
                format!("{dir}/docker.sock")
            } else {
                name.clone()
            };
            (
                format!("{kind} {name}"),
                works,
                format!("{action} unix:{judged}"),
            )
        };
        vec![
            way("stream", format!("{dir}/docker.sock"), "hello"),
            way("stream", format!("{dir}/link"), "hello"),
            way("stream", format!("{dir}/hard"), "hello"),
            way("stream", "docker.sock".into(), "hello"),
            way(
                "stream",
                format!("/proc/self/root{dir}/docker.sock"),
                "hello",
            ),
            way("stream", "/proc/self/cwd/docker.sock".into(), "hello"),
            way("stream", format!("@{name}-stream"), "hello"),
            way("dgram", format!("{dir}/log"), "ok"),
            way("dgram", format!("@{name}-dgram"), "ok"),
            way("connected", format!("{dir}/log"), "ok"),
            way("connected", format!("@{name}-dgram"), "ok"),
        ]
    }
}

fn open_to_all(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).expect("set");
}

fn script(client: Client, daemon: &Daemon) -> agentguard_tests::Running {
    client.arg("-c").arg(SCRIPT).arg(daemon.dir.path()).spawn()
}

/// `run` as a user without privileges.
fn as_user(site: &Site) -> Client {
    let user = User::Ordinary.name();
    site.cli(["run", "--agent", "probe", "--user", user, "--"])
        .arg("/usr/bin/python3")
}

#[test]
fn every_way_to_name_a_socket_is_refused() {
    let judged = Judged::here();
    let site = Site::new();
    let daemon = Daemon::start();
    let mut control = script(site.client(&python()), &daemon);
    for (way, works, _) in daemon.ways(judged) {
        control.say(&way);
        assert_eq!(control.after("said "), works, "without AgentGuard, {way}");
    }
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", ""));
    for client in [guard.agent("probe").client(&python()), as_user(&site)] {
        let mut agent = script(client, &daemon);
        let mut before = guard.audit().len();
        for (way, works, named) in daemon.ways(judged) {
            agent.say(&way);
            let said = agent.after("said ");
            let after = guard.audit();
            if judged == Judged::Never {
                assert_eq!((&*said, after.len()), (works, before), "{way}");
                continue;
            }
            assert_eq!(said, "EPERM", "{way}");
            let [record] = &after[before..] else {
                panic!("{way}: not one record: {:#?}", &after[before..]);
            };
            assert_eq!(format!("{} {}", record.action(), record.resource()), named);
            assert_eq!(
                (record.outcome(), record.reason(), record.agent()),
                ("deny", "policy-denied", "probe")
            );
            before = after.len();
        }
    }
    let docker = |record: &Record| record.text("/detail").contains("Docker");
    assert!(
        judged == Judged::Never || guard.audit().iter().any(docker),
        "it says what it would have been"
    );
}

#[test]
fn a_listed_socket_is_reached_and_no_other() {
    let judged = Judged::here();
    if judged == Judged::Never {
        return;
    }
    let site = Site::new();
    let daemon = Daemon::start();
    let listed = daemon.path("docker.sock");
    let policy = format!(
        "[[unix]]\npath = \"{}\"\n[[unix]]\npath = \"@{}-dgram\"\n",
        listed.display(),
        daemon.name
    );
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", &policy));
    let mut agent = script(guard.agent("probe").client(&python()), &daemon);
    for (way, works, named) in daemon.ways(judged) {
        let is_listed =
            named.ends_with(&format!("unix:{}", listed.display())) || named.ends_with("-dgram");
        agent.say(&way);
        let expected = if is_listed { works } else { "EPERM" };
        assert_eq!(agent.after("said "), expected, "{way}");
    }
    let allowed: Vec<Record> = guard
        .audit()
        .into_iter()
        .filter(|record| record.outcome() == "allow" && record.action() == "connect")
        .collect();
    // Of datagrams that LSM programs see only what is refused is recorded.
    let connects = match judged {
        Judged::AsBound => 6,
        _ => 2,
    };
    assert_eq!(allowed.len(), connects, "{allowed:#?}");
    // The next bundle takes it away from a process that runs.
    site.install(&Bundle::new(2).agent("probe", ""));
    let folder = site.path("policies").display().to_string();
    guard.cli(["policy", "apply", &folder]).ok();
    agent.say(&format!("stream {}", listed.display()));
    assert_eq!(agent.after("said "), "EPERM");
}

#[test]
fn nobody_else_is_touched() {
    let site = Site::new();
    let daemon = Daemon::start();
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", ""));
    let before = guard.audit().len();
    let mut bystander = script(site.client(&python()), &daemon);
    for (way, works, _) in daemon.ways(Judged::here()) {
        bystander.say(&way);
        assert_eq!(bystander.after("said "), works, "{way}");
    }
    assert_eq!(guard.audit().len(), before);
}

#[test]
fn name_look_ups_go_on_without_nscd() {
    let site = Site::new();
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", ""));
    let ran = guard
        .agent("probe")
        .python_code("import pwd, syslog; print(pwd.getpwuid(0).pw_name, socket.gethostbyname('localhost')); syslog.syslog('x')")
        .ok();
    assert_eq!(ran.stdout, "root 127.0.0.1");
    // Each look-up tries nscd first, and says nothing by it; the system's log is another matter.
    let records = guard.audit();
    let refused = records.iter().filter(|record| record.outcome() == "deny");
    let refused: Vec<_> = refused.map(|record| record.text("/resource")).collect();
    // As bound, it is judged only if it is there.
    let is_judged = match Judged::here() {
        Judged::AsBound => Path::new("/dev/log").exists(),
        judged => judged == Judged::AsWritten,
    };
    assert_eq!(is_judged, !refused.is_empty(), "{records:#?}");
    assert!(
        refused.iter().all(|name| *name == "unix:/dev/log"),
        "{records:#?}"
    );
}

#[test]
fn a_network_socket_as_standard_input_is_not_passed_on() {
    let site = Site::new();
    let guard = Guard::start(&site, &Bundle::new(1).agent("probe", ""));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let stream =
        std::net::TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let run = |input: std::os::fd::OwnedFd, output: std::process::Stdio| {
        std::process::Command::new(agentguard_tests::tools::agentguard())
            .args(["run", "--agent", "probe", "--config"])
            .arg(site.config())
            .args(["--", "echo", "ran"])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .stdin(std::process::Stdio::from(input))
            .stdout(output)
            .output()
            .expect("it runs")
    };
    let refused = run(stream.into(), std::process::Stdio::piped());
    assert_eq!(refused.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("network socket"));
    assert!(refused.stdout.is_empty());
    // A pair, as Node gives its children.
    let null = std::fs::File::open("/dev/null").expect("there");
    let passed = run(null.into(), std::os::fd::OwnedFd::from(theirs).into());
    assert_eq!(passed.status.code(), Some(0));
    let mut said = String::new();
    ours.read_to_string(&mut said).expect("closed by now");
    assert_eq!(said, "ran\n");
    drop(guard);
}
