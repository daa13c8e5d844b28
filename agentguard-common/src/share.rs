//! The kernel's tables that agents fill: how much there is of each, how much of it one agent may have, and what goes first
//! when it has that. Nothing here is a process's that is nobody's.

use crate::abi::{AgentId, MAX_AGENTS};

/// Entries of `FLOWS`: TCP connections that have left an agent and that no listener has taken yet. An entry is an identity:
/// none goes before its connection does.
pub const FLOWS: u32 = 65_536;
/// An agent with so many connects no further until one has arrived or is closed. As many as wait at one of the forwarder's
/// listeners.
pub const FLOWS_EACH: i64 = 4096;
/// Between two connections of an agent's to the forwarder, on average, ns. One that is closed at once is no flow any more
/// and waits in the listener's queue all the same, before those of others.
pub const CONNECT_EVERY_NS: u64 = 125_000;
/// So many are made in a row: half of what waits at a listener.
pub const CONNECTS_IN_A_ROW: u64 = FLOWS_EACH as u64 / 2;

/// Entries of `ACCEPTED`: what the forwarder's listeners have taken. Their queues and the forwarder's `max_connections`, of
/// which it leaves the last places to other agents, are its bounds.
pub const ACCEPTED: u32 = 65_536;

/// Entries of `QUESTIONS`: what was asked of the resolver last.
pub const QUESTIONS: u32 = 65_536;
/// Bits of a turn there: of one agent the last 512 are known, as many as it may ask in a row.
pub const QUESTION_BITS: u32 = 9;

/// Entries of `HEARD`: who has written to agents' listening UDP sockets.
pub const HEARD: u32 = 65_536;
/// Bits of a turn there: of one agent the last 4096 are known.
pub const HEARD_BITS: u32 = 12;

/// Entries of `FORWARDERS`, the host's namespace among them.
pub const NAMESPACES: u32 = 1024;

/// Bytes of `EVENTS`, the ring in which the programs tell what they have decided.
pub const RING_LEN: u32 = 4 << 20;
/// Of these one agent's events that the daemon has not recorded yet may take so many: what one agent does keeps no other's
/// permits from being recorded.
pub const RING_SHARE: u64 = RING_LEN as u64 / 4;
/// Of an agent's share what is refused may take so much: the rest is for what is permitted.
pub const REFUSALS_SHARE: u64 = RING_SHARE / 2;
/// While events take more of the ring than this, refusals are told by their number: the rest is for permits.
pub const RING_FOR_REFUSALS: u64 = RING_LEN as u64 / 2;
/// Between two refusals of an agent's that are told one by one, on average, ns.
pub const REFUSAL_EVERY_NS: u64 = 5_000_000;
/// So many are told one by one in a row.
pub const REFUSALS_IN_A_ROW: u64 = 1000;

/// Between two questions of an agent's to the resolver, on average, ns: all agents of a namespace wait in one queue.
pub const QUESTION_EVERY_NS: u64 = 1_000_000;
/// So many are asked in a row.
pub const QUESTIONS_IN_A_ROW: u64 = 512;

/// The place that an agent's next entry takes among its own, `bits` of them: what had it before goes.
#[inline(always)]
pub const fn place(agent: AgentId, turn: u64, bits: u32) -> u32 {
    (agent.0 << bits) | (turn as u32 & ((1 << bits) - 1))
}

/// The number that a question to the resolver carries (`skb->mark`), by which the forwarder finds out who asks. Where the
/// question came from says nothing: others can have that address and port.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct QuestionMark(pub u32);

impl QuestionMark {
    /// Kubernetes' firewall drops packets by bit 15, and takes bit 14 for its own, too.
    const OTHERS: u32 = 0xc000;

    /// Nobody who may mark packets can tell it beforehand. Never 0, which is no mark.
    #[inline(always)]
    pub const fn new(random: u32) -> Self {
        match random & !Self::OTHERS {
            0 => Self(1),
            mark => Self(mark),
        }
    }
}

const _: () = {
    assert!(MAX_AGENTS == 1 << 12 && HEARD_BITS + 12 <= u32::BITS);
    // One agent has a small part of each table.
    assert!((FLOWS_EACH as u32) * 16 == FLOWS);
    assert!((1 << QUESTION_BITS) * 128 == QUESTIONS);
    assert!(1 << QUESTION_BITS == QUESTIONS_IN_A_ROW);
    assert!((1 << HEARD_BITS) * 16 == HEARD);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_one_and_leaves_the_bits_of_others_alone() {
        for random in [0, 1, 0x4000, 0x8000, 0xc000, u32::MAX] {
            let mark = QuestionMark::new(random);
            assert_ne!(mark.0, 0);
            assert_eq!(mark.0 & 0xc000, 0);
        }
        assert_ne!(QuestionMark::new(2), QuestionMark::new(3));
    }

    #[test]
    fn places_are_an_agents_own_and_come_round() {
        let of = |agent, turn| place(AgentId(agent), turn, QUESTION_BITS);
        assert_eq!(of(2, 0), of(2, 512));
        assert_ne!(of(2, 0), of(2, 511));
        assert_ne!(of(2, 511), of(3, 0));
    }
}
