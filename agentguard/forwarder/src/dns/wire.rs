//! Queries off the wire and answers onto it. Strict: one question, class IN, opcode QUERY.

use agentguard_record::{DecidedBy, DenyReason};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{DNSClass, Record};

use super::Transport;
use super::verdict::QueryVerdict;

/// Largest answer over UDP: what the client offers, within these (RFC 6891 section 6.2.3).
const UDP_BYTES: (usize, usize) = (512, 4096);
/// What we offer clients for their queries.
const OUR_PAYLOAD: u16 = 1232;
/// A header's length (RFC 1035 section 4.1.1).
pub(super) const HEADER: usize = 12;
/// Records a query may have besides its question: OPT, and a signature we ignore.
const MAX_ADDITIONAL: u16 = 4;

/// The option code of extended errors (RFC 8914 section 2).
pub(super) const EDE: u16 = 15;

/// What is wrong with something that is not one plain query.
pub(super) enum WireFault {
    /// Too short for a header, or itself an answer: nothing may be sent back.
    Silent(&'static str),
    /// Answered with this code and the query's id.
    Code(ResponseCode, &'static str),
}

impl WireFault {
    pub(super) fn verdict(&self) -> QueryVerdict {
        let (code, detail) = match self {
            Self::Silent(detail) => (ResponseCode::FormErr, detail),
            Self::Code(code, detail) => (*code, detail),
        };
        QueryVerdict::refused(
            DecidedBy::Protocol,
            DenyReason::ProtocolRefused,
            code,
            detail,
        )
    }

    pub(super) fn bytes(&self, query: &[u8]) -> Option<Vec<u8>> {
        let Self::Code(code, _) = self else {
            return None;
        };
        let id = u16::from_be_bytes([query[0], query[1]]);
        let mut message = Message::error_msg(id, OpCode::from_u8(query[2] >> 3 & 0xf), *code);
        message.metadata.recursion_desired = query[2] & 1 != 0;
        if code.high() != 0 {
            message.set_edns(edns());
        }
        message.to_vec().ok()
    }
}

/// One question, class IN, opcode QUERY. Counts are judged before anything is allocated by them.
pub(super) fn parse(query: &[u8]) -> Result<Message, WireFault> {
    let Some(header) = query.first_chunk::<HEADER>() else {
        return Err(WireFault::Silent("shorter than a DNS header"));
    };
    if header[2] & 0x80 != 0 {
        return Err(WireFault::Silent("an answer where a query was expected"));
    }
    if header[2] >> 3 & 0xf != 0 {
        return Err(WireFault::Code(
            ResponseCode::NotImp,
            "an opcode other than QUERY",
        ));
    }
    let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    // RFC 9619: a query with another number of questions is malformed.
    if count(4) != 1 || count(6) != 0 || count(8) != 0 || count(10) > MAX_ADDITIONAL {
        return Err(WireFault::Code(
            ResponseCode::FormErr,
            "not exactly one question",
        ));
    }
    let malformed = WireFault::Code(ResponseCode::FormErr, "malformed");
    let message = Message::from_vec(query).map_err(|_| malformed)?;
    let [question] = message.queries.as_slice() else {
        return Err(WireFault::Code(
            ResponseCode::FormErr,
            "not exactly one question",
        ));
    };
    if message.message_type != MessageType::Query {
        return Err(WireFault::Silent("an answer where a query was expected"));
    }
    if question.query_class() != DNSClass::IN {
        return Err(WireFault::Code(
            ResponseCode::NotImp,
            "a class other than IN",
        ));
    }
    if message
        .edns
        .as_ref()
        .is_some_and(|edns| edns.version() != 0)
    {
        return Err(WireFault::Code(
            ResponseCode::BADVERS,
            "an unknown EDNS version",
        ));
    }
    Ok(message)
}

pub(super) fn encode(
    query: &Message,
    verdict: &QueryVerdict,
    transport: Transport,
) -> Option<Vec<u8>> {
    let mut message = Message::response(query.id, OpCode::Query);
    message.metadata.recursion_desired = query.recursion_desired;
    message.metadata.checking_disabled = query.checking_disabled;
    message.metadata.recursion_available = true;
    message.metadata.response_code = verdict.code;
    message.add_queries(query.queries.iter().cloned());
    let owner = query.queries[0].name();
    message.add_answers(
        verdict
            .answers
            .iter()
            .map(|(data, ttl)| Record::from_rdata(owner.clone(), *ttl, data.clone())),
    );
    if let Some(theirs) = &query.edns {
        let mut ours = edns();
        ours.set_dnssec_ok(theirs.flags().dnssec_ok);
        if let Some((code, text)) = verdict.extended {
            let mut option = (code as u16).to_be_bytes().to_vec();
            option.extend_from_slice(text.as_bytes());
            ours.options_mut().insert(EdnsOption::Unknown(EDE, option));
        }
        message.set_edns(ours);
    }
    let bytes = message.to_vec().ok()?;
    let limit = match transport {
        Transport::Tcp => usize::from(u16::MAX),
        Transport::Udp => usize::from(query.max_payload()).clamp(UDP_BYTES.0, UDP_BYTES.1),
    };
    match bytes.len() <= limit {
        true => Some(bytes),
        false => message.truncate().to_vec().ok(),
    }
}

fn edns() -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(OUR_PAYLOAD);
    edns
}
