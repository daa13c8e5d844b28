//! A kernel event as the record that it becomes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use agentguard_common::abi::{Event, EventKind, Tamper};
use agentguard_common::verdict::{Finding, Refusal};
use agentguard_kernel::Counted;
use agentguard_record::{ActionName, DecidedBy, DenyReason, Draft, DraftTask, Ended, Outcome};
use jiff::Timestamp;
use uuid::Uuid;

use super::super::complete::Clock;
use super::super::unix;

/// The record of a verdict; `None` for events that are none, such as an exec that nobody judged.
pub(super) fn draft(
    event: &Event,
    kind: EventKind,
    is_judged: bool,
    clock: &Clock,
) -> Option<Draft> {
    let (outcome, ended, refusal) = match Finding::try_from(event.reason) {
        Ok(finding) => outcome(finding),
        Err(_) => (Outcome::Deny, Ended::Refused, None),
    };
    let allowed = outcome == Outcome::Allow;
    let is_told = match kind {
        EventKind::Exec | EventKind::Enrol => is_judged || !allowed,
        EventKind::Unix => {
            outcome != Outcome::Deny
                || refusal != Some(Refusal::UnixSocket)
                || !unix::is_name_cache(event)
        }
        EventKind::Fork | EventKind::Exit | EventKind::ForwarderDown | EventKind::Unread => false,
        EventKind::Connect
        | EventKind::Send
        | EventKind::Bind
        | EventKind::Socket
        | EventKind::Packet
        | EventKind::Tamper
        | EventKind::HandedOver => true,
    };
    let (action, resource) = act(event, kind).filter(|_| is_told)?;
    let has_address = matches!(
        kind,
        EventKind::Connect | EventKind::Send | EventKind::Bind | EventKind::Packet
    );
    let mut facts = BTreeMap::new();
    if let Some(name) = protocol(event.proto).filter(|_| has_address) {
        facts.insert("proto".to_owned(), name.to_owned());
    }
    Some(Draft {
        time_us: clock.wall_of(event.time_ns),
        decision: Uuid::now_v7(),
        tgid: event.tgid,
        action,
        resource,
        task: DraftTask::OfProcess,
        facts,
        outcome,
        decided_by: DecidedBy::Kernel,
        ended,
        reason: (!allowed).then(|| refusal.map_or(DenyReason::ProtocolRefused, reason)),
        detail: (!allowed).then(|| match refusal {
            Some(Refusal::UnixSocket) => unix::detail(event),
            Some(refusal) => detail(refusal).to_owned(),
            None => "refused".to_owned(),
        }),
        ..Draft::blank(event.agent)
    })
}

/// The record of refusals that the kernel has told by their number, since it last did.
pub(super) fn of_many(counted: &Counted) -> Draft {
    let (outcome, ended, refusal) = outcome(counted.finding);
    let why = refusal.map_or("refused", detail);
    Draft {
        time_us: Timestamp::now().as_microsecond(),
        decision: Uuid::now_v7(),
        action: action(counted.kind).unwrap_or(ActionName::Tamper),
        resource: MANY.to_owned(),
        outcome,
        decided_by: DecidedBy::Kernel,
        ended,
        reason: refusal.map(reason),
        detail: Some(format!(
            "{} more, told by their number; the last: {why}",
            counted.count
        )),
        count: counted.count,
        ..Draft::blank(counted.agent)
    }
}

/// The resource of a record that stands for many.
const MANY: &str = "(several)";

fn outcome(finding: Finding) -> (Outcome, Ended, Option<Refusal>) {
    match finding {
        Finding::Allowed => (Outcome::Allow, Ended::Whole, None),
        Finding::Observed(refusal) => (Outcome::Observed, Ended::Whole, Some(refusal)),
        Finding::Refused(refusal) => (Outcome::Deny, Ended::Refused, Some(refusal)),
    }
}

