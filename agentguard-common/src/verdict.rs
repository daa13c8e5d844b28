//! The answers a hook can give.

/// What happens to a connection or datagram of an agent's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Straight through the kernel, as the agent asked.
    Direct,
    /// To the forwarder, with the original destination kept on the socket.
    Forward,
    /// To the forwarder's resolver.
    Resolve,
    /// As [`Self::Direct`], for an agent that is only observed, and recorded as what would have been refused.
    Observe(Refusal),
    Deny(Refusal),
}

/// What an event says of a call; a number on the wire ([`crate::abi::Event::reason`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Finding {
    Allowed,
    /// Let through, and it would have been refused were its agent not only observed.
    Observed(Refusal),
    Refused(Refusal),
}

impl Finding {
    const OBSERVED: u32 = 1 << 31;

    /// What becomes of what is refused for a reason, with an agent that is only observed or is not.
    #[inline(always)]
    pub fn of(refusal: Refusal, observed: bool) -> Self {
        if observed && refusal.is_policy() {
            Self::Observed(refusal)
        } else {
            Self::Refused(refusal)
        }
    }

    #[inline(always)]
    pub fn number(self) -> u32 {
        match self {
            Self::Allowed => 0,
            Self::Observed(refusal) => Self::OBSERVED | refusal as u32,
            Self::Refused(refusal) => refusal as u32,
        }
    }
}

impl TryFrom<u32> for Finding {
    type Error = u32;

    fn try_from(raw: u32) -> Result<Self, u32> {
        if raw == 0 {
            return Ok(Self::Allowed);
        }
        let refusal = Refusal::try_from(raw & !Self::OBSERVED).map_err(|_| raw)?;
        Ok(if raw & Self::OBSERVED == 0 {
            Self::Refused(refusal)
        } else {
            Self::Observed(refusal)
        })
    }
}

/// Why the kernel refused. The numbers are on the wire ([`crate::abi::Event::reason`]) and never reused.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// No kernel rule and no host to reach.
    NoRule = 1,
    Killed = 2,
    /// No forwarder is listening.
    ForwarderDown = 3,
    /// The forwarder's own port was addressed.
    ForwarderPort = 4,
    /// `SO_BINDTODEVICE` would lead a redirected connection elsewhere.
    BoundToDevice = 5,
    /// A socket type or protocol that no rule can allow (raw, ICMP, SCTP, MPTCP, …).
    Protocol = 6,
    /// IPv4 options or an IPv6 extension header: source routing beats a redirect.
    SourceRoute = 7,
    /// A packet whose own destination no rule allows.
    Packet = 8,
    /// An answer from a port that no `[[listen]]` lists.
    Listen = 9,
    /// A map was full or a read failed.
    Internal = 10,
    /// Another network namespace, in which no forwarder listens.
    Namespace = 11,
    /// Two `[[identify]]` blocks of different agents match the process.
    Ambiguous = 12,
    /// No exec rule allows the file.
    ExecRule = 13,
    /// A file without a name: deleted, never linked, or on a mount that only a user namespace sees.
    Fileless = 14,
    /// A Unix socket that no `[[unix]]` entry names.
    UnixSocket = 15,
    /// An address family or protocol that no hook judges.
    Family = 16,
    /// Of what holds the agent, or of a process that is not its own.
    Tamper = 17,
    /// A network socket that the agent has not made itself.
    HandedOver = 18,
    /// Typing into a terminal.
    Terminal = 19,
    /// Permitted, and there is no place for its record.
    Unrecorded = 20,
    /// More than the agent's share of a table that all agents fill.
    Share = 21,
}

impl Refusal {
    /// Whether the agent's file says so, and could say otherwise: what an agent that is only observed may do all the same. The
    /// table is [`crate::decide`]'s.
    #[inline(always)]
    pub fn is_policy(self) -> bool {
        match self {
            Self::NoRule | Self::Listen | Self::ExecRule | Self::Fileless | Self::UnixSocket => {
                true
            }
            Self::Killed
            | Self::ForwarderDown
            | Self::ForwarderPort
            | Self::BoundToDevice
            | Self::Protocol
            | Self::SourceRoute
            | Self::Packet
            | Self::Internal
            | Self::Namespace
            | Self::Ambiguous
            | Self::Family
            | Self::Tamper
            | Self::HandedOver
            | Self::Terminal
            | Self::Unrecorded
            | Self::Share => false,
        }
    }
}

impl TryFrom<u32> for Refusal {
    type Error = u32;

    fn try_from(raw: u32) -> Result<Self, u32> {
        Ok(match raw {
            1 => Self::NoRule,
            2 => Self::Killed,
            3 => Self::ForwarderDown,
            4 => Self::ForwarderPort,
            5 => Self::BoundToDevice,
            6 => Self::Protocol,
            7 => Self::SourceRoute,
            8 => Self::Packet,
            9 => Self::Listen,
            10 => Self::Internal,
            11 => Self::Namespace,
            12 => Self::Ambiguous,
            13 => Self::ExecRule,
            14 => Self::Fileless,
            15 => Self::UnixSocket,
            16 => Self::Family,
            17 => Self::Tamper,
            18 => Self::HandedOver,
            19 => Self::Terminal,
            20 => Self::Unrecorded,
            21 => Self::Share,
            other => return Err(other),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{EventKind, IdentifyHead};

    #[test]
    fn numbers_on_the_wire_come_back() {
        for raw in 0..64 {
            if let Ok(refusal) = Refusal::try_from(raw) {
                assert_eq!(refusal as u32, raw);
            }
            if let Ok(kind) = EventKind::try_from(raw) {
                assert_eq!(kind as u32, raw);
            }
        }
        assert_eq!(Refusal::try_from(0), Err(0));
        for finding in [
            Finding::Allowed,
            Finding::Observed(Refusal::Listen),
            Finding::Refused(Refusal::Listen),
        ] {
            assert_eq!(Finding::try_from(finding.number()), Ok(finding));
        }
        assert_eq!(Finding::try_from(99), Err(99));
        assert_eq!(Finding::try_from(Finding::OBSERVED), Err(Finding::OBSERVED));
        assert_eq!(EventKind::try_from(99), Err(99));
    }

    #[test]
    fn only_what_the_policy_says_is_let_through_to_be_observed() {
        let passes = (0..64)
            .filter_map(|raw| Refusal::try_from(raw).ok())
            .filter(|refusal| Finding::of(*refusal, true) == Finding::Observed(*refusal))
            .map(|refusal| refusal as u32);
        // No rule, listening, exec rules, files without a name, Unix sockets.
        assert!(passes.eq([1, 9, 13, 14, 15]));
        let refusals = (0..64).filter_map(|raw| Refusal::try_from(raw).ok());
        for refusal in refusals {
            assert_eq!(Finding::of(refusal, false), Finding::Refused(refusal));
        }
    }

    #[test]
    fn the_head_of_the_blocks_fits_one_word() {
        let head = IdentifyHead {
            bank: 1,
            len: 64,
            keys: 7,
            users: IdentifyHead::user(1000) | IdentifyHead::user(31),
        };
        assert_eq!(IdentifyHead::unpack(head.pack()), head);
        assert_eq!(IdentifyHead::unpack(0), IdentifyHead::default());
    }
}
