use std::collections::BTreeMap;

use agentguard_policy::Sources;
use agentguard_record::{DecidedBy, Outcome};
use agentguard_sys::socket::take_marked_only;
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use socket2::SockRef;
use tokio::io::DuplexStream;
use tokio::sync::mpsc::{self, Receiver};

use super::*;
use crate::resolve::stub::{Script, Stub};

const ZONE: &[(&str, Script)] = &[
    ("api.test", Script::Addresses(60, &["192.0.2.10"])),
    ("a.below.test", Script::Addresses(60, &["192.0.2.11"])),
    ("slow.below.test", Script::Silent(RecordType::A, &[])),
];
const AGENT: AgentId = AgentId(2);

fn policy() -> Policy {
    let files = [
        ("bundle.toml", "name = \"t\"\nserial = 1\n"),
        (
            "agents/p.toml",
            "[agent]\nname = \"p\"\nowner = \"o@x.example\"\nrisk = \"low\"\n\
             [[reach]]\nhost = \"api.test:8443\"\nallow = [\"GET /**\"]\n\
             [[reach]]\nhost = \"*.below.test\"\nallow = [\"GET /**\"]\n",
        ),
    ];
    let files = files.map(|(path, text)| (path.to_owned(), text.to_owned()));
    let sources = Sources {
        files: files.into(),
    };
    let agents = BTreeMap::from([("p".to_owned(), AGENT)]);
    Policy::compile(&sources, &agents).unwrap()
}

async fn server() -> (Arc<Server>, Receiver<Draft>, Stub) {
    server_that(false).await
}

async fn server_that(tells: bool) -> (Arc<Server>, Receiver<Draft>, Stub) {
    let stub = Stub::start(ZONE).await;
    let resolver = stub.resolver(&[]);
    let (sender, records) = mpsc::channel(100);
    let killed = (DecidedBy::Stop, DenyReason::AgentKilled);
    let gate: Gate = Box::new(move |agent| (agent == AgentId(3)).then_some(killed));
    let policy = Arc::new(ArcSwap::from_pointee(policy()));
    let keep: Keep = Box::new(move |draft| {
        let kept = sender.try_send(draft).is_ok();
        Box::pin(std::future::ready(kept))
    });
    let server = Server::new(policy, Arc::new(resolver), keep, gate, tells);
    (Arc::new(server), records, stub)
}

fn query(id: u16, name: &str) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message.to_vec().unwrap()
}

fn shown(bytes: &[u8]) -> (u16, ResponseCode, usize) {
    let message = Message::from_vec(bytes).unwrap();
    (message.id, message.response_code, message.answers.len())
}

fn origin(agent: AgentId) -> Origin {
    Origin {
        agent,
        tgid: 7,
        port: 53,
        ..Origin::default()
    }
}

impl Server {
    /// Questions of the agent that wait.
    fn pending(&self, agent: AgentId) -> usize {
        let pending = self.pending.lock().unwrap();
        let free = pending.get(&agent).map(|slots| slots.available_permits());
        free.map_or(0, |free| PENDING_PER_AGENT - free)
    }
}

/// What every datagram carries in these tests.
const MARK: QuestionMark = QuestionMark(9);

/// Serves datagrams on loopback; the questions of `known` ports are agent 2's, killed agent 3's at `killed`.
async fn serve(server: &Arc<Server>, known: Vec<u16>, killed: Vec<u16>) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    take_marked_only(&socket).unwrap();
    let local = socket.local_addr().unwrap();
    let loopback = Addr::from_v4([127, 0, 0, 1]);
    let origins = move |mark, key: &FlowKey| {
        assert_eq!(mark, MARK);
        assert_eq!(
            (key.netns, key.proto, key.remote_port),
            (9, 17, local.port())
        );
        assert_eq!((key.local, key.remote), (loopback, loopback));
        let of = |ports: &[u16], agent| ports.contains(&key.local_port).then(|| origin(agent));
        Ok(of(&known, AGENT).or(of(&killed, AgentId(3))))
    };
    tokio::spawn(server.clone().serve_datagrams(socket, 9, origins));
    local
}

