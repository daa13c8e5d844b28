//! A DNS server on loopback that tests script: real datagrams and streams, and what was asked is known.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use agentguard_link::frame::Upstream;
use agentguard_link::state::Names;
use agentguard_link::ways::Ways;
use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{CNAME, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use ipnet::IpNet;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::NameResolver;

/// What one name is answered with.
#[derive(Clone, Debug)]
pub(crate) enum Script {
    /// Of the asked family; TTL in seconds.
    Addresses(u32, &'static [&'static str]),
    /// The same, over TCP only: truncated over UDP.
    OverTcp(&'static [&'static str]),
    /// Another name that has these.
    Alias(&'static str, &'static [&'static str]),
    Code(ResponseCode),
    /// Never, for this type; `Addresses` of the others.
    Silent(RecordType, &'static [&'static str]),
}

pub(crate) struct Stub {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

type Zone = &'static [(&'static str, Script)];

impl Stub {
    pub(crate) async fn start(zone: Zone) -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            // The same port may be taken for TCP.
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let this = Self {
            address: udp.local_addr().unwrap(),
            asked: Arc::default(),
        };
        tokio::spawn(datagrams(udp, zone, this.asked.clone()));
        tokio::spawn(streams(tcp, zone, this.asked.clone()));
        this
    }

    /// `A example.`, …, in the order they were asked.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    pub(crate) fn resolver(&self, allow: &[&str]) -> NameResolver {
        NameResolver::new(&upstream(allow), &names(&[self.address])).unwrap()
    }
}

pub(crate) fn names(resolvers: &[SocketAddr]) -> Names {
    let hosts = [
        ("hosted.test", vec!["192.0.2.1", "2001:db8::1", "10.0.0.1"]),
        ("v4.hosted.test", vec!["::ffff:192.0.2.4"]),
        ("inside.hosted.test", vec!["10.0.0.1", "::1"]),
    ];
    let hosts = hosts.map(|(name, ips)| {
        let ips: Vec<IpAddr> = ips.into_iter().map(|ip| ip.parse().unwrap()).collect();
        (name.to_owned(), ips)
    });
    Names {
        hosts: hosts.into(),
        resolvers: resolvers.to_vec(),
    }
}

pub(crate) fn upstream(allow: &[&str]) -> Upstream {
    Upstream {
        roots: Vec::new(),
        allow_addresses: allow
            .iter()
            .map(|net| net.parse::<IpNet>().unwrap())
            .collect(),
        ways: Ways::default(),
    }
}

async fn datagrams(socket: UdpSocket, zone: Zone, asked: Arc<Mutex<Vec<String>>>) {
    let mut buffer = [0; 4096];
    loop {
        let (length, peer) = socket.recv_from(&mut buffer).await.unwrap();
        if let Some(answer) = reply(&buffer[..length], zone, false, &asked) {
            socket.send_to(&answer, peer).await.unwrap();
        }
    }
}

async fn streams(listener: TcpListener, zone: Zone, asked: Arc<Mutex<Vec<String>>>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(stream_of(stream, zone, asked.clone()));
    }
}

async fn stream_of(mut io: TcpStream, zone: Zone, asked: Arc<Mutex<Vec<String>>>) {
    while let Ok(length) = io.read_u16().await {
        let mut query = vec![0; usize::from(length)];
        io.read_exact(&mut query).await.unwrap();
        if let Some(answer) = reply(&query, zone, true, &asked) {
            io.write_u16(answer.len() as u16).await.unwrap();
            io.write_all(&answer).await.unwrap();
        }
    }
}

fn reply(query: &[u8], zone: Zone, tcp: bool, asked: &Mutex<Vec<String>>) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).unwrap();
    let question = query.queries[0].clone();
    let (name, kind) = (question.name().clone(), question.query_type());
    asked.lock().unwrap().push(format!("{kind} {name}"));
    let mut answer = Message::response(query.id, OpCode::Query);
    answer.metadata.recursion_available = true;
    answer.add_query(question);
    let of_kind = |owner: &Name, ttl: u32, ips: &[&str]| -> Vec<Record> {
        ips.iter()
            .map(|ip| RData::from(ip.parse::<IpAddr>().unwrap()))
            .filter(|data| data.record_type() == kind)
            .map(|data| Record::from_rdata(owner.clone(), ttl, data))
            .collect()
    };
    let script = zone
        .iter()
        .find(|(known, _)| name.to_ascii().trim_end_matches('.') == *known)
        .map_or(Script::Code(ResponseCode::NXDomain), |(_, script)| {
            script.clone()
        });
    match script {
        Script::Addresses(ttl, ips) => drop(answer.add_answers(of_kind(&name, ttl, ips))),
        Script::OverTcp(ips) if tcp => drop(answer.add_answers(of_kind(&name, 60, ips))),
        Script::OverTcp(_) => answer.metadata.truncation = true,
        Script::Alias(to, ips) => {
            let to = Name::from_ascii(to).unwrap();
            let alias = RData::CNAME(CNAME(to.clone()));
            answer.add_answer(Record::from_rdata(name, 60, alias));
            answer.add_answers(of_kind(&to, 60, ips));
        }
        Script::Code(code) => answer.metadata.response_code = code,
        Script::Silent(silent, _) if silent == kind => return None,
        Script::Silent(_, ips) => drop(answer.add_answers(of_kind(&name, 60, ips))),
    }
    if answer.answers.is_empty() {
        let root = Name::root();
        let soa = SOA::new(root.clone(), root.clone(), 1, 60, 60, 60, 60);
        answer.add_authority(Record::from_rdata(root, 60, RData::SOA(soa)));
    }
    answer.to_vec().ok()
}
