//! A host of its own for each test: programs, a forwarder that only listens, agents that run Python.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use agentguard_common::abi::{AgentId, Event, EventKind, Forwarder, Label};
use agentguard_common::verdict::Refusal;
use agentguard_kernel::{Events, Kernel, OriginMaps, Rule, cgroup_root};
use agentguard_sys::socket::netns_cookie;

pub const AGENT: AgentId = AgentId(2);
pub const OTHER: AgentId = AgentId(3);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Every host's programs judge this one process, which is the forwarder to all of them.
static HOSTS: RwLock<()> = RwLock::new(());

#[expect(dead_code, reason = "held, not read")]
enum Company {
    Others(RwLockReadGuard<'static, ()>),
    None(RwLockWriteGuard<'static, ()>),
}

/// What every script begins with: it says that it runs, and waits for its label.
const PRELUDE: &str = r#"
import socket, sys, os, errno, time, threading, ctypes, subprocess, struct
def wait(): return sys.stdin.readline().strip()
def say(*what): print(*what, flush=True)
def attempt(f, *args):
    try: return f(*args)
    except OSError as e: return errno.errorcode.get(e.errno, str(e))
def tcp(host, port, family=socket.AF_INET, timeout=5):
    s = socket.socket(family, socket.SOCK_STREAM); s.settimeout(timeout); s.connect((host, port)); return s
def connect(host, port, family=socket.AF_INET, timeout=5):
    r = attempt(tcp, host, port, family, timeout)
    return r if isinstance(r, str) else "ok"
say("up"); wait()
"#;

pub struct Host {
    kernel: Option<Kernel>,
    runtime: tokio::runtime::Runtime,
    events: Option<Events>,
    seen: Vec<Event>,
    pub pins: PathBuf,
    _company: Company,
}

impl Host {
    pub fn new() -> Self {
        let others = HOSTS.read().unwrap_or_else(PoisonError::into_inner);
        Self::in_company(Company::Others(others))
    }

    /// The only one while it is there: for a test whose binds another's programs would take for themselves.
    pub fn alone() -> Self {
        let none = HOSTS.write().unwrap_or_else(PoisonError::into_inner);
        Self::in_company(Company::None(none))
    }

    fn in_company(company: Company) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("agentguard-test-{}-{number}", std::process::id());
        let mut host = Self {
            kernel: None,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
            events: None,
            seen: Vec::new(),
            pins: Path::new("/sys/fs/bpf").join(name),
            _company: company,
        };
        host.load();
        host
    }

    pub fn load(&mut self) {
        let mut kernel = Kernel::load(&self.pins, &cgroup_root().unwrap()).unwrap();
        let _inside = self.runtime.enter();
        self.events = Some(kernel.take_events().unwrap());
        self.kernel = Some(kernel);
    }

    /// As the death of the daemon leaves it.
    pub fn forget(&mut self) {
        self.events = None;
        self.kernel = None;
    }

    pub fn kernel(&mut self) -> &mut Kernel {
        self.kernel.as_mut().unwrap()
    }

    pub fn rules(&mut self, rules: &[Rule]) {
        self.kernel().set_rules(AGENT, rules).unwrap();
    }

    /// Everything in the ring up to now.
    pub fn events(&mut self) -> &[Event] {
        let seen = &mut self.seen;
        self.events
            .as_mut()
            .unwrap()
            .drain(|found| seen.push(found.event));
        &self.seen
    }

    /// Waits until an event is in the ring that `matches`.
    pub fn await_event(&mut self, matches: impl Fn(&Event) -> bool) -> Event {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(event) = self.events().iter().find(|event| matches(event)) {
                return *event;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no such event among {:?}", self.seen);
            let readable = self.events.as_mut().unwrap().readable();
            let _ = self
                .runtime
                .block_on(async { tokio::time::timeout(left, readable).await });
        }
    }

    /// How many events of a kind were refused for `refusal`.
    pub fn refused(&mut self, kind: EventKind, refusal: Refusal) -> usize {
        self.events()
            .iter()
            .filter(|event| event.kind == kind as u32 && event.reason == refusal as u32)
            .count()
    }

    pub fn counter(&mut self, name: &str) -> u64 {
        let counters = self.kernel().counters().unwrap();
        counters.iter().find(|(found, _)| *found == name).unwrap().1
    }

    pub fn label(&mut self, tgid: u32) -> AgentId {
        self.kernel().label(tgid).unwrap().agent
    }

    /// A process of `agent`'s that runs `script`.
    pub fn agent(&mut self, agent: AgentId, script: &str) -> Process {
        let mut process = Process::start(script);
        let label = Label { agent, flags: 0 };
        self.kernel().set_label(process.tgid(), label).unwrap();
        process.go();
        process
    }

    /// What `script` prints when the agent runs it.
    pub fn run(&mut self, script: &str) -> String {
        self.agent(AGENT, script).finish()
    }

    pub fn forwarder(&mut self) -> TestForwarder {
        let forwarder = TestForwarder::listen();
        self.announce(&forwarder);
        forwarder
    }

    pub fn announce(&mut self, forwarder: &TestForwarder) {
        let state = Forwarder {
            listener4: cookie(&forwarder.v4),
            listener6: cookie(&forwarder.v6),
            up: 1,
            port: u32::from(forwarder.port),
            tgid: std::process::id(),
            has_v6: 1,
        };
        let netns = netns_cookie().unwrap();
        self.kernel().set_forwarder(netns, state).unwrap();
    }

    pub fn origins(&mut self) -> OriginMaps {
        let maps = self.kernel().forwarder_maps().unwrap();
        OriginMaps::from_fds(maps.accepted, maps.flows)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.forget();
        if let Err(error) = Kernel::unload(&self.pins) {
            eprintln!("cannot unload: {error}");
        }
    }
}

/// What the forwarder's listeners are, without what it does with them.
pub struct TestForwarder {
    pub v4: TcpListener,
    pub v6: TcpListener,
    pub dns: UdpSocket,
    pub dns6: UdpSocket,
    pub port: u16,
}

impl TestForwarder {
    fn listen() -> Self {
        loop {
            let v4 = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let port = v4.local_addr().unwrap().port();
            let v6 = TcpListener::bind((Ipv6Addr::LOCALHOST, port));
            let dns = UdpSocket::bind((Ipv4Addr::LOCALHOST, port));
            let dns6 = UdpSocket::bind((Ipv6Addr::LOCALHOST, port));
            if let (Ok(v6), Ok(dns), Ok(dns6)) = (v6, dns, dns6) {
                for socket in [&dns, &dns6] {
                    let patience = Some(Duration::from_secs(5));
                    socket.set_read_timeout(patience).unwrap();
                }
                return Self {
                    v4,
                    v6,
                    dns,
                    dns6,
                    port,
                };
            }
        }
    }
}

pub fn cookie(socket: &impl AsRawFd) -> u64 {
    let mut cookie = 0u64;
    let mut len = 8;
    // SAFETY: both outlive the call.
    #[allow(unsafe_code)]
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    assert_eq!(result, 0);
    cookie
}

/// A Python process; killed and reaped with the test.
pub struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    /// Not anybody's yet: waits for [`Self::go`].
    pub fn start(script: &str) -> Self {
        let mut child = Command::new("/usr/bin/python3")
            .args(["-c", &format!("{PRELUDE}{script}")])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut process = Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
        };
        assert_eq!(process.line(), "up");
        process
    }

    pub fn tgid(&self) -> u32 {
        self.child.id()
    }

    pub fn go(&mut self) {
        self.tell("");
    }

    pub fn tell(&mut self, text: &str) {
        writeln!(self.input, "{text}").unwrap();
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    pub fn number(&mut self) -> u32 {
        self.line().parse().unwrap()
    }

    /// The rest of what it prints, and its end.
    pub fn finish(mut self) -> String {
        let mut text = String::new();
        while self.output.read_line(&mut text).unwrap() > 0 {}
        self.child.wait().unwrap();
        text.trim().to_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail for one that has finished.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that nobody labels.
pub fn bystander(script: &str) -> String {
    let mut process = Process::start(script);
    process.go();
    process.finish()
}

/// A listener that nobody's rules know, and its port.
pub fn server(ip: &str) -> (TcpListener, u16) {
    let listener = TcpListener::bind((ip.parse::<IpAddr>().unwrap(), 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Accepts one connection, or panics after five seconds.
pub fn accept(listener: &TcpListener) -> TcpStream {
    wait_readable(listener.as_raw_fd(), 5000).expect("a connection");
    let (stream, _) = listener.accept().unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    stream
}

pub fn wait_readable(fd: i32, timeout_ms: i32) -> Option<()> {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd, which outlives the call.
    #[allow(unsafe_code)]
    let ready = unsafe { libc::poll(&raw mut poll, 1, timeout_ms) };
    (ready == 1).then_some(())
}

pub fn reach_tcp(net: &str, port: u16) -> Rule {
    Rule::ReachTcp {
        net: net.parse().unwrap(),
        port: Some(port),
    }
}

pub fn reach_udp(net: &str, port: u16) -> Rule {
    Rule::ReachUdp {
        net: net.parse().unwrap(),
        port: Some(port),
    }
}

/// A cgroup of the test's own.
pub struct Cgroup(pub PathBuf);

impl Cgroup {
    pub fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("agentguard-test-{}-{number}", std::process::id());
        let path = cgroup_root().unwrap().join(name);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// As a pattern names it.
    pub fn name(&self) -> String {
        format!("/{}", self.0.file_name().unwrap().to_str().unwrap())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Empty once its processes are reaped, which may take the kernel a moment.
        let deadline = Instant::now() + Duration::from_secs(5);
        while std::fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
}
