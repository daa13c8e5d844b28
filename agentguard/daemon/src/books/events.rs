//! Kernel events: processes into the lineage, verdicts into the audit log.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use agentguard_common::abi::{Event, EventKind, Tamper};
use agentguard_common::counter::Counter;
use agentguard_common::verdict::{Finding, Refusal};
use agentguard_kernel::{Events, JudgedExec, RingEvent};
use agentguard_record::{
    ActionName, Actor, DecidedBy, DenyReason, Draft, DraftTask, Ended, Operation, Outcome, Process,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::alarms::{Alarm, Concern};
use super::complete::Clock;
use super::records::OperatorEntry;
use super::{Books, unix};
use crate::census::Census;
use crate::census::lineage::Exec;
use crate::enforce::Enforce;
use crate::host::Host;
use crate::lock::lock;
use crate::roster::Roster;

/// A full ring holds more events than these, whatever their kind: with fewer nothing can have been lost.
const MAY_HAVE_LOST: usize = 256;

/// Lost events are recorded together, at most this often.
const LOST_EVERY: Duration = Duration::from_secs(1);

/// Reads the kernel's ring.
pub(crate) struct EventReader {
    pub host: Arc<Host>,
    pub roster: Arc<Roster>,
    pub census: Arc<Census>,
    pub enforce: Arc<Enforce>,
    pub books: Arc<Books>,
    pub stop: CancellationToken,
}

impl EventReader {
    /// Until the daemon stops; on each of `asks`, what is in the ring now, first.
    pub(crate) async fn serve(
        self,
        mut events: Events,
        mut asks: mpsc::Receiver<oneshot::Sender<()>>,
    ) {
        let mut lost = Lost::before(&self.enforce);
        loop {
            let due = lost.due;
            let ask = tokio::select! {
                ready = events.readable() => {
                    if let Err(error) = ready {
                        let alarm = Alarm::EventsUnreadable(error.to_string());
                        tracing::error!("{alarm}");
                        self.books.alarms.raise(Concern::Events, alarm);
                        return;
                    }
                    None
                }
                Some(ask) = asks.recv() => Some(ask),
                () = async { tokio::time::sleep_until(due.expect("checked")).await },
                    if due.is_some() =>
                {
                    self.books.operated(lost.record());
                    continue;
                }
                () = self.stop.cancelled() => return,
            };
            let mut taken = Vec::new();
            events.drain(|seen| taken.push(seen));
            if taken.len() >= MAY_HAVE_LOST
                && let Some(alarm) = lost.look(&self.enforce)
            {
                self.books.alarms.raise(Concern::LostEvents, alarm);
                // One of the lost may have told of a process that nobody has labelled.
                self.census.unread.tell(0);
            }
            self.take(&taken).await;
            if let Some(ask) = ask {
                let _ = ask.send(());
            }
        }
    }

    async fn take(&self, seen: &[RingEvent]) {
        let Self {
            host,
            roster,
            census,
            books,
            ..
        } = self;
        let clock = Clock::now();
        let mut drafts = Vec::new();
        let seen = seen.iter().filter(|seen| !seen.event.agent.is_canary());
        for RingEvent { event, exec } in seen {
            let kind = match EventKind::try_from(event.kind) {
                Ok(kind) => kind,
                Err(kind) => {
                    tracing::warn!(kind, "a kernel event of an unknown kind");
                    continue;
                }
            };
            match kind {
                EventKind::Fork | EventKind::Exec | EventKind::Enrol => {
                    census.namespaces.begun(event.tgid);
                    // Of a process whose exec went through another event tells; else it runs what it ran.
                    if !exec.as_ref().is_some_and(|exec| exec.before) {
                        match kind == EventKind::Fork {
                            true => forked(census, event),
                            false => executed(host, census, event),
                        }
                    }
                }
                EventKind::Exit => lock(&census.lineage).exited(event.tgid, event.time_ns),
                EventKind::Unread => {
                    census.unread.tell(event.tgid);
                    continue;
                }
                EventKind::ForwarderDown => {
                    tracing::warn!(
                        "the forwarder's listener is gone: agents' connects are refused"
                    );
                    continue;
                }
                EventKind::Connect
                | EventKind::Send
                | EventKind::Bind
                | EventKind::Socket
                | EventKind::Packet
                | EventKind::Unix
                | EventKind::Tamper
                | EventKind::HandedOver => {
                    if event.reason == Refusal::Namespace as u32 {
                        census.namespaces.refused(event.tgid);
                    }
                }
            }
            if let Some(draft) = draft(event, kind, exec.is_some(), &clock) {
                drafts.push((stopped(roster, draft), caller(census, event, exec.as_ref())));
            }
        }
        census.attendance.changed();
        if !drafts.is_empty() {
            books.record(roster, census, drafts).await;
        }
    }
}

/// What the ring has lost, by the kernel's own count.
struct Lost {
    known: u64,
    /// When the log is to say so, and of how many.
    due: Option<Instant>,
    unrecorded: u64,
}

impl Lost {
    fn before(enforce: &Enforce) -> Self {
        Self {
            known: count(enforce),
            due: None,
            unrecorded: 0,
        }
    }

    /// What stands in the log for what is not there.
    fn record(&mut self) -> OperatorEntry {
        self.due = None;
        let lost = std::mem::take(&mut self.unrecorded);
        OperatorEntry {
            by: Actor::Daemon,
            operation: Operation::AuditRecover,
            agent: None,
            resource: "kernel events".to_owned(),
            outcome: Outcome::Error,
            detail: format!(
                "{lost} kernel events were lost in the {} s before: the kernel's ring was full",
                LOST_EVERY.as_secs()
            ),
            bundle: None,
        }
    }

    fn look(&mut self, enforce: &Enforce) -> Option<Alarm> {
        let now = count(enforce);
        if now == self.known {
            return None;
        }
        let lost = now - self.known;
        self.known = now;
        self.unrecorded += lost;
        self.due.get_or_insert_with(|| Instant::now() + LOST_EVERY);
        tracing::error!(lost, "kernel events were lost: the audit log lacks them");
        Some(Alarm::EventsLost(now))
    }
}

fn count(enforce: &Enforce) -> u64 {
    let counters = lock(&enforce.kernel).counters().unwrap_or_default();
    let found = counters
        .iter()
        .find(|(name, _)| *name == Counter::RingFull.name());
    found.map_or(0, |(_, count)| *count)
}

/// The kernel knows that an agent is stopped, and not why.
fn stopped(roster: &Roster, mut draft: Draft) -> Draft {
    if draft.reason == Some(DenyReason::AgentKilled)
        && let Some(stop) = roster.stops().get(&draft.agent)
    {
        draft.reason = Some(stop.reason());
        draft.detail = Some(stop.detail().to_owned());
    }
    draft
}

/// The process that called, now: by the time its record is made it may run the next program. `None` of a packet, which may be
/// sent in anybody's name.
fn caller(census: &Census, event: &Event, exec: Option<&JudgedExec>) -> Option<Process> {
    if event.cgroup == 0 && exec.is_none() {
        return None;
    }
    let mut lineage = lock(&census.lineage);
    let process = lineage.process_or_look(event.tgid, event.time_ns, event.agent)?;
    let exec = exec.cloned().unwrap_or_default();
    Some(Process {
        // Who it is may have changed since the program that it has was executed.
        uid: event.uid,
        cwd: exec.cwd,
        arguments: exec.arguments,
        arguments_bytes: exec.arguments_bytes,
        ..process
    })
}

fn forked(census: &Census, event: &Event) {
    let start = match event.start_ns {
        0 => event.time_ns,
        start => start,
    };
    lock(&census.lineage).forked(event.tgid, event.parent_tgid, event.agent, start);
}

fn executed(host: &Host, census: &Census, event: &Event) {
    let mut lineage = lock(&census.lineage);
    let exec = Exec {
        exe: path(event),
        uid: event.uid,
        cgroup: host.cgroups.path(event.cgroup),
        start_ns: event.start_ns,
        at_ns: event.time_ns,
    };
    lineage.executed(event.tgid, event.agent, exec);
}

/// The record of a verdict; `None` for events that are none, such as an exec that nobody judged.
fn draft(event: &Event, kind: EventKind, is_judged: bool, clock: &Clock) -> Option<Draft> {
    let (outcome, ended, refusal) = match Finding::try_from(event.reason) {
        Ok(Finding::Allowed) => (Outcome::Allow, Ended::Whole, None),
        Ok(Finding::Observed(refusal)) => (Outcome::Observed, Ended::Whole, Some(refusal)),
        Ok(Finding::Refused(refusal)) => (Outcome::Deny, Ended::Refused, Some(refusal)),
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

/// What an agent did, and to what, as records name it; `None` for what only happens to a process.
fn act(event: &Event, kind: EventKind) -> Option<(ActionName, String)> {
    Some(match kind {
        EventKind::Connect => (ActionName::Connect, address(event)),
        EventKind::Send => (ActionName::Sendmsg, address(event)),
        EventKind::Bind => (ActionName::Bind, address(event)),
        EventKind::Packet => (ActionName::Packet, address(event)),
        EventKind::Socket => (ActionName::Socket, socket_name(event)),
        EventKind::Unix if event.proto == Event::UNIX_SEND => {
            (ActionName::Sendmsg, unix::resource(event))
        }
        EventKind::Unix => (ActionName::Connect, unix::resource(event)),
        EventKind::HandedOver => (ActionName::HandedOver, "socket".to_owned()),
        EventKind::Tamper => tampering(event),
        EventKind::Exec | EventKind::Enrol => (ActionName::Exec, path(event)),
        EventKind::Fork | EventKind::Exit | EventKind::ForwarderDown | EventKind::Unread => {
            return None;
        }
    })
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
        Refusal::UnixSocket => "no [[unix]] entry names this socket",
        Refusal::Ambiguous => "identify blocks of two agents match this process",
        Refusal::ExecRule => "no exec rule of the agent's allows this file",
        Refusal::Fileless => {
            "the file has no name on the host: it was deleted, never had one, or a user namespace's mounts show it"
        }
    }
}

fn path(event: &Event) -> String {
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
