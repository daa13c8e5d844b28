//! A forwarder with a bundle, a CA and one origin server behind it.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agentguard_common::abi::{AgentId, FlowKey, Origin};
use agentguard_common::net::Addr;
use agentguard_common::share::QuestionMark;
use agentguard_link::calls::to_daemon::{DaemonAnswer, DaemonCall, Leaf};
use agentguard_link::frame::{CanaryOrigin, Limits, Start, ToDaemon, Upstream};
use agentguard_link::spool::{self, CleanSegment, HEADER_BYTES, SEGMENT_BYTES, SEGMENTS, Stage};
use agentguard_link::state::{Names, PolicyUpdate, State};
use agentguard_link::ways::Ways;
use agentguard_policy::Sources;
use agentguard_record::Draft;
use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::super::accept;
use super::super::admit::Door;
use super::super::compile::compile;
use super::super::forwarder::Forwarder;
use super::super::origin::OriginSource;
use super::super::spool::Spool;
use super::origin::TestOrigin;

pub(super) const AGENT: AgentId = AgentId(2);
pub(super) const USER: u32 = 1000;
pub(super) const HOST: &str = "origin.test";

pub(super) struct Rig {
    pub forwarder: Arc<Forwarder>,
    pub origin: TestOrigin,
    records: Mutex<ReadSpool>,
    roots: Arc<RootCertStore>,
    places: Arc<Semaphore>,
    issued: Arc<AtomicU64>,
    spool: Arc<Spool>,
}

/// What a rig is made with.
pub(super) struct Setup {
    pub limits: Limits,
    /// `{port}` is the origin's, `{plain}` its plain one's.
    pub agent: &'static str,
    /// Cedar; `{port}` as in `agent`.
    pub rules: &'static str,
    /// What is known of a host; `{port}` as in `agent`.
    pub host: Option<&'static str>,
    pub max_connections: usize,
    /// The origin's certificate has had its time.
    pub expired: bool,
    /// What begins is on disk first.
    pub strict: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            limits: Limits {
                max_connections: 64,
                max_header_bytes: 16 * 1024,
                head_timeout_ms: 10_000,
                upstream_connect_timeout_ms: 5_000,
                upstream_head_timeout_ms: 10_000,
                idle_timeout_ms: 60_000,
                max_judged_body_bytes: 16 * 1024,
                max_judged_bodies_bytes: 1 << 20,
                judged_body_timeout_ms: 10_000,
            },
            agent: BUNDLE,
            rules: "",
            host: None,
            max_connections: 64,
            expired: false,
            strict: false,
        }
    }
}

pub(super) const BUNDLE: &str = r#"
[agent]
name = "tester"
owner = "owner@example.com"
risk = "low"
[[reach]]
host = "origin.test:{port}"
allow = ["ANY /ok/**", "GET /ok"]
[[reach]]
host = "plain.test:{plain}"
allow = ["ANY /ok/**"]
[[reach]]
host = "pinned.test:{port}"
tls = "passthrough"
allow = ["connect"]
[[reach]]
host = "dead.test:{port}"
allow = ["GET /ok/**"]
[[reach]]
host = "other.test:{port}"
allow = ["GET /ok/**"]
"#;

impl Rig {
    pub(super) async fn new() -> Self {
        Self::with(Setup::default()).await
    }

