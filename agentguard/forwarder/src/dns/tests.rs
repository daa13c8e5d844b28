use agentguard_common::abi::AgentId;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{DNSClass, Name};

use super::wire::{EDE, HEADER, WireFault};
use super::*;
use crate::resolve::stub::{Script, Stub};

const ZONE: &[(&str, Script)] = &[
    (
        "api.test",
        Script::Addresses(
            60,
            &["192.0.2.10", "192.0.2.11", "2001:db8::10", "10.0.0.9"],
        ),
    ),
    ("v4.test", Script::Addresses(90_000, &["192.0.2.10"])),
    ("inside.test", Script::Addresses(60, &["10.0.0.1"])),
    ("broken.test", Script::Code(ResponseCode::ServFail)),
    ("refused.test", Script::Addresses(60, &["192.0.2.66"])),
    ("many.test", Script::Addresses(60, MANY)),
];
const MANY: &[&str] = &[
    "192.0.2.1",
    "192.0.2.2",
    "192.0.2.3",
    "192.0.2.4",
    "192.0.2.5",
    "192.0.2.6",
    "192.0.2.7",
    "192.0.2.8",
    "192.0.2.9",
    "192.0.2.10",
    "192.0.2.11",
    "192.0.2.12",
    "192.0.2.13",
    "192.0.2.14",
    "192.0.2.15",
    "192.0.2.16",
    "192.0.2.17",
    "192.0.2.18",
    "192.0.2.19",
    "192.0.2.20",
    "192.0.2.21",
    "192.0.2.22",
    "192.0.2.23",
    "192.0.2.24",
    "192.0.2.25",
    "192.0.2.26",
    "192.0.2.27",
    "192.0.2.28",
    "192.0.2.29",
    "192.0.2.30",
    "192.0.2.31",
    "192.0.2.32",
];

fn origin() -> Origin {
    Origin {
        agent: AgentId(2),
        tgid: 4711,
        port: 53,
        ..Origin::default()
    }
}

/// Everything under `test` but what has `refused` in it.
fn covers(name: &HostName) -> NameReach {
    let covered = { name.as_str().ends_with(".test") && !name.as_str().contains("refused") };
    if covered {
        NameReach::Yes
    } else {
        NameReach::No
    }
}

/// Labels may hold any octet: `\000` and `\046` (a dot) are written as DNS master files do.
fn wire_name(text: &str) -> Name {
    let labels = text.split('.').filter(|label| !label.is_empty());
    let octets = labels.map(|it| it.replace("\\000", "\0").replace("\\046", ".").into_bytes());
    Name::from_labels(octets).unwrap()
}

fn query(name: &str, kind: RecordType, edns: Option<u16>) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(wire_name(name), kind));
    if let Some(payload) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message
}

async fn ask(query: &[u8], transport: Transport, resolver: &NameResolver) -> DnsAnswer {
    respond(query, transport, &origin(), None, covers, resolver).await
}

/// `rcode answers… [ede]` of what comes back.
fn shown(bytes: &[u8]) -> String {
    let message = Message::from_vec(bytes).unwrap();
    assert_eq!(
        (message.id, message.message_type),
        (0x1234, MessageType::Response)
    );
    let mut parts = vec![message.response_code.to_string()];
    parts.extend(message.answers.iter().map(|record| record.data.to_string()));
    let ede = message
        .edns
        .as_ref()
        .and_then(|edns| edns.option(EDE.into()));
    if let Some(EdnsOption::Unknown(_, data)) = ede {
        parts.push(format!("[{}]", u16::from_be_bytes([data[0], data[1]])));
    }
    parts.join(" ")
}

