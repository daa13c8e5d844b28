//! What the daemon is told, and how: a verdict by an event in the ring, refusals beyond some by their number, and what is
//! permitted and has no place for its record is refused. No agent takes more than its share of the ring.

use agentguard_common::abi::{AgentId, EventKind, Told};
use agentguard_common::counter::Counter;
use agentguard_common::share::{
    REFUSAL_EVERY_NS, REFUSALS_IN_A_ROW, REFUSALS_SHARE, RING_FOR_REFUSALS, RING_SHARE,
};
use agentguard_common::verdict::{Finding, Refusal};
use aya_ebpf::bindings::BPF_RB_AVAIL_DATA;
use aya_ebpf::helpers::generated::bpf_ringbuf_query;

use crate::maps::{self, EVENTS, NOTED, TOLD, add, count};

/// Bytes that the ring puts before a record (`BPF_RINGBUF_HDR_SZ`).
const RECORD_HEAD: u64 = 8;

/// Tells of a verdict by what `write` puts into an event of `len` bytes, and answers what it comes to.
#[inline(always)]
pub fn verdict(
    kind: EventKind,
    finding: Finding,
    agent: AgentId,
    len: usize,
    write: impl FnOnce(*mut u8),
) -> Finding {
    if admits(finding, agent, len) && put(agent, len, write) {
        return finding;
    }
    by_number(kind, finding, agent)
}

/// As [`verdict`], of an event that is put together elsewhere.
#[inline(always)]
pub fn whole(kind: EventKind, finding: Finding, agent: AgentId, event: &[u8]) -> Finding {
    if admits(finding, agent, event.len()) && EVENTS.output_untyped::<[u8]>(event, 0).is_ok() {
        sent(agent, event.len());
        return finding;
    }
    by_number(kind, finding, agent)
}

/// Tells of what happens to a process. Nothing depends on it but what later records say of the process; what is refused
/// with it is counted.
#[inline(always)]
pub fn process(
    kind: EventKind,
    finding: Finding,
    agent: AgentId,
    len: usize,
    write: impl FnOnce(*mut u8),
) {
    if has_share(agent, len, RING_SHARE) && put(agent, len, write) {
        return;
    }
    count(Counter::RingFull);
    match finding {
        Finding::Allowed => {}
        Finding::Observed(_) | Finding::Refused(_) => {
            by_number(kind, finding, agent);
        }
    }
}

#[inline(always)]
fn put(agent: AgentId, len: usize, write: impl FnOnce(*mut u8)) -> bool {
    let Some(mut bytes) = EVENTS.reserve_bytes(len, 0) else {
        return false;
    };
    write(bytes.as_mut_ptr());
    bytes.submit(0);
    sent(agent, len);
    true
}

#[inline(always)]
fn admits(finding: Finding, agent: AgentId, len: usize) -> bool {
    match finding {
        // What is observed happens, too.
        Finding::Allowed | Finding::Observed(_) => has_share(agent, len, RING_SHARE),
        Finding::Refused(_) => {
            has_share(agent, len, REFUSALS_SHARE) && in_ring() < RING_FOR_REFUSALS && is_due(agent)
        }
    }
}

#[inline(always)]
fn has_share(agent: AgentId, len: usize, share: u64) -> bool {
    let (Some(told), Some(noted)) = (TOLD.get_ptr(agent.0), NOTED.get_ptr(agent.0)) else {
        return false;
    };
    // SAFETY: elements of array maps stay.
    let sent = unsafe { (&raw const (*told).sent).read_volatile() };
    // SAFETY: as above.
    let noted = unsafe { (&raw const (*noted).sent).read_volatile() };
    // What is told on another CPU may be noted before it is counted as sent: then less than nothing is in the ring.
    sent.wrapping_sub(noted).wrapping_add(taken(len)) as i64 <= share as i64
}

/// Bytes of the ring that are in use, by whomever.
#[inline(always)]
fn in_ring() -> u64 {
    let map = (&raw const EVENTS).cast_mut().cast();
    // SAFETY: the verifier knows the map as a ring.
    unsafe { bpf_ringbuf_query(map, u64::from(BPF_RB_AVAIL_DATA)) }
}

/// Whether one more refusal of the agent's is told by itself.
#[inline(always)]
fn is_due(agent: AgentId) -> bool {
    let Some(told) = TOLD.get_ptr_mut(agent.0) else {
        return false;
    };
    // SAFETY: an element of an array map stays.
    let due = unsafe { &raw mut (*told).due_ns };
    maps::is_due(due, REFUSALS_IN_A_ROW, REFUSAL_EVERY_NS)
}

#[inline(always)]
fn taken(len: usize) -> u64 {
    (len as u64 + RECORD_HEAD).next_multiple_of(8)
}

#[inline(always)]
fn sent(agent: AgentId, len: usize) {
    if let Some(told) = TOLD.get_ptr_mut(agent.0) {
        // SAFETY: an element of an array map stays.
        add(unsafe { &raw mut (*told).sent }, taken(len));
    }
}

/// For what has no event of its own. A permit becomes a refusal.
#[inline(always)]
fn by_number(kind: EventKind, finding: Finding, agent: AgentId) -> Finding {
    let finding = match finding {
        Finding::Allowed => {
            count(Counter::Refused);
            Finding::Refused(Refusal::Unrecorded)
        }
        Finding::Observed(_) | Finding::Refused(_) => finding,
    };
    let Some(told) = TOLD.get_ptr_mut(agent.0) else {
        return finding;
    };
    let slot = Told::slot(kind, matches!(finding, Finding::Observed(_)));
    // SAFETY: an element of an array map stays, and a slot is in bounds.
    unsafe {
        (&raw mut (*told).last)
            .cast::<u32>()
            .add(slot)
            .write_volatile(finding.number());
        add((&raw mut (*told).counts).cast::<u64>().add(slot), 1);
    }
    // Last: whoever sees this number grow finds what has grown it.
    count(Counter::RefusalsCounted);
    finding
}