async fn client() -> (UdpSocket, u16) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    SockRef::from(&socket).set_mark(MARK.0).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

#[tokio::test]
async fn datagrams_are_answered_by_their_flow_and_the_policy() {
    let (server, mut records, stub) = server().await;
    let ((agent, a), (killed, k), (stranger, _)) = (client().await, client().await, client().await);
    let at = serve(&server, vec![a], vec![k]).await;
    stranger.send_to(&query(1, "api.test."), at).await.unwrap();
    let cases = [
        (
            &agent,
            "api.test.",
            ResponseCode::NoError,
            1,
            Outcome::Allow,
            None,
        ),
        (
            &agent,
            "a.below.test.",
            ResponseCode::NoError,
            1,
            Outcome::Allow,
            None,
        ),
        (
            &agent,
            "below.test.",
            ResponseCode::NXDomain,
            0,
            Outcome::Deny,
            Some(DenyReason::PolicyDenied),
        ),
        (
            &agent,
            "x.api.test.",
            ResponseCode::NXDomain,
            0,
            Outcome::Deny,
            Some(DenyReason::PolicyDenied),
        ),
        (
            &killed,
            "api.test.",
            ResponseCode::NXDomain,
            0,
            Outcome::Deny,
            Some(DenyReason::AgentKilled),
        ),
    ];
    for (id, (socket, name, code, answers, outcome, reason)) in (2..).zip(cases) {
        socket.send_to(&query(id, name), at).await.unwrap();
        let mut buffer = [0; 512];
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        assert_eq!(
            (from, shown(&buffer[..length])),
            (at, (id, code, answers)),
            "{name}"
        );
        // The record was there before the answer.
        let record = records.try_recv().unwrap();
        assert_eq!((record.outcome, record.reason), (outcome, reason), "{name}");
        assert_eq!(
            (record.resource.as_str(), record.tgid),
            (name.trim_end_matches('.'), 7)
        );
        assert_eq!(
            record.bundle.as_deref(),
            Some(server.policy.load().meta().digest.as_str())
        );
    }
    assert_eq!(server.unattributed.load(Ordering::Relaxed), 1);
    assert!(
        records.try_recv().is_err(),
        "what nobody sent is not recorded as someone's"
    );
    assert_eq!(stub.asked(), ["A api.test.", "A a.below.test."]);
}

#[tokio::test]
async fn one_agents_pending_queries_are_bounded_and_those_beyond_are_told() {
    let (server, mut records, _stub) = server().await;
    let (agent, port) = client().await;
    let at = serve(&server, vec![port], Vec::new()).await;
    let bound = PENDING_PER_AGENT as u16;
    for id in 0..bound {
        agent
            .send_to(&query(id, "slow.below.test."), at)
            .await
            .unwrap();
        while server.pending(AGENT) <= id.into() {
            tokio::task::yield_now().await;
        }
    }
    for id in [bound, bound + 1] {
        agent.send_to(&query(id, "api.test."), at).await.unwrap();
        let mut buffer = [0; 512];
        let (length, _) = agent.recv_from(&mut buffer).await.unwrap();
        let told = shown(&buffer[..length]);
        assert_eq!(told, (id, ResponseCode::ServFail, 0));
        let record = records.try_recv().unwrap();
        assert_eq!(record.reason, Some(DenyReason::RateLimited));
        assert_eq!(record.outcome, Outcome::Deny);
    }
    // Another agent is served meanwhile.
    assert!(server.slot(AgentId(5)).is_some());
}

