//! A machine of its own for each test: the kernel programs, a forwarder that only listens, and agents that run scripts.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agentguard_common::abi::{AgentId, Event, EventKind, FlowKey, Forwarder, Label, Origin};
use agentguard_common::share::QuestionMark;
use agentguard_common::verdict::Refusal;
use agentguard_kernel::{Counted, Events, Kernel, OriginMaps, Rule, cgroup_root};
pub(crate) use agentguard_sys::socket::cookie;
use agentguard_sys::socket::{netns_cookie, receive_marked, receive_room, take_marked_only};
pub(crate) use agentguard_tests::Cgroup;
pub(crate) use agentguard_tests::names;
pub(crate) use agentguard_tests::script::{Script, bystander};
use agentguard_tests::socket::PATIENCE;
pub(crate) use agentguard_tests::socket::{accept, is_readable, server};
pub(crate) use agentguard_tests::turn::Turn;

pub(crate) const AGENT: AgentId = AgentId(2);
pub(crate) const OTHER: AgentId = AgentId(3);

pub(crate) struct Machine {
    kernel: Option<Kernel>,
    runtime: tokio::runtime::Runtime,
    events: Option<Events>,
    seen: Vec<Event>,
    pub pins: PathBuf,
    // Released last.
    _turn: Turn,
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self::on(Turn::in_company())
    }

    /// The only one while it is there. The programs of every machine take the test's own process for their forwarder: where it
    /// binds as the forwarder would, another machine would take the socket for its own.
    pub(crate) fn alone() -> Self {
        Self::on(Turn::alone())
    }

    fn on(turn: Turn) -> Self {
        let mut machine = Self {
            kernel: None,
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
            events: None,
            seen: Vec::new(),
            pins: Path::new("/sys/fs/bpf").join(names::unique()),
            _turn: turn,
        };
        machine.load();
        machine
    }

    pub(crate) fn load(&mut self) {
        let mut kernel = Kernel::load(&self.pins, &cgroup_root().unwrap()).unwrap();
        let _inside = self.runtime.enter();
        self.events = Some(kernel.take_events().unwrap());
        self.kernel = Some(kernel);
    }

    /// As the death of the daemon leaves it.
    pub(crate) fn forget(&mut self) {
        self.events = None;
        self.kernel = None;
    }

    pub(crate) fn kernel(&mut self) -> &mut Kernel {
        self.kernel.as_mut().unwrap()
    }

    pub(crate) fn rules(&mut self, rules: &[Rule]) {
        self.kernel().set_rules(AGENT, rules).unwrap();
    }

    /// Everything in the ring up to now, which gives its room back.
    pub(crate) fn events(&mut self) -> &[Event] {
        let events = self.events.as_mut().unwrap();
        loop {
            let before = self.seen.len();
            let batch = events.read(|found| self.seen.push(found.event));
            events.release(batch).unwrap();
            if self.seen.len() == before {
                return &self.seen;
            }
        }
    }

    /// What is in the ring and stays there.
    pub(crate) fn read_unrecorded(&mut self) -> Vec<Event> {
        let mut read = Vec::new();
        let _unreleased = self
            .events
            .as_mut()
            .unwrap()
            .read(|found| read.push(found.event));
        read
    }

    /// What the programs have told of the agent by its number, since this was last asked.
    pub(crate) fn counted(&mut self, agent: AgentId) -> Vec<Counted> {
        let events = self.events.as_mut().unwrap();
        let counted = events.counted(std::iter::once(agent)).unwrap();
        events.note(&counted).unwrap();
        counted
    }

    /// Waits until an event is in the ring that `matches`.
    pub(crate) fn await_event(&mut self, matches: impl Fn(&Event) -> bool) -> Event {
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
    pub(crate) fn refused(&mut self, kind: EventKind, refusal: Refusal) -> usize {
        self.events()
            .iter()
            .filter(|event| event.kind == kind as u32 && event.reason == refusal as u32)
            .count()
    }

    pub(crate) fn counter(&mut self, name: &str) -> u64 {
        let counters = self.kernel().counters().unwrap();
        counters.iter().find(|(found, _)| *found == name).unwrap().1
    }

    pub(crate) fn label(&mut self, tgid: u32) -> AgentId {
        self.kernel().label(tgid).unwrap().agent
    }

    /// A script that `agent` runs.
    pub(crate) fn agent(&mut self, agent: AgentId, code: &str) -> Script {
        let mut script = Script::start(code);
        let label = Label { agent, flags: 0 };
        self.kernel().set_label(script.tgid(), label).unwrap();
        script.go();
        script
    }

    /// What a script prints when the agent runs it.
    pub(crate) fn run(&mut self, code: &str) -> String {
        self.agent(AGENT, code).finish()
    }

    pub(crate) fn forwarder(&mut self) -> TestForwarder {
        let forwarder = TestForwarder::listen();
        self.announce(&forwarder);
        forwarder
    }

    pub(crate) fn announce(&mut self, forwarder: &TestForwarder) {
        let state = Forwarder {
            listener4: cookie(&forwarder.v4).unwrap(),
            listener6: cookie(&forwarder.v6).unwrap(),
            up: 1,
            port: u32::from(forwarder.port),
            tgid: std::process::id(),
            has_v6: 1,
        };
        let netns = netns_cookie().unwrap();
        self.kernel().set_forwarder(netns, state).unwrap();
    }

    pub(crate) fn origins(&mut self) -> OriginMaps {
        let maps = self.kernel().forwarder_maps().unwrap();
        OriginMaps::from_fds(maps.accepted, maps.questions)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.forget();
        if let Err(error) = Kernel::unload(&self.pins) {
            eprintln!("cannot unload: {error}");
        }
    }
}

/// What the forwarder's listeners are, without what it does with them.
pub(crate) struct TestForwarder {
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
                    socket.set_read_timeout(Some(PATIENCE)).unwrap();
                    take_marked_only(socket).unwrap();
                    // As the forwarder's: questions wait while the test is slow to ask for them.
                    receive_room(socket, 4 << 20).unwrap();
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

/// A datagram as the resolver gets it.
pub(crate) struct Question {
    pub peer: SocketAddr,
    mark: QuestionMark,
    flow: FlowKey,
}

impl Question {
    /// The next one.
    #[track_caller]
    pub(crate) fn receive(resolver: &UdpSocket) -> Self {
        let (_, peer, mark) = receive_marked(resolver, &mut [0; 9]).expect("a question");
        let local = resolver.local_addr().unwrap();
        Self {
            peer,
            mark: QuestionMark(mark.expect("a mark")),
            flow: FlowKey {
                netns: netns_cookie().unwrap(),
                local: peer.ip().into(),
                remote: local.ip().into(),
                local_port: peer.port(),
                remote_port: local.port(),
                proto: 17,
            },
        }
    }

    /// Who asks, as far as is known.
    pub(crate) fn origin(&self, origins: &OriginMaps) -> Option<Origin> {
        origins.question(self.mark, &self.flow).unwrap()
    }
}

pub(crate) fn reach_tcp(net: &str, port: u16) -> Rule {
    Rule::ReachTcp {
        net: net.parse().unwrap(),
        port: Some(port),
    }
}

pub(crate) fn reach_udp(net: &str, port: u16) -> Rule {
    Rule::ReachUdp {
        net: net.parse().unwrap(),
        port: Some(port),
    }
}