/// What records call a kind of call.
fn action(kind: EventKind) -> Option<ActionName> {
    Some(match kind {
        EventKind::Connect | EventKind::Unix => ActionName::Connect,
        EventKind::Send => ActionName::Sendmsg,
        EventKind::Bind => ActionName::Bind,
        EventKind::Packet => ActionName::Packet,
        EventKind::Socket => ActionName::Socket,
        EventKind::HandedOver => ActionName::HandedOver,
        EventKind::Tamper => ActionName::Tamper,
        EventKind::Exec | EventKind::Enrol => ActionName::Exec,
        EventKind::Fork | EventKind::Exit | EventKind::ForwarderDown | EventKind::Unread => {
            return None;
        }
    })
}

/// What an agent did, and to what, as records name it; `None` for what only happens to a process.
fn act(event: &Event, kind: EventKind) -> Option<(ActionName, String)> {
    let resource = match kind {
        EventKind::Connect | EventKind::Send | EventKind::Bind | EventKind::Packet => {
            address(event)
        }
        EventKind::Socket => socket_name(event),
        EventKind::Unix if event.proto == Event::UNIX_SEND => {
            return Some((ActionName::Sendmsg, unix::resource(event)));
        }
        EventKind::Unix => unix::resource(event),
        EventKind::HandedOver => "socket".to_owned(),
        EventKind::Tamper => return Some(tampering(event)),
        EventKind::Exec | EventKind::Enrol => path(event),
        EventKind::Fork | EventKind::Exit | EventKind::ForwarderDown | EventKind::Unread => {
            return None;
        }
    };
    Some((action(kind)?, resource))
}

fn tampering(event: &Event) -> (ActionName, String) {
    let process = || format!("process/{}", event.parent_tgid);
    let device = |kind| format!("device/{kind}{}:{}", event.port, event.proto);
    match Tamper::try_from(event.sock_type) {
        Ok(Tamper::Bpf) => (ActionName::Bpf, "bpf".to_owned()),
        Ok(Tamper::Ptrace) => (ActionName::Ptrace, process()),
        Ok(Tamper::Signal) => (ActionName::Kill, process()),
        Ok(Tamper::Terminal) => (ActionName::Ioctl, "terminal".to_owned()),
        Ok(Tamper::Pins) => (ActionName::Unlink, "bpffs".to_owned()),
        Ok(Tamper::Files) => (ActionName::File, "agentguard".to_owned()),
        Ok(Tamper::Limits) => (ActionName::Tamper, process()),
        Ok(Tamper::BlockDevice) => (ActionName::File, device('b')),
        Ok(Tamper::CharDevice) => (ActionName::File, device('c')),
        Ok(Tamper::Sysctl) => (ActionName::File, format!("/proc/sys/{}", path(event))),
        Err(_) => (ActionName::Tamper, "tamper".to_owned()),
    }
}

fn address(event: &Event) -> String {
    match IpAddr::from(event.addr) {
        IpAddr::V4(ip) => format!("{ip}:{}", event.port),
        IpAddr::V6(ip) => format!("[{ip}]:{}", event.port),
    }
}

fn reason(refusal: Refusal) -> DenyReason {
    match refusal {
        Refusal::NoRule
        | Refusal::Packet
        | Refusal::Listen
        | Refusal::ForwarderPort
        | Refusal::UnixSocket
        | Refusal::Tamper
        | Refusal::Terminal
        | Refusal::ExecRule
        | Refusal::Fileless
        | Refusal::HandedOver => DenyReason::PolicyDenied,
        Refusal::Killed => DenyReason::AgentKilled,
        Refusal::ForwarderDown | Refusal::Namespace => DenyReason::UpstreamUnreachable,
        Refusal::Unrecorded => DenyReason::AuditUnavailable,
        Refusal::Share => DenyReason::RateLimited,
        Refusal::BoundToDevice
        | Refusal::Protocol
        | Refusal::Family
        | Refusal::SourceRoute
        | Refusal::Internal => DenyReason::ProtocolRefused,
        Refusal::Ambiguous => DenyReason::AgentSuspended,
    }
}