#[tokio::test]
async fn a_refused_name_leads_here_unless_it_would_hide_a_covered_one() {
    let (server, mut records, stub) = server_that(true).await;
    for (name, code, answers) in [
        ("evil.example.", ResponseCode::NoError, 1),
        ("x.api.test.", ResponseCode::NoError, 1),
        // What a search list makes of covered names, and of a host's.
        ("api.test.search.example.", ResponseCode::NXDomain, 0),
        ("a.below.test.search.example.", ResponseCode::NXDomain, 0),
        ("intranet.", ResponseCode::NXDomain, 0),
        ("192.0.2.7.", ResponseCode::NXDomain, 0),
    ] {
        let (query, origin) = (query(1, name), origin(AGENT));
        let bytes = server.judge(&query, Transport::Udp, &origin, None);
        let bytes = bytes.await.unwrap();
        assert_eq!(shown(&bytes), (1, code, answers), "{name}");
        let message = Message::from_vec(&bytes).unwrap();
        let record = records.try_recv().unwrap();
        assert_eq!(record.outcome, Outcome::Deny, "{name}");
        assert_eq!(record.reason, Some(DenyReason::PolicyDenied), "{name}");
        for answer in &message.answers {
            assert_eq!(answer.data.to_string(), "192.0.2.1");
            assert_eq!(answer.ttl, 1);
        }
    }
    assert!(stub.asked().is_empty());
}

#[tokio::test]
async fn what_cannot_be_recorded_is_told_so() {
    let (server, records, _stub) = server().await;
    drop(records);
    let bytes = server
        .judge(&query(1, "api.test."), Transport::Udp, &origin(AGENT), None)
        .await;
    assert_eq!(shown(&bytes.unwrap()), (1, ResponseCode::ServFail, 0));
}

fn framed(queries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for query in queries {
        bytes.extend((query.len() as u16).to_be_bytes());
        bytes.extend(query);
    }
    bytes
}

async fn read(io: &mut DuplexStream) -> Vec<u8> {
    let length = io.read_u16().await.unwrap();
    let mut bytes = vec![0; usize::from(length)];
    io.read_exact(&mut bytes).await.unwrap();
    bytes
}

#[tokio::test]
async fn a_stream_carries_many_queries_however_they_are_cut() {
    let (server, mut records, _stub) = server().await;
    let sent = framed(&[
        query(1, "api.test."),
        query(2, "evil.example."),
        query(3, "a.below.test."),
    ]);
    for cut in 0..=sent.len() {
        let (mut client, end) = tokio::io::duplex(4096);
        let origin = origin(AGENT);
        let serving = server.serve_stream(end, &origin);
        let asking = async {
            client.write_all(&sent[..cut]).await.unwrap();
            tokio::task::yield_now().await;
            client.write_all(&sent[cut..]).await.unwrap();
            let mut answers = Vec::new();
            for _ in 0..3 {
                answers.push(shown(&read(&mut client).await));
            }
            drop(client);
            answers
        };
        let (served, answers) = tokio::join!(serving, asking);
        served.unwrap();
        let expected = [
            (1, ResponseCode::NoError, 1),
            (2, ResponseCode::NXDomain, 0),
            (3, ResponseCode::NoError, 1),
        ];
        assert_eq!(answers, expected, "cut at {cut}");
        for _ in 0..3 {
            records.try_recv().unwrap();
        }
    }
}

#[tokio::test]
async fn a_stream_that_breaks_off_ends() {
    let (server, mut records, _stub) = server().await;
    let whole = framed(&[query(1, "api.test.")]);
    for (cut, clean, recorded) in [
        (0, true, 0),
        (1, true, 0),
        (2, false, 0),
        (whole.len() - 1, false, 0),
    ] {
        let (mut client, end) = tokio::io::duplex(4096);
        client.write_all(&whole[..cut]).await.unwrap();
        drop(client);
        let served = server.serve_stream(end, &origin(AGENT)).await;
        assert_eq!(served.is_ok(), clean, "cut at {cut}");
        assert_eq!(records.len(), recorded);
    }
    // What is no query is not answered, and ends the stream.
    let (mut client, end) = tokio::io::duplex(4096);
    client.write_all(&[0, 0]).await.unwrap();
    server.serve_stream(end, &origin(AGENT)).await.unwrap();
    assert_eq!(
        records.try_recv().unwrap().reason,
        Some(DenyReason::ProtocolRefused)
    );
    assert!(client.read_u16().await.is_err());
}