#[tokio::test]
async fn covered_names_are_answered_and_others_are_not_even_asked() {
    let stub = Stub::start(ZONE).await;
    let resolver = stub.resolver(&[]);
    use Outcome::{Allow, Deny, Error};
    let denied = Some(DenyReason::PolicyDenied);
    for (name, kind, expected, outcome, reason) in [
        (
            "api.test.",
            RecordType::A,
            "No Error 192.0.2.10 192.0.2.11",
            Allow,
            None,
        ),
        (
            "API.Test.",
            RecordType::AAAA,
            "No Error 2001:db8::10",
            Allow,
            None,
        ),
        ("v4.test.", RecordType::AAAA, "No Error", Allow, None),
        (
            "gone.test.",
            RecordType::A,
            "Non-Existent Domain",
            Allow,
            None,
        ),
        (
            "inside.test.",
            RecordType::A,
            "No Error [15]",
            Deny,
            Some(DenyReason::UpstreamUnreachable),
        ),
        (
            "broken.test.",
            RecordType::A,
            "Server Failure [23]",
            Error,
            Some(DenyReason::UpstreamUnreachable),
        ),
        (
            "hosted.test.",
            RecordType::A,
            "No Error 192.0.2.1",
            Allow,
            None,
        ),
        ("api.test.", RecordType::HTTPS, "No Error", Allow, None),
        ("api.test.", RecordType::SVCB, "No Error", Allow, None),
        ("api.test.", RecordType::TXT, "No Error", Allow, None),
        ("api.test.", RecordType::MX, "No Error", Allow, None),
        ("api.test.", RecordType::NS, "No Error [15]", Deny, denied),
        ("api.test.", RecordType::ANY, "No Error [15]", Deny, denied),
        (
            "api.test.",
            RecordType::CNAME,
            "No Error [15]",
            Deny,
            denied,
        ),
        (
            "api.test.",
            RecordType::Unknown(65280),
            "No Error [15]",
            Deny,
            denied,
        ),
        (
            "refused.test.",
            RecordType::A,
            "Non-Existent Domain [15]",
            Deny,
            denied,
        ),
        (
            "secret.evil.example.",
            RecordType::A,
            "Non-Existent Domain [15]",
            Deny,
            denied,
        ),
        (
            "secret.evil.example.",
            RecordType::TXT,
            "Non-Existent Domain [15]",
            Deny,
            denied,
        ),
        (
            "1.2.0.192.in-addr.arpa.",
            RecordType::PTR,
            "Non-Existent Domain [15]",
            Deny,
            denied,
        ),
        (
            "192.0.2.10.",
            RecordType::A,
            "Non-Existent Domain [15]",
            Deny,
            denied,
        ),
        (
            "\\000.test.",
            RecordType::A,
            "Non-Existent Domain [15]",
            Deny,
            denied,
        ),
        (".", RecordType::A, "Non-Existent Domain [15]", Deny, denied),
    ] {
        let bytes = query(name, kind, Some(1232)).to_vec().unwrap();
        let answer = ask(&bytes, Transport::Udp, &resolver).await;
        let context = format!("{name} {kind}: {:?}", answer.record);
        assert_eq!(shown(&answer.bytes.unwrap()), expected, "{context}");
        let record = answer.record;
        assert_eq!(
            (record.outcome, record.reason),
            (outcome, reason),
            "{context}"
        );
        assert_eq!(
            (record.action.as_str(), record.agent, record.tgid),
            ("dns", AgentId(2), 4711)
        );
        let lower = name.to_lowercase().replace("\\046", "\\.");
        let resource = lower
            .strip_suffix('.')
            .filter(|name| !name.is_empty())
            .unwrap_or(&lower);
        assert_eq!(record.resource, resource);
        let request = record.request.unwrap();
        assert_eq!(
            (request.scheme.as_str(), request.method),
            ("dns", kind.to_string())
        );
    }
    for asked in stub.asked() {
        assert!(
            ["A ", "AAAA ", "HTTPS ", "SVCB ", "TXT ", "MX "]
                .iter()
                .any(|kind| asked.starts_with(kind))
                && asked.ends_with(".test.")
                && !asked.contains("refused"),
            "upstream was asked for {asked}"
        );
    }
}

#[tokio::test]
async fn the_answer_echoes_the_question_and_bounds_the_ttl() {
    let stub = Stub::start(ZONE).await;
    let resolver = stub.resolver(&[]);
    let asked = query("V4.tEsT.", RecordType::A, None);
    let answer = ask(&asked.to_vec().unwrap(), Transport::Udp, &resolver).await;
    let message = Message::from_vec(&answer.bytes.unwrap()).unwrap();
    // The case too: some clients use it against spoofing.
    assert_eq!(message.queries[0].name().to_ascii(), "V4.tEsT.");
    assert_eq!(message.answers[0].name.to_ascii(), "V4.tEsT.");
    assert!(
        (295..=300).contains(&message.answers[0].ttl),
        "{}",
        message.answers[0].ttl
    );
    assert!(message.recursion_desired && message.recursion_available);
    assert!(!message.authoritative && !message.authentic_data);
    assert_eq!(message.edns, None, "who does not offer EDNS gets none");
}

#[tokio::test]
async fn an_agent_that_is_stopped_gets_nothing_resolved() {
    let stub = Stub::start(ZONE).await;
    let resolver = stub.resolver(&[]);
    let bytes = query("api.test.", RecordType::A, Some(1232))
        .to_vec()
        .unwrap();
    let there_is_none = "Non-Existent Domain [15]";
    let not_now = "Server Failure [15]";
    for (refused, told) in [
        ((DecidedBy::Stop, DenyReason::AgentKilled), there_is_none),
        ((DecidedBy::Host, DenyReason::AuditUnavailable), not_now),
        ((DecidedBy::Limit, DenyReason::RateLimited), not_now),
    ] {
        let answer = respond(
            &bytes,
            Transport::Udp,
            &origin(),
            Some(refused),
            covers,
            &resolver,
        )
        .await;
        assert_eq!(shown(&answer.bytes.unwrap()), told);
        assert_eq!(answer.record.decided_by, refused.0);
        assert_eq!(answer.record.reason, Some(refused.1));
    }
    assert!(stub.asked().is_empty());
}