fn detail(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::NoRule => "no rule of the agent's reaches this address",
        Refusal::Killed => "the agent has been killed",
        Refusal::ForwarderDown => "no forwarder is running",
        Refusal::ForwarderPort => "the forwarder's own port cannot be addressed",
        Refusal::BoundToDevice => {
            "the socket is bound to a device, which would lead it past the forwarder"
        }
        Refusal::Protocol => "a kind of socket that no rule can allow",
        Refusal::SourceRoute => "IP options or extension headers could lead the packet elsewhere",
        Refusal::Packet => "no rule of the agent's reaches the packet's address",
        Refusal::Listen => "no [[listen]] entry has this address and port",
        Refusal::Internal => "a kernel map was full or a read failed",
        Refusal::Namespace => "no forwarder listens in this network namespace",
        Refusal::Family => "an address family that no rule can allow",
        Refusal::Tamper => {
            "it would reach what holds the agent, a process that is not its own, or the whole host"
        }
        Refusal::HandedOver => "a network socket that the agent has not made itself",
        Refusal::Terminal => "it would type into a terminal",
        Refusal::Share => {
            "the agent has as many connections on their way to the forwarder, or makes as many connections or questions a \
             second, as one agent may"
        }
        Refusal::UnixSocket => "no [[unix]] entry names this socket",
        Refusal::Unrecorded => "permitted, and there was no place for its record",
        Refusal::Ambiguous => "identify blocks of two agents match this process",
        Refusal::ExecRule => "no exec rule of the agent's allows this file",
        Refusal::Fileless => {
            "the file has no name on the host: it was deleted, never had one, or a user namespace's mounts show it"
        }
    }
}

pub(super) fn path(event: &Event) -> String {
    let len = usize::try_from(event.path_len).map_or(0, |len| len.min(event.path.len()));
    let path = &event.path[..len];
    let end = path.iter().position(|byte| *byte == 0).unwrap_or(len);
    String::from_utf8_lossy(&path[..end]).into_owned()
}

fn protocol(proto: u32) -> Option<&'static str> {
    match i32::try_from(proto).ok()? {
        libc::IPPROTO_TCP => Some("tcp"),
        libc::IPPROTO_UDP => Some("udp"),
        _ => None,
    }
}

/// Of a family that is not the internet's.
fn family_name(family: u16) -> String {
    match i32::from(family) {
        libc::AF_UNIX => "unix".to_owned(),
        libc::AF_NETLINK => "netlink".to_owned(),
        libc::AF_PACKET => "packet".to_owned(),
        libc::AF_VSOCK => "vsock".to_owned(),
        libc::AF_ALG => "alg".to_owned(),
        libc::AF_XDP => "xdp".to_owned(),
        libc::AF_BLUETOOTH => "bluetooth".to_owned(),
        other => other.to_string(),
    }
}

/// `family/type/protocol`, names where there are any.
fn socket_name(event: &Event) -> String {
    let family = match event.family {
        4 => "inet".to_owned(),
        6 => "inet6".to_owned(),
        other => family_name(other & !Event::AF),
    };
    let kind = match i32::try_from(event.sock_type).unwrap_or(-1) {
        libc::SOCK_STREAM => "stream".to_owned(),
        libc::SOCK_DGRAM => "dgram".to_owned(),
        libc::SOCK_RAW => "raw".to_owned(),
        libc::SOCK_SEQPACKET => "seqpacket".to_owned(),
        other => other.to_string(),
    };
    let proto = match event.proto {
        1 => "icmp".to_owned(),
        58 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        262 => "mptcp".to_owned(),
        other => protocol(other).map_or_else(|| other.to_string(), str::to_owned),
    };
    format!("{family}/{kind}/{proto}")
}

#[cfg(test)]
mod tests {
    use agentguard_common::abi::{AgentId, PATH_LEN};
    use agentguard_common::net::Addr;

    use super::*;