    pub(super) async fn with(setup: Setup) -> Self {
        let origin = TestOrigin::start(setup.expired).await;
        let signer = Signer::new();
        let mut roots = RootCertStore::empty();
        roots.add(signer.certificate.clone()).unwrap();
        let start = Start {
            limits: setup.limits,
            upstream: Upstream {
                roots: vec![origin.root.clone()],
                allow_addresses: vec!["127.0.0.0/8".parse().unwrap()],
                ways: Ways::default(),
            },
            canary: CanaryOrigin {
                port: origin.port,
                certificate: origin.root.clone(),
            },
            spool: ReadSpool::clean(),
            strict: setup.strict,
            tells_refused_names: false,
            state: State {
                policy: Box::new(bundle(&origin, setup.agent, setup.rules, setup.host)),
                names: Names {
                    hosts: hosts(),
                    resolvers: vec![],
                },
                audit_writable: true,
                ..State::default()
            },
        };
        let (files, records) = ReadSpool::new();
        let (forwarder, mut inbox) = Forwarder::new(start, files, |_, _, _| Ok(())).unwrap();
        let weak = Arc::downgrade(&forwarder);
        let issued = Arc::new(AtomicU64::new(0));
        let count = issued.clone();
        tokio::spawn(async move {
            while let Some(frame) = inbox.calls.recv().await {
                let ToDaemon::Call {
                    token,
                    call: DaemonCall::Leaf(name),
                } = frame
                else {
                    continue;
                };
                count.fetch_add(1, Ordering::Relaxed);
                let leaf = DaemonAnswer::Leaf(Ok(signer.issue(&name)));
                match weak.upgrade() {
                    Some(forwarder) => forwarder.daemon.answered(token, leaf),
                    None => return,
                }
            }
        });
        Self {
            forwarder,
            origin,
            records: Mutex::new(records),
            spool: inbox.spool,
            roots: Arc::new(roots),
            places: Arc::new(Semaphore::new(setup.max_connections)),
            issued,
        }
    }

    pub(super) fn apply(&self, agent: &str) {
        let update = bundle(&self.origin, agent, "", None);
        let policy = compile(&update).unwrap();
        self.forwarder.policy.store(Arc::new(policy));
        self.forwarder.applied.send_replace(());
    }

    /// A connection of the agent's to `port`, as the kernel would have redirected it.
    pub(super) async fn connect(&self, port: u16) -> TcpStream {
        self.connect_as(Some(port)).await
    }

    pub(super) async fn connect_as(&self, port: Option<u16>) -> TcpStream {
        self.connect_to(self.door(port)).await
    }

    /// A connection of another agent's, which no bundle knows.
    pub(super) async fn connect_as_another(&self) -> TcpStream {
        let door = self.door_of(AgentId(AGENT.0 + 1), USER, Some(self.origin.plain));
        self.connect_to(door).await
    }

    async fn connect_to(&self, door: Arc<Door>) -> TcpStream {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(accept::accept(door, listener, stop.clone()));
        let socket = TcpStream::connect(addr).await.unwrap();
        socket.set_nodelay(true).unwrap();
        socket
    }

    /// A connection of a process of the agent's that another user runs.
    pub(super) async fn connect_of_user(&self, uid: u32, port: u16) -> TcpStream {
        self.connect_to(self.door_of(AGENT, uid, Some(port))).await
    }

    /// Where the agent's connections to `port` come in; `None`: nobody's.
    pub(super) fn door(&self, port: Option<u16>) -> Arc<Door> {
        self.door_of(AGENT, USER, port)
    }

    fn door_of(&self, agent: AgentId, uid: u32, port: Option<u16>) -> Arc<Door> {
        Arc::new(Door {
            forwarder: self.forwarder.clone(),
            origins: Arc::new(Fixed {
                agent,
                uid,
                port,
                last: AtomicU64::new(0),
            }),
            places: self.places.clone(),
        })
    }

    pub(super) async fn tls(&self, alpn: &[&str]) -> TlsStream<TcpStream> {
        self.tls_to(HOST, self.origin.port, alpn).await.unwrap()
    }

    pub(super) async fn tls_to(
        &self,
        name: &str,
        port: u16,
        alpn: &[&str],
    ) -> io::Result<TlsStream<TcpStream>> {
        let socket = self.connect(port).await;
        self.tls_over(socket, name, alpn).await
    }