#[tokio::test]
async fn what_does_not_fit_is_truncated_over_udp_only() {
    let stub = Stub::start(ZONE).await;
    let resolver = stub.resolver(&[]);
    for (edns, transport, truncated) in [
        (None, Transport::Udp, true),
        (Some(0), Transport::Udp, true),
        (Some(512), Transport::Udp, true),
        (Some(1232), Transport::Udp, false),
        (Some(65535), Transport::Udp, false),
        (None, Transport::Tcp, false),
    ] {
        let bytes = query("many.test.", RecordType::A, edns).to_vec().unwrap();
        let bytes = ask(&bytes, transport, &resolver).await.bytes.unwrap();
        let message = Message::from_vec(&bytes).unwrap();
        let expected = if truncated { 0 } else { MANY.len() };
        let context = format!("{edns:?} {transport:?}");
        assert_eq!(
            (message.truncation, message.answers.len()),
            (truncated, expected),
            "{context}"
        );
        assert_eq!(message.edns.is_some(), edns.is_some(), "{context}");
    }
}

#[tokio::test]
async fn what_is_no_plain_query_is_refused_as_such() {
    let stub = Stub::start(ZONE).await;
    let resolver = stub.resolver(&[]);
    let good = query("api.test.", RecordType::A, Some(1232))
        .to_vec()
        .unwrap();
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let mut two = query("api.test.", RecordType::A, None);
    two.add_query(Query::query(
        Name::from_ascii("v4.test.").unwrap(),
        RecordType::A,
    ));
    let mut chaos = query("version.bind.", RecordType::TXT, None);
    chaos.queries[0].set_query_class(DNSClass::CH);
    let mut future = query("api.test.", RecordType::A, Some(1232));
    future.edns.as_mut().unwrap().set_version(1);
    for (what, bytes, expected) in [
        ("empty", Vec::new(), None),
        ("shorter than a header", good[..11].to_vec(), None),
        ("an answer", changed(2, 0x80), None),
        (
            "a header alone, which promises a question",
            good[..12].to_vec(),
            Some("Form Error"),
        ),
        ("cut in the name", good[..16].to_vec(), Some("Form Error")),
        (
            "cut in the OPT record",
            good[..good.len() - 3].to_vec(),
            Some("Form Error"),
        ),
        ("no question", changed(5, 0), Some("Form Error")),
        (
            "65,535 questions",
            {
                let mut it = good.clone();
                it[4..6].fill(0xff);
                it
            },
            Some("Form Error"),
        ),
        ("an answer section", changed(7, 1), Some("Form Error")),
        (
            "too many additional records",
            changed(11, 200),
            Some("Form Error"),
        ),
        (
            "a name that points at itself",
            {
                let mut it = good[..12].to_vec();
                it.extend([0xc0, 12, 0, 1, 0, 1]);
                it[11] = 0;
                it
            },
            Some("Form Error"),
        ),
        ("two questions", two.to_vec().unwrap(), Some("Form Error")),
        ("opcode STATUS", changed(2, 0x10), Some("Not Implemented")),
        ("opcode UPDATE", changed(2, 0x28), Some("Not Implemented")),
        ("class CH", chaos.to_vec().unwrap(), Some("Not Implemented")),
        ("EDNS 1", future.to_vec().unwrap(), Some("TSIG Failure")),
    ] {
        let answer = ask(&bytes, Transport::Udp, &resolver).await;
        assert_eq!(
            answer.bytes.as_deref().map(shown).as_deref(),
            expected,
            "{what}"
        );
        assert_eq!(
            answer.record.reason,
            Some(DenyReason::ProtocolRefused),
            "{what}"
        );
        assert_eq!(answer.record.outcome, Outcome::Deny, "{what}");
    }
    assert!(stub.asked().is_empty());
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>, at in 0usize..40, byte: u8) {
        let mut near = query("api.test.", RecordType::A, Some(1232)).to_vec().unwrap();
        let length = near.len();
        near[at % length] = byte;
        for bytes in [&bytes, &near] {
            if let Err(WireFault::Code(..)) = parse(bytes) {
                proptest::prop_assert!(bytes.len() >= HEADER);
            }
        }
    }
}