    fn event(kind: EventKind, reason: u32) -> Event {
        Event {
            kind: kind as u32,
            reason,
            agent: AgentId(2),
            tgid: 7,
            parent_tgid: 1,
            uid: 0,
            time_ns: 5,
            start_ns: 0,
            cgroup: 0,
            addr: Addr::from_v4([192, 0, 2, 1]),
            port: 80,
            family: 4,
            sock_type: 3,
            proto: 6,
            path_len: 0,
            path: [0; PATH_LEN],
        }
    }

    #[test]
    fn verdicts_become_records() {
        let clock = Clock::now();
        for (kind, why, action, resource, outcome, slug) in [
            (
                EventKind::Connect,
                0,
                "connect",
                "192.0.2.1:80",
                Outcome::Allow,
                None,
            ),
            (
                EventKind::Connect,
                1,
                "connect",
                "192.0.2.1:80",
                Outcome::Deny,
                Some("policy-denied"),
            ),
            (
                EventKind::Send,
                2,
                "sendmsg",
                "192.0.2.1:80",
                Outcome::Deny,
                Some("agent-killed"),
            ),
            (
                EventKind::Socket,
                6,
                "socket",
                "inet/raw/tcp",
                Outcome::Deny,
                Some("protocol-refused"),
            ),
            (
                EventKind::Exec,
                12,
                "exec",
                "",
                Outcome::Deny,
                Some("agent-suspended"),
            ),
            (
                EventKind::Bind,
                99,
                "bind",
                "192.0.2.1:80",
                Outcome::Deny,
                Some("protocol-refused"),
            ),
        ] {
            let draft = draft(&event(kind, why), kind, false, &clock).unwrap();
            assert_eq!(
                (draft.action.as_str(), draft.resource.as_str()),
                (action, resource)
            );
            assert_eq!(draft.outcome, outcome);
            assert_eq!(draft.reason.map(DenyReason::slug), slug);
        }
        for kind in [
            EventKind::Fork,
            EventKind::Exec,
            EventKind::Exit,
            EventKind::ForwarderDown,
        ] {
            assert!(draft(&event(kind, 0), kind, false, &clock).is_none());
        }
    }

    #[test]
    fn an_exec_that_was_judged_is_a_record_either_way() {
        let clock = Clock::now();
        for (why, outcome, slug) in [
            (0, Outcome::Allow, None),
            (13, Outcome::Deny, Some("policy-denied")),
            (14, Outcome::Deny, Some("policy-denied")),
            (1 << 31 | 13, Outcome::Observed, Some("policy-denied")),
        ] {
            let draft = draft(&event(EventKind::Exec, why), EventKind::Exec, true, &clock).unwrap();
            assert_eq!((draft.action.as_str(), draft.outcome), ("exec", outcome));
            assert_eq!(draft.reason.map(DenyReason::slug), slug);
        }
    }

    #[test]
    fn the_name_cache_is_a_record_only_where_it_was_reached() {
        let clock = Clock::now();
        let socket = b"/var/run/nscd/socket";
        let mut cache = event(EventKind::Unix, Refusal::UnixSocket as u32);
        cache.path[..socket.len()].copy_from_slice(socket);
        cache.path_len = u32::try_from(socket.len()).unwrap();
        assert!(draft(&cache, EventKind::Unix, false, &clock).is_none());
        cache.reason |= 1 << 31;
        let observed = draft(&cache, EventKind::Unix, false, &clock).unwrap();
        assert_eq!(observed.outcome, Outcome::Observed);
    }

    #[test]
    fn a_path_ends_at_its_length_or_its_nul() {
        let mut exec = event(EventKind::Exec, 12);
        exec.path[..9].copy_from_slice(b"/bin/true");
        exec.path_len = 9;
        assert_eq!(path(&exec), "/bin/true");
        exec.path_len = 200;
        assert_eq!(path(&exec), "/bin/true");
        exec.path_len = u32::MAX;
        assert_eq!(path(&exec), "/bin/true");
    }
}