    pub(super) async fn tls_over<S>(
        &self,
        io: S,
        name: &str,
        alpn: &[&str],
    ) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        let config = client_config(self.roots.clone(), alpn);
        TlsConnector::from(Arc::new(config))
            .connect(ServerName::try_from(name.to_owned()).unwrap(), io)
            .await
    }

    /// An HTTP/2 connection over TLS.
    pub(super) async fn h2(&self) -> http2::SendRequest<Empty<Bytes>> {
        let stream = self.tls(&["h2"]).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let io = TokioIo::new(stream);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    pub(super) fn leaves_issued(&self) -> u64 {
        self.issued.load(Ordering::Relaxed)
    }

    /// What agents trust.
    pub(super) fn roots(&self) -> Arc<RootCertStore> {
        self.roots.clone()
    }

    /// `origin.test:port`, as requests have it.
    pub(super) fn authority(&self) -> String {
        format!("{HOST}:{}", self.origin.port)
    }

    /// The next record; every test knows how many there must be.
    pub(super) async fn record(&self) -> Draft {
        let next = async {
            loop {
                if let Some(draft) = self.records.lock().unwrap().next() {
                    return draft;
                }
                self.spool.grown.notified().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), next)
            .await
            .expect("a record")
    }

    /// What has been recorded up to now.
    pub(super) fn records(&self) -> Vec<Draft> {
        self.records.lock().unwrap().by_ref().collect()
    }
}

/// The spool as the daemon reads it; each file is written to once.
pub(super) struct ReadSpool {
    files: Vec<File>,
    at: (usize, u64),
    pub begun: BTreeMap<Uuid, Draft>,
    over: VecDeque<Draft>,
}

impl ReadSpool {
    pub(super) fn new() -> (Vec<File>, Self) {
        let files: Vec<File> = (0..SEGMENTS)
            .map(|_| tempfile::tempfile().unwrap())
            .collect();
        for file in &files {
            file.set_len(SEGMENT_BYTES).unwrap();
        }
        let copies = files.iter().map(|file| file.try_clone().unwrap()).collect();
        let read = Self {
            files,
            at: (0, HEADER_BYTES),
            begun: BTreeMap::new(),
            over: VecDeque::new(),
        };
        (copies, read)
    }

    pub(super) fn clean() -> Vec<CleanSegment> {
        let clean = |index| CleanSegment {
            index,
            generation: u64::from(index) + 1,
        };
        (0..SEGMENTS as u8).map(clean).collect()
    }

    fn take_up(&mut self) {
        while self.at.0 < self.files.len() {
            let (index, from) = self.at;
            let generation = index as u64 + 1;
            let read = spool::read(&self.files[index], generation, from, SEGMENT_BYTES);
            let (frames, at) = read.unwrap();
            self.at.1 = at;
            for frame in frames {
                let draft = frame.draft().unwrap();
                match frame.stage {
                    Stage::Begun => drop(self.begun.insert(frame.decision, draft)),
                    Stage::Over => {
                        self.begun.remove(&frame.decision);
                        self.over.push_back(draft);
                    }
                }
            }
            let next = self.files.get(index + 1);
            let begins = |file| {
                let read = spool::read(file, generation + 1, HEADER_BYTES, SEGMENT_BYTES);
                !read.unwrap().0.is_empty()
            };
            match next.is_some_and(begins) {
                true => self.at = (index + 1, HEADER_BYTES),
                false => return,
            }
        }
    }
}

impl Iterator for ReadSpool {
    type Item = Draft;

    fn next(&mut self) -> Option<Draft> {
        if self.over.is_empty() {
            self.take_up();
        }
        self.over.pop_front()
    }
}

pub(super) fn client_config(roots: Arc<RootCertStore>, alpn: &[&str]) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

fn hosts() -> BTreeMap<String, Vec<std::net::IpAddr>> {
    let local = vec![Ipv4Addr::LOCALHOST.into()];
    ["origin.test", "plain.test", "pinned.test", "other.test"]
        .into_iter()
        .map(|name| (name.to_owned(), local.clone()))
        .collect()
}

fn bundle(origin: &TestOrigin, agent: &str, rules: &str, host: Option<&str>) -> PolicyUpdate {
    let filled = |text: &str| {
        text.replace("{port}", &origin.port.to_string())
            .replace("{plain}", &origin.plain.to_string())
    };
    let manifest = "name = \"test\"\nserial = 1\n".to_owned();
    let files = [
        ("bundle.toml".to_owned(), manifest),
        ("agents/tester.toml".to_owned(), filled(agent)),
        ("rules/rules.cedar".to_owned(), filled(rules)),
    ];
    let host = host.map(|host| ("hosts/host.toml".to_owned(), filled(host)));
    PolicyUpdate {
        sources: Sources {
            files: files.into_iter().chain(host).collect(),
        },
        agents: BTreeMap::from([(AGENT, "tester".to_owned())]),
        owners: BTreeMap::new(),
    }
}

/// In the place of the daemon's certificate authority.
struct Signer {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Signer {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let certificate = params.self_signed(&key).unwrap();
        Self {
            certificate: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    fn issue(&self, name: &str) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        Leaf {
            chain: vec![leaf.der().to_vec(), self.certificate.to_vec()],
            key: key.serialize_der(),
        }
    }
}

/// Every connection is the agent's, to one port; `None`: nobody's.
struct Fixed {
    agent: AgentId,
    uid: u32,
    port: Option<u16>,
    last: AtomicU64,
}

impl OriginSource for Fixed {
    fn accepted(&self, cookie: u64) -> io::Result<Option<Origin>> {
        assert_ne!(
            cookie,
            self.last.swap(cookie, Ordering::Relaxed),
            "cookies are unique"
        );
        Ok(self.port.map(|port| Origin {
            agent: self.agent,
            tgid: 77,
            uid: self.uid,
            port,
            proto: 6,
            family: 4,
            addr: Addr::from_v4([192, 0, 2, 1]),
            time_ns: 1,
        }))
    }

    fn question(&self, _: QuestionMark, _: &FlowKey) -> io::Result<Option<Origin>> {
        Ok(None)
    }
}

/// One HTTP/1.1 answer as it came.
#[derive(Debug)]
pub(super) struct Reply {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Reply {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (have, value) = line.split_once(':')?;
            have.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(super) fn slug(&self) -> String {
        let kind = self.json()["type"].as_str().unwrap().to_owned();
        kind.strip_prefix("urn:agentguard:problem:")
            .unwrap()
            .to_owned()
    }
}

/// Writes `request` and reads one answer.
pub(super) async fn ask<S>(stream: &mut S, request: impl AsRef<[u8]>) -> Reply
where
    S: AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    stream.write_all(request.as_ref()).await.unwrap();
    stream.flush().await.unwrap();
    reply(stream).await
}

/// Reads one answer: its head, and a body of known length or in chunks, or up to the end.
pub(super) async fn reply<S: AsyncRead + Unpin>(stream: &mut S) -> Reply {
    let head = head(stream).await;
    let status = head[9..12].parse().unwrap();
    let mut reply = Reply {
        status,
        head,
        body: Vec::new(),
    };
    if let Some(length) = reply.header("content-length") {
        reply.body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut reply.body).await.unwrap();
    } else if reply.header("transfer-encoding") == Some("chunked") {
        while let Some(chunk) = chunk(stream).await {
            reply.body.extend(chunk);
        }
        while !line(stream).await.is_empty() {}
    } else if status != 101 && status != 204 {
        stream.read_to_end(&mut reply.body).await.unwrap();
    }
    reply
}

pub(super) async fn head<S: AsyncRead + Unpin>(stream: &mut S) -> String {
    let mut head = String::new();
    loop {
        let line = line(stream).await;
        if line.is_empty() {
            return head;
        }
        head.push_str(&line);
        head.push('\n');
    }
}

/// One chunk's data; `None` for the last.
pub(super) async fn chunk<S: AsyncRead + Unpin>(stream: &mut S) -> Option<Vec<u8>> {
    let length = usize::from_str_radix(&line(stream).await, 16).unwrap();
    if length == 0 {
        return None;
    }
    let mut data = vec![0; length];
    stream.read_exact(&mut data).await.unwrap();
    assert_eq!(line(stream).await, "");
    Some(data)
}

pub(super) async fn line<S: AsyncRead + Unpin>(stream: &mut S) -> String {
    let mut line = Vec::new();
    loop {
        line.push(stream.read_u8().await.unwrap());
        if line.ends_with(b"\r\n") {
            line.truncate(line.len() - 2);
            return String::from_utf8(line).unwrap();
        }
    }
}
